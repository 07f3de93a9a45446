"""The method, top to bottom, in plain torch: what the real trainer must equal, and a first thing to read.

One step takes a few problems (a context, and the bytes that follow it), samples G completions of each, reads the
boxed prediction, and rewards it by what the corpus really says. Nothing here is fast: every completion is run alone
through the model, with its whole prompt. `forethink.training` does the same with shared prefixes, and the tests hold
its advantages, loss and gradient to this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Group:
    """G completions of one prompt. ``masks``: which tokens train, all of them where None."""

    prompt: list[int]
    completions: list[list[int]]
    rewards: list[float | None]
    masks: list[list[bool]] | None = None


def prefix_match(prediction: bytes, truth: bytes, token_ends: Sequence[int]) -> float:
    """1 if the prediction is what follows in the corpus, up to the end of one of its tokens (2506.08007, eq. 3)."""
    return float(truth.startswith(prediction) and len(prediction) in token_ends)


def advantages(rewards: Sequence[float | None]) -> list[float]:
    """How much better than its group a completion is: (r − mean) / (std + 1e-4); 0 for one that was not scored."""
    scored = [r for r in rewards if r is not None]
    if len(scored) < 2:
        return [0.0] * len(rewards)
    mean = sum(scored) / len(scored)
    variance = sum((r - mean) ** 2 for r in scored) / (len(scored) - 1)
    return [0.0 if r is None else (r - mean) / (variance**0.5 + 1e-4) for r in rewards]


def logprobs(model: torch.nn.Module, prompt: Sequence[int], completion: Sequence[int], temperature: float) -> Tensor:
    """log p of every completion token under the distribution it was sampled from: logits over the temperature."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]


@torch.no_grad()
def sample(model: torch.nn.Module, prompt: Sequence[int], temperature: float, length: int) -> list[int]:
    """One completion, token by token."""
    ids = list(prompt)
    for _ in range(length):
        last = model(input_ids=torch.tensor([ids])).logits[0, -1] / temperature
        ids.append(int(torch.multinomial(last.softmax(-1), 1)))
    return ids[len(prompt) :]


def clipped(new: Tensor, old: Tensor, advantage: float, clip: float) -> Tensor:
    """PPO's clipped objective a token, as a loss. Exactly on-policy old equals new: the ratio is 1, not its slope."""
    ratio = (new - old).exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def policy_loss(model: torch.nn.Module, groups: Sequence[Group], temperature: float, clip: float = 0.2) -> Tensor:
    """The mean over all trained tokens of the batch, groups without signal counted (they add nothing to the sum)."""
    total, tokens = torch.zeros(()), 0
    for group in groups:
        masks = group.masks or [[True] * len(completion) for completion in group.completions]
        for completion, advantage, mask in zip(group.completions, advantages(group.rewards), masks, strict=True):
            new = logprobs(model, group.prompt, completion, temperature)
            total = total + clipped(new, new.detach(), advantage, clip)[torch.tensor(mask)].sum()
            tokens += sum(mask)
    return total / max(tokens, 1)


def dynamic(groups: Sequence[Group], right: Sequence[Sequence[bool]]) -> list[Group]:
    """DAPO's filter: only groups in which some answers are right and some are not, whatever the reward says."""
    return [group for group, verdicts in zip(groups, right, strict=True) if 0 < sum(verdicts) < len(verdicts)]


def next_token_loss(
    model: torch.nn.Module, texts: Sequence[Sequence[int]], learnt: Sequence[Sequence[bool]]
) -> Tensor:
    """Mean −log p of the plain tokens that are learnt; ``learnt`` speaks of each text's tokens from the second on."""
    losses = [
        -logprobs(model, text[:1], text[1:], 1.0)[torch.tensor(mask)] for text, mask in zip(texts, learnt, strict=True)
    ]
    return torch.cat(losses).mean()


def step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Group],
    temperature: float,
    texts: Sequence[Sequence[int]] = (),
    learnt: Sequence[Sequence[bool]] = (),
    ntp_weight: float = 0.0,
) -> float:
    """One update. Where no group has a signal there is no gradient, and AdamW must not be asked to move."""
    loss = policy_loss(model, groups, temperature)
    if ntp_weight:
        loss = loss + ntp_weight * next_token_loss(model, texts, learnt)
    elif not any(any(advantages(group.rewards)) for group in groups):
        return 0.0
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss)
