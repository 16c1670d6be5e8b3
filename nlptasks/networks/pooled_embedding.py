"""Pooled embeddings: one vector for each window, and losses over the texts of a batch.

Letters beside those of the library: E width of an embedding, T texts, P pairs and K candidate texts of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlptasks.backbones.info import ENCODER_DECODER, BackboneInfo
from nlptasks.networks.base import Network

_EMBEDDING = "embedding"


class PooledEmbedding(Network):
    """Embeds texts, and learns from examples of two texts, with a third text as a hard negative if there is one.

    The embedding of a text is the mean over its windows, weighted by their tokens and normalized to length 1. Examples that lack
    the windows of a text are left out of the loss.

    The loss reads the target ``texts`` [B,1]: the number of texts in the example if a text begins in this window, else 0. Each
    loss reads one target more:

    - ``cosine``: the squared error between the cosine of both texts and ``cosine`` [B,1].
    - ``contrastive``: the cross entropy of the second text among all second texts and negatives of the batch, and of the first
      text among all first texts. ``keys`` [B,3] has a number for each text, 0 if there is no third one; equal texts have equal
      numbers, so that a right answer is never a negative.

    Args:
        backbone: the backbone below.
        pooling: ``mean`` of the tokens, ``cls`` for the first token, or ``max``.
        dimensions: width E of the embedding, by a linear layer; 0 for the backbone's width without a layer.
        loss: ``cosine`` or ``contrastive``.
        scale: factor of the cosines in the contrastive loss.
    """

    lr_scale = 0.1
    hf_auto = "AutoModel"

    def __init__(
        self,
        backbone: BackboneInfo,
        *,
        pooling: str = "mean",
        dimensions: int = 0,
        loss: str = "cosine",
        scale: float = 20.0,
    ) -> None:
        super().__init__()
        self._pool, self._compute_loss, self._scale = _POOLINGS[pooling], _LOSSES[loss], scale
        self._target = _TARGETS[loss]
        self.outputs = {_EMBEDDING: "BE" if dimensions else "BH"}
        self.targets = {"texts": "BC", self._target: "BC"}
        self.projection: nn.Module = nn.Identity()
        if dimensions:
            layer = nn.Linear(backbone.width, dimensions, bias=False)
            nn.init.orthogonal_(layer.weight)  # keeps the backbone's angles as well as so few dimensions allow
            self.projection = layer
        self._has_checkpoints = backbone.kind != ENCODER_DECODER and not dimensions

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {_EMBEDDING: self.projection(self._pool(states, batch["mask"]))}  # [B,E]

    def training_outputs(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(states.device.type, enabled=False):  # half precision is too coarse for cosines
            return self(states.float(), batch)  # type: ignore[no-any-return]

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        windows = outputs[_EMBEDDING].float()  # [B,E]
        with torch.autocast(windows.device.type, enabled=False):
            opens = batch["texts"][:, 0]  # [B]
            texts = merge_windows(windows, batch["mask"], opens, batch["example"], batch[self._target])
            return self._compute_loss(texts, self._scale)

    @property
    def hf_module(self) -> nn.Module | None:
        """An empty module, since `AutoModel` adds nothing; None for an encoder-decoder, whose `AutoModel` runs its decoder."""
        return nn.Identity() if self._has_checkpoints else None

    def hf_outputs(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"last_hidden_state": states}, {}


@dataclass(frozen=True)
class TextBatch:
    """The texts of a batch. Those of one example are next to each other.

    Attributes:
        vectors: embeddings of length 1 [T,E].
        first: True for the first text of an example [T].
        second: True for the second text [T].
        negative: True for the third text [T].
        target: the target of the text's example [T,...].
    """

    vectors: Tensor
    first: Tensor
    second: Tensor
    negative: Tensor
    target: Tensor


def merge_windows(windows: Tensor, mask: Tensor, counts: Tensor, example: Tensor, target: Tensor) -> TextBatch:
    """Merge the windows of each text.

    Args:
        windows: a vector for each window [B,E].
        mask: 1 for tokens, 0 for padding [B,S].
        counts: number of texts in the example if a text begins in this window, else 0 [B].
        example: index of the example of each window [B].
        target: target of each window's example [B,...].
    """
    opens = counts > 0  # [B]
    sums = windows.new_zeros(int(opens.sum()), windows.shape[1])  # [T,E]
    sums = sums.index_add(0, opens.cumsum(0) - 1, windows * mask.sum(1, keepdim=True))  # [T,E]
    vectors = nn.functional.normalize(sums)  # [T,E]
    owner = example[opens]  # [T]
    # A text without tokens has no window. Its example is left out.
    whole = torch.bincount(owner)[owner] == counts[opens]  # [T]
    owner = owner[whole]
    first = torch.ones_like(owner, dtype=torch.bool)  # [T]
    first[1:] = owner[1:] != owner[:-1]
    second = first.roll(1)  # [T]
    return TextBatch(vectors[whole], first, second, ~(first | second), target[opens][whole])


def cosine_loss(texts: TextBatch, scale: float) -> tuple[Tensor, Tensor]:
    """Return the squared error of the cosines as a sum, and the number of pairs."""
    cosines = (texts.vectors[texts.first] * texts.vectors[texts.second]).sum(1)  # [P]
    return (cosines - texts.target[texts.first, 0]).square().sum(), texts.first.sum()


def contrastive_loss(texts: TextBatch, scale: float) -> tuple[Tensor, Tensor]:
    """Return the mean of the cross entropies in both directions as a sum over the pairs, and the number of pairs."""
    keys = texts.target[texts.first]  # [P,3]
    negatives = texts.target[texts.negative][:, 2]  # [K-P]
    first = texts.vectors[texts.first]  # [P,E]
    candidates = torch.cat([texts.vectors[texts.second], texts.vectors[texts.negative]])  # [K,E]
    logits = scale * first @ candidates.T  # [P,K]
    right = _right_answers(keys, torch.cat([keys[:, 1], negatives]))  # [P,K]
    right.fill_diagonal_(fill_value=False)  # the answer that is learned
    logits = logits.masked_fill(right, -torch.inf)
    pairs = torch.arange(len(first), device=first.device)  # [P]
    forward = nn.functional.cross_entropy(logits, pairs, reduction="sum")
    backward = nn.functional.cross_entropy(logits[:, : len(first)].T, pairs, reduction="sum")
    return (forward + backward) / 2, texts.first.sum()


def _right_answers(keys: Tensor, candidates: Tensor) -> Tensor:
    """Return True where a candidate is right for the first text of a pair, by any pair of the batch [P,K].

    Args:
        keys: numbers of the texts of each pair [P,3].
        candidates: numbers of the candidate texts [K].
    """
    same_first = keys[:, None, 0] == keys[None, :, 0]  # [P,P]
    is_second = keys[:, None, 1] == candidates[None, :]  # [P,K]
    return (same_first.float() @ is_second.float()) > 0  # [P,K]


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)  # [B,S,1]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)  # [B,H]


def _first(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, 0]  # [B,H]


def _max(states: Tensor, mask: Tensor) -> Tensor:
    padding = mask.unsqueeze(-1) == 0  # [B,S,1]
    return states.masked_fill(padding, torch.finfo(states.dtype).min).amax(1)  # [B,H]


_POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _first, "max": _max}
_LOSSES: Mapping[str, Callable[[TextBatch, float], tuple[Tensor, Tensor]]] = {
    "cosine": cosine_loss,
    "contrastive": contrastive_loss,
}
_TARGETS = {"cosine": "cosine", "contrastive": "keys"}
"""The target that each loss reads beside ``texts``."""
