"""Every recipe of a family from one start: three real steps each, the same positions, one table."""

from __future__ import annotations

import copy
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from forethink.config import load_config
from forethink.functions import load_function
from forethink.models import fingerprint, load_tokenizer
from forethink.records import problems_metadata, read_problems
from forethink.report.collect import collect
from forethink.rundir import RunDir, read_jsonl
from forethink.spent import stage_total
from forethink.stages import problems, score
from forethink.templates import load_template
from forethink.training.supervised import Example, supervise

RECIPES = Path(__file__).parents[1] / "recipes"
FOLDERS = ("family", "family_wikitext")
SMALL = [
    "corpus.field=['text']", "corpus.min_bytes=1", "corpus.text_split=none", "model.dtype=float32",
    "model.device=cpu", "score.short_context=2", "problems.threshold=0.5", "problems.min_context=4",
    "problems.per_document=6", "problems.validation=0.3", "rollout.group=4", "rollout.max_tokens=10",
    "warmup.skip_box_rate=1.0", "warmup.examples=8", "warmup.batch=8", "warmup.micro_batch=8",
    "warmup.probe_positions=8", "warmup.learning_rate=1e-5", "train.steps=3", "train.problems=4",
    "train.precision=fp32", "eval.positions=8", "eval.samples=2", "eval.thresholds=[0.0]", "eval.bootstrap=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_llama, smollm2_tokenizer) -> Path:
    """A corpus of two words in random order, and a tiny policy that answers in the form, right about half the time."""
    folder = tmp_path_factory.mktemp("family")
    rng = random.Random(0)
    texts = [f"Story {d}:" + "".join(rng.choice((" red", " blue")) for _ in range(24)) for d in range(12)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tiny_llama.save_pretrained(folder / "untrained")
    smollm2_tokenizer.save_pretrained(folder / "untrained")
    own = [f"run={folder / 'teach'}", f"corpus.path={folder / 'corpus.jsonl'}", f"model.name={folder / 'untrained'}"]
    config = load_config(RECIPES / "family" / "start.toml", [*own, *SMALL])
    score(config)
    problems(config)
    template, examples = load_template("v0"), []
    known = read_problems(folder / "teach" / "problems")
    for i in range(240):
        problem = rng.choice(known)
        box = r" \boxed{" + rng.choice((" red", " blue")) + "}" if i % 4 else " nothing"
        reply = smollm2_tokenizer("So" + box, add_special_tokens=False)["input_ids"]
        prompt = template.render(problem, smollm2_tokenizer)
        examples.append(Example((*prompt, *reply, smollm2_tokenizer.eos_token_id), len(prompt)))
    run = RunDir(folder / "taught", "warmup", config, ("warmup",))
    supervise(
        copy.deepcopy(tiny_llama), smollm2_tokenizer, examples, run, learning_rate=1e-2, batch=8, micro_batch=8, seed=0
    )
    return folder


@pytest.fixture(scope="module", params=FOLDERS)
def family(request: pytest.FixtureRequest, home: Path) -> tuple[Path, list[Path]]:
    """A folder of recipes, run whole by its script; where the runs lie, and the members' runs."""
    place = home / request.param
    place.mkdir()
    arguments = [str(RECIPES / request.param), "--corpus", str(home / "corpus.jsonl")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main = load_function(f"{RECIPES / 'family.py'}:main")
        policy = f"model.name={home / 'taught' / 'model'}"
        assert main([*arguments, policy, *SMALL]) == 0
        stamps = {path: path.stat().st_mtime_ns for path in place.rglob("train/*.jsonl")}
        assert main([*arguments, policy, *SMALL]) == 0  # finished work is kept
        assert stamps == {path: path.stat().st_mtime_ns for path in place.rglob("train/*.jsonl")} != {}
    recipes = sorted(path for path in (RECIPES / request.param).glob("*.toml") if path.stem != "start")
    return place / "runs" / request.param, [place / load_config(recipe).run for recipe in recipes]


def test_every_recipe_takes_three_real_steps(family: tuple[Path, list[Path]]) -> None:
    _, members = family
    for run in members:
        lines = list(read_jsonl(run / "train" / "metrics.jsonl"))
        assert [line["step"] for line in lines] == [1, 2, 3], run
        assert sum(line["groups/kept"] for line in lines) > 0 and max(line["grad_norm"] for line in lines) > 0, run
        assert max(line["boxed"] for line in lines) > 0.3 and max(line["reward"] for line in lines) > 0, run
        assert len(list(read_jsonl(run / "train" / "samples.jsonl"))) == 3 * 4 * 4  # equal budgets
        assert (run / "train" / "model" / "adapter_model.safetensors").is_file()


def test_all_stand_on_one_start(family: tuple[Path, list[Path]]) -> None:
    top, members = family
    policy = problems_metadata(top / "start" / "problems", "validation")["fingerprint"]
    assert policy == fingerprint(load_tokenizer(str(top / "start" / "warmup" / "model")))
    held_out = {problem.document for problem in read_problems(top / "start" / "problems", "validation")}
    for run in members:
        own = {path.name for path in run.iterdir()}
        random_positions = load_config(run / "train" / "config.toml").problems.selector == "random"
        assert own == {"train", "eval"} | ({"problems"} if random_positions else set())
        inputs = json.loads((run / "train" / "run.json").read_text())["inputs"]
        assert any(path.endswith("start/warmup/model/adapter_model.safetensors") for path in inputs)
        source = run if random_positions else top / "start"
        assert str(source / "problems" / "train.parquet").endswith(next(p for p in inputs if p.endswith(".parquet")))
        if random_positions:  # other positions, but no document that the others are evaluated on
            own_problems, others = (read_problems(place / "problems") for place in (run, top / "start"))
            assert held_out.isdisjoint({problem.document for problem in own_problems})
            assert {problem.id for problem in own_problems} != {problem.id for problem in others}
            assert min(problem.entropy for problem in own_problems) < 0.5 < min(problem.entropy for problem in others)


def test_one_table_lays_them_side_by_side(family: tuple[Path, list[Path]]) -> None:
    top, members = family
    result = json.loads((top / "compare.json").read_text())
    rows = {row["label"]: row for row in result["runs"]}
    assert result["baseline"] == "start" and set(rows) == {"start", "start/before", *(run.name for run in members)}
    for run in members:
        row = rows[run.name]
        config = load_config(run / "train" / "config.toml")
        assert row["step"] == 3 and row["spent"]["flops"] > 0 and row["notes"] == []
        assert str(row["selector"]).split()[0] == config.problems.selector
        assert config.reward.name in row["reward"] and row["template"] == "v0"
        assert [one["positions"] for one in row["against"]] == [8, 8]
    if "length_ntp" in rows:
        assert rows["length_ntp"]["reward"] == "0.9·prefix_match + 0.1·length(48) + 0.1·NTP"
        assert len(rows) == 10
    table = (top / "compare.md").read_text()
    assert all(f"| {label} |" in table for label in ("start", members[-1].name))


def test_a_members_report_shows_the_documents_of_the_start(family: tuple[Path, list[Path]]) -> None:
    _, members = family
    data = collect([members[0]])
    assert len(data["documents"]) == 12 and data["notes"] == []


def test_the_script_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_function(f"{RECIPES / 'family.py'}:main")
    assert main([str(tmp_path), "--corpus", "x"]) == 2
    assert "start.toml: no such recipe" in capsys.readouterr().err


def test_evaluations_on_a_corpus_of_their_own_share_its_scores() -> None:
    plan = load_function(f"{RECIPES / 'family.py'}:plan")
    commands = plan(RECIPES / "family", "a b.jsonl", "held out.jsonl", ["seed=1"])
    assert [command[0] for command in commands[:5]] == ["score", "problems", "eval", "warmup", "eval"]
    assert all("held out.jsonl" in command for command in commands if command[0] == "eval")
    assert all('corpus.path="a b.jsonl"' in command for command in commands if command[0] == "train")
    assert all("seed=1" in command for command in commands[:-1])
    assert sum(command[0] == "train" for command in commands) == 8


def test_members_train_from_a_start_that_is_named() -> None:
    plan, needs = (load_function(f"{RECIPES / 'family.py'}:{name}") for name in ("plan", "needs"))
    commands = plan(RECIPES / "family_wikitext", "a.txt", None, ["train.start=results/adapters/warm"])
    members = ["problems", "train", "eval"]
    assert [command[0] for command in commands] == ["score", "problems", "eval", "eval", *members * 2, "compare"]
    assert commands[3][commands[3].index("--checkpoint") + 1] == "results/adapters/warm"
    assert needs(commands)[5] == {1, 4}  # the start's problems, or the member's own


def test_side_by_side_a_command_waits_for_what_it_reads() -> None:
    arms, family, needs = (
        load_function(f"{RECIPES / name}") for name in ("arms.py:plan", "family.py:plan", "family.py:needs")
    )
    commands = arms(RECIPES / "omni_math.toml", "a.jsonl", "b.jsonl", [0, 1], ["train.keep_every=25"], [])
    stages = ["score", "problems", "base", *["warmup", "warm", "train", "rpt", "ntp", "ntp_eval"] * 2]
    waits = needs(commands)
    assert [c[c.index("--name") + 1] if c[0] == "eval" else c[0] for c in commands[:15]] == stages
    assert waits[:3] == [set(), {0}, set()]  # the held-out corpus is scored for itself
    for first in (3, 9):  # a seed waits for its own stages and what is shared, not for the other seed
        warmup, warm, train, rpt, ntp, ntp_eval = range(first, first + 6)
        assert waits[warmup] == {1} and waits[warm] == {2, warmup} and waits[train] == {1, warmup}
        assert waits[rpt] == {2, warm, train} and {warmup, train} <= waits[ntp] and waits[ntp_eval] == {2, warm, ntp}
        assert not waits[ntp] & set(range(9 if first == 3 else 3, 15 if first == 3 else 9))
    assert all(wait == {2, 5} for wait in waits[15:19]) and waits[19] == set(range(19))
    commands = family(RECIPES / "family", "a.jsonl", None, [])
    for number, (command, wait) in enumerate(zip(commands, needs(commands), strict=True)):
        if number > 4 and command[0] == "problems":  # of a member: the start's count where they are the same
            assert wait == {0, 1}
        if number > 4 and command[0] == "train":
            assert wait == {1, 3, number - 1}


def test_side_by_side_commands_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = load_function(f"{RECIPES / 'family.py'}:environment")
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [environment(jobs)["OMP_NUM_THREADS"] for jobs in (2, 6, 32)] == ["8", "2", "1"]
    assert environment(2)["PATH"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment(2)["OMP_NUM_THREADS"] == "3"


def test_commands_run_side_by_side(home: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    place = home / "jobs"
    place.mkdir()
    monkeypatch.chdir(place)
    plan, run_all = (load_function(f"{RECIPES / 'family.py'}:{name}") for name in ("plan", "run_all"))
    commands = plan(RECIPES / "family", str(home / "corpus.jsonl"), None, [f"model.name={home / 'untrained'}", *SMALL])
    assert run_all(commands[:2], 2) == 0
    assert read_problems(place / "runs" / "family" / "start" / "problems", "train")
    assert "done" in (place / "runs" / "family" / "log" / "02-problems.txt").read_text()
    wrong = [["score", *commands[0][1:], "corpus.path=absent.jsonl", "run=runs/family/other"], commands[1]]
    assert run_all([wrong[0], [*wrong[1], "run=runs/family/other"]], 2) == 2  # what waits for it does not begin
    error = capsys.readouterr().err
    assert "[1/2] failed" in error and "absent.jsonl" in error and "[2/2]" not in error


def test_the_arms_of_a_recipe_are_one_command(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = home / "arms"
    place.mkdir()
    monkeypatch.chdir(place)
    main = load_function(f"{RECIPES / 'arms.py'}:main")
    (home / "held_out.jsonl").write_text("".join((home / "corpus.jsonl").read_text().splitlines(True)[:6]))
    arguments = [
        str(RECIPES / "omni_math.toml"), "--corpus", str(home / "corpus.jsonl"), "--held-out",
        str(home / "held_out.jsonl"), "--seeds", "0", "1", "--curve", "eval.samples=1",
        f"model.name={home / 'taught' / 'model'}", *SMALL, "train.keep_every=1", "ntp.precision=fp32", "ntp.batch=64",
        "ntp.window=32", "ntp.lora_rank=4", "warmup.lora_rank=4", "train.lora_rank=4",
    ]  # fmt: skip
    assert main(arguments) == 0
    top, first, second = (place / "runs" / f"omni_math{seed}" for seed in ("", "-seed0", "-seed1"))
    evaluations = {run: {path.parent.name for path in run.glob("*/eval.json")} for run in (top, first, second)}
    assert evaluations[top] == {"base"} and evaluations[second] == {"warm", "rpt", "ntp_eval"}
    assert evaluations[first] == {*evaluations[second], "step-0001", "step-0002", "step-0003"}
    asked = {line["problem"] for line in read_jsonl(top / "base" / "samples.jsonl")}
    held_out = top / "eval_corpus" / "held_out.jsonl" / "problems"
    assert asked <= {problem.id for problem in read_problems(held_out, "validation")}
    for seed, run in enumerate((first, second)):
        assert not (run / "score").exists() and not (run / "eval_corpus").exists()  # the seeds share them
        records = {name: json.loads((run / name / "run.json").read_text()) for name in ("warmup", "train", "ntp")}
        assert [record["settings"]["seed"] for record in records.values()] == [seed] * 3
        spent = {name: stage_total(run / name, "flops") for name in records}
        assert spent["ntp"] == pytest.approx(spent["warmup"] + spent["train"], rel=0.02)  # matched in compute
        trained_from = [name for name in records["train"]["inputs"] if name.endswith("adapter_model.safetensors")]
        assert [Path(name).parents[2].name for name in trained_from] == [run.name]  # its own warm start
        for name, model in (("warm", "warmup"), ("rpt", "train"), ("ntp_eval", "ntp")):
            record = json.loads((run / name / "eval.json").read_text())
            assert record["model"]["name"].endswith(f"{run.name}/{model}/model")
            assert {line["problem"] for line in read_jsonl(run / name / "samples.jsonl")} == asked != set()
    stamps = {path: path.stat().st_mtime_ns for path in place.rglob("*.jsonl")}
    assert main(arguments) == 0  # finished work is kept
    assert stamps == {path: path.stat().st_mtime_ns for path in place.rglob("*.jsonl")}


def test_a_start_that_is_named_stands_for_the_warm_start() -> None:
    plan, needs = (load_function(f"{RECIPES / name}") for name in ("arms.py:plan", "family.py:needs"))
    commands = plan(RECIPES / "scaling.toml", "a.jsonl", "b.jsonl", [0, 1], [], [])
    names = [command[command.index("--name") + 1] if "--name" in command else command[0] for command in commands]
    assert names[:4] == ["score", "problems", "base", "warm"]
    assert names[4:12] == ["train", "rpt", "ntp", "ntp_eval"] * 2 and names[12:] == [
        *(f"step-{step:04d}" for step in range(8, 49, 8)), "fit"
    ]  # fmt: skip
    assert commands[3][commands[3].index("--checkpoint") + 1] == "results/adapters/warm"
    for number, run in ((4, "runs/scaling-seed0"), (8, "runs/scaling-seed1")):
        assert 'ntp.budget_from=["' + run + '/train"]' in commands[number + 2]  # the start was there before
        against = [text for before, text in pairwise(commands[number + 1]) if before == "--against"]
        assert against == ["runs/scaling/base", "runs/scaling/warm"]
        assert needs(commands)[number] == {1} and needs(commands)[number + 1] == {2, 3, number}


def test_fine_tuning_from_several_starts_is_one_command(home: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    place = home / "tune"
    place.mkdir()
    monkeypatch.chdir(place)
    main = load_function(f"{RECIPES / 'finetune.py'}:main")
    recipe = str(RECIPES / "finetune_arithmetic.toml")
    small = [
        f"model.name={home / 'untrained'}", "model.dtype=float32", "model.device=cpu", "train.precision=fp32",
        "finetune.steps=1", "finetune.problems=2", "finetune.group=2", "finetune.max_tokens=4", "eval.positions=3",
        "eval.samples=1", "eval.bootstrap=100", "train.lora_rank=4",
    ]  # fmt: skip
    assert main([recipe, *small, "--starts", "base", f"taught={home / 'taught' / 'model'}", "--seeds", "0", "1"]) == 0
    run = place / "runs" / "finetune_arithmetic"
    assert sorted(path.name for path in run.iterdir()) == ["base-seed0", "base-seed1", "taught-seed0", "taught-seed1"]
    asked = {name: {line["problem"] for line in read_jsonl(run / name / "before" / "samples.jsonl")}
             for name in ("base-seed0", "base-seed1", "taught-seed1")}  # fmt: skip
    assert asked["base-seed0"] == asked["base-seed1"] == asked["taught-seed1"] != set()
    trained = {path: read_jsonl(run / path / "train" / "samples.jsonl") for path in asked}
    texts = {name: {line["problem"] for line in lines} for name, lines in trained.items()}
    assert texts["base-seed1"] == texts["taught-seed1"] != texts["base-seed0"]
    assert main([recipe, "--starts", "base=absent", *small]) == 2 and "absent" in capsys.readouterr().err
    assert main([recipe, "finetune.stepz=1"]) == 2 and "finetune.stepz" in capsys.readouterr().err


def test_the_arms_end_with_the_scaling_law() -> None:
    plan = load_function(f"{RECIPES / 'arms.py'}:plan")
    recipe, curve = RECIPES / "omni_math.toml", ["eval.positions=300"]
    commands = plan(recipe, "a.jsonl", "b.jsonl", [3, 4], ["train.steps=100", "train.keep_every=15"], curve)
    assert commands[-1] == ["fit", "runs/omni_math-seed3", "--only", "step-*"]
    fitted = [command for command in commands if "eval.positions=300" in command]
    assert [command[command.index("--checkpoint") + 1].rsplit("/", 2)[-2:] for command in fitted] == [
        *(["train", f"checkpoint-{step}"] for step in range(15, 100, 15)), ["train", "model"]
    ]  # fmt: skip
    assert [command[0] for command in commands].count("train") == 2
    assert plan(recipe, "a.jsonl", "b.jsonl", [3], ["train.keep_every=none"], curve)[-1][0] == "eval"
