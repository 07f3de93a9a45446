"""What holds for every trainer: neither micro-batches, nor shared prefixes, nor processes change the result."""

from __future__ import annotations

import copy
import json
import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from forethink.rollout.scripted import ScriptedEngine
from forethink.training.supervised import Example, Examples, SupervisedTrainer
from trainers import make_problems, prepare, train_in_child, train_settings, trainer_of

WORDS = [b"\\boxed{ cat}", b"Well. \\boxed{ the}", b"Hm", b"It may be \\boxed{ on}"]


def reinforcement(folder: Path, model, tokenizer, micro_batch: int, share: bool, precision: str):
    problems = make_problems(tokenizer, documents=2)[3:7]
    (folder / "reward.py").write_text("def reward(answer, problem):\n    return float(len(answer.thought))\n")
    engine = ScriptedEngine(lambda problem, sample: WORDS[sample], tokenizer, group=4, max_tokens=12)
    return trainer_of(
        folder, model, tokenizer, problems, engine, f"train.micro_batch={micro_batch}",
        f"reward.name={folder / 'reward.py'}:reward", "train.dynamic_sampling_from=none", "train.ntp_weight=0.1",
        f"train.precision={precision}",
    )  # fmt: skip


def supervised(folder: Path, model, tokenizer, micro_batch: int, share: bool, precision: str):
    from trainers import Watch

    problems = make_problems(tokenizer, documents=2)[3:7]
    examples = [
        Example((*p.context_ids, *p.target_ids), len(p.context_ids) - i, p.context_ids if i % 2 else ())
        for i, p in enumerate(problems)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=micro_batch, max_steps=1, use_cpu=True, report_to=[],
        gradient_accumulation_steps=4 // micro_batch, remove_unused_columns=False, save_strategy="no",
        bf16=precision == "bf16", disable_tqdm=True, max_grad_norm=0, logging_steps=1,
    )  # fmt: skip
    trainer = SupervisedTrainer(
        model=copy.deepcopy(model), args=arguments, train_dataset=Examples(examples), ntp_weight=0.3
    )
    watch = Watch(trainer.model)
    trainer.add_callback(watch)
    return trainer, watch


TRAINERS = {"reinforcement": reinforcement, "supervised": supervised}


def gradient(name: str, folder: Path, model, tokenizer, micro_batch=4, share=True, precision="fp32"):
    trainer, watch = TRAINERS[name](folder, model, tokenizer, micro_batch, share, precision)
    if not share:
        trainer.packer.share = False
    trainer.train()
    assert trainer.packer.share is share and trainer.packer.reason is None
    pieces = [g.flatten().double() for g in watch.gradients[0].values() if g is not None]
    return torch.cat(pieces), trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("name", sorted(TRAINERS))
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gemma"])
def test_neither_split_nor_sharing_changes_the_gradient(name, kind, request, tmp_path, smollm2_tokenizer) -> None:
    model = request.getfixturevalue(kind)
    whole, loss = gradient(name, tmp_path, model, smollm2_tokenizer)
    assert whole.norm() > 0
    for change in ({"micro_batch": 1}, {"micro_batch": 2, "share": False}):
        other, its_loss = gradient(name, tmp_path, model, smollm2_tokenizer, **change)
        assert (other - whole).norm() / whole.norm() < 1e-5
        assert its_loss == pytest.approx(loss, rel=1e-5, abs=1e-6)


def test_texts_are_learnt_beside_the_examples(tmp_path, tiny_llama, smollm2_tokenizer) -> None:
    trainer, _ = supervised(tmp_path, tiny_llama, smollm2_tokenizer, 2, True, "fp32")
    examples = trainer.train_dataset.examples

    def lost(ids, start: int) -> list[float]:
        with torch.no_grad():
            logits = tiny_llama(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="none").tolist()

    replies = [x for e in examples for x in lost(e.ids, e.start)]
    texts = [x for e in examples if e.text for x in lost(e.text, 1)]
    assert len(texts) > 10
    trainer.train()
    expected = sum(replies) / len(replies) + 0.3 * sum(texts) / len(texts)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", sorted(TRAINERS))
def test_autocast_keeps_shared_prefixes_and_the_direction(name, tmp_path, tiny_llama, smollm2_tokenizer) -> None:
    whole, _ = gradient(name, tmp_path, tiny_llama, smollm2_tokenizer)
    half, _ = gradient(name, tmp_path, tiny_llama, smollm2_tokenizer, precision="bf16")
    assert torch.cosine_similarity(whole, half, dim=0) > 0.99


@pytest.mark.parametrize("settings", [("train.ntp_weight=0.05",), ()], ids=["with the next-token loss", "alone"])
def test_two_processes_train_what_one_trains(settings, tmp_path, tiny_llama, smollm2_tokenizer) -> None:
    children = multiprocessing.get_context("forkserver")
    children.set_forkserver_preload(["trainers", "forethink.training.grpo", "forethink.training.train"])
    found = {}
    for count in (1, 2):
        run = tmp_path / str(count) / "run"
        run.mkdir(parents=True)
        prepare(run, tiny_llama, smollm2_tokenizer)
        (run.parent / "reward.py").write_text(
            "def reward(answer, problem):\n    return float(len(answer.thought) % 7) if problem.index % 8 else 0.0\n"
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        # What torchrun sets. One group of problems is enough for a process to be idle in some micro-batch.
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = [{**common, "RANK": str(i), "LOCAL_RANK": str(i)} if count > 1 else {} for i in range(count)]
        # At a low temperature few of the random policy's 49,152 tokens carry all mass. Were it nearly uniform, the
        # last bits in which the two runs' weights differ would flip a sampled token, and all would part from there.
        config = train_settings(
            run,
            "train.steps=3",
            f"reward.name={run.parent / 'reward.py'}:reward",
            "rollout.temperature=0.1",
            *settings,
        )
        processes = [children.Process(target=train_in_child, args=(config, one)) for one in own]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0] * count
        found[count] = (
            load_file(run / "train" / "model" / "model.safetensors"),
            sorted((run / "train" / "samples.jsonl").read_text().splitlines()),
            (run / "train" / "metrics.jsonl").read_text().splitlines(),
        )
    (one, samples, _), (two, their_samples, metrics) = found[1], found[2]
    assert len(metrics) == 3 and len(samples) == len(their_samples)
    # An odd number of groups with a signal: one process has more to train than the other.
    assert any(round(json.loads(line)["groups/signal"] * 4) % 2 for line in metrics)
    start = dict(tiny_llama.named_parameters())
    for name, value in one.items():
        assert (value - two[name]).norm() < 0.01 * (value - start[name]).norm(), name
