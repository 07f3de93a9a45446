"""FLOPs as counted against torch's own counter, on the kernel it can count (the mathematical attention)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from forethink.flops import Flops
from forethink.packing import forward_pack, pack
from forethink.rollout.transformers_engine import TransformersEngine
from trainers import make_problems


def counted(function) -> int:
    """torch counts the operations of matrix products; its CPU flash kernel is not among them, so that one is off."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


@pytest.fixture(params=["tiny_llama", "tiny_gemma"])
def model(request):
    return copy.deepcopy(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def one_pack(smollm2_tokenizer):
    problems = make_problems(smollm2_tokenizer)
    sequences = [[*p.context_ids, *p.target_ids] for p in problems]
    (tree,) = pack(sequences, [len(p.context_ids) for p in problems])
    return tree


def sizes(tree) -> tuple[int, int, int]:
    return len(tree.ids_t), len(tree.ids_t) ** 2, len(tree.targets)


def test_forward_of_a_pack(model, one_pack) -> None:
    with torch.no_grad():
        real = counted(lambda: forward_pack(model, one_pack))
    assert Flops.of(model).forward(*sizes(one_pack)) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_and_backward_of_a_pack(model, one_pack, frozen) -> None:
    if frozen:  # as under LoRA: gradients go through every product, but not to its weights
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("q_proj" in name)
    real = counted(lambda: forward_pack(model, one_pack)[0].sum().backward())
    assert Flops.of(model).train(*sizes(one_pack)) == pytest.approx(real, rel=0.05)


def test_a_rollout(model, smollm2_tokenizer) -> None:
    prompts = [list(p.context_ids) for p in make_problems(smollm2_tokenizer, documents=2)[:3]]
    engine = TransformersEngine(model, smollm2_tokenizer, group=3, max_tokens=10, fixed_length=True)
    engine.generate(prompts, ["a", "b", "c"], 0)  # the first call compares its ways of decoding
    assert engine.share_prompts
    found: list = []
    real = counted(lambda: found.extend(engine.generate(prompts, ["a", "b", "c"], 0)))
    lengths = [[len(c.token_ids) for c in group] for group in found]
    assert Flops.of(model).decode([len(p) for p in prompts], lengths) == pytest.approx(real, rel=0.05)
