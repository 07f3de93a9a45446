"""The engine that needs no model: it says what it was told to say. For tests and dry runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from forethink.rollout.rows import Ending, Row, check_prompts, stop_ids
from forethink.types import Completion, ForethinkError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Answers = Callable[[str, int], bytes] | Mapping[str, Sequence[bytes]]


class ScriptedEngine:
    """Writes given answers as completions, token by token, each token at log-probability 0.

    An answer ends with the tokenizer's end-of-sequence token, unless its box closes before or ``max_tokens`` cuts it.

    Args:
        answers: a function of (problem id, sample number), or for every problem the bytes of its samples; a shorter
            list is repeated.
        tokenizer: turns the answers into tokens.
        group: completions a prompt, G.
        max_tokens: tokens after which a completion is cut.
        stop: as for the other engines.
        version: version of the weights it pretends to sample from.
    """

    def __init__(
        self,
        answers: Answers,
        tokenizer: PreTrainedTokenizerBase,
        *,
        group: int = 8,
        max_tokens: int = 64,
        stop: Callable[[bytes], bool] | None = None,
        version: int = 0,
    ) -> None:
        from forethink.tokens import token_bytes

        self.answers, self.tokenizer, self.group = answers, tokenizer, group
        self._table = token_bytes(tokenizer)
        self._ending = Ending(self._table, stop_ids(tokenizer), stop, max_tokens)
        self._version = version

    @property
    def version(self) -> int:
        return self._version

    def load(self, weights: Mapping[str, Tensor] | PreTrainedModel, version: int) -> None:
        """Take the version; there are no weights to take."""
        self._version = version

    def generate(self, prompts: Sequence[Sequence[int]], problems: Sequence[str], seed: int) -> list[list[Completion]]:
        check_prompts(prompts, problems)
        return [
            [self._write(index, problem, sample).completion(problem, self._version) for sample in range(self.group)]
            for index, problem in enumerate(problems)
        ]

    def _answer(self, problem: str, sample: int) -> bytes:
        if callable(self.answers):
            return self.answers(problem, sample)
        told = self.answers.get(problem)
        if not told:
            raise ForethinkError(f"problem {problem}: the scripted engine was given no answer for it; add one.")
        return told[sample % len(told)]

    def _write(self, index: int, problem: str, sample: int) -> Row:
        from forethink.tokens import encode_document

        try:
            text = self._answer(problem, sample).decode()
        except UnicodeDecodeError as error:
            raise ForethinkError(f"problem {problem}: its scripted answer is not UTF-8 ({error}); mend it.") from None
        ids, _ = encode_document(self.tokenizer, text, self._table)
        end = self.tokenizer.eos_token_id
        row = Row(index, sample)
        for token in [*ids, *([] if end is None else [end])]:
            self._ending.push(row, token, 0.0)
            if row.finish is not None:
                break
        return row
