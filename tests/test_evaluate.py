"""Evaluation: positions drawn, plain and reasoning figures, comparisons, and what a kill leaves."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from forethink.config import Config, load_config
from forethink.evaluate import compare, run_eval
from forethink.evaluate.accuracy import perplexity, plain_pass
from forethink.evaluate.tables import draw, show, splits
from forethink.models import fingerprint
from forethink.problems import write_problems
from forethink.rollout.scripted import ScriptedEngine
from forethink.templates import box_closed, load_template, write
from forethink.tokens import document_start, encode_document, token_bytes
from forethink.types import ForethinkError, Problem

ENTROPIES = (0.3, 0.7, 1.2, 1.8)
TEXTS = [
    f"Chapter {i}. The {animal} went to the {place} and saw that nothing there had changed since the spring of "
    f"19{i}7; it drank some water, looked twice over its shoulder, and then slowly walked back along the narrow path, "
    "past the mill and the two old bridges, until the light was gone and the stars stood above the village."
    for i, (animal, place) in enumerate([("fox", "river"), ("heron", "pond"), ("goat", "hill"), ("cat", "barn")])
]


def _problems(tokenizer, max_context: int = 400, step: int = 3, split: str = "validation") -> list[Problem]:
    problems = []
    for number, text in enumerate(TEXTS):
        ids, ends = encode_document(tokenizer, text)
        for count, t in enumerate(range(8, len(ids) - 4, step)):
            first = max(0, t - max_context)
            start = ends[t - 1]
            problems.append(
                Problem(
                    id=f"d{number}:{t}", document=f"d{number}", index=t, split=split,
                    context=text.encode()[ends[first - 1] if first else 0 : start], context_ids=tuple(ids[first:t]),
                    target=text.encode()[start : ends[t + 3]], target_ids=tuple(ids[t : t + 4]),
                    token_ends=tuple(end - start for end in ends[t : t + 4]), entropy=ENTROPIES[count % 4],
                    entropy_raw=1.0, entropy_full=1.0, logprob=-1.0, argmax_bytes=b" the",
                )
            )  # fmt: skip
    return problems


@pytest.fixture(scope="session")
def model_folder(tiny_llama, smollm2_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def setting(model_folder, smollm2_tokenizer, tmp_path):
    """A run with problems, and a function that makes its configuration."""
    problems = _problems(smollm2_tokenizer)
    metadata = {"fingerprint": fingerprint(smollm2_tokenizer), "proxy": "the-proxy"}
    folder = tmp_path / "run" / "problems"
    write_problems(folder / "train.parquet", [], metadata)
    write_problems(folder / "validation.parquet", problems, metadata)

    def config(**keys: object) -> Config:
        base = {
            "run": str(tmp_path / "run"), "model.name": str(model_folder), "model.dtype": "float32",
            "model.device": "cpu", "rollout.max_tokens": 8, "rollout.batch": 8, "eval.bootstrap": 200,
        }  # fmt: skip
        given = {key.replace("__", "."): value for key, value in keys.items()}
        return load_config(None, [f"{key}={json.dumps(value)}" for key, value in {**base, **given}.items()])

    return config, {problem.id: problem for problem in problems}


def _scripted(answers, tokenizer, group: int) -> ScriptedEngine:
    return ScriptedEngine(
        answers, tokenizer, group=group, max_tokens=24, stop=lambda text: box_closed(text, thought_open=False)
    )


def _positions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "positions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma"])
@pytest.mark.parametrize("max_context", [400, 21])
@pytest.mark.parametrize("bos", [[], [1]])
def test_plain_figures_equal_a_naive_pass_at_every_position(name, max_context, bos, request, smollm2_tokenizer):
    model = request.getfixturevalue(name)
    problems = sorted(_problems(smollm2_tokenizer, max_context, step=5), key=lambda p: (p.document, p.index))
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
    problems = [p for p in _problems(smollm2_tokenizer, step=1) if p.document == "d0"]
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

    folder = run_eval(own, _scripted(answer, smollm2_tokenizer, 4))
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
    engine = _scripted(lambda name, _: write(own[name]) if problems[name].entropy < 1 else b"x", smollm2_tokenizer, 1)
    folder = run_eval(config(eval__samples=1, eval__positions=20), engine)
    positions = _positions(folder)
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
    result = json.loads((run_eval(own, _scripted(lambda *_: b"x", smollm2_tokenizer, 1)) / "eval.json").read_text())
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


def test_comparison_on_a_fixed_set_by_hand(setting, smollm2_tokenizer, capsys):
    config, problems = setting
    hard = [p for p in problems.values() if p.entropy > 1.5]
    right = {p.id: write(p.next_token) for p in problems.values()}
    base = run_eval(config(eval__name="base"), _scripted(lambda *_: b"x", smollm2_tokenizer, 1))
    # Better by every hard position of documents d0 and d1, by none elsewhere.
    better = _scripted(
        lambda name, _: right[name] if problems[name].entropy > 1.5 and name < "d2" else b"x", smollm2_tokenizer, 1
    )
    own = config(eval__name="tuned", eval__against=[str(base)])
    capsys.readouterr()
    folder = run_eval(own, better)
    assert "percentage points" in capsys.readouterr().out
    (against,) = json.loads((folder / "eval.json").read_text())["against"]
    rows = {row["split"]: row for row in against["rows"] if row["kind"] == "nested"}
    sizes = [sum(p.document == f"d{i}" for p in hard) for i in range(4)]
    assert rows["hard"]["positions"] == len(hard)
    assert rows["hard"]["reasoning"]["difference"] == pytest.approx((sizes[0] + sizes[1]) / len(hard))
    # Four documents drawn of four: with probability 2^-4 > 2.5 % all come from the two that differ, or none does.
    assert rows["hard"]["reasoning"]["interval"] == [0, 1]
    assert rows["hard"]["plain"] == {**rows["hard"]["plain"], "difference": 0, "interval": [0, 0]}
    back = compare(base, folder, 200)["rows"][0]["reasoning"]
    assert back["difference"] == pytest.approx(-rows["easy"]["reasoning"]["difference"])
    show(json.loads((folder / "eval.json").read_text()))


def test_comparisons_can_be_asked_for_later_and_other_positions_are_refused(setting, smollm2_tokenizer):
    config, _ = setting
    silent = _scripted(lambda *_: b"x", smollm2_tokenizer, 1)
    first = run_eval(config(eval__name="first", eval__positions=20), silent)
    same = run_eval(config(eval__name="same", eval__positions=20), silent)
    other = run_eval(config(eval__name="other", eval__positions=21), silent)
    made = (first / "samples.jsonl").stat().st_mtime_ns
    run_eval(config(eval__name="first", eval__positions=20, eval__against=[str(same)]))
    assert len(json.loads((first / "eval.json").read_text())["against"]) == 1
    assert len(json.loads((first / "run.json").read_text())["result"]["against"]) == 1
    assert (first / "samples.jsonl").stat().st_mtime_ns == made
    with pytest.raises(ForethinkError, match=r"other positions .* \(20 of 20 shared\)"):
        compare(first, other)
    with pytest.raises(ForethinkError, match="no finished evaluation"):
        compare(first, first.parent / "problems")
    with pytest.raises(ForethinkError, match=r"eval\.positions was 20, now 30"):
        run_eval(config(eval__name="first", eval__positions=30), silent)


def test_another_base_sets_the_difficulty(setting, smollm2_tokenizer, model_folder, tiny_llama):
    config, problems = setting
    own = config(eval__base=str(model_folder), eval__thresholds=[2.6, 2.7], eval__positions=1000)
    positions = _positions(run_eval(own, _scripted(lambda *_: b"x", smollm2_tokenizer, 1)))
    ordered = sorted(problems.values(), key=lambda p: (p.document, p.index))
    figures = plain_pass(tiny_llama, ordered, document_start(smollm2_tokenizer))
    expected = {p.id: one.entropy for p, one in zip(ordered, figures, strict=True) if one.entropy > 2.6}
    assert 0 < len(expected) < len(problems)
    assert {p["problem"]: p["entropy"] for p in positions} == pytest.approx(expected)


def test_an_adapter_folder_is_evaluated_on_its_model(setting, smollm2_tokenizer, model_folder, tiny_llama, tmp_path):
    import copy

    from peft import LoraConfig, get_peft_model

    config, problems = setting
    torch.manual_seed(3)
    wrapped = get_peft_model(
        copy.deepcopy(tiny_llama), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    wrapped.peft_config["default"].base_model_name_or_path = str(model_folder)
    wrapped.save_pretrained(tmp_path / "adapter")
    own = config(eval__model=str(tmp_path / "adapter"), eval__positions=1000)
    positions = _positions(run_eval(own, _scripted(lambda *_: b"x", smollm2_tokenizer, 1)))
    ordered = sorted(problems.values(), key=lambda p: (p.document, p.index))
    expected = {
        p.id: one.logprob
        for p, one in zip(ordered, plain_pass(wrapped.merge_and_unload().eval(), ordered, []), strict=True)
    }
    before = {p.id: one.logprob for p, one in zip(ordered, plain_pass(tiny_llama, ordered, []), strict=True)}
    assert max(abs(p["logprob"] - expected[p["problem"]]) for p in positions) < 1e-3
    assert max(abs(p["logprob"] - before[p["problem"]]) for p in positions) > 1e-2


def test_temperature_is_evaluation_s_own(setting, smollm2_tokenizer, tiny_llama):
    config, problems = setting
    own = {"eval__positions": 6, "rollout__max_tokens": 6}

    def texts(folder: Path) -> list[str]:
        return [json.loads(line)["bytes"] for line in (folder / "samples.jsonl").read_text().splitlines()]

    greedy = run_eval(config(eval__name="t0", eval__temperature=0, **own))
    assert json.loads((greedy / "eval.json").read_text())["temperature"] == 0
    template, table = load_template("v0"), token_bytes(smollm2_tokenizer)
    for record in map(json.loads, (greedy / "samples.jsonl").read_text().splitlines()):
        prompt = template.render(problems[record["problem"]], smollm2_tokenizer)
        made = tiny_llama.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=record["tokens"])
        expected = b"".join(table[token] for token in made[0, len(prompt) :].tolist())
        assert base64.b64decode(record["bytes"]) == expected
    warm = run_eval(config(eval__name="t1", eval__temperature=1.3, **own))
    assert texts(warm) == texts(run_eval(config(eval__name="t2", rollout__temperature=1.3, **own)))
    assert texts(warm) != texts(run_eval(config(eval__name="t3", **own))) != texts(greedy)
    with pytest.raises(ForethinkError, match=r"eval\.temperature=0 gives 4 times the same reply; set eval\.samples=1"):
        run_eval(config(eval__name="t4", eval__temperature=0, eval__samples=4))


def test_bad_input_is_told_in_one_sentence(setting, smollm2_tokenizer, tmp_path):
    config, problems = setting
    with pytest.raises(ForethinkError, match=r"holds no problems; run `forethink problems`"):
        run_eval(config(eval__problems=str(tmp_path / "absent")))
    foreign = tmp_path / "foreign"
    write_problems(foreign / "validation.parquet", list(problems.values()), {"fingerprint": "another"})
    with pytest.raises(ForethinkError, match="made for another tokenizer"):
        run_eval(config(eval__problems=str(foreign)))
    with pytest.raises(ForethinkError, match="no such model"):
        run_eval(config(eval__model=str(tmp_path / "nowhere"), eval__name="e2"))


def test_the_training_split_is_used_and_said_where_there_is_no_other(setting, smollm2_tokenizer, capsys):
    config, problems = setting
    place = Path(config().run) / "only"
    write_problems(place / "train.parquet", list(problems.values()), {})
    own = config(eval__problems=str(place), eval__positions=5)
    folder = run_eval(own, _scripted(lambda *_: b"x", smollm2_tokenizer, 1))
    assert "evaluated on the training split" in capsys.readouterr().err
    assert json.loads((folder / "eval.json").read_text())["problems"]["split"] == "train"


KILLED = """
import os, signal, sys
from forethink.config import load_config
from forethink.evaluate import run_eval
import forethink.rollout.transformers_engine as engine

