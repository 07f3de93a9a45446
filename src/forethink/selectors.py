"""Selectors: which positions of a scored document are worth a problem.

A selector takes a :class:`~forethink.types.ScoredDocument`, the section ``[problems]`` and a seeded numpy generator,
and returns token indices in order of preference: the first ``per_document`` of them become problems. It chooses
among :func:`positions`; other indices it returns are dropped and counted by their reason. A selector of your own is
named ``module:function`` or ``path/to/file.py:function``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from forethink.config import Problems
from forethink.functions import load_function
from forethink.types import ForethinkError, ScoredDocument

NO_ENTROPY = "no entropy: nothing precedes"
SHORT = "scored on a short context"
FEW_TOKENS = "fewer than min_context tokens before"
IN_CHARACTER = "starts inside a UTF-8 character"
NO_TARGET = "no byte follows"

Selector = Callable[[ScoredDocument, Problems, np.random.Generator], Sequence[int]]


def exclusions(document: ScoredDocument, config: Problems) -> dict[int, str]:
    """Positions that no selector may choose, each with the first reason that holds.

    ``min_context`` is counted here in the proxy's tokens; under another policy tokenizer it is counted again in
    the policy's.
    """
    out: dict[int, str] = {}
    for t, (start, end) in enumerate(itertools.pairwise([0, *document.byte_ends])):
        if math.isnan(document.entropy[t]):
            out[t] = NO_ENTROPY
        elif document.short[t]:
            out[t] = SHORT
        elif t < config.min_context:
            out[t] = FEW_TOKENS
        elif end == start:
            out[t] = NO_TARGET
        elif not whole_character(document.text, start):
            out[t] = IN_CHARACTER
    return out


def whole_character(text: bytes, offset: int) -> bool:
    """Whether a character starts (or the text ends) at this byte: continuation bytes are 0b10xxxxxx."""
    return offset >= len(text) or text[offset] & 0xC0 != 0x80


def positions(document: ScoredDocument, config: Problems) -> list[int]:
    """The token indices that a selector may choose from, ascending."""
    out = exclusions(document, config)
    return [t for t in range(len(document.token_ids)) if t not in out]


def _shuffled(chosen: list[int], rng: np.random.Generator) -> list[int]:
    return [chosen[i] for i in rng.permutation(len(chosen))]


def threshold(document: ScoredDocument, config: Problems, rng: np.random.Generator) -> list[int]:
    """All positions with entropy above ``threshold``, as the paper keeps them.

    In random order: where the per-document budget cuts, highest-entropy-first would quietly turn this into
    :func:`top_fraction`, and on raw text the highest entropies are where groups are all wrong.
    """
    return _shuffled([t for t in positions(document, config) if document.entropy[t] > config.threshold], rng)


def top_fraction(document: ScoredDocument, config: Problems, rng: np.random.Generator) -> list[int]:
    """The share ``fraction`` of a document's positions with the highest entropies, rounded up, highest first."""
    ranked = sorted(positions(document, config), key=lambda t: (-document.entropy[t], t))
    return ranked[: math.ceil(config.fraction * len(ranked))]


def band(document: ScoredDocument, config: Problems, rng: np.random.Generator) -> list[int]:
    """All positions with ``threshold < entropy <= upper``, in random order."""
    inside = [t for t in positions(document, config) if config.threshold < document.entropy[t] <= config.upper]
    return _shuffled(inside, rng)


def random(document: ScoredDocument, config: Problems, rng: np.random.Generator) -> list[int]:
    """The share ``fraction`` of a document's positions, rounded up, whatever their entropy."""
    mixed = _shuffled(positions(document, config), rng)
    return mixed[: math.ceil(config.fraction * len(mixed))]


def no_think_error(document: ScoredDocument, config: Problems, rng: np.random.Generator) -> list[int]:
    """Positions above ``threshold`` at which the proxy's arg-max token is not the true one, in random order.

    About half of what entropy alone chooses is right without any reasoning; this leaves it out.
    """
    return [t for t in threshold(document, config, rng) if document.argmax[t] != document.token_ids[t]]


SELECTORS: dict[str, Selector] = {
    "threshold": threshold,
    "top_fraction": top_fraction,
    "band": band,
    "random": random,
    "no_think_error": no_think_error,
}


def load_selector(name: str) -> Selector:
    """A selector by its name in :data:`SELECTORS`, or a user's own.

    Raises:
        ForethinkError: there is none of that name, or its module or file cannot be loaded.
    """
    if name in SELECTORS:
        return SELECTORS[name]
    if ":" not in name:
        raise ForethinkError(
            f"problems.selector: there is no {name!r}; name one of {', '.join(SELECTORS)}, or your own as "
            "module:function or path/to/file.py:function."
        )
    return load_function(name)
