"""Sampling with a transformers model in this process: all groups of a batch together, prompts computed once."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forethink.kernels import PackedLinears
from forethink.rollout.decoders import Decoder, GroupDecoder, PlainDecoder, check_groups
from forethink.rollout.rows import Ending, Row, check_prompts, stop_ids, uniforms
from forethink.types import Completion

_BLOCK = 256  # tokens whose probabilities are summed before the cumulative sum
_ROWS = {"cpu": 4}  # rows of fp32 probabilities at once: on a CPU they stay in its cache, which is five times faster
_MOST_ROWS = 256


def _sample_rows(logits: Tensor, u: Tensor, temperature: float, scratch: Tensor) -> tuple[Tensor, Tensor]:
    rows, vocabulary = logits.shape
    weights = scratch[:rows]
    scaled = weights[:, :vocabulary]
    scaled.copy_(logits)
    top = scaled.amax(-1, keepdim=True)
    scaled.sub_(top).div_(temperature).exp_()
    weights = weights.view(rows, -1, _BLOCK)
    blocks = weights.sum(-1).double().cumsum(-1)
    total = blocks[:, -1:]
    # Both searches look for the first cumulative sum above the threshold, so a token of weight 0 is never found.
    threshold = torch.minimum(u[:, None] * total, total * (1 - 1e-15))
    block = torch.searchsorted(blocks, threshold, right=True)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = weights[torch.arange(rows, device=block.device), block[:, 0]].double().cumsum(-1)
    rest = torch.minimum(threshold - before, inside[:, -1:] * (1 - 1e-15))
    chosen = block * _BLOCK + torch.searchsorted(inside, rest, right=True)
    logprobs = (logits.gather(1, chosen).float() - top) / temperature - total.log()
    return chosen[:, 0], logprobs[:, 0]


def sample_tokens(logits: Tensor, u: Tensor, temperature: float, greedy: bool = False) -> tuple[Tensor, Tensor]:
    """Draw one token a row by the inverse of the cumulative distribution.

    Args:
        logits: [R, V], any floating dtype.
        u: uniform numbers in [0, 1), float64 [R].
        temperature: divides the logits.
        greedy: take the most probable token instead.

    Returns:
        Token ids, int64 [R], and their natural log-probabilities at the temperature, [R] (from fp32 sums).
    """
    if greedy:
        tokens = logits.argmax(-1)
        scaled = logits.float() / temperature
        return tokens, scaled.gather(1, tokens[:, None])[:, 0] - torch.logsumexp(scaled, -1)
    rows, vocabulary = logits.shape
    step = min(_ROWS.get(logits.device.type, _MOST_ROWS), rows)
    scratch = torch.zeros(step, -(-vocabulary // _BLOCK) * _BLOCK, device=logits.device)
    parts = [_sample_rows(logits[i : i + step], u[i : i + step], temperature, scratch) for i in range(0, rows, step)]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


@dataclass(slots=True, kw_only=True)
class _Row(Row):
    uniforms: np.ndarray


def _cast_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy with parameters in another dtype; buffers (rotary frequencies) keep theirs."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        value = (
            parameter.detach().to(dtype, copy=True) if parameter.is_floating_point() else parameter.detach().clone()
        )
        memo[id(parameter)] = nn.Parameter(value, requires_grad=False)
    copied: PreTrainedModel = copy.deepcopy(model, memo)
    copied.config.dtype = dtype
    return copied.eval()


class TransformersEngine:
    """Samples groups of completions; see `rollout.Engine` for the protocol.

    Args:
        model: the policy. Used as it is where its dtype is ``dtype``, else copied into that.
        tokenizer: the policy's tokenizer.
        group: completions a prompt, G.
        temperature: divides the logits before sampling; log-probabilities are at this temperature.
        max_tokens: tokens after which a completion is cut.
        batch: completions decoded at once; whole groups, at least one.
        stop: called with a completion's bytes when its newest token holds ``}``; True ends it. None: never.
        greedy: most probable token instead of sampling.
        fixed_length: ignore ``stop`` and end-of-sequence tokens (benchmarks).
        dtype: dtype of the weights sampled from; the model's own by default.
        share_prompts: False decodes one group after another on the model's own cache (checks and fallback).
        version: version of the given weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        group: int = 8,
        temperature: float = 0.8,
        max_tokens: int = 64,
        batch: int = 128,
        stop: Callable[[bytes], bool] | None = None,
        greedy: bool = False,
        fixed_length: bool = False,
        dtype: torch.dtype | None = None,
        share_prompts: bool = True,
        version: int = 0,
    ) -> None:
        from forethink.tokens import token_bytes

        self.group, self.temperature, self.max_tokens, self.batch = group, temperature, max_tokens, batch
        self.greedy = greedy
        self.dtype = dtype or model.dtype
        self.share_prompts = share_prompts
        self._ending = Ending(token_bytes(tokenizer), stop_ids(tokenizer, model), stop, max_tokens, fixed_length)
        self._checked, self._captures = False, True
        self.flops = 0  # operations done so far, counted from what was multiplied; checks apart
        self._own: PreTrainedModel | None = None
        self.load(model, version)

    @property
    def version(self) -> int:
        return self._version

    def load(self, weights: Mapping[str, Tensor] | PreTrainedModel, version: int) -> None:
        """Take new weights: a model (used directly where its dtype is the engine's) or a state dict (copied)."""
        if isinstance(weights, PreTrainedModel):
            if weights.dtype == self.dtype:
                self._own, self.model = None, weights
            elif self._own is None:
                self._own = self.model = _cast_copy(weights, self.dtype)
            else:
                self._copy(weights.state_dict())
        else:
            if self._own is None:  # the weights now in use belong to someone else
                self._own = self.model = _cast_copy(self.model, self.dtype)
            self._copy(weights)
        self._packed = PackedLinears(self.model)  # made from the weights, so it goes with the old ones
        self._version = version

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        assert self._own is not None
        own = dict(self._own.named_parameters())  # tied weights appear once here, twice in a state dict
        missing = own.keys() - weights.keys()
        if missing:
            raise KeyError(f"the new weights lack {min(missing)!r} and {len(missing) - 1} more of the model's own")
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], problems: Sequence[str], seed: int) -> list[list[Completion]]:
        check_prompts(prompts, problems)
        if not prompts:
            return []
        training = self.model.training
        self.model.eval()
        try:
            with self._packed.use():
                return self._generate(prompts, problems, seed)
        finally:
            self.model.train(training)

    def _decoder(self, prompts: Sequence[Sequence[int]]) -> Decoder:
        if self.share_prompts and not self._checked:
            self._checked = True
            trouble = check_groups(self.model, prompts)
            if trouble is not None:
                print(f"warning: {trouble}; one group is decoded after another, slower.", file=sys.stderr)
                self.share_prompts = False
        return GroupDecoder(self.model, self._captures) if self.share_prompts else PlainDecoder(self.model)

    def _generate(
        self, prompts: Sequence[Sequence[int]], problems: Sequence[str], seed: int
    ) -> list[list[Completion]]:
        decoder = self._decoder(prompts)
        waiting = sorted(range(len(prompts)), key=lambda i: list(prompts[i]), reverse=True)  # the last goes first
        finished: list[list[_Row]] = [[] for _ in prompts]
        live: list[_Row] = []
        tokens = torch.empty(0, dtype=torch.long, device=self.model.device)
        while live or waiting:
            keep = [row for row, one in enumerate(live) if one.finish is None]
            chosen = self._admit(len(keep), waiting, decoder.groups)
            fresh = [
                _Row(index, sample, uniforms=uniforms(seed, problems[index], sample, self.max_tokens))
                for index in chosen
                for sample in range(self.group)
            ]
            for row in fresh:
                finished[row.prompt].append(row)
            if chosen or len(keep) < len(live):
                logits = decoder.arrange(keep, [prompts[i] for i in chosen], self.group) if keep or chosen else None
                live, tokens = [live[row] for row in keep] + fresh, tokens[keep]
                if chosen and logits is not None:
                    tokens = torch.cat([tokens, self._advance(fresh, logits.repeat_interleave(self.group, 0))])
            while live and not self._due(live, bool(waiting)):
                tokens = self._advance(live, decoder.step(tokens))
        self.flops += decoder.flops
        self._captures = self._captures and getattr(decoder, "captures", True)  # where it failed, not again
        return [[row.completion(problems[row.prompt], self._version) for row in rows] for rows in finished]

    def _admit(self, live: int, waiting: list[int], most: int | None) -> list[int]:
        """Take waiting prompts for the free places; whole groups, and at least one where nothing is left."""
        free = max((self.batch - live) // self.group, 0 if live else 1)
        if most is not None:
            free = min(free, 0 if live else most)
        return [waiting.pop() for _ in range(min(free, len(waiting)))]

    def _due(self, live: list[_Row], waiting: bool) -> bool:
        """Whether enough rows have ended that dropping them pays for moving the others."""
        ended = sum(row.finish is not None for row in live)
        return ended == len(live) or ended * 4 >= len(live) or (waiting and ended >= max(self.group, self.batch // 4))

    def _advance(self, rows: list[_Row], logits: Tensor) -> Tensor:
        """Draw every row's next token, note it, and see which rows end with it."""
        last = self.max_tokens - 1
        u = torch.tensor([row.uniforms[min(len(row.token_ids), last)] for row in rows], dtype=torch.float64)
        tokens, logprobs = sample_tokens(logits, u.to(logits.device), self.temperature, self.greedy)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if row.finish is None:
                self._ending.push(row, token, logprob)
        return tokens