whole, calls = engine.TransformersEngine.generate, []
def generate(self, *args):
    calls.append(1)
    if len(calls) == 2:  # one chunk is written
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, *args)

engine.TransformersEngine.generate = generate
run_eval(load_config(sys.argv[1]))
"""


def test_a_killed_evaluation_goes_on_and_ends_the_same(setting):
    from forethink.recipe import config_toml

    config, _ = setting
    keys = {"eval__samples": 2, "eval__positions": 60, "rollout__batch": 32, "rollout__max_tokens": 4}
    whole = run_eval(config(eval__name="whole", **keys))
    stopped = config(eval__name="stopped", **keys)
    recipe = Path(stopped.run) / "recipe.toml"
    recipe.write_text(config_toml(stopped))
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}, check=False, capture_output=True,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    folder = Path(stopped.run) / "stopped"
    written = (folder / "samples.jsonl").read_text().splitlines()
    assert len(written) == 2 * 32
    assert not (folder / "eval.json").exists()
    with open(folder / "samples.jsonl", "a") as file:  # the kill came in the middle of a chunk and of a line
        file.write((whole / "samples.jsonl").read_text().splitlines(keepends=True)[64] + '{"step": 0, "prob')
    run_eval(stopped)
    for name in ("samples.jsonl", "positions.jsonl", "eval.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert json.loads((folder / "run.json").read_text())["resumed"] == 1


def test_only_missing_chunks_are_generated(setting, smollm2_tokenizer):
    config, _ = setting
    own = config(eval__positions=1000)
    asked: list[str] = []

    def answer(name: str, _: int) -> bytes:
        asked.append(name)
        if len(asked) == 40:
            raise KeyboardInterrupt
        return b"x"

    with pytest.raises(KeyboardInterrupt):
        run_eval(own, _scripted(answer, smollm2_tokenizer, 1))
    first = set(asked[:32])
    folder = run_eval(own, _scripted(answer, smollm2_tokenizer, 1))
    assert not first & set(asked[40:])
    assert sorted({*first, *asked[40:]}) == sorted(p["problem"] for p in _positions(folder))
    assert len(asked) - 40 == len(_positions(folder)) - 32


@pytest.mark.model
def test_the_real_model_reads_well(smollm2_folder, smollm2_tokenizer, tmp_path):
    problems = _problems(smollm2_tokenizer, step=9)
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
