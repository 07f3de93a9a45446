"""Linear layers with their weights laid out for the CPU's matrix units.

PyTorch keeps a linear layer's weight in rows and rearranges it at every call; at the hundred or so rows of a decoding
step that costs as much as the product. Here bf16 weights are rearranged once and the layers use that copy for as long
as `use` is active. The copies are a cache of the weights: they are dropped with their owner, and a weight that was
changed in place is rearranged anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

_ROWS = 128  # rows of input the layout is chosen for


class PackedLinears:
    """The rearranged weights of a model's bf16 linear layers; nothing on other devices or in other dtypes."""

    def __init__(self, model: nn.Module) -> None:
        possible = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._layers = [
            module
            for module in model.modules()
            if possible
            and type(module) is nn.Linear  # subclasses may compute something else
            and module.weight.dtype == torch.bfloat16
            and module.weight.device.type == "cpu"
        ]
        self._forwards: dict[int, tuple[tuple[int, int], Callable[[Tensor], Tensor]]] = {}

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Let the layers use their rearranged weights inside the ``with`` block."""
        try:
            for layer in self._layers:
                layer.__dict__["forward"] = self._forward(layer)
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)

    def _forward(self, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        state = (layer.weight.data_ptr(), layer.weight._version)
        known = self._forwards.get(id(layer))
        if known is None or known[0] != state:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
            bias = layer.bias if layer.bias is None else layer.bias.detach()
            multiply = torch.ops.mkldnn._linear_pointwise

            def forward(x: Tensor) -> Tensor:
                result: Tensor = multiply(x, packed, bias, "none", [], "")
                return result

            known = self._forwards[id(layer)] = (state, forward)
        return known[1]
