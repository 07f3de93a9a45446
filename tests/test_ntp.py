"""The plain baseline: what it learns, that it ends at its budget, and that a killed run ends in the same weights."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forethink import cli, stages
from forethink.config import Config
from forethink.evaluated import read_points
from forethink.models import fingerprint, load_model
from forethink.records import read_problems, write_problems, write_scored
from forethink.rundir import RunDir, read_jsonl
from forethink.training.ntp import learning_rate_share, run_ntp
from forethink.training.supervised import Example
from forethink.training.windows import Steps, cut_step, cut_windows, micro_batches
from forethink.types import ForethinkError
from trainers import configure, ntp_in_child, prepare, scored

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["trainers", "forethink.training.ntp"])
DOCUMENTS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_llama, smollm2_tokenizer) -> Path:
    """A run with problems of six documents, all its scores and one document more, and the policy beside it."""
    run = tmp_path_factory.mktemp("home") / "run"
    prepare(run, tiny_llama, smollm2_tokenizer, documents=DOCUMENTS)
    documents = [scored(smollm2_tokenizer, number) for number in range(DOCUMENTS + 1)]
    write_scored(run / "score" / "0.parquet", documents, {"fingerprint": fingerprint(smollm2_tokenizer)})
    return run


def settings(run: Path, *overrides: str) -> Config:
    """Steps of 48 tokens in windows of 20: several windows a step, several pieces a document."""
    return configure(
        run, f"model.name={run.parent / 'policy'}", "ntp.precision=fp32", "ntp.batch=48", "ntp.window=20",
        "ntp.learning_rate=1e-3", "ntp.save_every=3", *overrides,
    )  # fmt: skip


def start(config: Config) -> multiprocessing.Process:
    child = CHILDREN.Process(target=ntp_in_child, args=(config,))
    child.start()
    return child


def result(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["result"]


@pytest.mark.parametrize("bos", [[], [7]])
@pytest.mark.parametrize("length", [1, 2, 19, 20, 21, 39, 40, 58, 101])
def test_windows_learn_every_token_once(bos: list[int], length: int) -> None:
    ids = list(range(100, 100 + length))
    windows = list(cut_windows(ids, bos, 20))
    assert [token for w in windows for token in w.ids[w.start :]] == (ids if bos else ids[1:])
    assert all(2 <= len(w.ids) <= 20 for w in windows)
    whole = [*bos, *ids]
    assert all(list(w.ids) == whole[whole.index(w.ids[0]) :][: len(w.ids)] for w in windows)


def test_steps_follow_from_seed_and_number_and_every_pass_has_every_window() -> None:
    windows = [Example(tuple(range(i, i + 2 + i % 5)), 1) for i in range(11)]
    steps = Steps(windows, 12, seed=3)
    late = steps[40]
    stream = [example for number in range(41) for example in steps[number]]
    assert stream[-len(late) :] == late == Steps(windows, 12, seed=3)[40]
    for first in (0, 11, 22):
        assert sorted(stream[first : first + 11], key=lambda e: e.ids) == windows
    assert stream[:11] != stream[11:22] and Steps(windows, 12, seed=4)[0] != steps[0]
    sizes = [sum(len(e.ids) for e in steps[number]) for number in range(41)]
    assert max(sizes) <= 12 and all(size + 6 > 12 for size in sizes)
    assert steps.passes(41) == len(stream) / 11
    assert [len(e.ids) for e in Steps([Example(tuple(range(30)), 1)], 12, 0)[0]] == [30]  # longer than a step


def test_a_step_is_cut_to_what_it_may_cost() -> None:
    step = [Example(tuple(range(10)), 1), Example(tuple(range(20, 30)), 1)]
    square = lambda n: n * n  # noqa: E731
    assert cut_step(step, 200, square) == step
    cut = cut_step(step, 150, square)
    assert cut == [step[0], Example(tuple(range(20, 27)), 1)]  # 100 + 49, where 8 tokens would be 164
    assert cut_step(step, 101, square) == step[:1]  # one token teaches nothing
    assert cut_step(step, 3, square) == []
    assert [len(part) for part in micro_batches([*step, *step], 20)] == [2, 2]
    assert [len(part) for part in micro_batches(step, 5)] == [1, 1]


def test_the_learning_rate_follows_the_budget() -> None:
    for schedule, half in (("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)):
        assert learning_rate_share(schedule, 0.0) == pytest.approx(0.1)
        assert learning_rate_share(schedule, 0.5) == pytest.approx(half)
    assert learning_rate_share("linear", 1.0) == learning_rate_share("cosine", 1.2) == 0.0
    assert learning_rate_share("constant", 1.2) == 1.0


@pytest.fixture(scope="module")
def whole(home: Path) -> tuple[Path, float]:
    """A run that nobody disturbed, with four models kept, and how many seconds it took."""
    began = time.monotonic()
    child = start(settings(home, "ntp.name=whole", "ntp.amount=3e10", "ntp.keep=4"))
    child.join()
    assert child.exitcode == 0
    return home / "whole", time.monotonic() - began


def test_a_run_ends_at_its_flops_and_tells_what_it_did(home: Path, whole, tiny_llama) -> None:
    folder, _ = whole
    found = result(folder)
    assert 0.98 <= found["flops"] / 3e10 <= 1.0 and found["share"] == found["flops"] / 3e10
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, found["steps"] + 1)) and found["steps"] > 10
    for name in ("flops", "tokens", "seconds"):
        assert [line[name] for line in lines] == sorted(line[name] for line in lines)
        assert lines[-1][name] == pytest.approx(found[name], rel=0.2 if name == "seconds" else 0)
    each = [b["tokens"] - a["tokens"] for a, b in itertools.pairwise(lines)]
    assert max(each) <= 48 and min(each) >= 12  # no sliver at the end
    rates = [line["learning_rate"] for line in lines]
    assert rates[0] == pytest.approx(1e-4) and max(rates) > 9e-4 and rates[-1] < 1.5e-4
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert found["passes"] == pytest.approx(found["tokens"] / sum_tokens(home), rel=0.1)
    assert not (folder / "checkpoints").exists()
    moved = load_file(folder / "model" / "model.safetensors")["model.norm.weight"]
    assert not torch.equal(moved, tiny_llama.model.norm.weight)
    assert torch.equal(load_model(str(folder / "model"), dtype="float32").model.norm.weight, moved)


def sum_tokens(home: Path) -> int:
    """Tokens of all windows of the training documents, by the definition."""
    from forethink.records import read_scored

    wanted = {problem.document for problem in read_problems(home / "problems")}
    documents = [d for d in read_scored(home / "score") if d.id in wanted]
    assert len(documents) == DOCUMENTS
    return sum(len(w.ids) for d in documents for w in cut_windows(d.token_ids, [], 20))


def test_kept_models_stand_at_equal_shares_and_can_be_evaluated_and_fitted(home: Path, whole) -> None:
    folder, _ = whole
    lines = {line["step"]: line for line in read_jsonl(folder / "metrics.jsonl")}
    kept = sorted(int(path.name.rsplit("-", 1)[1]) for path in folder.glob("checkpoint-*"))
    shares = [lines[step]["flops"] / 3e10 for step in kept]
    assert len(kept) == 3
    for share, wanted in zip(shares, (0.25, 0.5, 0.75), strict=True):
        assert wanted <= share < wanted + 0.1
    metadata = {"policy": "policy", "fingerprint": fingerprint_of(home), "proxy": str(home.parent / "policy")}
    write_problems(home / "problems" / "validation.parquet", read_problems(home / "problems")[:6], metadata)
    for number, step in enumerate([*kept, None]):
        model = folder / ("model" if step is None else f"checkpoint-{step}")
        stages.eval(
            settings(home, f"eval.model={model}", f"eval.name=point{number}", "rollout.max_tokens=2",
                     "eval.positions=4", "eval.bootstrap=100")
        )  # fmt: skip
    points, left_out = read_points([home], "point*")
    assert not left_out and [point.step for point in points] == [*kept, max(lines)]
    assert {point.stage for point in points} == {"ntp"}
    assert points[0].spent["flops"] == lines[kept[0]]["flops"]
    assert points[-1].spent["tokens"] == lines[max(lines)]["tokens"]


def fingerprint_of(home: Path) -> str:
    from forethink.records import problems_metadata

    return problems_metadata(home / "problems")["fingerprint"]


def test_a_run_killed_three_times_ends_in_the_same_weights(home: Path, whole) -> None:
    config = settings(home, "ntp.name=killed", "ntp.amount=3e10", "ntp.keep=4")
    folder, resumed = home / "killed", 0
    for wait in (1, 4, 9):  # steps seen before the kill: before the first checkpoint, then after two of them
        child = start(config)
        while child.is_alive() and sum(1 for _ in read_jsonl(folder / "metrics.jsonl")) < wait:
            time.sleep(0.002)
        assert child.is_alive()
        resumed += 1
        child.kill()
        child.join()
    assert any(folder.glob("checkpoints/checkpoint-*"))
    child = start(config)
    child.join()
    assert child.exitcode == 0 and json.loads((folder / "run.json").read_text())["resumed"] == resumed
    for part in ("model", *(path.name for path in whole[0].glob("checkpoint-*"))):
        mine, theirs = (load_file(place / part / "model.safetensors") for place in (folder, whole[0]))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    pair = [list(read_jsonl(place / "metrics.jsonl")) for place in (folder, whole[0])]
    for lines in pair:
        for line in lines:
            del line["seconds"]
    assert pair[0] == pair[1]


def test_budgets_of_finished_stages_are_added_and_matched(home: Path) -> None:
    for name, record in (
        ("first", {"flops/rollout": 4e9, "flops/update": 3e9, "tokens/generated": 300, "tokens/update": 200}),
        ("second", {"flops": 2e9, "tokens": 450, "seconds": 3.0}),
    ):
        RunDir(home / name, name, settings(home), ("train",)).finish(record)
    both = json.dumps([str(home / "first"), str(home / "second")])
    folder = run_ntp(settings(home, "ntp.name=flops", f"ntp.budget_from={both}"))
    assert 0.98 <= result(folder)["flops"] / 9e9 <= 1.0 and result(folder)["amount"] == 9e9
    folder = run_ntp(settings(home, "ntp.name=tokens", f"ntp.budget_from={both}", "ntp.budget=tokens"))
    assert 0.98 <= result(folder)["tokens"] / 950 <= 1.0
    config = settings(home, "ntp.name=one", f"ntp.budget_from={home / 'second'}", "ntp.budget=tokens")
    assert 0.98 <= result(run_ntp(config))["tokens"] / 450 <= 1.0
    RunDir(home / "second", "second", settings(home), ("train",)).finish({"flops": 2e9, "tokens": 500})
    with pytest.raises(ForethinkError, match="another configuration"):  # the budget it was made for is gone
        run_ntp(config)


def test_a_budget_of_seconds_ends_within_two_percent(home: Path) -> None:
    for attempt in range(3):  # another process may have the machine just when the last step is on
        name = f"ntp.name=seconds{attempt}"
        folder = run_ntp(settings(home, name, "ntp.budget=seconds", "ntp.amount=15", "ntp.save_every=1000"))
        if abs(result(folder)["share"] - 1) <= 0.02:
            break
        assert "of its budget" in json.loads((folder / "run.json").read_text())["warnings"][0]
    assert result(folder)["share"] == pytest.approx(1, abs=0.02)
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    assert lines[-1]["seconds"] == pytest.approx(15, rel=0.02) and lines[-1]["learning_rate"] < 1e-4


def test_an_adapter_is_trained_and_another_start_is_taken(home: Path, whole, tiny_llama) -> None:
    overrides = ("ntp.name=lora", "ntp.lora_rank=4", "ntp.budget=tokens", "ntp.amount=100", "ntp.precision=bf16")
    folder = run_ntp(settings(home, *overrides))
    assert {"adapter_model.safetensors", "tokenizer.json"} <= {path.name for path in (folder / "model").iterdir()}
    merged = load_model(str(home.parent / "policy"), adapter=str(folder / "model"), dtype="float32")
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, tiny_llama.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(merged.model.norm.weight, tiny_llama.model.norm.weight)
    again = ("ntp.budget=tokens", "ntp.amount=60", "ntp.learning_rate=1e-30")
    folder = run_ntp(settings(home, "ntp.name=from", f"ntp.start={whole[0] / 'model'}", *again))
    ours, theirs = (load_file(place / "model" / "model.safetensors") for place in (folder, whole[0]))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    folder = run_ntp(settings(home, "ntp.name=onto", f"ntp.start={home / 'lora' / 'model'}", *again))
    ours = load_file(folder / "model" / "model.safetensors")
    assert torch.allclose(ours["model.layers.0.mlp.up_proj.weight"], merged.model.layers[0].mlp.up_proj.weight)
    more = ("ntp.name=more", f"ntp.start={home / 'lora' / 'model'}", "ntp.lora_rank=4", *again)
    places = (run_ntp(settings(home, *more)), home / "lora")
    ours, theirs = (load_file(place / "model" / "adapter_model.safetensors") for place in places)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    with pytest.raises(ForethinkError, match="adapter on an adapter"):
        run_ntp(settings(home, "ntp.name=other", f"ntp.start={home / 'lora' / 'model'}", "ntp.lora_rank=2", *again))


def test_another_tokenizer_encodes_the_documents_anew(home: Path, tmp_path: Path, smollm2_tokenizer) -> None:
    run = tmp_path / "run"
    prepare(run, load_model(str(home.parent / "policy"), dtype="float32"), smollm2_tokenizer, documents=2)
    documents = [scored(smollm2_tokenizer, number) for number in range(2)]
    for document in documents:
        document.token_ids[:] = [0] * len(document.token_ids)  # ids of a proxy that the policy must not be given
    write_scored(run / "score" / "0.parquet", documents, {"fingerprint": "of another proxy"})
    folder = run_ntp(settings(run, "ntp.budget=tokens", "ntp.amount=200"))
    again = tmp_path / "again"
    prepare(again, load_model(str(home.parent / "policy"), dtype="float32"), smollm2_tokenizer, documents=2)
    documents = [scored(smollm2_tokenizer, number) for number in range(2)]
    write_scored(again / "score" / "0.parquet", documents, {"fingerprint": fingerprint(smollm2_tokenizer)})
    other = run_ntp(settings(again, "ntp.budget=tokens", "ntp.amount=200"))
    losses = [[line["loss"] for line in read_jsonl(place / "metrics.jsonl")] for place in (folder, other)]
    assert losses[0] == losses[1]


def test_mistakes_are_one_sentence(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(run: Path, *overrides: str) -> str:
        capsys.readouterr()
        pairs = settings(run, *overrides)
        given = [f"{key}={json.dumps(value)}" for key, value in given_values(pairs).items()]
        assert cli.main(["ntp", *given]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("forethink: ")]
        assert len(lines) == 1 and lines[0].endswith(".")
        return lines[0]

    assert "forethink score" in refused(tmp_path / "nothing", "ntp.amount=1e9")
    assert "run/absent: no stage's folder" in refused(home, f"ntp.budget_from={home / 'absent'}", "ntp.name=a")
    assert f"{home / 'train'}: no stage's folder" in refused(home, "ntp.name=a")  # the run's own train by default
    RunDir(home / "going", "train", settings(home), ("train",))
    assert "has not ended" in refused(home, f"ntp.budget_from={home / 'going'}", "ntp.name=a")
    RunDir(home / "silent", "train", settings(home), ("train",)).finish({"flops": 1e9})
    sentence = refused(home, f"ntp.budget_from={home / 'silent'}", "ntp.budget=tokens", "ntp.name=a")
    assert "tells no tokens" in sentence
    assert "remove one" in refused(home, f"ntp.budget_from={home / 'silent'}", "ntp.amount=3", "ntp.name=a")
    assert "the budget of 20 tokens is less than one step's" in refused(
        home, "ntp.budget=tokens", "ntp.amount=20", "ntp.name=a"
    )
    assert "more than the budget of 0.001; lower ntp.batch" in refused(
        home, "ntp.budget=seconds", "ntp.amount=0.001", "ntp.name=a"
    )
    assert run_ntp(settings(home, "ntp.budget=tokens", "ntp.amount=60", "ntp.name=a"))  # the folder is still free
    sentence = refused(home, "ntp.name=wild", "ntp.learning_rate=1e30", "ntp.budget=tokens", "ntp.amount=600")
    assert "the gradient is not a number at step" in sentence and "learning rate" in sentence
    problems = read_problems(home / "problems")
    from dataclasses import replace

    strange = [*problems, replace(problems[0], document="elsewhere")]
    write_problems(tmp_path / "run" / "problems" / "train.parquet", strange, {"fingerprint": fingerprint_of(home)})
    (tmp_path / "run" / "score").symlink_to(home / "score")
    (tmp_path / "policy").symlink_to(home.parent / "policy")
    sentence = refused(tmp_path / "run", "ntp.amount=1e9")
    assert f"lacks 1 of the {DOCUMENTS + 1} documents" in sentence


def given_values(config: Config) -> dict[str, object]:
    """Every key of the baseline's configuration that is not none, for the command line."""
    data = config.model_dump(mode="json")
    keys = {f"ntp.{key}": value for key, value in data["ntp"].items()}
    keys |= {"run": data["run"], "model.name": data["model"]["name"], "model.device": "cpu"}
    return {key: value for key, value in keys.items() if value is not None}
