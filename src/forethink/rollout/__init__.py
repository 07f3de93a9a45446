"""Engines that sample completions, behind one small protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from forethink import config, types

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forethink.flops import Flops

Stop = Callable[[bytes], bool]


class Engine(Protocol):
    """Something that continues prompts in groups.

    A completion's randomness depends on (seed, problem, sample number) alone, never on what else is in the batch.
    An engine that counts its floating-point operations has an attribute ``flops``, all it did so far.
    """

    @property
    def version(self) -> int:
        """Version of the weights now in use; every completion carries it."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], problems: Sequence[str], seed: int
    ) -> list[list[types.Completion]]:
        """Sample one group of G completions per prompt.

        Args:
            prompts: token ids of every prompt, none empty.
            problems: the problem's id for every prompt.
            seed: with the problem's id and the sample's number, the key of a completion's random numbers.

        Returns:
            One list a prompt, in the order of the prompts; sample numbers 0 … G-1 in order.
        """
        ...

    def load(self, weights: Mapping[str, Tensor] | PreTrainedModel, version: int) -> None:
        """Take new weights (a state dict or a model) and drop every cache that came from the old ones."""
        ...


def make_engine(
    rollout: config.Rollout,
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase,
    stop: Stop | None = None,
    *,
    thought_open: bool = False,
    greedy: bool = False,
    fixed_length: bool = False,
) -> Engine:
    """The engine a configuration names.

    Args:
        rollout: the configuration's section.
        model: the policy; for vLLM its name or folder, since that engine loads weights itself.
        tokenizer: the policy's tokenizer.
        stop: called with a completion's bytes whenever its newest token holds a closing brace; True ends it.
            By default the closing of its box.
        thought_open: the prompt ends inside an opened thought, so a box counts only after the thought's end.
        greedy: take the most probable token instead of sampling; log-probabilities stay those of the temperature.
        fixed_length: never stop before ``max_tokens`` (benchmarks).

    Raises:
        ForethinkError: the engine is not installed, or it cannot be made from a configuration alone.
    """
    if stop is None:

        def stop(text: bytes) -> bool:
            from forethink.templates import box_closed

            return box_closed(text, thought_open)

    match rollout.engine:
        case "transformers":
            from forethink.rollout.transformers_engine import TransformersEngine

            if isinstance(model, str):
                from forethink.models import load_model

                model = load_model(model)
            return TransformersEngine(
                model,
                tokenizer,
                group=rollout.group,
                temperature=rollout.temperature,
                max_tokens=rollout.max_tokens,
                batch=rollout.batch,
                stop=stop,
                greedy=greedy,
                fixed_length=fixed_length,
            )
        case "vllm":
            from forethink.rollout.vllm_engine import VllmEngine

            return VllmEngine(
                model,
                tokenizer,
                group=rollout.group,
                temperature=rollout.temperature,
                max_tokens=rollout.max_tokens,
                batch=rollout.batch,
                stop=stop,
                greedy=greedy,
                fixed_length=fixed_length,
                **rollout.options,
            )
        case "scripted":
            raise types.ForethinkError(
                "rollout.engine=scripted: its answers are in no configuration; make a ScriptedEngine in Python, or "
                "choose transformers or vllm."
            )


def generate_counted(
    engine: Engine, cost: Flops, prompts: Sequence[Sequence[int]], problems: Sequence[str], seed: int
) -> tuple[list[list[types.Completion]], int]:
    """Sample, and say what it took: the engine's own count (an attribute ``flops``), else `Flops.decode`'s estimate.

    Args:
        cost: of the policy.

    Returns:
        What `Engine.generate` returns, and floating-point operations.
    """
    before = getattr(engine, "flops", None)
    sampled = engine.generate(prompts, problems, seed)
    if before is not None:
        return sampled, engine.flops - before  # type: ignore[attr-defined]
    lengths = [[len(completion.token_ids) for completion in group] for group in sampled]
    return sampled, cost.decode([len(prompt) for prompt in prompts], lengths)


def check_version(completions: Iterable[types.Completion], version: int) -> None:
    """Refuse completions sampled from other weights than the trainer's own.

    Raises:
        RuntimeError: a completion carries another version.
    """
    for completion in completions:
        if completion.weights != version:
            raise RuntimeError(
                f"completion {completion.sample} of problem {completion.problem} was sampled from weights "
                f"{completion.weights}, not from the trainer's {version}; load the engine before sampling."
            )
