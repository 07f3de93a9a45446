"""End tasks: every figure against lm-eval's own, on the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from forethink import cli
from forethink.config import Config, load_config
from forethink.evaluate.choices import LETTERS, draw_questions, read_questions
from forethink.rollout.scripted import ScriptedEngine

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra `tasks`)")

SUBJECTS = ("math", "law", "computer science")


def record(i: int) -> dict[str, Any]:
    count = (4, 10, 7, 3)[i % 4]
    return {
        "question_id": 100 + i,
        "question": f"Which of these is {i} more than {i * i}?",
        "options": [f"the number {i * i + i + (k - i % count)}" for k in range(count)],
        "answer": LETTERS[i % count],
        "answer_index": i % count,
        "cot_content": "",
        "category": SUBJECTS[i % 3],
    }


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(record(i)) + "\n" for i in range(22)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tiny_llama, smollm2_tokenizer) -> str:
    folder = tmp_path_factory.mktemp("policy")
    tiny_llama.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return str(folder)


def config_of(tmp_path: Path, questions: Path, policy: str, *more: str) -> Config:
    return load_config(
        None,
        [f"run={tmp_path / 'run'}", f"model.name={policy}", f"tasks.path=['{questions}']", "model.device=cpu",
         "model.dtype=float32", "tasks.batch=2", *more],
    )  # fmt: skip


def run(config: Config, engine: Any = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from forethink.evaluate.tasks import run_tasks

    folder = run_tasks(config, engine)
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "tasks.json").read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def own_lm_eval(questions: Path, configs: list[dict[str, Any]], policy: str, chat: bool) -> dict[str, Any]:
    """lm-eval by itself on the file: its data loading, its model class, its sampling, its metrics."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(policy), batch_size=2,
    )  # fmt: skip
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(questions)}}}
    tasks = [ConfigurableTask(config=config | data) for config in configs]
    return simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0, apply_chat_template=chat, log_samples=True)


def yaml_of(mode: str) -> dict[str, Any]:
    import yaml

    from forethink.evaluate import choices

    return dict(yaml.safe_load((Path(choices.__file__).parent / f"{mode}.yaml").read_text(encoding="utf-8")))


def test_the_file_is_counted(tmp_path: Path, questions: Path, policy: str) -> None:
    result, samples = run(config_of(tmp_path, questions, policy))
    (task,) = result["tasks"]
    assert task["questions"] == 22
    assert task["options"] == {"3": 5, "4": 6, "7": 5, "10": 6}
    assert task["categories"] == {"math": 8, "law": 7, "computer science": 7}
    assert {row["category"]: row["n"] for row in result["rows"]} == {"all": 22, **task["categories"]}
    assert [len(sample["logprobs"]) for sample in samples] == [len(record(i)["options"]) for i in range(22)]
    chance = sum(1 / len(record(i)["options"]) for i in range(22)) / 22
    assert result["rows"][0]["chance"] == pytest.approx(chance)
    for row in result["rows"]:
        own = [s for s in samples if row["category"] in ("all", s["category"])]
        assert row["accuracy"]["value"] == pytest.approx(sum(s["letter"] == s["answer"] for s in own) / len(own))
        low, high = row["accuracy"]["wilson"]
        assert low <= row["accuracy"]["value"] <= high


