"""The plain baseline: ordinary next-token training on the run's training documents, to a budget.

A comparison with reinforcement pre-training means something where both took as much: so many FLOPs, tokens or
seconds, given as a number or read from finished stages. Steps are cut to what is left of the budget, so that the last
one ends at it. The learning rate follows the share of the budget that is spent.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedTokenizerBase, TrainingArguments

from forethink.config import Config
from forethink.device import computes_in_bf16, keep_memory
from forethink.flops import Flops
from forethink.models import fingerprint, load_model, load_tokenizer, model_inputs
from forethink.recipe import stage_folder
from forethink.records import read_problems, read_scored, scored_metadata, scored_shards
from forethink.rundir import RunDir, hash_file
from forethink.spent import stage_total, totals
from forethink.tokens import document_start, encode_document, token_bytes
from forethink.training.checkpoints import Keep, goes_on, refuse_adapter_on_adapter, starting_point, with_lora
from forethink.training.forward import base_of
from forethink.training.progress import LINE_EVERY, Bar
from forethink.training.supervised import Log, SupervisedTrainer, train_to_end
from forethink.training.windows import ENDLESS, Steps, cut_step, micro_batches, windows_of
from forethink.types import ForethinkError

WITHIN = 0.01  # of the budget: what may be left of it at the end
_RISE = 0.03  # of the budget: the learning rate rises to its full height
PASS_TOKENS = 4096  # of a backward pass on an accelerator, where a short one takes as long
_RECENT = 5  # steps whose speed says what the next one takes


def learning_rate_share(schedule: str, share: float) -> float:
    """The part of the full learning rate at a share of the budget, from 0 to 1.

    It rises from a tenth to the whole over the first 3 % of the budget, and falls to 0 at its end as a line
    (``linear``) or half a cosine (``cosine``), or not at all (``constant``).
    """
    share = min(share, 1.0)
    falls = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2, "constant": 1.0}
    return min(1.0, 0.1 + 0.9 * share / _RISE) * falls[schedule]


def price(cost: Flops, unit: str, tokens: int) -> float:
    """What training on a window of this many tokens costs: tokens, or else FLOPs."""
    return tokens if unit == "tokens" else cost.train(tokens, tokens**2, max(0, tokens - 1))


class NextTokenTrainer(SupervisedTrainer):
    """The supervised trainer over `Steps`, to a budget.

    Args:
        unit: what is counted: ``flops``, ``tokens`` or ``seconds``.
        amount: the budget.
        schedule: see `learning_rate_share`.
        most: tokens a backward pass.
        models: how many models are kept, at equal shares of the budget, the last one included.
    """

    def __init__(
        self, *args: Any, unit: str, amount: float, schedule: str, most: int, models: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(*args, data_collator=itemgetter(0), **kwargs)  # an item of the data set is a whole step
        self.unit, self.amount, self.schedule, self.most, self.models = unit, amount, schedule, most, models
        self._price = partial(price, self.cost, unit)
        # Windows share nothing, and each alone costs the fewest pairs: no trees.
        self.packer.share, self.packer.rows = False, self.accelerator.device.type != "cpu"
        self._speeds: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # FLOPs and seconds of the last steps
        self._mark: tuple[float, float] | None = None
        self._before: float | None = None  # share of the budget spent when a model was last asked for

    def used(self) -> float:
        """What was spent so far, in the budget's unit."""
        return self.tick() if self.unit == "seconds" else float(self.spent[f"{self.unit}/update"])

    def share(self) -> float:
        """The part of the budget that is spent."""
        return self.used() / self.amount

    def ended(self) -> bool:
        """Whether what is left is too little for anything."""
        left = self.amount - self.used()
        return left < WITHIN * self.amount or (self.unit != "seconds" and left < self._price(2))

    def _allowed(self, whole: float) -> float:
        """How much of a step that costs ``whole`` may be done.

        All of it, or what is left of the budget. Where less than half a step would remain after a whole one, the two
        are made equal: a tiny last batch would move the weights as much as a large one does.
        """
        left = self.amount - self.used()
        if self.unit == "seconds":
            speeds = self._speeds or [(self.spent["flops/update"], self.spent["seconds"])]  # after a resume
            if not speeds[0][0]:
                return whole
            left *= sum(flops for flops, _ in speeds) / sum(seconds for _, seconds in speeds)
        return left if left <= whole else left / 2 if left < 1.5 * whole else whole

    def _get_num_items_in_batch(self, batch_samples: Any, device: torch.device) -> None:  # type: ignore[override]
        return None  # known when the step has been cut

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward passes over as much of a step as the budget allows."""
        if self.unit == "seconds":
            now = (float(self.spent["flops/update"]), self.tick())
            if self._mark is not None:
                self._speeds.append((now[0] - self._mark[0], now[1] - self._mark[1]))
            self._mark = now
        if self._before is None:
            self._before = self.share()
        step = cut_step(inputs, self._allowed(sum(self._price(len(one.ids)) for one in inputs)), self._price)
        step = step or [replace(inputs[0], ids=inputs[0].ids[:2])]  # seconds went by since `ended` was asked
        learnt = torch.tensor(sum(len(one.ids) - one.start for one in step), device=self.accelerator.device)
        total = torch.zeros((), device=self.accelerator.device)
        for part in micro_batches(step, self.most):
            total += super().training_step(model, part, learnt)  # type: ignore[arg-type]
        return total

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """A schedule over the budget, whatever the number of steps."""
        if self.lr_scheduler is None:
            chosen = cast(torch.optim.Optimizer, self.optimizer if optimizer is None else optimizer)
            self.lr_scheduler = LambdaLR(chosen, lambda _: learning_rate_share(self.schedule, self.share()))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def due(self, step: int) -> bool:
        """Whether a model is kept after the step just done: it crossed one of the shares 1/models, 2/models …"""
        before, self._before = self._before or 0.0, self.share()
        return not self.ended() and math.floor(before * self.models) < math.floor(self._before * self.models)


class _Log(Log):
    """Ends training with the budget, and tells how far it is."""

    trainer: NextTokenTrainer

    def __init__(self, run: RunDir, trainer: NextTokenTrainer) -> None:
        super().__init__(run, trainer)
        self.printed = -math.inf
        self.bar = Bar()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        if state.global_step == 1 and trainer.share() > 1 + WITHIN:
            shutil.rmtree(args.output_dir, ignore_errors=True)  # nothing is in it: another batch may take this folder
            raise ForethinkError(
                f"{self.run.path}: one step took {trainer.used():.3g} seconds, more than the budget of "
                f"{trainer.amount:.3g}; lower ntp.batch."
            )
        if trainer.ended():
            control.should_training_stop, control.should_save = True, False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        super().on_save(args, state, control)
        control.should_training_stop = control.should_training_stop or self.trainer.ended()  # saving takes time too

    def show(self, record: dict[str, Any], steps: int) -> None:
        """A bar in a terminal, else a line now and then."""
        share = min(1.0, self.trainer.share())
        line = f"step {record['step']}  loss {self.loss:.3f}  {record['tokens']:.3g} tokens  {record['seconds']:.0f} s"
        if sys.stderr.isatty():
            self.bar.draw(share, line)
        elif record["step"] == 1 or time.monotonic() - self.printed >= LINE_EVERY or self.trainer.ended():
            self.printed = time.monotonic()
            told = f"{share:.0%} of {self.trainer.amount:.3g} {self.trainer.unit}"
            print(f"{told}  {line}", file=sys.stderr, flush=True)


def _budget(config: Config) -> tuple[float, dict[str, str]]:
    """The amount, and the hashes of the stages' records that it was read from."""
    knobs = config.ntp
    if knobs.amount is not None:
        if knobs.budget_from:
            raise ForethinkError("ntp.amount and ntp.budget_from are both given; remove one.")
        return knobs.amount, {}
    named = (knobs.budget_from,) if isinstance(knobs.budget_from, str) else knobs.budget_from
    sources = [Path(name) for name in named] or [Path(config.run) / "train"]
    amount = sum(stage_total(folder, knobs.budget) for folder in sources)
    if amount <= 0:
        raise ForethinkError(f"{', '.join(map(str, sources))}: took no {knobs.budget}; name another budget.")
    return amount, {str(folder / "run.json"): hash_file(folder / "run.json") for folder in sources}


