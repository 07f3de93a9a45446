"""Thoughts for the warm start, made of what the policy itself believes and never of the true token.

A model that has only ever written answers has to learn two things: to use, inside a thought, what it knows as a
language model, and to say the result in the form. Both are shown by the simplest line of reasoning there is: name how
the text could go on, list what else could come, decide, box. The candidates are the policy's own and the box holds its
own arg-max, so nothing is taught about the text that the policy did not know. On request the thought first writes
the end of the text down again; the default until thoughts without it were found to be learnt sooner (docs/log.md).

Restated words and candidates are the document's and the policy's own token ids, not re-tokenised text: the copy is
then the same sequence the model has just read.

A policy that is shown this one form alone gives it to every prompt. `other_prompts` are what it can be asked besides;
its untouched self's replies to them, among the thoughts, say where the form does not belong.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from forethink.templates import Template, write
from forethink.templates.designs import OTHER_PROMPTS
from forethink.training.probe import Candidates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[bytes], list[int]]
T = TypeVar("T")
REPLAY_TOKENS = 64  # of a replayed reply at most: its beginning says which form it has
_PIECE = (16, 64)  # tokens of the text that such a prompt asks about, at least and at most


@dataclass(frozen=True)
class Wording:
    """One way to say it; every text is a separate piece, so its tokens never merge with the document's."""

    opening: str
    between: str
    verdict: str


# The first wording is the commonest: a small model learns one form well before it learns three. Openings end
# without a space: what follows is the document's own token, which carries its own.
WORDINGS: dict[str, tuple[Wording, ...]] = {
    "steps": (
        Wording("The text ends:", "\nor", "\nso"),
        Wording("Its end is:", "\nelse", "\nhence"),
        Wording("Last words:", "\nmaybe", "\nthen"),
    ),
    "candidates": (
        Wording("It could go on:", "\nor", "\nmost likely"),
        Wording("Candidates:", "\nor", "\nbest"),
        Wording("Ways to go on:", "\nor", "\nI pick"),
    ),
}
_WEIGHTS = (6, 1, 1)


def restated(context: Sequence[int], tail: int, rng: random.Random) -> Sequence[int]:
    """The end of the context, from its most distinctive token among the last ``tail // 2`` to ``2 · tail``.

    A fixed number of tokens would have to be counted back, and a model that counts stops copying by number, short of
    the end. From a token that occurs nowhere else the copy cannot continue another place of the context; and since its
    length varies, only the end of the context itself tells where to stop.
    """
    if not tail:
        return ()
    counts = Counter(context)
    lengths = range(max(1, tail // 2), 2 * tail + 1)
    within = [length for length in lengths if length <= len(context)] or [len(context)]
    return context[-min(within, key=lambda length: (counts[context[-length]], rng.random())) :]


def thought(
    context: Sequence[int],
    own: Candidates,
    token_bytes: Sequence[bytes],
    encode: Encode,
    style: str,
    tail: int,
    hypotheses: int,
    rng: random.Random,
) -> list[int]:
    """Token ids of a reply: the restated end, the policy's candidates, its arg-max in the box.

    Args:
        context: the document's token ids before the position.
        own: the policy's next tokens, most probable first.
        token_bytes: bytes of every token id, for the box's escapes.
        encode: bytes → token ids of a continuation.
        style: "steps" or "candidates", the template's.
        tail: about how many tokens of the end are written down again; see `restated`. 0: the candidates come first.
        hypotheses: candidates listed at most; those under a tenth of the first one's probability are left out.
        rng: chooses the wording and the length of the end.
    """
    wording = rng.choices(WORDINGS[style if tail else "candidates"], _WEIGHTS)[0]
    best = own.ids[0]
    floor = own.probabilities[0] / 10
    others = [t for t, p in zip(own.ids[1:hypotheses], own.probabilities[1:hypotheses], strict=True) if p >= floor]
    ids = [*encode(wording.opening.encode()), *restated(context, tail, rng), best]
    for token in others:
        ids += [*encode(wording.between.encode()), token]
    boxed = write(token_bytes[best])
    inner = boxed.removeprefix(b"\\boxed{").removesuffix(b"}")
    # The token itself where the box holds it as it is, so that the box repeats what the thought decided on.
    middle = [best] if inner == token_bytes[best] else encode(inner)
    return [*ids, *encode((wording.verdict + " \\boxed{").encode()), *middle, *encode(b"}")]


def other_prompts(
    contexts: Sequence[Sequence[int]],
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    start: Sequence[int],
    rng: random.Random,
) -> list[list[int]]:
    """Token ids of ``count`` prompts that ask for anything but the next token, each about a piece of a context.

    Args:
        contexts: token ids of documents' beginnings, none empty.
        tokenizer: the policy's, whose chat template is put around all of them but the bare texts.
        start: what precedes a bare text (a BOS token, or nothing).
        rng: chooses contexts and pieces; the wordings follow one another in turn.
    """
    wordings = [None if user is None else Template("other", user, plain=user) for user in OTHER_PROMPTS]
    made = []
    for number in range(count):
        context = rng.choice(contexts)
        at = rng.randrange(max(1, len(context) - _PIECE[0]))
        piece = context[at : at + rng.randint(*_PIECE)]
        wording = wordings[number % len(wordings)]
        before, after = (start, ()) if wording is None else wording.pieces(tokenizer)
        made.append([*before, *piece, *after])
    return made


def interleaved(many: Sequence[T], few: Sequence[T]) -> Iterator[T]:
    """Both in their own order, the second spread evenly among the first."""
    done = 0
    for number, one in enumerate(many, 1):
        yield one
        due = len(few) * number // len(many)
        yield from few[done:due]
        done = due
