"""Scoring on this machine: every position of every document under a proxy, window by window.

Documents are cut into overlapping windows, the windows of a shard are sorted by length and batched, and the output
embedding is applied to a few hundred rows at a time, so no tensor of all tokens × vocabulary ever exists.

A position's figures depend on nothing at or after it, ``logprob`` apart. Batches are formed by length alone, so on a
CPU other tokens after a position leave its figures equal bit for bit; another *number* of tokens may change batch
shapes, and with them the rounding of the model's own matrix products.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forethink import config as settings
from forethink.head import scaled
from forethink.models import encode_document, token_bytes
from forethink.scoring.entropy import Stats, position_stats
from forethink.tokens import document_start
from forethink.types import Document, ForethinkError, ScoredDocument

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HEAD = 1 << 25  # elements of logits made at once: torch rearranges the head's weight for every product anew
_WHOLE = 1 << 27  # the same where the whole model must run to get them
_PROBE = 32  # tokens of the row on which the chunked head is compared with the model's own logits


@dataclass(frozen=True)
class Window:
    """Inputs ``start … start + length - 1`` of document ``document``; figures are kept from index ``first`` on.

    Row i of the window's inputs (beginning-of-sequence token not counted) predicts index ``start + i + 1``.
    """

    document: int
    start: int
    length: int
    first: int


def windows(document: int, tokens: int, window: int, overlap: int, bos: bool) -> Iterator[Window]:
    """Cut a document of ``tokens`` tokens so that every index is predicted once, from its longest context.

    Every index of the second and later windows has at least ``overlap`` tokens of context. With ``bos``, one of the
    ``window`` places is the beginning-of-sequence token's, in every window, and index 0 is predicted too.
    """
    size = window - bos
    start, first = 0, 0 if bos else 1
    while first < tokens:
        length = min(size, tokens - 1 - start)  # the last token predicts nothing here
        yield Window(document, start, length, first)
        first = start + size + 1
        start = first - overlap


def batches(parts: Sequence[Window], batch_tokens: int, bos: bool) -> Iterator[list[Window]]:
    """Windows of similar length together, longest first, at most ``batch_tokens`` tokens with their padding."""
    ordered = sorted(parts, key=lambda part: -part.length)  # stable: the order does not depend on anything else
    batch: list[Window] = []
    for part in ordered:
        if batch and (len(batch) + 1) * (batch[0].length + bos) > batch_tokens:
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


class Scorer:
    """Scores documents with one model, called with any number of them at a time.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        config: the section ``[score]``.
        name: the proxy's name, for messages.

    Raises:
        ForethinkError: the window is longer than the model reads, or no longer than its overlap.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: settings.Score, name: str = "proxy"
    ) -> None:
        self.model, self.tokenizer, self.config, self.name = model, tokenizer, config, name
        self.table = token_bytes(tokenizer)
        self.bos: int | None = next(iter(document_start(tokenizer)), None)
        self._whole: bool | None = None  # True where the model's logits are more than its output embedding
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and config.window > limit:
            raise ForethinkError(
                f"score.window: {config.window} is more than the {limit} tokens {name} reads; lower it."
            )
        if config.overlap >= config.window - 1:
            raise ForethinkError(f"score.overlap: {config.overlap} fills the window of {config.window}; lower it.")

    def __call__(
        self, documents: Sequence[Document], advance: Callable[[int], object] | None = None
    ) -> list[ScoredDocument]:
        """Score documents; the same documents in the same call always give the same figures.

        Args:
            documents: any number; all their windows are batched together.
            advance: called with the number of tokens that each batch has just scored.

        Returns:
            The scored documents in the same order.

        Raises:
            ForethinkError: the tokenizer changes a document, or the model's logits are NaN.
        """
        encoded = [encode_document(self.tokenizer, document.text, self.table) for document in documents]
        total = sum(len(ids) for ids, _ in encoded)
        starts = [0]
        for ids, _ in encoded:
            starts.append(starts[-1] + len(ids))
        values = torch.full((4, total), math.nan)
        argmax = torch.full((total,), -1, dtype=torch.int64)
        config, bos = self.config, self.bos is not None
        parts = [
            part
            for i, (ids, _) in enumerate(encoded)
            for part in windows(i, len(ids), config.window, config.overlap, bos)
        ]
        for batch in batches(parts, config.batch_tokens, bos):
            rows, targets, places = self._layout(batch, [ids for ids, _ in encoded], starts)
            stats = self._run(rows, targets)
            figures = torch.stack([stats.entropy, stats.entropy_raw, stats.entropy_full, stats.logprob]).cpu()
            broken = ~figures[2].isfinite()
            if broken.any():
                index = int(places[broken][0])
                wrong = next(i for i in range(len(documents)) if starts[i + 1] > index)
                raise ForethinkError(
                    f"{documents[wrong].id}: {self.name} gives logits that are no numbers on this document; set "
                    "model.dtype=float32, or leave the document out."
                )
            values[:, places] = figures
            argmax[places] = stats.argmax.cpu()
            if advance is not None:
                advance(len(places))
        return [
            self._scored(
                document, *encoded[i], values[:, starts[i] : starts[i + 1]], argmax[starts[i] : starts[i + 1]]
            )
            for i, document in enumerate(documents)
        ]

    def _scored(
        self, document: Document, ids: list[int], ends: list[int], values: Tensor, argmax: Tensor
    ) -> ScoredDocument:
        entropy, raw, full, logprob = values.tolist()
        short = [t < self.config.short_context for t in range(len(ids))]
        return ScoredDocument(
            document.id, document.text.encode(), ids, ends, entropy, raw, full, argmax.tolist(), logprob, short
        )

    def _layout(
        self, batch: Sequence[Window], ids: Sequence[list[int]], starts: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs [b, l] padded on the right; targets [b, l], -1 where no figure is kept; and the kept places [n]."""
        shift = int(self.bos is not None)
        width = batch[0].length + shift
        rows = torch.zeros(len(batch), width, dtype=torch.int64)
        targets = torch.full((len(batch), width), -1, dtype=torch.int64)
        places: list[int] = []
        for row, part in enumerate(batch):
            own = ids[part.document]
            if self.bos is not None:
                rows[row, 0] = self.bos
            rows[row, shift : shift + part.length] = torch.tensor(own[part.start : part.start + part.length])
            end = part.start + part.length + 1
            column = part.first - part.start - 1 + shift
            targets[row, column : column + end - part.first] = torch.tensor(own[part.first : end])
            places += range(starts[part.document] + part.first, starts[part.document] + end)
        return rows, targets, torch.tensor(places)

    @torch.inference_mode()
    def _run(self, rows: Tensor, targets: Tensor) -> Stats:
        """Figures of the kept positions, row by row."""
        device = self.model.device
        rows, targets = rows.to(device), targets.to(device)
        if self._whole is None:
            self._whole = self._differs(rows[:1, :_PROBE])
        logits_of = self._whole_logits(rows, targets) if self._whole else self._head_logits(rows, targets)
        parts = [position_stats(self._known(logits), true, self.config.top_k) for logits, true in logits_of]
        return Stats(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _known(self, logits: Tensor) -> Tensor:
        """Without the columns past the tokenizer's last id: padding of the embedding, which no text has."""
        return logits[:, : len(self.table)]

    def _head_logits(self, rows: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        hidden = self._hidden(rows)[targets >= 0]
        kept = targets[targets >= 0]
        size = max(1, _HEAD // self._vocabulary)
        for part, true in zip(hidden.split(size), kept.split(size), strict=True):
            yield self._head(part), true

    def _whole_logits(self, rows: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for row, true in zip(rows, targets, strict=True):
            columns = (true >= 0).nonzero()[:, 0]
            for part in columns.split(max(1, _WHOLE // self._vocabulary)):
                logits = self.model(input_ids=row[None], use_cache=False, logits_to_keep=part).logits[0]
                yield (logits if len(logits) == len(part) else logits[part]), true[part]

    @property
    def _vocabulary(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    def _hidden(self, rows: Tensor) -> Tensor:
        """Last hidden states [b, l, d]. Padding stands on the right, where causal attention does not look."""
        return self.model.get_decoder()(input_ids=rows, use_cache=False).last_hidden_state

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits [n, V] of hidden states [n, d], as the common decoders make them."""
        return scaled(self.model.get_output_embeddings()(hidden), self.model.config)

    def _differs(self, row: Tensor) -> bool:
        """Whether the chunked head's logits on one short row are other than the model's own."""
        whole = self.model(input_ids=row, use_cache=False).logits[0].float()
        try:
            ours = self._head(self._hidden(row)[0]).float()
        except (AttributeError, TypeError, RuntimeError):  # an architecture put together otherwise
            ours = torch.empty(0)
        share = 1e-3 if self.model.dtype == torch.float32 else 2e-2
        if not whole.isfinite().all() or (ours.shape == whole.shape and (ours - whole).norm() <= share * whole.norm()):
            return False
        warnings.warn(
            f"{self.name}: its logits are more than its output embedding makes; every slice of logits runs the whole "
            "model, which is slower.",
            stacklevel=2,
        )
        return True


def score_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    config: settings.Score | None = None,
    advance: Callable[[int], object] | None = None,
) -> list[ScoredDocument]:
    """Score documents with a model at hand: :class:`Scorer`, called once."""
    return Scorer(model, tokenizer, config or settings.Score())(documents, advance)