def _documents(config: Config, tokenizer: PreTrainedTokenizerBase) -> Iterator[Sequence[int]]:
    """Token ids of every document that gave a training problem, in the corpus's order."""
    score, problems = stage_folder(config, "score"), stage_folder(config, "problems")
    wanted = {problem.document for problem in read_problems(problems, "train")}
    same = scored_metadata(score).get("fingerprint") == fingerprint(tokenizer)
    table = None if same else token_bytes(tokenizer)
    found = 0
    for document in read_scored(score):
        if document.id in wanted:
            found += 1
            text = document.text.decode()
            yield document.token_ids if table is None else encode_document(tokenizer, text, table)[0]
    if found < len(wanted):
        raise ForethinkError(
            f"{score}: lacks {len(wanted) - found} of the {len(wanted)} documents of {problems}; make the problems "
            "again from these scores."
        )


def run_ntp(config: Config) -> Path:
    """The stage: `<run>/score` and `<run>/problems` → `<run>/<ntp.name>/model`, and kept models beside it.

    Raises:
        ForethinkError: nothing scored, no problems; a budget that is unknown or smaller than one step; a gradient
            that is no number.
    """
    knobs = config.ntp
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ForethinkError("forethink ntp runs in one process; start it without torchrun or accelerate.")
    shards = scored_shards(stage_folder(config, "score"))
    problems = stage_folder(config, "problems") / "train.parquet"
    if not problems.is_file():
        raise ForethinkError(f"{problems}: no such problems; run `forethink problems` with the same run=… first.")
    amount, sources = _budget(config)
    start, adapter = starting_point(config.model, knobs.start)
    refuse_adapter_on_adapter(adapter, knobs.lora_rank, "ntp.lora_rank")
    inputs = {str(file): hash_file(file) for file in (*shards, problems)} | sources | model_inputs(start, adapter)
    run = RunDir(Path(config.run) / knobs.name, "ntp", config, ("model", "ntp"), inputs)
    if not run.done:
        _train(config, run, amount, start, adapter)
    return run.path


