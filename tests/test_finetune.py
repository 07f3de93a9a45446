"""Fine-tuning on questions: the same trainer, the whole path by its command, and a kill in the middle."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import reference_grpo as reference
from forethink import cli
from forethink.config import load_config
from forethink.evaluate.answers import compare_questions
from forethink.models import load_model
from forethink.rollout.scripted import ScriptedEngine
from forethink.rundir import read_jsonl
from forethink.templates import load_template
from forethink.training.finetune import effective, encoder, question_hooks, start_of
from forethink.training.groups import Group
from forethink.types import ForethinkError, Outcome, Question
from forethink.verify import Verifier
from trainers import Watch

pytest.importorskip("math_verify", reason="math-verify is not installed; `make test` installs it")

G, TEMPERATURE = 4, 0.6
PAIRS = [(a, b) for a in range(3) for b in range(3)]


def sums(pairs, path: Path) -> Path:
    records = [{"question": f"{a}+{b}?", "answer": f"{a} and {b} are {a + b}.\n#### {a + b}"} for a, b in pairs]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_llama, smollm2_tokenizer) -> Path:
    """A folder with questions, and a policy that has been taught to box some digit or other."""
    folder = tmp_path_factory.mktemp("home")
    sums(PAIRS[:-3], folder / "train.jsonl")
    sums(PAIRS[-3:], folder / "apart.jsonl")
    policy = copy.deepcopy(tiny_llama)
    template, encode = load_template("question"), encoder(smollm2_tokenizer)
    rows = []
    for n, (a, b) in enumerate(PAIRS * 3):
        text = f"{a}+{b}?"
        prompt = template.render(Question("q", 0, text, "", tuple(encode(text))), smollm2_tokenizer)
        rows.append((prompt, [*encode(f"\\boxed{{{n * 7 % 5}}}"), smollm2_tokenizer.eos_token_id]))
    adam = torch.optim.Adam(policy.parameters(), 3e-3)
    for step in range(60):
        prompt, reply = rows[step % len(rows)]
        labels = torch.tensor([[-100] * len(prompt) + reply])
        adam.zero_grad()
        policy(input_ids=torch.tensor([prompt + reply]), labels=labels).loss.backward()
        adam.step()
    policy.save_pretrained(folder / "policy")
    smollm2_tokenizer.save_pretrained(folder / "policy")
    return folder


def arguments(home: Path, run: str, *more: str) -> list[str]:
    return [
        "finetune", "--run", str(home / run), "--model", str(home / "policy"), "--questions",
        str(home / "train.jsonl"), "--held-out", str(home / "apart.jsonl"), "questions.pattern=#### (.+)",
        "finetune.steps=3", "finetune.problems=4", "finetune.group=4", "finetune.max_tokens=10",
        "finetune.learning_rate=1e-3", "train.micro_batch=2", "train.save_every=1", "train.precision=fp32",
        "train.dynamic_sampling_from=none", "model.device=cpu", "model.dtype=float32", "eval.samples=4",
        "eval.bootstrap=100", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(home) -> Path:
    """A run that nobody disturbed, by its command."""
    assert cli.main(arguments(home, "whole")) == 0
    return home / "whole" / "finetune"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_the_run_tells_before_training_and_after(home, whole) -> None:
    metrics = list(read_jsonl(whole / "train" / "metrics.jsonl"))
    samples = list(read_jsonl(whole / "train" / "samples.jsonl"))
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert [line["step"] for line in samples] == [step for step in (1, 2, 3) for _ in range(16)]
    assert any(line["outcome"] == "right" for line in samples) and any(line["groups/signal"] > 0 for line in metrics)
    assert all(line["reward"] == float(line["outcome"] == "right") for line in samples)
    for line in metrics:
        own = [sample for sample in samples if sample["step"] == line["step"]]
        assert line["accuracy"] == pytest.approx(sum(s["outcome"] == "right" for s in own) / 16)
    moved = weights(whole / "train")["model.norm.weight"]
    start = load_model(str(home / "policy"), dtype="float32").model.norm.weight
    assert not torch.equal(moved, start)
    assert not (whole / "train" / "checkpoints").exists()
    before, after = (json.loads((whole / name / "questions.json").read_text()) for name in ("before", "after"))
    assert before["questions"] == after["questions"] == 3 and after["against"][0]["folder"] == str(whole / "before")
    difference = after["against"][0]["accuracy"]
    assert difference["difference"] == pytest.approx(after["accuracy"]["value"] - before["accuracy"]["value"])
    for name, result in (("before", before), ("after", after)):
        records = list(read_jsonl(whole / name / "questions.jsonl"))
        replies = list(read_jsonl(whole / name / "samples.jsonl"))
        assert len(replies) == 15 and sum(reply["sample"] == -1 for reply in replies) == 3
        sampled = [reply for reply in replies if reply["sample"] >= 0]
        assert result["accuracy"]["value"] == pytest.approx(sum(r["outcome"] == "right" for r in sampled) / 12)
        assert result["box"]["value"] == pytest.approx(sum(r["status"] == "boxed" for r in sampled) / 12)
        assert result["accuracy"]["wilson"] is None and result["greedy"]["wilson"] is not None
        assert sum(result["outcomes"].values()) == pytest.approx(1)
        assert [record["answer"] for record in records] == ["2", "3", "4"]


def test_finished_work_is_kept_and_other_settings_are_refused(home, whole, capsys) -> None:
    stamp = (whole / "train" / "samples.jsonl").stat().st_mtime_ns
    assert cli.main(arguments(home, "whole")) == 0
    assert "difference to" in capsys.readouterr().out
    assert (whole / "train" / "samples.jsonl").stat().st_mtime_ns == stamp
    assert cli.main(arguments(home, "whole", "finetune.learning_rate=2e-3")) == 2
    assert "another configuration" in capsys.readouterr().err


def test_a_killed_run_ends_in_the_same_weights(home, whole) -> None:
    run = home / "killed" / "finetune"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen([sys.executable, "-m", "forethink", *arguments(home, "killed")], env=environment)
    while child.poll() is None and not (run / "train" / "checkpoints" / "checkpoint-1" / "complete").exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (run / "train" / "model").exists()
    assert cli.main(arguments(home, "killed")) == 0
    assert json.loads((run / "train" / "run.json").read_text())["resumed"] == 1
    mine, theirs = weights(run / "train"), weights(whole / "train")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    pair = [list(read_jsonl(place / "train" / "samples.jsonl")) for place in (run, whole)]
    assert pair[0] == pair[1]


def ask(home: Path, name: str, *more: str) -> list[str]:
    return [
        "eval", "--run", str(home / "whole"), "--model", str(home / "policy"), "--questions",
        str(home / "apart.jsonl"), "questions.pattern=#### (.+)", "eval.samples=4", "eval.bootstrap=100",
        "finetune.max_tokens=10", "model.dtype=float32", "model.device=cpu", "--name", name, *more,
    ]  # fmt: skip


def test_several_starts_stand_on_the_same_questions(home, whole, capsys) -> None:
    model, before = str(whole / "train" / "model"), str(whole / "before")
    assert cli.main(ask(home, "tuned", "--checkpoint", model, "--against", before)) == 0
    tuned = json.loads((home / "whole" / "tuned" / "questions.json").read_text())
    theirs = json.loads((whole / "after" / "questions.json").read_text())
    assert tuned["accuracy"] == theirs["accuracy"] and tuned["greedy"] == theirs["greedy"]
    assert tuned["against"][0]["accuracy"] == theirs["against"][0]["accuracy"]
    assert "right, greedy" in capsys.readouterr().out
    assert cli.main(ask(home, "fewer", "eval.positions=2")) == 0
    with pytest.raises(ForethinkError, match=r"other questions than .* \(2 of 2 shared\)"):
        compare_questions(home / "whole" / "fewer", before)


def test_a_stopped_evaluation_goes_on_where_it_was(home, whole) -> None:
    assert cli.main(ask(home, "stopped")) == 0
    folder = home / "whole" / "stopped"
    result, text = (folder / "questions.json").read_text(), (folder / "samples.jsonl").read_text()
    assert len(text.splitlines()) == 15
    for kept in (7, 13):  # within the sampled ones, within the greedy ones
        state = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(state | {"status": "running"}))
        (folder / "samples.jsonl").write_text("".join(text.splitlines(True)[:kept]))
        (folder / "questions.json").unlink()
        assert cli.main(ask(home, "stopped")) == 0
        assert (folder / "questions.json").read_text() == result
        assert sorted((folder / "samples.jsonl").read_text().splitlines()) == sorted(text.splitlines())


def test_an_adapter_upon_one_of_another_rank_is_saved_whole(home) -> None:
    one = arguments(home, "one", "train.lora_rank=2", "finetune.steps=1")
    one = [argument for argument in one if argument not in ("--held-out", str(home / "apart.jsonl"))]
    assert cli.main(one) == 0
    adapter = home / "one" / "finetune" / "train" / "model"
    assert (adapter / "adapter_model.safetensors").exists() and not (home / "one" / "finetune" / "before").exists()
    two = [argument.replace(str(home / "one"), str(home / "two")) for argument in one if "lora_rank" not in argument]
    assert cli.main([*two, "train.lora_rank=4", "--start", str(adapter)]) == 0
    both = load_model(str(home / "two" / "finetune" / "train" / "model"), dtype="float32")
    first = load_model(str(home / "policy"), adapter=str(adapter), dtype="float32")
    plain = load_model(str(home / "policy"), dtype="float32")
    name = "model.layers.0.self_attn.q_proj.weight"
    moved = [dict(model.named_parameters())[name] - dict(plain.named_parameters())[name] for model in (first, both)]
    assert moved[0].norm() > 0 and (moved[1] - moved[0]).norm() < 5 * moved[0].norm() and moved[1].norm() > 0


def test_mistakes_are_one_sentence(home, capsys, tmp_path) -> None:
    base = ["--run", str(tmp_path / "r"), "--model", str(home / "policy")]
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for more, sentence in (
        ([], "no questions are named"),
        (["--questions", str(empty)], "the file is empty"),
        (["--questions", str(home / "train.jsonl"), "--answer-field", "result"], "has no field 'result'"),
        (["--questions", str(home / "train.jsonl"), "--start", str(tmp_path / "no")], "is no folder"),
        (["--questions", str(home / "train.jsonl"), "finetune.problems=100"], "but there are only 6 problems"),
    ):
        assert cli.main(["finetune", *base, *more]) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1 and error.startswith("forethink: ")


def test_where_it_starts(home, tmp_path) -> None:
    config = load_config(None, [f"run={tmp_path}"])
    assert start_of(config) is None
    (tmp_path / "train" / "model").mkdir(parents=True)
    assert start_of(config) == str(tmp_path / "train" / "model")
    named = load_config(None, [f"run={tmp_path}", f"finetune.start={home / 'policy'}"])
    assert start_of(named) == str(home / "policy")
    own = effective(load_config(None, ["train.ntp_weight=0.1", "train.clip=0.3", "rollout.batch=7"]))
    assert (own.rollout.temperature, own.train.ntp_weight, own.train.clip, own.rollout.batch) == (0.6, 0.0, 0.3, 7)


def test_loss_and_gradient_are_the_references(home, tmp_path, tiny_llama, smollm2_tokenizer) -> None:
    """The trainer of `train`: its advantages, loss and gradient on questions equal the plain reference's."""
    from forethink.training.settings import grpo_settings
    from forethink.training.train import make_trainer

    encode = encoder(smollm2_tokenizer)
    questions = [Question(f"q{n}", n, f"{n}+1?", str(n + 1), tuple(encode(f"{n}+1?"))) for n in range(3)]
    replies = {
        "q0": [rb"\boxed{1}", rb"First \boxed{1}, no \boxed{2}", b"It is 1", rb"\boxed{\frac{2}{2}}"],
        "q1": [b"no", rb"\boxed{9}", rb"\boxed{", rb"\boxed{}"],
        "q2": [rb"\boxed{3.0}", rb"\boxed{3}", rb"\boxed{4}", rb"Not \boxed{4} but \boxed{3}"],
    }
    engine = ScriptedEngine(replies, smollm2_tokenizer, group=G, max_tokens=20, stop=lambda text: False)
    config = effective(load_config(None, [
        f"run={tmp_path}", "finetune.problems=3", "finetune.steps=1", "finetune.group=4", "train.max_grad_norm=0",
        "train.precision=fp32", "train.dynamic_sampling_from=none", "model.device=cpu",
    ]))  # fmt: skip
    settings = grpo_settings(config, tmp_path, cpu=True)
    verifier = Verifier({"kind": "math"})
    hooks = question_hooks(config, smollm2_tokenizer, verifier)
    trainer = make_trainer(
        config, questions, [0, 1, 2], settings, smollm2_tokenizer, copy.deepcopy(tiny_llama), engine, hooks
    )
    watch, seen = Watch(trainer.model), list[Group]()
    trainer.add_callback(watch)
    trainer.on_groups = lambda step, groups: seen.extend(groups)
    trainer.train()
    verifier.close()
    right = [[outcome is Outcome.RIGHT for outcome in group.outcomes] for group in seen]
    assert right == [[True, False, False, True], [False] * 4, [True, True, False, True]]
    groups = [
        reference.Group(
            group.prompt, [list(one.token_ids) for one in group.completions], [float(verdict) for verdict in verdicts]
        )
        for group, verdicts in zip(seen, right, strict=True)
    ]
    plain = copy.deepcopy(tiny_llama)
    loss = reference.policy_loss(plain, groups, TEMPERATURE)
    loss.backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(watch.gradients[0][name], parameter.grad, rtol=1e-3, atol=1e-6)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