def test_plain_scores_are_those_of_the_model_itself(tmp_path: Path, questions: Path, policy: str, tiny_llama) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    _, samples = run(config_of(tmp_path, questions, policy))
    for sample in samples:
        asked = record(sample["number"] - 1)
        options = "".join(f"{LETTERS[k]}. {text}\n" for k, text in enumerate(asked["options"]))
        prompt = f"Question:\n{asked['question']}\nOptions:\n{options}Answer:"
        for k, score in enumerate(sample["logprobs"]):
            ids = tokenizer(f"{prompt} {LETTERS[k]}", return_tensors="pt")["input_ids"]
            start = len(tokenizer(prompt)["input_ids"])
            with torch.no_grad():
                logprobs = tiny_llama(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
            assert score == pytest.approx(float(logprobs.gather(-1, ids[0, start:, None]).sum()), abs=1e-4)


def test_plain_figures_are_lm_evals(tmp_path: Path, questions: Path, policy: str) -> None:
    result, samples = run(config_of(tmp_path, questions, policy))
    theirs = own_lm_eval(questions, [yaml_of("plain")], policy, chat=False)
    assert result["rows"][0]["accuracy"]["value"] == pytest.approx(theirs["results"]["forethink_plain"]["acc,none"])
    assert result["rows"][0]["lm_eval"] == result["rows"][0]["accuracy"]["value"]
    for ours, their in zip(samples, theirs["samples"]["forethink_plain"], strict=True):
        assert ours["number"] == their["doc_id"] + 1 and ours["right"] == bool(their["acc"])
        scores = [response[0][0] for response in their["resps"]]
        assert ours["logprobs"] == pytest.approx([float(score) for score in scores], abs=1e-4)


def test_reasoning_is_asked_as_in_lm_evals_own_task(
    tmp_path: Path, questions: Path, policy: str, smollm2_tokenizer
) -> None:
    """Its mmlu_pro task, without examples, on the same items: prompts, greedy replies and figures are equal."""
    from lm_eval.tasks._yaml_loader import load_yaml

    result, samples = run(config_of(tmp_path, questions, policy, "tasks.mode=reasoning", "tasks.max_tokens=10"))
    names = {f"mmlu_pro_{subject.replace(' ', '_')}": subject for subject in SUBJECTS}
    kwargs = {"until": ["Question:"], "max_gen_toks": 10, "do_sample": False, "temperature": 0.0}
    own = {"num_fewshot": 0, "fewshot_split": "test", "generation_kwargs": kwargs}
    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu_pro"
    theirs = own_lm_eval(questions, [load_yaml(folder / f"{name}.yaml") | own for name in names], policy, chat=True)
    prompts = {p["number"]: p["prompt"] for p in prompts_of(questions, policy, smollm2_tokenizer)}
    for name, subject in names.items():
        ours = [sample for sample in samples if sample["category"] == subject]
        row = next(row for row in result["rows"] if row["category"] == subject)
        assert row["n"] == len(ours) == len(theirs["samples"][name])
        assert row["lm_eval"] == theirs["results"][name]["exact_match,custom-extract"]
        for sample, their in zip(ours, theirs["samples"][name], strict=True):
            assert their["doc"]["question_id"] == 99 + sample["number"]
            assert prompts[sample["number"]] == their["arguments"][0][0]
            text = sample["text"]
            for token in smollm2_tokenizer.all_special_tokens:  # lm-eval leaves them out
                text = text.replace(token, "")
            assert text == their["resps"][0][0]


def prompts_of(questions: Path, policy: str, tokenizer: Any) -> list[dict[str, Any]]:
    """The prompts that our stage's task object builds."""
    from forethink.evaluate.harness import Policy, make_task
    from forethink.models import load_model

    asked = read_questions(str(questions), "test", "category")
    model = Policy(load_model(policy, dtype="float32", device="cpu"), tokenizer, None, 10, 2, 0)
    task = make_task("reasoning", "t", asked)
    task.build_all_requests(apply_chat_template=True, chat_template=model.apply_chat_template)
    return [{"number": one.doc["number"], "prompt": one.args[0]} for one in task.instances]


def scripted(tokenizer: Any, calls: list[str], stop_after: int | None = None) -> ScriptedEngine:
    def reply(problem: str, sample: int) -> bytes:
        if stop_after is not None and len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(problem)
        i = int(problem.rpartition(":")[2]) - 1
        right = record(i)["answer"]
        forms = [f"Thus the answer is ({right}).", rf"\boxed{{{right}}}", "Hard to say.", "The answer is (Z)"]
        return forms[i % 4].encode()

    return ScriptedEngine(reply, tokenizer, group=1, max_tokens=64)


def test_reasoning_reads_what_was_replied_and_lm_evals_expression_beside_it(
    tmp_path: Path, questions: Path, policy: str, smollm2_tokenizer
) -> None:
    calls: list[str] = []
    config = config_of(tmp_path, questions, policy, "tasks.mode=reasoning", "tasks.max_tokens=64")
    result, samples = run(config, scripted(smollm2_tokenizer, calls))
    first = result["rows"][0]
    assert first["accuracy"]["value"] == pytest.approx(12 / 22)  # 6 in words, 6 in a box
    assert first["lm_eval"] == pytest.approx(6 / 22)  # its expression reads words only
    assert first["read"]["missing"] == pytest.approx(5 / 22)
    assert first["read"]["out_of_range"] == pytest.approx(5 / 22)
    assert samples[1]["text"] == rf"\boxed{{{record(1)['answer']}}}" and samples[1]["finish"] == "stop"
    assert len(calls) == 22


def test_no_pass_makes_more_logits_than_fit(
    tmp_path: Path, questions: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forethink.evaluate import harness

    sizes: list[tuple[int, int]] = []
    plain = harness.Policy._model_call

    def counted(model: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        logits = plain(model, ids, *args, **kwargs)
        sizes.append((len(ids), logits.numel()))
        return logits

    monkeypatch.setattr(harness.Policy, "_model_call", counted)
    options = ("tasks.mode=plain", "tasks.batch=8")
    _, whole = run(config_of(tmp_path, questions, policy, *options, "eval.name=whole"))
    (most, logits), sizes[:] = max(sizes), []
    assert most == 8
    monkeypatch.setattr(harness, "LOGITS", logits // 2)
    _, parts = run(config_of(tmp_path, questions, policy, *options, "eval.name=parts"))
    assert max(size for _, size in sizes) <= logits // 2 and max(rows for rows, _ in sizes) > 1
    for one, other in zip(whole, parts, strict=True):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)


def test_a_stopped_run_goes_on(tmp_path: Path, questions: Path, policy: str, smollm2_tokenizer) -> None:
    config = config_of(tmp_path, questions, policy, "tasks.mode=both", "tasks.max_tokens=64", "eval.name=stopped")
    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(config, scripted(smollm2_tokenizer, calls, stop_after=9))
    kept = (tmp_path / "run" / "stopped" / "samples.jsonl").read_text(encoding="utf-8")
    assert len(kept.splitlines()) == 22 + 8  # chunks are of four batches of two
    again: list[str] = []
    result, samples = run(config, scripted(smollm2_tokenizer, again))
    assert len(again) == 14
    whole = config_of(tmp_path, questions, policy, "tasks.mode=both", "tasks.max_tokens=64", "eval.name=whole")
    uninterrupted, lines = run(whole, scripted(smollm2_tokenizer, []))
    assert samples == lines
    assert result == uninterrupted


def test_sampled_replies_do_not_depend_on_the_batch(tmp_path: Path, questions: Path, policy: str) -> None:
    more = ("tasks.mode=reasoning", "tasks.max_tokens=6", "tasks.temperature=0.8", "tasks.limit=6")
    _, one = run(config_of(tmp_path, questions, policy, *more, "eval.name=a"))
    _, other = run(config_of(tmp_path, questions, policy, *more, "eval.name=b", "tasks.batch=5"))
    assert [line["text"] for line in one] == [line["text"] for line in other]
    assert len({line["text"] for line in one}) > 1


def test_a_limit_draws_by_the_seed(questions: Path) -> None:
    asked = read_questions(str(questions), "test", "category")
    few, more = draw_questions(asked, 5, 0), draw_questions(asked, 12, 0)
    assert set(few) < set(more) and len(few) == 5 and more == sorted(more)
    assert draw_questions(asked, 12, 1) != more
    assert draw_questions(asked, None, 0) == list(range(22))


def test_the_command(tmp_path: Path, questions: Path, policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["eval", "--run", str(tmp_path / "r"), "--model", policy, "model.dtype=float32", "model.device=cpu"]
    assert cli.main([*base, "--tasks", str(questions), "--name", "ask", "--limit", "7", "tasks.batch=4"]) == 0
    text = capsys.readouterr().out
    assert "questions, plain" in text and f"done: {tmp_path / 'r' / 'ask'}" in text
    assert len((tmp_path / "r" / "ask" / "samples.jsonl").read_text().splitlines()) == 7
    assert cli.main([*base, "--tasks", str(tmp_path / "none.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert cli.main([*base, "--tasks", str(questions), "--mode", "reasoning", "tasks.max_tokens=5000"]) == 2
    assert "tasks.max_tokens is 5000" in capsys.readouterr().err