def _train(config: Config, run: RunDir, amount: float, start: str, adapter: str | None) -> None:
    knobs, trust = config.ntp, config.model.trust_remote_code
    keep_memory(config.model.device)
    tokenizer = load_tokenizer(start, trust_remote_code=trust)
    window = min(knobs.window, knobs.batch)
    windows = windows_of(_documents(config, tokenizer), document_start(tokenizer), window, f"{config.run}/problems")
    steps = Steps(windows, knobs.batch, config.seed)
    rank, options = knobs.lora_rank, dict[str, Any](device=config.model.device, trust_remote_code=trust)
    model = load_model(start, adapter=adapter, merge=not goes_on(adapter, rank), dtype=torch.float32, **options)
    trained = with_lora(model, rank, seed=config.seed) if rank else model
    cost = Flops.of(base_of(trained))
    one = sum(price(cost, knobs.budget, len(example.ids)) for example in steps[0])
    if knobs.budget != "seconds" and one > amount:
        raise ForethinkError(
            f"{run.path}: the budget of {amount:.3g} {knobs.budget} is less than one step's {one:.3g}; "
            "lower ntp.batch."
        )
    arguments = TrainingArguments(
        output_dir=str(run.path / "checkpoints"), per_device_train_batch_size=1, max_steps=ENDLESS,
        learning_rate=knobs.learning_rate, weight_decay=0.01, bf16=computes_in_bf16(knobs.precision, model.device),
        use_cpu=model.device.type == "cpu", seed=config.seed, logging_steps=1, logging_nan_inf_filter=False,
        save_strategy="steps", save_steps=knobs.save_every, save_total_limit=2, report_to=[], disable_tqdm=True,
        remove_unused_columns=False)  # fmt: skip
    most = window if model.device.type == "cpu" else max(window, PASS_TOKENS)
    trainer = NextTokenTrainer(
        model=trained, args=arguments, train_dataset=steps, unit=knobs.budget, amount=amount,
        schedule=knobs.schedule, most=most, models=knobs.keep, compile=config.model.compile,
    )  # fmt: skip
    trainer.add_callback(Keep(trainer, tokenizer, run.path, trainer.due))
    log = _Log(run, trainer)
    try:
        done = train_to_end(trainer, log, tokenizer, run)
    finally:
        log.bar.close()
    if abs((share := trainer.share()) - 1) > 2 * WITHIN:
        run.warn(f"training ended at {share:.1%} of its budget; smaller steps (ntp.batch) end closer to it")
    spent = totals(trainer.spent)
    run.finish(
        {"budget": knobs.budget, "amount": amount, "share": share, "steps": done, "loss": log.loss}
        | {"windows": len(windows), "passes": steps.passes(done)} | spent | {"seconds": round(spent["seconds"], 3)}
    )  # fmt: skip
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # of no use beside the final weights
