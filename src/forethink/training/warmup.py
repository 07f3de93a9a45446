"""The warm start: short supervised training on the policy's own candidates, so that groups have a signal.

GRPO learns from groups that hold both right and wrong answers. A policy that boxes 2 % of its replies has none.
Here it is shown, at positions of the training split, how to think in the form (`thoughts`), until box rate, agreement
with its own arg-max and the share of groups with a signal level off on held-out positions.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from forethink.config import Config
from forethink.recipe import stage_folder
from forethink.records import problems_metadata, read_problems
from forethink.rundir import RunDir, hash_inputs, read_jsonl, write_atomic
from forethink.spent import totals
from forethink.types import ForethinkError, Problem

PATIENCE = 4  # probes without a better figure before training is taken to have levelled off
_BETTER = 0.01  # a smaller gain does not count


def pick(problems: Sequence[Problem], count: int, per_document: int, seed: int) -> list[Problem]:
    """At most ``count`` problems in training order: documents shuffled, the problems of one document together."""
    rng = random.Random(seed)
    documents: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        documents[problem.document].append(problem)
    blocks = []
    for own in documents.values():
        rng.shuffle(own)
        blocks += [own[i : i + per_document] for i in range(0, len(own), per_document)]
    rng.shuffle(blocks)
    return [problem for block in blocks for problem in sorted(block, key=lambda p: p.index)][:count]


def run_warmup(config: Config) -> Path:
    """Run the stage: `<run>/problems` → `<run>/warmup/model`, or nothing where the policy needs none.

    Raises:
        ForethinkError: there are no problems, or they were made with another tokenizer.
    """
    from forethink.models import model_inputs
    from forethink.training.checkpoints import refuse_adapter_on_adapter, starting_point

    folder = stage_folder(config, "problems")
    source = folder / "train.parquet"
    if not source.exists():
        raise ForethinkError(f"{folder}: holds no training problems; run `forethink problems` first.")
    start, adapter = starting_point(config.model, config.warmup.start)
    refuse_adapter_on_adapter(adapter, config.warmup.lora_rank, "warmup.lora_rank")
    inputs = hash_inputs(source) | model_inputs(start, adapter)
    run = RunDir(Path(config.run) / "warmup", "warmup", config, ("model", "template", "rollout", "warmup"), inputs)
    if run.done:
        print(f"{run.path}: done before")
        return run.path
    stage = _Stage(config, run, folder, start, adapter)
    stage.run_or_skip()
    return run.path


class _Stage:
    def __init__(self, config: Config, run: RunDir, folder: Path, start: str, adapter: str | None) -> None:
        import torch

        from forethink.device import keep_memory
        from forethink.flops import Flops
        from forethink.models import fingerprint, load_model, load_tokenizer, token_bytes
        from forethink.rollout import make_engine
        from forethink.templates import load_template
        from forethink.tokens import document_start
        from forethink.training.checkpoints import goes_on, newest_checkpoint, step_of
        from forethink.training.forward import Packer
        from forethink.training.probe import Probe

        keep_memory(config.model.device)
        self.config, self.settings, self.run = config, config.warmup, run
        model = config.model
        self.tokenizer = load_tokenizer(start, trust_remote_code=model.trust_remote_code)
        made_with = problems_metadata(folder, "train").get("fingerprint")
        if made_with != fingerprint(self.tokenizer):
            raise ForethinkError(
                f"{folder}: its problems were made with another tokenizer than {start}'s; run "
                "`forethink problems` again with this model."
            )
        self.template = load_template(config.template.name)
        self.table = token_bytes(self.tokenizer)
        self.bos = document_start(self.tokenizer)
        load = partial(
            load_model, start, adapter=adapter, device=model.device, trust_remote_code=model.trust_remote_code
        )
        # Two copies: fp32 master weights that train, and what answers and says its candidates, fast.
        self.model = load(dtype=torch.float32, merge=not goes_on(adapter, self.settings.lora_rank))
        self.twin = load(dtype=model.dtype)
        self.engine = make_engine(
            config.rollout, self.twin, self.tokenizer, thought_open=self.template.opens_thought(self.tokenizer)
        )
        self.problems = read_problems(folder, "train")
        try:
            held_out = read_problems(folder, "validation")
        except ForethinkError:
            held_out = []
        count = min(self.settings.probe_positions, len(held_out or self.problems))
        rng = random.Random(config.seed)
        # Without a validation split the probe looks at training positions, which are then left out of training.
        self.probed = rng.sample(held_out or self.problems, count)
        taken = {problem.id for problem in self.probed}
        self.problems = [problem for problem in self.problems if problem.id not in taken]
        self.cost = Flops.of(self.twin)
        # Where training goes on, its checkpoint says what was spent until then, and nothing of that is done again.
        checkpoint = newest_checkpoint(run.path / "checkpoints")
        done = -1 if checkpoint is None else step_of(checkpoint)
        records = [record for record in read_jsonl(run.path / "metrics.jsonl") if record["step"] <= done]
        self.probes = {record["step"]: Probe.of(record) for record in records if "probe/box" in record}
        self.spent: Counter[str] = Counter()  # probes and candidates included; seconds are the training loop's
        self.began = time.monotonic()
        self.packer = Packer(self.twin)
        self.own = [self.table[c.ids[0]] for c in self._candidates(self.probed, 1)]

    def _candidates(self, problems: Sequence[Problem], k: int) -> list[Any]:
        """The untrained policy's own next tokens: asked before the engine's first new weights."""
        from forethink.training.probe import candidates

        return candidates(self.twin, [[*self.bos, *p.context_ids] for p in problems], k, self.spent, self.packer)

    def probe(self, step: int) -> Any:
        """Load the present weights into the engine, sample, count, log."""
        from forethink.training.forward import inference_weights
        from forethink.training.probe import probe

        self.engine.load(inference_weights(self.model), step)
        found, _ = probe(
            self.engine, self.template, self.tokenizer, self.probed, self.own, self.config.seed, self.cost, self.spent
        )
        self.run.append("metrics", [{"step": step, **found.record()}])
        print(f"warm start, step {step}: {found.line()}", flush=True)
        return found

    def run_or_skip(self) -> None:
        """Probe the untrained policy; train unless it already answers in the form."""
        before = self.probes.get(0) or self.probe(0)
        enough = self.settings.skip_box_rate
        if enough is not None and before.box >= enough:
            print(f"warm start skipped: the policy boxes {before.box:.0%} of its replies already")
            self._finish({"skipped": True, "before": before.record()}, time.monotonic() - self.began)
            return
        examples = self.examples()
        prepared = time.monotonic() - self.began
        trained = self.train(examples)
        looked = time.monotonic()
        after = self.probe(trained["steps"])
        prepared += time.monotonic() - looked
        self._finish({"skipped": False, "before": before.record(), "after": after.record(), **trained}, prepared)

    def _finish(self, result: dict[str, Any], outside: float) -> None:
        """Close the run, with everything it took: `outside` are the seconds before and after the training loop."""
        self.spent["seconds"] += outside  # type: ignore[assignment]
        spent = totals(self.spent)
        self.run.finish(result | self.spent | spent | {"seconds": round(spent["seconds"], 1)})
        shutil.rmtree(self.run.path / "checkpoints", ignore_errors=True)  # of no use beside the final weights

    def examples(self) -> list[Any]:
        """All examples in training order, as they were made where training goes on."""
        from forethink.training.supervised import Example

        kept = self.run.path / "checkpoints" / "examples.jsonl"
        if self.probes and kept.exists():
            return [Example(tuple(one["ids"]), one["start"], tuple(one["text"])) for one in read_jsonl(kept)]
        made = self._made()
        kept.parent.mkdir(exist_ok=True)
        write_atomic(kept, "".join(json.dumps(asdict(example)) + "\n" for example in made))
        return made

    def _made(self) -> list[Any]:
        from forethink.training.supervised import Example
        from forethink.training.thoughts import interleaved, thought

        rng = random.Random(self.config.seed + 1)
        made = []
        end = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        chosen = pick(self.problems, self.settings.examples, self.settings.micro_batch, self.config.seed)

        def encode(text: bytes) -> list[int]:
            return list(self.tokenizer(text.decode(), add_special_tokens=False)["input_ids"])

        candidates = self._candidates(chosen, self.settings.candidates)
        for at, (problem, own) in enumerate(zip(chosen, candidates, strict=True), 1):
            prompt = self.template.render(problem, self.tokenizer)
            reply = thought(
                problem.context_ids, own, self.table, encode, self.template.style, self.settings.tail,
                self.settings.candidates, rng,
            )  # fmt: skip
            # A block of one document's problems ends with its longest context, which is learnt as plain text too.
            ends = at == len(chosen) or chosen[at].document != problem.document
            text = (*self.bos, *problem.context_ids) if self.settings.ntp_weight and ends else ()
            made.append(Example((*prompt, *reply, *end), len(prompt), text if len(text) > 1 else ()))
        return list(interleaved(made, self._replays(chosen, round(self.settings.replay * len(made)))))

    def _replays(self, chosen: Sequence[Problem], count: int) -> list[Any]:
        """The untouched policy's replies, as it gives them, to prompts that ask for something else."""
        from forethink.rollout import generate_counted, make_engine
        from forethink.training.supervised import Example
        from forethink.training.thoughts import REPLAY_TOKENS, other_prompts

        if not count:
            return []
        contexts = [problem.context_ids for problem in chosen]
        prompts = other_prompts(contexts, count, self.tokenizer, self.bos, random.Random(self.config.seed + 2))
        rollout = self.config.rollout.model_copy(
            update={
                "engine": "transformers", "group": 1, "temperature": 1.0,  # its own distribution
                "max_tokens": min(self.config.rollout.max_tokens, REPLAY_TOKENS),
            }
        )  # fmt: skip
        engine = make_engine(rollout, self.twin, self.tokenizer, stop=lambda _: False)
        keys = [f"replay {number}" for number in range(count)]
        groups, flops = generate_counted(engine, self.cost, prompts, keys, self.config.seed)
        self.spent["flops/rollout"] += flops
        replies = [one.token_ids for (one,) in groups]
        self.spent["tokens/generated"] += sum(map(len, replies))
        return [Example((*prompt, *reply), len(prompt)) for prompt, reply in zip(prompts, replies, strict=True)]

    def train(self, examples: list[Any]) -> dict[str, Any]:
        """Supervised training to the end of the examples, the minutes, or until the probes level off."""
        from forethink.training.supervised import supervise

        def better(found: Any) -> float:
            return float(found.box + found.agree + found.signal)

        best = [better(found) for step, found in sorted(self.probes.items()) if step]

        def look(step: int, seconds: float) -> bool:
            if self.settings.minutes is not None and seconds > 60 * self.settings.minutes:
                print(f"warm start: stopped after {self.settings.minutes:g} minutes", flush=True)
                return True
            if step % self.settings.probe_every:
                return False
            best.append(better(self.probe(step)))
            level = len(best) > PATIENCE and max(best[-PATIENCE:]) < max(best[:-PATIENCE]) + _BETTER
            if level:
                print("warm start: box rate, agreement and signal have levelled off", flush=True)
            return level

        return supervise(
            self.model, self.tokenizer, examples, self.run,
            learning_rate=self.settings.learning_rate, batch=self.settings.batch,
            micro_batch=self.settings.micro_batch, seed=self.config.seed, lora_rank=self.settings.lora_rank,
            ntp_weight=self.settings.ntp_weight, stop=look, spent=self.spent,
            compile=self.config.model.compile,
        )  # fmt: skip
