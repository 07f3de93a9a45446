"""What some rewards ask of the policy itself, from one packed forward pass without gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forethink.config import Config
from forethink.flops import Flops
from forethink.head import head_logprobs
from forethink.packing import body_states
from forethink.rewards import Reward, load_reward, needs, score_group
from forethink.templates import box_opens, load_template, read
from forethink.tokens import document_start, encode_document, token_bytes
from forethink.training.forward import Packer
from forethink.training.groups import Hooks, Replies, Scored, thought_mask
from forethink.types import Answer, Completion, PolicyScores, Status

PLAIN = frozenset({"first_token_probability", "logprob_plain"})


class Scorer:
    """Policy scores of a group's completions.

    Args:
        model: the policy as it is now; scores are at temperature 1, the model's own distribution.
        encode: bytes → token ids of a continuation, without special tokens.
        token_bytes: bytes of every token id.
        bos: ids that a plain document begins with, under this tokenizer.
        asks: which fields of `PolicyScores` to fill.
        thought_open: whether prompts end inside an opened thought.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encode: Callable[[bytes], list[int]],
        token_bytes: Sequence[bytes],
        bos: Sequence[int],
        asks: frozenset[str],
        thought_open: bool = False,
    ) -> None:
        self.model, self.encode, self.token_bytes = model, encode, token_bytes
        self.bos, self.asks, self.thought_open = list(bos), asks, thought_open
        self.flops = 0  # operations done so far
        self._cost = Flops.of(model)
        self.packer = Packer(model)

    @torch.no_grad()
    def __call__(self, replies: Sequence[Replies]) -> list[list[PolicyScores]]:
        """For every group one `PolicyScores` a completion, in order; fields that were not asked for stay None.

        All groups go through together: problems of one document share its text.
        """
        predictions = [
            [self.encode(a.prediction) if a.status is Status.BOXED else [] for a in group.answers] for group in replies
        ]
        first = [[ids[0] if ids else None for ids in group] for group in predictions]
        plain = self._plain(replies, first) if self.asks & PLAIN else None
        with_thought = self._with_thought(replies) if "logprob_thought" in self.asks else None
        scores: list[list[PolicyScores]] = []
        for n, group in enumerate(replies):
            target = group.problem.target_ids
            own = plain[n] if plain is not None else {}
            scores.append([])
            for i, token in enumerate(first[n]):
                asked: dict[str, float | None] = {}
                if "first_token_probability" in self.asks and token is not None:
                    asked["first_token_probability"] = math.exp(own[token])
                if "logprob_plain" in self.asks:
                    asked["logprob_plain"] = own[target[0]]
                if with_thought is not None:
                    asked["logprob_thought"] = with_thought[n][i]
                if "similarity" in self.asks:
                    asked["similarity"] = self._similarity(predictions[n][i], target)
                scores[n].append(PolicyScores(**asked))
        return scores

    def _plain(self, replies: Sequence[Replies], tokens: Sequence[Sequence[int | None]]) -> list[dict[int, float]]:
        """Natural log-probabilities of every group's candidate next tokens, and of the true one, after the context."""
        wanted = [
            sorted({group.problem.target_ids[0], *(t for t in own if t is not None)})
            for group, own in zip(replies, tokens, strict=True)
        ]
        contexts = [[*self.bos, *group.problem.context_ids] for group in replies]
        values = iter(
            self._logprobs(
                [[*context, t] for context, own in zip(contexts, wanted, strict=True) for t in own],
                [len(context) for context, own in zip(contexts, wanted, strict=True) for _ in own],
            )
        )
        return [{t: next(values) for t in own} for own in wanted]

    def _with_thought(self, replies: Sequence[Replies]) -> list[list[float | None]]:
        """log p(true next token) right behind the opening of the box; None where no box was opened."""
        found: list[list[float | None]] = [[None] * len(group.completions) for group in replies]
        sequences, rows = [], []
        for n, group in enumerate(replies):
            for i, completion in enumerate(group.completions):
                opened = box_opens(completion.text, self.thought_open)
                if opened is None:
                    continue
                kept, length = [], 0
                for token in completion.token_ids:
                    size = len(self.token_bytes[token])
                    if length + size > opened:
                        break
                    kept.append(token)
                    length += size
                # A token may hold the brace and the first byte of the prediction: the brace alone is written again.
                kept += self.encode(completion.text[length:opened]) if length < opened else []
                sequences.append([*group.prompt, *kept, group.problem.target_ids[0]])
                rows.append((n, i))
        if sequences:
            values = self._logprobs(sequences, [len(s) - 1 for s in sequences])
            for (n, i), value in zip(rows, values, strict=True):
                found[n][i] = value
        return found

    def _logprobs(self, sequences: list[list[int]], starts: list[int]) -> list[float]:
        values = [0.0] * len(sequences)
        for one in (packed.to(self.model.device) for packed in self.packer(sequences, starts)):
            hidden = body_states(self.model, one)[one.sources]
            logprobs, _ = head_logprobs(self.model, hidden, one.targets, 1.0)
            for member, value in zip(one.members, logprobs.tolist(), strict=True):
                values[member] = value
            self.flops += self._cost.forward(len(one.ids_t), one.pairs, len(one.targets))
        return values

    def _similarity(self, prediction: Sequence[int], target: Sequence[int]) -> float | None:
        """Cosine of the mean input embeddings of the prediction and of as many true tokens."""
        if not prediction:
            return None
        table = cast(Tensor, self.model.get_input_embeddings().weight)
        mine = table[list(prediction)].float().mean(0)
        true = table[list(target[: len(prediction)])].float().mean(0)
        return float(torch.nn.functional.cosine_similarity(mine, true, dim=0))


