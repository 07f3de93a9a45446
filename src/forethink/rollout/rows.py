"""What every engine shares: a completion while it grows, the rule that ends it, and its random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from forethink.types import Completion, Finish

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(slots=True)
class Row:
    """A completion while it grows. ``finish`` is None until it has ended."""

    prompt: int  # number of its prompt in the call
    sample: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: bytearray = field(default_factory=bytearray)
    finish: Finish | None = None

    def completion(self, problem: str, version: int) -> Completion:
        """The finished record; a row that has not ended counts as cut."""
        return Completion(
            problem, self.sample, tuple(self.token_ids), bytes(self.text), tuple(self.logprobs),
            self.finish or Finish.LENGTH, version,
        )  # fmt: skip


class Ending:
    """Adds tokens to rows and says when a row has ended.

    A row ends at an end-of-sequence token (kept as a token, without text), at a token that holds ``}`` and makes
    ``stop`` true of the whole completion's bytes, or at ``max_tokens``.

    Args:
        table: bytes of every token id.
        stop_ids: the end-of-sequence ids.
        stop: True of the bytes of a completion that is complete; None never ends one.
        max_tokens: longest completion.
        fixed_length: every row runs to ``max_tokens``.
    """

    def __init__(
        self,
        table: Sequence[bytes],
        stop_ids: frozenset[int],
        stop: Callable[[bytes], bool] | None,
        max_tokens: int,
        fixed_length: bool = False,
    ) -> None:
        self.table, self.stop_ids, self.stop = table, stop_ids, stop
        self.max_tokens, self.fixed_length = max_tokens, fixed_length
        self._closing = frozenset(i for i, text in enumerate(table) if b"}" in text)

    def push(self, row: Row, token: int, logprob: float) -> None:
        """Add a token to a row that has not ended; sets the row's ``finish`` where it ends with it."""
        row.token_ids.append(token)
        row.logprobs.append(logprob)
        ends = token in self.stop_ids
        if not ends and token < len(self.table):  # some models have more embeddings than the vocabulary has entries
            row.text += self.table[token]
        if not self.fixed_length and (ends or self._stops(row, token)):
            row.finish = Finish.STOP
        elif len(row.token_ids) >= self.max_tokens:
            row.finish = Finish.LENGTH

    def _stops(self, row: Row, token: int) -> bool:
        return self.stop is not None and token in self._closing and self.stop(bytes(row.text))


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> frozenset[int]:
    """Every end-of-sequence id that the tokenizer, the model's configuration or its generation settings name."""
    values = [tokenizer.eos_token_id]
    if model is not None:
        values.append(model.config.get_text_config().eos_token_id)
        values.append(getattr(model.generation_config, "eos_token_id", None))
    found: set[int] = set()
    for value in values:
        found.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return frozenset(found)


def key(seed: int, problem: str, sample: int) -> np.ndarray:
    """The 128-bit key of a completion's random numbers, uint64 [2]: a hash, so no two completions share one."""
    digest = hashlib.sha256(f"{seed}\0{sample}\0{problem}".encode()).digest()
    return np.frombuffer(digest[:16], dtype=np.uint64)


def uniforms(seed: int, problem: str, sample: int, count: int) -> np.ndarray:
    """``count`` uniform numbers in [0, 1), float64, decided by the arguments alone (Philox)."""
    return np.random.Generator(np.random.Philox(key=key(seed, problem, sample))).random(count)


def check_prompts(prompts: Sequence[Sequence[int]], problems: Sequence[str]) -> None:
    """Raise ValueError where prompts and problems do not belong together or a prompt is empty."""
    if len(prompts) != len(problems):
        raise ValueError(f"{len(prompts)} prompts for {len(problems)} problems")
    for prompt, problem in zip(prompts, problems, strict=True):
        if len(prompt) == 0:
            raise ValueError(f"problem {problem}: its prompt is empty, there is nothing to continue")
