"""Floating-point operations counted from what was done, the currency of every compute-matched comparison.

A multiply-add is two operations. Four terms are counted, everything else (norms, rotary embeddings, softmax,
sampling) is left out, as torch's own flop counter leaves it out:

* body: 2 · (weights of the linear layers below the head) a token,
* attention: 4 · layers · heads · head size a (query, key) pair that the kernel multiplies, masked or not,
* head: 2 · hidden size · vocabulary a row of logits,
* backward: the same again for the inputs of each product and, where its weights train, once more for the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Flops:
    """What one model costs. Build with `Flops.of`.

    Attributes:
        body: operations a token in the linear layers of the decoder, forward.
        trained: the part of ``body`` whose weights take a gradient.
        pair: operations a query-key pair in all layers, forward.
        head: operations a row of logits, forward.
        head_trained: whether the head's weights take a gradient.
    """

    body: int
    trained: int
    pair: int
    head: int
    head_trained: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> Flops:
        """Read the sizes off a model; mixture-of-experts models count every expert, an upper bound."""
        text = model.config.get_text_config()
        linear = [m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]
        body = sum(2 * m.weight.numel() for m in linear)
        trained = sum(2 * m.weight.numel() for m in linear if m.weight.requires_grad)
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        head = model.get_output_embeddings().weight
        return cls(
            body,
            trained,
            4 * text.num_hidden_layers * text.num_attention_heads * size,
            2 * head.numel(),
            head.requires_grad,
        )

    def forward(self, tokens: int, pairs: int, rows: int) -> int:
        """Operations of a forward pass over ``tokens`` tokens, ``pairs`` query-key pairs and ``rows`` logit rows."""
        return self.body * tokens + self.pair * pairs + self.head * rows

    def train(self, tokens: int, pairs: int, rows: int) -> int:
        """Operations of a forward and a backward pass; the head's logits are made twice (see `packing`).

        Attention's backward pass multiplies five times where the forward pass multiplies twice: it makes the
        weights again instead of keeping them.
        """
        head = self.head * rows * (3 + self.head_trained)
        return (2 * self.body + self.trained) * tokens + self.pair * pairs * 7 // 2 + head

    def decode(self, prompt_tokens: list[int], completion_tokens: list[list[int]]) -> int:
        """An estimate for engines that do not count: each prompt once a group, then every completion token by token.

        A completion's last token is drawn and never run. Prefixes that prompts share are counted for each of them.
        """
        total = 0
        for prompt, group in zip(prompt_tokens, completion_tokens, strict=True):
            total += self.forward(prompt, prompt * prompt, 1)
            for n in group:
                total += self.forward(n - 1, (n - 1) * prompt + n * (n - 1) // 2, n - 1)
        return total
