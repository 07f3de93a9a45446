"""What some rewards ask of the policy itself, from one packed forward pass without gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forethink.config import Config
from forethink.flops import Flops
from forethink.head import head_logprobs
from forethink.packing import body_states, pack
from forethink.rewards import Reward, load_reward, needs, score_group
from forethink.templates import box_opens, load_template, read
from forethink.tokens import document_start, encode_document, token_bytes
from forethink.training.groups import Hooks, Scored, thought_mask
from forethink.types import Answer, Completion, PolicyScores, Problem, Status

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

    @torch.no_grad()
    def __call__(
        self, problem: Problem, prompt: Sequence[int], completions: Sequence[Completion], answers: Sequence[Answer]
    ) -> list[PolicyScores]:
        """One `PolicyScores` a completion, in order; fields that were not asked for stay None."""
        predictions = [self.encode(a.prediction) if a.status is Status.BOXED else [] for a in answers]
        first = [ids[0] if ids else None for ids in predictions]
        plain = self._plain(problem, first) if self.asks & PLAIN else {}
        with_thought = self._with_thought(problem, prompt, completions) if "logprob_thought" in self.asks else None
        true = problem.target_ids[0]
        scores = []
        for i, token in enumerate(first):
            probability = None if token is None or not plain else float(plain[token].exp())
            similar = self._similarity(predictions[i], problem.target_ids) if "similarity" in self.asks else None
            scores.append(
                PolicyScores(
                    first_token_probability=probability if "first_token_probability" in self.asks else None,
                    logprob_plain=float(plain[true]) if "logprob_plain" in self.asks else None,
                    logprob_thought=None if with_thought is None else with_thought[i],
                    similarity=similar,
                )
            )
        return scores

    def _plain(self, problem: Problem, tokens: Sequence[int | None]) -> dict[int, Tensor]:
        """Natural log-probabilities of candidate next tokens after the bare context."""
        wanted = sorted({problem.target_ids[0], *(t for t in tokens if t is not None)})
        context = [*self.bos, *problem.context_ids]
        return dict(
            zip(wanted, self._logprobs([[*context, t] for t in wanted], [len(context)] * len(wanted)), strict=True)
        )

    def _with_thought(
        self, problem: Problem, prompt: Sequence[int], completions: Sequence[Completion]
    ) -> list[float | None]:
        """log p(true next token) right behind the opening of the box; None where no box was opened."""
        found: list[float | None] = [None] * len(completions)
        sequences, rows = [], []
        for i, completion in enumerate(completions):
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
            sequences.append([*prompt, *kept, problem.target_ids[0]])
            rows.append(i)
        if sequences:
            values = self._logprobs(sequences, [len(s) - 1 for s in sequences])
            for i, value in zip(rows, values.tolist(), strict=True):
                found[i] = value
        return found

    def _logprobs(self, sequences: list[list[int]], starts: list[int]) -> Tensor:
        values = torch.zeros(len(sequences))
        for one in (packed.to(self.model.device) for packed in pack(sequences, starts)):
            hidden = body_states(self.model, one)[one.sources]
            logprobs, _ = head_logprobs(self.model, hidden, one.targets, 1.0)
            values[list(one.members)] = logprobs.float().cpu()
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
) -> Callable[[Problem, list[int], list[Completion], list[Answer]], Scored]:
    """Rewards of a group, and loss masks where the reward is for the thought (it asks for ``logprob_thought``)."""
    table = token_bytes(tokenizer)
    asks = needs(reward) - {"group"}

    single = {text: i for i, text in reversed(list(enumerate(table))) if len(text) == 1}

    def encode(text: bytes) -> list[int]:
        try:
            return encode_document(tokenizer, text.decode(), table)[0]
        except UnicodeDecodeError:  # a prediction may be any bytes, and each byte is a token
            return [single[bytes([byte])] for byte in text]

    scorer = Scorer(model, encode, table, document_start(tokenizer), asks, thought_open) if asks else None

    def score(problem: Problem, prompt: list[int], completions: list[Completion], answers: list[Answer]) -> Scored:
        if scorer is None:
            return Scored(score_group(reward, answers, problem))
        before = scorer.flops
        scores = scorer(problem, prompt, completions, answers)
        masks = [thought_mask(c, table, thought_open) for c in completions] if "logprob_thought" in asks else None
        return Scored(score_group(reward, answers, problem, scores), masks, scorer.flops - before)

    return score


def next_token_hooks(config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Hooks:
    """How problems are asked, read and rewarded: by the configuration's template and reward."""
    template = load_template(config.template.name)
    thought_open = template.opens_thought(tokenizer)

    def answer(completion: Completion) -> Answer:
        tokens = len(completion.token_ids)
        return read(completion.text, finish=completion.finish, thought_open=thought_open, tokens=tokens)

    score = score_function(load_reward(config.reward), model, tokenizer, thought_open)
    return Hooks(lambda problem: template.render(problem, tokenizer), answer, score)
