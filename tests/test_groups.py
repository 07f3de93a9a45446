"""Of a group: its advantages, and the tokens of a completion that are thought."""

from __future__ import annotations

import pytest
import torch

from forethink.models import encode_document, token_bytes
from forethink.training.groups import advantages, thought_mask
from forethink.types import Completion, Finish


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, 0.0], [0.5, -0.5]),
        ([0.1, 0.1, 0.1], [0.0, 0.0, 0.0]),
        ([0.0, 0.0, 0.0, 0.0], [0.0] * 4),
        ([1.0, None, 0.0], [0.5, 0.0, -0.5]),
        ([1.0, None, None], [0.0] * 3),
        ([None, None], [0.0, 0.0]),
    ],
)
def test_advantages(rewards, expected) -> None:
    scale = (0.5**0.5 + 1e-4) / 1.0
    torch.testing.assert_close(advantages(rewards), torch.tensor(expected) / scale)


def test_thought_tokens_end_with_the_one_that_opens_the_box(smollm2_tokenizer) -> None:
    table = token_bytes(smollm2_tokenizer)

    def mask(text: str) -> list[tuple[bytes, bool]]:
        ids = encode_document(smollm2_tokenizer, text, table)[0]
        completion = Completion("p", 0, tuple(ids), text.encode(), (0.0,) * len(ids), Finish.STOP, 0)
        return [(table[i], m) for i, m in zip(ids, thought_mask(completion, table, False), strict=True)]

    found = mask("So: \\boxed{ cat} and")
    assert b"".join(text for text, inside in found if inside).startswith(b"So: \\boxed{")
    assert [text for text, inside in found if not inside] == [b" cat", b"}", b" and"]
    assert all(inside for _, inside in mask("No box at all"))
