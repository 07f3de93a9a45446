"""The stage of evaluation: comparisons, other models and temperatures, bad input, and what a kill leaves."""

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

from evaluating import positions_of, scripted
from forethink.evaluate import compare, run_eval
from forethink.evaluate.accuracy import plain_pass
from forethink.evaluate.tables import show
from forethink.problems import write_problems
from forethink.templates import load_template, write
from forethink.tokens import document_start, token_bytes
from forethink.types import ForethinkError


def test_comparison_on_a_fixed_set_by_hand(setting, smollm2_tokenizer, capsys):
    config, problems = setting
    hard = [p for p in problems.values() if p.entropy > 1.5]
    right = {p.id: write(p.next_token) for p in problems.values()}
    base = run_eval(config(eval__name="base"), scripted(lambda *_: b"x", smollm2_tokenizer, 1))
    # Better by every hard position of documents d0 and d1, by none elsewhere.
    better = scripted(
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
    silent = scripted(lambda *_: b"x", smollm2_tokenizer, 1)
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
    positions = positions_of(run_eval(own, scripted(lambda *_: b"x", smollm2_tokenizer, 1)))
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
    positions = positions_of(run_eval(own, scripted(lambda *_: b"x", smollm2_tokenizer, 1)))
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
    folder = run_eval(own, scripted(lambda *_: b"x", smollm2_tokenizer, 1))
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
        run_eval(own, scripted(answer, smollm2_tokenizer, 1))
    first = set(asked[:32])
    folder = run_eval(own, scripted(answer, smollm2_tokenizer, 1))
    assert not first & set(asked[40:])
    assert sorted({*first, *asked[40:]}) == sorted(p["problem"] for p in positions_of(folder))
    assert len(asked) - 40 == len(positions_of(folder)) - 32
