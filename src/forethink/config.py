"""Every knob, once: frozen pydantic models read from one TOML file and ``section.key=value`` overrides.

An unknown key or a wrong type is an error in one sentence. ``[trl]`` passes verbatim to TRL's ``GRPOConfig``;
a key that forethink sets itself must not appear there.
"""

from __future__ import annotations

import datetime
import functools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forethink.recipe import merge, origin, read_recipe
from forethink.types import ForethinkError


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), ser_json_inf_nan="constants"
    )

    @model_validator(mode="before")
    @classmethod
    def _none(cls, data: Any) -> Any:
        """TOML has no null: the string "none" stands for it, in files and in overrides alike."""
        if isinstance(data, dict):
            return {key: None if value == "none" else value for key, value in data.items()}
        return data


class Corpus(_Section):
    """Where documents come from."""

    path: str | None = None  # file, folder, hub id or a `datasets` directory
    field: tuple[str, ...] = ("text",)  # fields of a record, joined by `separator`
    separator: str = "\n\n"
    split: str = "train"  # split of a hub data set
    text_split: str | None = None  # plain text: a regular expression that starts a new document
    limit: int | None = Field(default=None, ge=1)  # read at most this many documents
    min_bytes: int = Field(default=1, ge=1)  # shorter documents are dropped, and counted


class Model(_Section):
    """The policy."""

    name: str = "smollm2"  # path, hub id or alias
    adapter: str | None = None  # a LoRA adapter's folder
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # for inference; training keeps fp32 master weights
    device: str = "auto"
    trust_remote_code: bool = False
    compile: Literal["auto"] | bool = "auto"  # layers, for training; auto: on a CPU, from 100 steps on


class Score(_Section):
    """Entropy of every position under the proxy."""

    proxy: str | None = None  # path, hub id or alias; the policy when absent
    top_k: int = Field(default=16, ge=2)
    window: int = Field(default=1024, ge=16)  # tokens the proxy sees at once
    overlap: int = Field(default=256, ge=1)  # tokens of context repeated at the start of the next window
    short_context: int = Field(default=16, ge=1)  # the first positions of a document, marked as short of context
    batch_tokens: int = Field(default=8192, ge=16)
    shard_documents: int = Field(default=256, ge=1)  # documents per Parquet shard, the unit of resuming


class Problems(_Section):
    """Which positions become problems."""

    selector: str = "threshold"  # threshold, top_fraction, band, random, no_think_error or module:function
    threshold: float = 0.5  # nats, renormalised top-k entropy; lower bound for `threshold` and `band`
    upper: float = 3.0  # upper bound for `band`, nats
    fraction: float = Field(default=0.2, gt=0, le=1)  # for `top_fraction` and `random`
    per_document: int | None = Field(default=16, ge=1)  # problems a document may give; None: no limit
    min_context: int = Field(default=16, ge=1)  # tokens before the position
    max_context: int = Field(default=512, ge=1)  # longest context in tokens; cut from the left, by halves of it
    max_target: int = Field(default=16, ge=1)  # tokens of true continuation kept
    validation: float = Field(default=0.0, ge=0, le=1)  # share of documents in the validation split


class Template(_Section):
    """How to ask and how to read."""

    name: str = "v0"  # v0 … v6, or a template file


class Reward(_Section):
    """What an answer is worth."""

    name: str = "prefix_match"  # a key of rewards.REWARDS or module:function
    length_weight: float = Field(default=0.0, ge=0, le=1)  # w of (1-w)·reward + w·length budget
    length_budget: int = Field(default=256, ge=1)  # tokens of completion that the length budget allows
    scorer: Literal["policy", "start"] = "policy"  # whose probabilities count: the policy's, or as training found it


class Rollout(_Section):
    """How completions are sampled."""

    engine: Literal["transformers", "vllm", "scripted"] = "transformers"
    group: int = Field(default=8, ge=1)  # completions per problem, G
    temperature: float = Field(default=0.8, gt=0)
    max_tokens: int = Field(default=64, ge=1)
    batch: int = Field(default=128, ge=1)  # completions decoded at once
    options: dict[str, Any] = {}  # passed to vllm.LLM: max_model_len, gpu_memory_utilization, …