def score_function(
    reward: Reward, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, thought_open: bool
) -> Callable[[Sequence[Replies]], tuple[list[Scored], int]]:
    """Rewards of groups, and loss masks where the reward is for the thought (it asks for ``logprob_thought``)."""
    table = token_bytes(tokenizer)
    asks = needs(reward) - {"group"}

    single = {text: i for i, text in reversed(list(enumerate(table))) if len(text) == 1}

    def encode(text: bytes) -> list[int]:
        try:
            return encode_document(tokenizer, text.decode(), table)[0]
        except UnicodeDecodeError:  # a prediction may be any bytes, and each byte is a token
            return [single[bytes([byte])] for byte in text]

    scorer = Scorer(model, encode, table, document_start(tokenizer), asks, thought_open) if asks else None

    def score(replies: Sequence[Replies]) -> tuple[list[Scored], int]:
        before = scorer.flops if scorer else 0
        scores: Sequence[list[PolicyScores] | None] = scorer(replies) if scorer else [None] * len(replies)
        found = []
        for group, own in zip(replies, scores, strict=True):
            masks = None
            if "logprob_thought" in asks:
                masks = [thought_mask(completion, table, thought_open) for completion in group.completions]
            found.append(Scored(score_group(reward, group.answers, group.problem, own), masks))
        return found, scorer.flops - before if scorer else 0

    return score


def next_token_hooks(config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Hooks:
    """How problems are asked, read and rewarded: by the configuration's template and reward.

    Probabilities that a reward asks for are those of ``model`` at that time, or, with ``reward.scorer=start``, of the
    model as it is now: what is trained then has no part in what it is paid.
    """
    template = load_template(config.template.name)
    thought_open = template.opens_thought(tokenizer)

    def answer(completion: Completion) -> Answer:
        tokens = len(completion.token_ids)
        return read(completion.text, finish=completion.finish, thought_open=thought_open, tokens=tokens)

    reward = load_reward(config.reward)
    if config.reward.scorer == "start" and needs(reward) - {"group"}:
        model = copy.deepcopy(model).requires_grad_(False)
    score = score_function(reward, model, tokenizer, thought_open)
    return Hooks(lambda problem: template.render(problem, tokenizer), answer, score)
