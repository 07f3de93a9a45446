"""Evaluation: positions drawn, plain and reasoning figures, shares on a fixed set by hand."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch

from evaluating import ENTROPIES, make_problems, positions_of, scripted
from forethink.config import load_config
from forethink.evaluate import run_eval
from forethink.evaluate.accuracy import perplexity, plain_pass
from forethink.evaluate.tables import draw, splits
from forethink.models import fingerprint
from forethink.problems import write_problems
from forethink.templates import write
from forethink.tokens import encode_document, token_bytes
from forethink.types import ForethinkError, Problem


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma"])
@pytest.mark.parametrize("max_context", [400, 21])
@pytest.mark.parametrize("bos", [[], [1]])
def test_plain_figures_equal_a_naive_pass_at_every_position(name, max_context, bos, request, smollm2_tokenizer):
    model = request.getfixturevalue(name)
    problems = sorted(make_problems(smollm2_tokenizer, max_context, step=5), key=lambda p: (p.document, p.index))
    found = plain_pass(model, problems, bos, top_k=16)
    scored: dict[tuple[str, int], float] = {}
    for problem, one in zip(problems, found, strict=True):
        ids = torch.tensor([[*bos, *problem.context_ids]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        assert one.argmax == int(logprobs[-1].argmax())
        assert one.logprob == pytest.approx(float(logprobs[-1, problem.target_ids[0]]), abs=1e-4)
        likeliest = logprobs[-1].exp().topk(5)
        assert [token for token, _ in one.top] == likeliest.indices.tolist() and one.top[0][0] == one.argmax
        assert [share for _, share in one.top] == pytest.approx(likeliest.values.tolist(), abs=1e-5)
        top = logprobs[-1].topk(16).values.softmax(-1)
        assert one.entropy == pytest.approx(float(-(top * top.log()).sum()), abs=1e-4)
        assert one.entropy_full == pytest.approx(float(-(logprobs[-1].exp() * logprobs[-1]).sum()), abs=1e-4)
        first = problem.index - len(problem.context_ids)
        for at in range(1, ids.shape[1]):  # every context token once, in the first context that reaches it
            key = (problem.document, first + at - len(bos))
            scored.setdefault(key, float(logprobs[at - 1, ids[0, at]]))
    value, tokens = perplexity(found)
    assert tokens == len(scored)
    assert value == pytest.approx(float(torch.tensor(list(scored.values())).mean().neg().exp()), rel=1e-4)


def test_a_document_is_paid_for_once(tiny_llama, smollm2_tokenizer, monkeypatch):
    from forethink.evaluate import accuracy

    run: list[int] = []
    body = accuracy.body_states
    monkeypatch.setattr(accuracy, "body_states", lambda model, one: (run.append(len(one.ids_t)), body(model, one))[1])
    problems = [p for p in make_problems(smollm2_tokenizer, step=1) if p.document == "d0"]
    plain_pass(tiny_llama, problems, [])
    assert len(problems) > 50
    assert sum(run) <= len(problems[-1].context_ids) + 1 + 8


def test_shares_on_a_fixed_set_by_hand(setting, smollm2_tokenizer, capsys):
    config, problems = setting
    own = config(eval__samples=4, eval__positions=1000)
    inside = {name: p for name, p in problems.items() if p.entropy > 0.5}

    def answer(name: str, sample: int) -> bytes:
        """easy: 4 right; medium: 2 of 4; hard: none, and only half of them boxed."""
        problem = problems[name]
        right = write(problem.target[: problem.token_ends[sample % 2]])
        if problem.entropy < 1.0:
            return b"So: " + right
        if problem.entropy < 1.5:
            return right if sample < 2 else (write(b" " + problem.next_token + b" ") if sample == 2 else b"\\boxed{")
        return write(b"#wrong#") if sample < 2 else b"no box here"

    folder = run_eval(own, scripted(answer, smollm2_tokenizer, 4))
    result = json.loads((folder / "eval.json").read_text())
    rows = {(row["kind"], row["split"]): row for row in result["rows"]}
    counts = [sum(p.entropy == e for p in inside.values()) for e in ENTROPIES]
    assert counts[0] == 0
    _, n1, n2, n3 = counts
    total = n1 + n2 + n3
    easy, medium, hard = (rows["nested", name] for name in ("easy", "medium", "hard"))
    assert [row["positions"] for row in (easy, medium, hard)] == [total, n2 + n3, n3]
    assert easy["reasoning"]["value"] == pytest.approx((n1 + n2 / 2) / total)
    assert medium["reasoning"]["value"] == pytest.approx(n2 / 2 / (n2 + n3))
    assert hard["reasoning"]["value"] == 0
    assert rows["disjoint", "0.5–1.0"]["reasoning"]["value"] == 1
    band = rows["disjoint", "1.0–1.5"]
    assert band["positions"] == n2
    assert band["signal"] == 1
    assert band["right_if_stripped"] == n2
    assert band["outcomes"] == {"right": 0.5, "wrong": 0.25, "missing": 0.25, "cut_off": 0}
    # Two of four right: pass@2 = 1 − C(2,2)/C(4,2) = 5/6, pass@4 = 1.
    assert [band["pass_at"][k]["value"] for k in ("1", "2", "4")] == pytest.approx([0.5, 5 / 6, 1.0])
    assert band["box"]["value"] == 0.75
    assert easy["box"]["value"] == pytest.approx((n1 + 0.75 * n2 + 0.5 * n3) / total)
    assert hard["all_wrong"] == 1
    assert easy["all_right"] == pytest.approx(n1 / total)
    assert easy["signal"] == pytest.approx(n2 / total)
    assert easy["reasoning"]["wilson"] is None  # four samples of one position are not four positions
    assert easy["plain"]["wilson"][0] <= easy["plain"]["value"] <= easy["plain"]["wilson"][1]
    assert easy["reasoning"]["bootstrap"][0] <= easy["reasoning"]["value"] <= easy["reasoning"]["bootstrap"][1]
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * total
    assert hard["completion_tokens"] == pytest.approx(
        sum(line["tokens"] for line in lines if problems[line["problem"]].entropy > 1.5) / (4 * n3)
    )
    printed = capsys.readouterr().out
    assert "hard (> 1.5)" in printed
    assert "0.5–1.0" in printed


def test_agreement_is_with_the_model_s_own_argmax(setting, smollm2_tokenizer, tiny_llama):
    config, problems = setting
    table = token_bytes(smollm2_tokenizer)
    ordered = sorted(problems.values(), key=lambda p: (p.document, p.index))
    own = {p.id: table[one.argmax] for p, one in zip(ordered, plain_pass(tiny_llama, ordered, []), strict=True)}
    engine = scripted(lambda name, _: write(own[name]) if problems[name].entropy < 1 else b"x", smollm2_tokenizer, 1)
    folder = run_eval(config(eval__samples=1, eval__positions=20), engine)
    positions = positions_of(folder)
    assert len(positions) == 20
    for position in positions:
        assert base64.b64decode(position["argmax"]) == own[position["problem"]]
        assert position["agree"] == position["boxed"] == (position["entropy"] < 1)
        assert position["plain"] == (own[position["problem"]] == problems[position["problem"]].next_token)
    easy = json.loads((folder / "eval.json").read_text())["rows"][0]
    assert easy["agree"]["value"] == sum(p["agree"] for p in positions) / 20
    assert easy["agree"]["wilson"][0] < easy["agree"]["value"] < easy["agree"]["wilson"][1]


def test_positions_no_box_can_hold_are_counted(setting, smollm2_tokenizer):
    config, problems = setting
    ids, ends = encode_document(smollm2_tokenizer, "Count these: one, two, three and then the sign \U00013080 again.")
    text = "Count these: one, two, three and then the sign \U00013080 again.".encode()
    at = next(t for t in range(8, len(ids)) if text[ends[t] - 1] > 127)  # a token that ends inside the character
    odd = Problem(
        "odd:9", "odd", at, "validation", text[: ends[at - 1]], tuple(ids[:at]), text[ends[at - 1] :],
        tuple(ids[at:]), tuple(end - ends[at - 1] for end in ends[at:]), 2.0, 1.0, 1.0, -1.0, b"x",
    )  # fmt: skip
    place = Path(config().run) / "odd"
    write_problems(place / "validation.parquet", [odd, *problems.values()], {})
    own = config(eval__problems=str(place), eval__positions=1000)
    result = json.loads((run_eval(own, scripted(lambda *_: b"x", smollm2_tokenizer, 1)) / "eval.json").read_text())
    assert result["inexpressible"] == {"ends inside a character": 1}
    assert result["rows"][2]["inexpressible"] == pytest.approx(1 / result["rows"][2]["positions"])


def test_the_draw_depends_on_seed_and_ids_alone():
    entropies = {f"d{i % 50}:{i}": 0.1 + (i * 37 % 100) / 50 for i in range(2000)}
    config = load_config(None, ["eval.positions=100"])
    drawn = draw(entropies, config)
    assert len(drawn) == 100
    assert draw(dict(sorted(entropies.items(), reverse=True)), config).keys() == drawn.keys()
    assert draw(entropies, load_config(None, ["eval.positions=100", "seed=1"])).keys() != drawn.keys()
    fewer = draw({name: entropies[name] for name in list(entropies)[::2]}, config)
    assert {name for name in drawn if name in list(entropies)[::2]} <= fewer.keys()
    for name, (own, band) in drawn.items():
        value = entropies[name]
        assert own == [s.name for s in splits((0.5, 1.0, 1.5)) if s.kind == "nested" and value > s.above]
        assert band == ("0.5–1.0" if value <= 1 else "1.0–1.5" if value <= 1.5 else "> 1.5")


def test_per_split_gives_every_split_its_number():
    entropies = {f"d{i % 50}:{i}": 2.0 * (i % 100) / 100 for i in range(4000)}
    drawn = draw(entropies, load_config(None, ["eval.positions=300", "eval.per_split=true"]))
    for name, above in (("easy", 0.5), ("medium", 1.0), ("hard", 1.5)):
        inside = [problem for problem, (own, _) in drawn.items() if name in own]
        assert len(inside) == 300
        assert all(entropies[problem] > above for problem in inside)
    # The easy split is a fair sample: about a third of its range lies above 1.5, not all of what was drawn there.
    share = sum(entropies[p] > 1.5 for p, (own, _) in drawn.items() if "easy" in own) / 300
    assert 0.25 < share < 0.42
    with pytest.raises(ForethinkError, match=r"lower eval\.thresholds"):
        draw({"a:1": 0.2, "b:2": float("nan")}, load_config())
    with pytest.raises(ForethinkError, match="ascending"):
        draw(entropies, load_config(None, ["eval.thresholds=[1.0, 0.5]"]))


@pytest.mark.model
def test_the_real_model_reads_well(smollm2_folder, smollm2_tokenizer, tmp_path):
    problems = make_problems(smollm2_tokenizer, step=9)
    folder = tmp_path / "problems"
    write_problems(folder / "validation.parquet", problems, {"fingerprint": fingerprint(smollm2_tokenizer)})
    config = load_config(
        None,
        [
            f"run={tmp_path}",
            f"model.name={smollm2_folder}",
            "rollout.max_tokens=8",
            "eval.thresholds=[0.1, 1.0, 1.5]",
            "eval.positions=12",
        ],
    )
    result = json.loads((run_eval(config) / "eval.json").read_text())
    assert result["rows"][0]["plain"]["value"] >= 0.25  # a random model has none right
    assert result["perplexity"] < 60