class Warmup(_Section):
    """Supervised training on thoughts made of the policy's own next-token candidates."""

    start: str | None = None  # a model or adapter folder, to go on with; [model] when absent
    skip_box_rate: float | None = Field(default=0.9, ge=0, le=1)  # skipped from this box rate on; None: never
    examples: int = Field(default=2400, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)  # for LoRA; all weights bear about a thirtieth of it
    batch: int = Field(default=16, ge=1)  # examples a step; small ones learn the form soonest
    micro_batch: int = Field(default=16, ge=1)  # examples a backward pass, of one document where it has as many
    tail: int = Field(default=0, ge=0)  # a thought restates half to twice as many tokens of the context's end first
    candidates: int = Field(default=2, ge=1)  # hypotheses listed in a thought
    lora_rank: int = Field(default=16, ge=0)  # 0: full weights
    ntp_weight: float = Field(default=0.0, ge=0)  # λ of λ·NTP on the contexts, against forgetting
    replay: float = Field(default=0.0, ge=0)  # the untouched policy's replies to other prompts, per thought
    probe_every: int = Field(default=100, ge=1)  # steps between probes on held-out positions
    probe_positions: int = Field(default=64, ge=1)
    minutes: float | None = None  # stop after this wall time


class Train(_Section):
    """GRPO."""

    start: str | None = None  # a model folder; the run's warm start when there is one, else the policy
    steps: int = Field(default=100, ge=1)
    problems: int = Field(default=16, ge=1)  # problems a step, over all processes
    limit: int | None = Field(default=None, ge=1)  # train on at most this many problems, drawn at random
    learning_rate: float = Field(default=1e-6, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=0.2, gt=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    precision: Literal["auto", "bf16", "fp32", "pure_bf16"] = "auto"  # bf16: over fp32 weights; auto: if it is fast
    micro_batch: int = Field(default=4, ge=1)  # problems per backward pass
    dynamic_sampling_from: int | None = 0  # step from which degenerate groups are refilled; None: never
    refill: int = Field(default=2, ge=0)  # at most this many extra batches of problems a step
    ntp_weight: float = Field(default=0.0, ge=0)  # λ of λ·NTP on the context tokens
    lora_rank: int = Field(default=0, ge=0)  # 0: full weights
    save_every: int = Field(default=25, ge=1)
    keep_every: int | None = Field(default=None, ge=1)  # steps between models kept beside the last, to be evaluated
    degenerate_alarm: float = Field(default=0.9, ge=0, le=1)  # warn when a larger share of groups gives no gradient


class Ntp(_Section):
    """The plain baseline: next-token training on the run's training documents, to a budget."""

    name: str = "ntp"  # the run folder's name below `run`, so that several baselines stand side by side
    start: str | None = None  # a model or adapter folder, or a name; [model] when absent
    budget: Literal["flops", "tokens", "seconds"] = "flops"  # what is matched
    amount: float | None = Field(default=None, gt=0)  # of `budget`; read from `budget_from` when absent
    budget_from: str | tuple[str, ...] = ()  # finished stages' folders, added up; the run's own `train` when empty
    learning_rate: float = Field(default=1e-5, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # over the budget, after a short rise
    batch: int = Field(default=8192, ge=16)  # tokens a step
    window: int = Field(default=1024, ge=2)  # tokens of a document learnt at once
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # as train.precision
    lora_rank: int = Field(default=0, ge=0)  # 0: full weights
    keep: int = Field(default=1, ge=1)  # models kept at equal shares of the budget, the last one included
    save_every: int = Field(default=10, ge=1)  # steps between checkpoints to resume from


class Eval(_Section):
    """Next-token accuracy, plain and reasoning, on the same positions."""

    name: str = "eval"  # the run folder's name below `run`, so that several evaluations stand side by side
    model: str | None = None  # what is evaluated: a model or adapter folder, or a name; [model] when absent
    problems: str | None = None  # a problems folder; the run's own validation split when absent
    base: str | None = None  # the model whose entropy sets the difficulty; the problems' own entropies when absent
    positions: int = Field(default=500, ge=1)
    samples: int = Field(default=1, ge=1)  # completions a position, for pass@1 and pass@k
    temperature: float | None = Field(default=None, ge=0)  # 0: the most probable token; absent: rollout.temperature
    thresholds: tuple[float, ...] = (0.5, 1.0, 1.5)  # easy, medium, hard; nats
    per_split: bool = False  # `positions` for each nested split instead of for all of them together
    bootstrap: int = Field(default=2000, ge=100)
    against: tuple[str, ...] = ()  # folders of finished evaluations on the same positions, to compare with


class Questions(_Section):
    """Questions with checkable answers, to fine-tune on and to evaluate with."""

    source: str | None = None  # a JSON-lines or Parquet file, or reasoning_gym:TASK, an endless source
    held_out: str | None = None  # as `source`, for evaluation; when absent and the source is a task, others of it
    question: str = "question"  # the field of a record that holds the question
    answer: str = "answer"  # the field that holds the reference answer
    pattern: str | None = None  # an expression for the answer inside its field: last match, first group if any
    options: dict[str, Any] = {}  # passed to the task
    limit: int | None = Field(default=None, ge=1)  # train on at most this many questions
    max_question: int = Field(default=512, ge=1)  # longer questions, in tokens, are left out, and counted
    template: str = "question"  # question, question_example (one worked example), or a template file
    verifier: str | None = None  # module:function(answer, question); else math-verify, or the task's own
    stop_at_box: bool = False  # end a reply at its first closed box; else the last box counts


class Finetune(_Section):
    """GRPO on [questions]; what is not here is taken from [train] and [rollout], less NTP and length terms."""

    name: str = "finetune"  # the folder below `run` that holds before, train and after
    start: str | None = None  # a model or adapter folder; the run's trained model when there is one, else the policy
    steps: int = Field(default=100, ge=1)
    problems: int = Field(default=16, ge=1)  # questions a step, over all processes
    learning_rate: float = Field(default=1e-6, gt=0)
    group: int = Field(default=8, ge=2)  # completions per question, G
    temperature: float = Field(default=0.6, gt=0)  # of training and of sampled evaluation
    max_tokens: int = Field(default=256, ge=1)


class Tasks(_Section):
    """Multiple-choice questions through lm-evaluation-harness (`forethink eval --tasks`)."""

    path: tuple[str, ...] = ()  # JSON lines or Parquet with question, options, answer; or a data set of the hub
    split: str = "test"  # split of a hub data set
    category: str = "category"  # field of a record that holds its category
    mode: Literal["plain", "reasoning", "both"] = "plain"  # plain: log-likelihood of the letters; reasoning: a reply
    limit: int | None = Field(default=None, ge=1)  # ask this many questions of each file, drawn by the seed
    max_tokens: int = Field(default=2048, ge=1)  # of a reply
    temperature: float = Field(default=0.0, ge=0)  # of a reply; 0: the most probable token
    batch: int = Field(default=8, ge=1)  # questions a forward pass, replies decoded at once


class DryRun(_Section):
    """What `forethink train --dry-run` cannot find out by itself."""

    shape: dict[str, int | bool] | None = None  # the policy's layers, hidden, heads, kv_heads, … (docs/dry_run.md)


class Config(_Section):
    """One recipe: everything a run depends on."""

    run: str = "runs/default"  # the stages write their run folders below it
    parent: str | None = None  # a run whose finished score, problems and warmup count where this one has none
    seed: int = 0
    corpus: Corpus = Corpus()
    model: Model = Model()
    score: Score = Score()
    problems: Problems = Problems()
    template: Template = Template()
    reward: Reward = Reward()
    rollout: Rollout = Rollout()
    warmup: Warmup = Warmup()
    train: Train = Train()
    ntp: Ntp = Ntp()
    eval: Eval = Eval()
    questions: Questions = Questions()
    finetune: Finetune = Finetune()
    tasks: Tasks = Tasks()
    dry_run: DryRun = DryRun()
    trl: dict[str, Any] = {}


def _value(text: str) -> Any:
    """Read an override's value as TOML; what TOML does not know is a plain string (paths, names)."""
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    return text if isinstance(value, datetime.date | datetime.time) else value  # run=2030-01-31 names a folder


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe, on its ``base`` where it names one, and apply overrides such as ``train.steps=40``.

    Args:
        path: a TOML file; None for the defaults alone.
        overrides: ``key=value`` or ``section.key=value``, later ones win. Values are TOML; ``none`` stands for null.

    Raises:
        ForethinkError: the file is absent or no TOML, a key is unknown, or a value has the wrong type.
    """
    chain = [] if path is None else read_recipe(path)
    data: dict[str, Any] = functools.reduce(merge, (table for _, table in chain), {})
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ForethinkError(f"{override!r}: an override reads section.key=value.")
        *sections, last = key.strip().split(".")
        table = data
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ForethinkError(f"{override!r}: {section!r} is a value, not a section.")
        table[last] = _value(text)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        source = origin(chain, first["loc"]) if chain else "the overrides"
        if first["type"] == "extra_forbidden":
            raise ForethinkError(f"{source}: unknown key {where!r}; see `forethink keys` for all keys.") from None
        raise ForethinkError(f"{source}: {where!r} is {first['input']!r}, but: {first['msg']}.") from None
