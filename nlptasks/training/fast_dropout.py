"""Fast dropout on the CPU, where PyTorch's dropout takes a fifth of a training step.

PyTorch draws one random number per value in a single thread, and does not use fused attention with dropout on attention weights.
Here eight values share one draw of 64 bits, and attention stays fused: only hidden states are dropped, not attention weights.
The result depends on PyTorch's seed alone.
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

_WITHOUT_DROPOUT, _SDPA = "sdpa_without_dropout", "sdpa"
_LEVELS = 256


@contextmanager
def cheap_dropout(model: nn.Module, backbone: Backbone, device: torch.device) -> Iterator[None]:
    """Replace the dropout of a model inside the block, if it is trained on the CPU."""
    if device.type != "cpu":
        yield
        return
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Dropout) and _levels(child.p) is not None
    ]
    base_model: Any = backbone.base_model
    uses_sdpa = base_model.config._attn_implementation == _SDPA
    for parent, name, child in places:
        setattr(parent, name, _FastDropout(child.p).train(child.training))
    if uses_sdpa:
        base_model.set_attn_implementation(_WITHOUT_DROPOUT)
    try:
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child.train(parent.training))
        if uses_sdpa:
            base_model.set_attn_implementation(_SDPA)


class _FastDropout(nn.Module):
    """Dropout with a probability that is a multiple of 1/256.

    Args:
        p: probability of zeroing a value; it is rounded.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Zero random values of x [...] in training mode, and scale the others up."""
        dropped = _levels(self.p)
        if not self.training or not dropped:
            return x
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * (kept.to(x.dtype) * (_LEVELS / (_LEVELS - dropped)))


def _levels(p: float) -> int | None:
    """Return a probability in units of 1/256, or None if rounding changes it by more than a tenth."""
    levels = round(p * _LEVELS)
    return levels if levels < _LEVELS and abs(levels / _LEVELS - p) <= 0.1 * p else None


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any) -> Any:
    return sdpa_attention_forward(module, query, key, value, mask, **{**given, "dropout": 0.0})


AttentionInterface.register(_WITHOUT_DROPOUT, _attention)
AttentionMaskInterface.register(_WITHOUT_DROPOUT, sdpa_mask)
