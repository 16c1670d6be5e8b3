"""Dropout that costs little where PyTorch's costs a fifth of a training step: on the CPU.

PyTorch draws a random number for every value, one after the other in one thread, and computes attention in pieces as soon as
its weights are to be dropped out. Here eight values share a draw of 64 bits, and attention keeps its fused kernel: its weights
are not dropped out, the states are. All of it is a function of PyTorch's seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nlptasks.backbones.backbone import Backbone

_FUSED, _PLAIN = "sdpa_without_dropout", "sdpa"
_LEVELS = 256


@contextmanager
def cheap_dropout(model: nn.Module, backbone: Backbone, device: torch.device) -> Iterator[None]:
    """A model whose dropout is cheap while the block trains it on the CPU."""
    if device.type != "cpu":
        yield
        return
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Dropout) and _share(child.p) is not None
    ]
    trunk: Any = backbone.trunk
    fused = trunk.config._attn_implementation == _PLAIN
    for parent, name, child in places:
        setattr(parent, name, _CheapDropout(child.p).train(child.training))
    if fused:
        trunk.set_attn_implementation(_FUSED)
    try:
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child.train(parent.training))
        if fused:
            trunk.set_attn_implementation(_PLAIN)


class _CheapDropout(nn.Module):
    """Sets a share of the values to zero and scales the others, so that their mean stays.

    Args:
        p: the share; it is taken in steps of 1/256.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The values [...], some of them zero while it trains."""
        share = _share(self.p)
        if not self.training or not share:
            return x
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= share
        return x * (kept.to(x.dtype) * (_LEVELS / (_LEVELS - share)))


def _share(p: float) -> int | None:
    """A share in steps of 1/256; None if that changes it by more than a tenth."""
    steps = round(p * _LEVELS)
    return steps if steps < _LEVELS and abs(steps / _LEVELS - p) <= 0.1 * p else None


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any) -> Any:
    """Fused attention, its weights not dropped out."""
    return sdpa_attention_forward(module, query, key, value, mask, **{**given, "dropout": 0.0})


AttentionInterface.register(_FUSED, _attention)
AttentionMaskInterface.register(_FUSED, sdpa_mask)
