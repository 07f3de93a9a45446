"""The prefix tree gives what separate sequences give: values, gradients, windows."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethink import head, tree_attention
from forethink.packing import check_packing, forward_pack, pack, sequence_logprobs
from forethink.training.forward import PAYS_FROM, Packer, batched, compiles, install, packed


def _batch() -> tuple[list[list[int]], list[int]]:
    generator = torch.Generator().manual_seed(1)
    document = torch.randint(5, 4000, (40,), generator=generator).tolist()
    sequences, starts = [], []
    for cut in (17, 30, 40):  # three positions of one document
        prompt = [1, 2, *document[:cut], 3, 4]
        for length in (3, 9, 9):
            sequences.append(prompt + torch.randint(5, 4000, (length,), generator=generator).tolist())
            starts.append(len(prompt))
    sequences.append([7, 8, 9, 10])  # and one that shares nothing
    starts.append(1)
    return sequences, starts


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "tiled"])
def test_values_and_gradients_equal_the_plain_path(name, attention, request, monkeypatch):
    monkeypatch.setattr(tree_attention, "TILE", 8)  # several tiles a prompt, several completions a tile
    tiled = attention == "tiled"
    model = copy.deepcopy(request.getfixturevalue(name))
    model.set_attn_implementation("sdpa" if tiled else attention)
    sequences, starts = _batch()
    gradients = []
    for share in (True, False):
        model.zero_grad()
        total = torch.zeros(())
        options = {"temperature": 0.8, "share": share, "tiled": tiled and share}
        for number, logprobs, _ in sequence_logprobs(model, sequences, starts, **options):
            total = total + (logprobs * (number + 1)).sum()
        total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    packed, plain = gradients
    assert torch.linalg.vector_norm(packed - plain) <= 1e-5 * torch.linalg.vector_norm(plain)
    assert check_packing(model, sequences, starts, 1e-4, tiled) is None
    assert model.config._attn_implementation == ("sdpa" if tiled else attention)


def test_the_tree_pays_for_a_prefix_once():
    prompt = list(range(10, 60))
    sequences = [[*prompt, 100 + i, 200 + i] for i in range(8)]
    (one,) = pack(sequences, [50] * 8)
    assert len(one.ids_t) == 50 + 8 * 2
    assert one.unpacked == 8 * 52


def test_a_full_tree_is_closed_and_nothing_is_lost():
    sequences, starts = _batch()
    packs = pack(sequences, starts, max_tokens=60)
    assert len(packs) > 1
    assert sorted(m for one in packs for m in one.members) == list(range(len(sequences)))


def test_pairs_that_are_free_join_what_shares_nothing(tiny_llama):
    sequences = [[i] * 9 for i in range(1, 5)]
    assert len(pack(sequences, [1] * 4)) == 4
    (joined,) = pack(sequences, [1] * 4, free_pairs=2 * 27 * 9)  # the fourth meets the three before it, both ways
    assert len(pack(sequences, [1] * 4, free_pairs=2 * 27 * 9 - 1)) == 2
    alone = torch.cat([forward_pack(tiny_llama, one)[0] for one in pack(sequences, [1] * 4)])
    assert torch.allclose(forward_pack(tiny_llama, joined)[0], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma"])
def test_a_padded_batch_is_its_sequences_alone(name, request):
    model, (sequences, starts) = request.getfixturevalue(name), _batch()
    packs = batched(sequences, starts, 2 * max(map(len, sequences)))
    assert 1 < len(packs) < len(sequences) and all(one.rows is not None for one in packs)
    assert sum(one.pairs for one in packs) == sum(len(one) ** 2 for one in sequences)
    assert sum(one.unpacked for one in packs) == sum(map(len, sequences))
    expected = {number: row for number, row, _ in sequence_logprobs(model, sequences, starts, share=False)}
    model = copy.deepcopy(model)
    install(model)
    packer = Packer(model, 2 * max(map(len, sequences)))
    packer.rows = True
    assert [one.members for one in packer(sequences, starts)] == [one.members for one in packs]
    for number, row in enumerate(packed(model, packs, len(sequences))[0]):
        assert torch.allclose(row, expected[number], atol=1e-5)


def test_a_model_whose_attention_ignores_the_mask_is_found_out(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    body = model.model.forward

    def deaf(*args, attention_mask=None, **kwargs):
        return body(*args, attention_mask=None, **kwargs)

    model.model.forward = deaf
    sequences, starts = _batch()
    assert "differ" in (check_packing(model, sequences, starts, 1e-4) or "")
    assert check_packing(model, sequences, starts, 1e-4, tiled=True) is None  # it never sees the mask


def test_a_model_whose_attention_cannot_be_chosen_gets_the_mask(tiny_llama, monkeypatch):
    sequences, starts = _batch()
    for tiled in (True, False):
        packer = Packer(tiny_llama)
        packs = packer(sequences, starts)
        assert packer.share and packer.reason is None
        assert [one.plan is not None for one in packs] == [tiled] * len(packs)
        for kind in (type(tiny_llama), type(tiny_llama.model)):
            monkeypatch.setattr(kind, "_can_set_attn_implementation_cached_value", False, raising=False)


def test_pairs_that_do_not_see_each_other_are_hardly_multiplied():
    prompt = list(range(10, 266))
    sequences = [[*prompt, *range(1000 * i, 1000 * i + 64)] for i in range(1, 9)]
    (one,) = pack(sequences, [256] * 8, tiled=True)
    seen = int(one.visible.sum())
    assert seen < one.pairs < 1.25 * seen < len(one.ids_t) ** 2 / 2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=10),
    st.integers(1, 9),
    st.sampled_from([None, 1, 3]),
)
def test_tiles_see_what_the_mask_shows(sequences, tile, window):
    for one in pack(sequences, [1] * len(sequences), 40, tiled=True):
        visible = one.visible
        if window is not None:
            visible = visible & (one.positions_t[:, None] - one.positions_t < window)
        plan = tree_attention.plan(one.plan.ends.tolist(), one.positions_t.tolist(), tile)
        found = torch.zeros_like(visible)
        queries = []
        for cut in plan.cuts(window):
            queries += range(cut.first, cut.past)
            assert cut.past - cut.first <= tile and len(set(cut.keys.tolist())) == len(cut.keys)
            shown = torch.ones(cut.past - cut.first, len(cut.keys)) if cut.mask is None else cut.mask == 0
            found[cut.first : cut.past, cut.keys] = shown.bool()
        assert sorted(queries) == list(range(len(one.ids_t)))
        assert torch.equal(found, visible)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_tensors_have_the_exact_gradient(dtype, cap):
    (one,) = pack(*_batch(), max_tokens=200, tiled=True)
    cuts = tree_attention.plan(one.plan.ends.tolist(), one.positions_t.tolist(), 8).cuts(None)
    generator = torch.Generator().manual_seed(3)
    shapes = (2, 3, len(one.ids_t), 16), (2, len(one.ids_t), 16), (2, len(one.ids_t), 16)
    inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    upstream = torch.randn(shapes[0], generator=generator).to(dtype)
    out = tree_attention._TreeAttention.apply(*inputs, cuts, 0.2, cap)
    found = torch.autograd.grad(out, inputs, upstream)

    query, key, value = (x.detach().double().requires_grad_() for x in inputs)
    scores = query @ key[:, None].transpose(-1, -2) * 0.2
    scores = scores if cap is None else torch.tanh(scores / cap) * cap
    weights = scores.masked_fill(~one.visible, -torch.inf).softmax(-1)
    exact = torch.autograd.grad(weights @ value[:, None], (query, key, value), upstream.double())
    for ours, theirs in zip(found, exact, strict=True):
        error = torch.linalg.vector_norm(ours.double() - theirs) / torch.linalg.vector_norm(theirs)
        assert error < (1e-6 if dtype == torch.float32 else 6e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"final_logit_softcapping": 5.0}, {"logit_scale": 0.3}, {"logits_scaling": 4.0}]
)
def test_the_chunked_head_has_autograd_s_own_gradient(tiny_llama, changes, monkeypatch):
    monkeypatch.setattr(head, "HEAD_CHUNK", 3)
    monkeypatch.setattr(head, "CPU_ROWS", 2)  # a chunk has a whole block and the rest of one
    model = copy.deepcopy(tiny_llama)
    for key, value in changes.items():
        setattr(model.config, key, value)
    hidden = torch.randn(8, 48, requires_grad=True)
    targets = torch.randint(0, 4000, (8,))
    upstream = torch.randn(8)

    logits = model.lm_head(hidden) * changes.get("logit_scale", 1.0) / changes.get("logits_scaling", 1.0)
    cap = changes.get("final_logit_softcapping")
    logits = (logits if cap is None else torch.tanh(logits / cap) * cap) / 0.8
    plain = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    expected = torch.autograd.grad(plain @ upstream, [hidden, model.lm_head.weight])
    logprobs, entropies = head.head_logprobs(model, hidden, targets, 0.8)
    found = torch.autograd.grad(logprobs @ upstream, [hidden, model.lm_head.weight])

    torch.testing.assert_close(logprobs, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies, torch.distributions.Categorical(logits=logits).entropy())
    for ours, autograd in zip(found, expected, strict=True):
        assert torch.linalg.vector_norm(ours - autograd) <= 1e-5 * torch.linalg.vector_norm(autograd)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=8), min_size=1, max_size=8), st.integers(4, 40))
def test_every_token_sees_its_own_ancestors_and_no_other(sequences, max_tokens):
    for one in pack(sequences, [1] * len(sequences), max_tokens):
        for member, (begin, end) in zip(one.members, one.spans, strict=True):
            sequence = sequences[member]
            assert one.targets[begin:end].tolist() == sequence[1:]
            for offset, source in enumerate(one.sources[begin:end].tolist()):
                seen = one.visible[source].nonzero()[:, 0]
                order = one.positions_t[seen].argsort()
                assert one.ids_t[seen[order]].tolist() == sequence[: offset + 1]


def test_without_a_compiler_the_layers_stay_as_they_are(tiny_llama, tmp_path) -> None:
    model = copy.deepcopy(tiny_llama)
    sequences, starts = _batch()
    packs = pack(sequences, starts, tiled=True)
    install(model, compiled=True)
    torch._dynamo.reset()  # what another test compiled
    none = torch._inductor.config.patch({"cpp.cxx": (str(tmp_path / "no-such-compiler"),)})
    warned = pytest.warns(UserWarning, match="no-such-compiler.*model.compile=false")
    with none, torch._inductor.utils.fresh_cache(), warned:
        found, _ = packed(model, packs, len(sequences))
    torch._dynamo.reset()
    plain = copy.deepcopy(tiny_llama)
    install(plain)
    expected, _ = packed(plain, packs, len(sequences))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    assert found[0].requires_grad


def test_layers_are_compiled_where_that_pays() -> None:
    large, small = torch.nn.Linear(4096, 4096), torch.nn.Linear(64, 64)
    assert compiles("auto", large, PAYS_FROM) and not compiles("auto", large, PAYS_FROM - 1)
    assert not compiles("auto", small, 1000)
    assert not compiles("auto", large.to("meta"), 1000)  # no CPU
    assert compiles(True, small, 1) and not compiles(False, large, 1000)


def test_layers_that_run_again_in_the_backward_pass_are_not_compiled(tiny_llama) -> None:
    sequences, starts = _batch()
    packs = pack(sequences, starts, tiled=True)
    gradients, graphs = [], torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for again in (True, False):
        model = copy.deepcopy(tiny_llama).train()
        if again:
            model.activation_checkpointing_enable()
        install(model, compiled=again)
        logprobs, _ = packed(model, packs, len(sequences))
        torch.cat(logprobs).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
