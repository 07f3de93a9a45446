"""Documents cut into windows, windows put into steps: what ordinary next-token training sees, and in which order."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch.utils.data import Dataset

from forethink.training.supervised import Example
from forethink.types import ForethinkError

ENDLESS = 10**9  # steps that a data set says it has: the budget ends training


def cut_windows(ids: Sequence[int], bos: Sequence[int], window: int) -> Iterator[Example]:
    """A document in pieces of at most ``window`` tokens that learn every token once.

    A piece begins with the last token of the one before it, which predicts its first. The document's very first token
    is learnt where the tokenizer has a token for the start (``bos``); without, nothing stands before it.
    """
    whole = (*bos, *ids)
    for start in range(0, len(whole) - 1, window - 1):
        yield Example(whole[start : start + window], 1)


class Steps(Dataset[list[Example]]):
    """Steps of about ``batch`` tokens: pass after pass over all windows, each pass in another order.

    Which windows a step has follows from the seed and its number alone.

    Args:
        windows: at least one.
        batch: tokens a step; a step ends before the window that would exceed it.
        seed: of the orders.
    """

    def __init__(self, windows: Sequence[Example], batch: int, seed: int) -> None:
        self.windows, self.batch = windows, batch
        count = len(windows)
        self._starts = [0]  # of each step in the stream of windows, as far as it was asked for

        @lru_cache(maxsize=4)
        def order(number: int) -> list[int]:
            shuffled: list[int] = np.random.default_rng([seed, number]).permutation(count).tolist()
            return shuffled

        self._order = order

    def __len__(self) -> int:
        return ENDLESS

    def _at(self, place: int) -> Example:
        number, index = divmod(place, len(self.windows))
        return self.windows[self._order(number)[index]]

    def _until(self, step: int) -> int:
        """Where a step ends in the stream."""
        while len(self._starts) <= step + 1:
            place, tokens = self._starts[-1], 0
            while not tokens or tokens + len(self._at(place).ids) <= self.batch:
                tokens += len(self._at(place).ids)
                place += 1
            self._starts.append(place)
        return self._starts[step + 1]

    def __getitem__(self, step: int) -> list[Example]:
        end = self._until(step)
        return [self._at(place) for place in range(self._starts[step], end)]

    def passes(self, steps: int) -> float:
        """How often this many steps see every window."""
        return (self._until(steps - 1) if steps else 0) / len(self.windows)


def cut_step(step: Sequence[Example], allowed: float, price: Callable[[int], float]) -> list[Example]:
    """As much of a step as a price allows: whole windows, then the beginning of the next one.

    Args:
        price: of a window of this many tokens; grows with them.
    """
    kept: list[Example] = []
    for example in step:
        size = len(example.ids)
        if price(size) > allowed:
            most = bisect.bisect_right(range(size), allowed, key=price) - 1
            return [*kept, Example(example.ids[:most], example.start)] if most > example.start else kept
        kept.append(example)
        allowed -= price(size)
    return kept


def micro_batches(step: Sequence[Example], most: int) -> Iterator[list[Example]]:
    """A step in parts of at most ``most`` tokens, or one window."""
    part: list[Example] = []
    for example in step:
        if part and sum(len(one.ids) for one in part) + len(example.ids) > most:
            yield part
            part = []
        part.append(example)
    yield part


def windows_of(documents: Iterator[Sequence[int]], bos: Sequence[int], window: int, place: str) -> list[Example]:
    """The windows of all documents.

    Raises:
        ForethinkError: there is nothing to learn: no document has two tokens.
    """
    found = [piece for ids in documents for piece in cut_windows(ids, bos, window)]
    if not found:
        raise ForethinkError(f"{place}: its training documents hold nothing to learn; score longer documents.")
    return found
