"""The layers that a Hugging Face auto class adds to a backbone, taken out of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from nlptasks.backbones.architecture import hf_config
from nlptasks.backbones.info import BackboneInfo

_INITIAL_STD, _ITS_WIDTH = 0.02, 768
"""BERT's, and the width that it is right for: a layer's outputs keep their size if it goes with the root of the width."""


class HuggingFaceLayers(nn.Module):
    """The layers that an auto class adds to a backbone.

    The whole model is built without memory, and its base model is replaced by a stub that passes the hidden states through,
    with the pooler if it had one. So no table of architectures is needed, and weights can be copied by name in both directions.
    If the architecture has no such class, or one that reads more than hidden states (BART's and T5's look for ``</s>`` among
    the tokens), the layers are dropout and a linear layer.

    Args:
        hf_auto: name of the auto class.
        info: the backbone's info.
        classes: number of classes C.
        outputs: the outputs and their axes, by the auto class's names: ``{"logits": "BC"}``.
    """

    def __init__(self, hf_auto: str, info: BackboneInfo, *, classes: int, outputs: Mapping[str, str]) -> None:
        super().__init__()
        config = hf_config(info)
        config.num_labels = classes
        found = _headless(getattr(transformers, hf_auto), config, info.width, outputs)
        self._is_hf = found is not None
        self.model: nn.Module = found or _Linear(getattr(config, "dropout", 0.1), info.width, classes, outputs)
        self._names = tuple(outputs)
        _initialize(self.model)

    def forward(self, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name for hidden states [B,S,H] and mask [B,S]."""
        outputs = self.model(inputs_embeds=states, attention_mask=mask)
        return {name: outputs[name] for name in self._names}

    @property
    def hf_module(self) -> nn.Module | None:
        """The auto class's own layers, or None if these are dropout and a linear layer."""
        return self.model if self._is_hf else None

    def load_pretrained(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Start from the pretrained pooler, if these layers have one.

        Args:
            weights: returns the pretrained weights by their names in the base model.
        """
        prefix = f"{getattr(self.model, 'base_model_prefix', None)}."
        named = self.model.state_dict().items()
        own = {name.removeprefix(prefix): weight for name, weight in named if name.startswith(prefix)}
        if own:
            found = weights()
            for name, weight in own.items():
                if name in found and found[name].shape == weight.shape:
                    weight.copy_(found[name])


class _Stub(nn.Module):
    """Replaces the base model: takes the hidden states as embeddings and returns them as its last hidden state."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        if pooler is not None:
            self.pooler = pooler

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> BaseModelOutput:
        if not hasattr(self, "pooler"):
            return BaseModelOutput(last_hidden_state=inputs_embeds)
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=self.pooler(inputs_embeds))


class _Linear(nn.Module):
    """Dropout and a linear layer over each token, or over the mean of the tokens if a whole window is judged."""

    def __init__(self, dropout: float, width: int, classes: int, shapes: Mapping[str, str]) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)
        self._shapes = dict(shapes)
        self._by_token = all("S" in axes for axes in shapes.values())

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        states = inputs_embeds if self._by_token else _mean(inputs_embeds, attention_mask)  # [B,S,H] or [B,H]
        logits = self.classifier(self.dropout(states))  # [B,S,C] or [B,C]
        if len(self._shapes) == 1:
            return dict.fromkeys(self._shapes, logits)
        return dict(zip(self._shapes, logits.unbind(-1), strict=True))


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the states [B,S,H] of real tokens: [B,H]."""
    weights = mask.unsqueeze(-1).to(states.dtype)  # [B,S,1]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def _headless(auto: Any, config: Any, width: int, shapes: Mapping[str, str]) -> nn.Module | None:
    """The auto class's model for this config with a stub in place of its base model; None if it cannot be run so."""
    if type(config) not in auto._model_mapping:
        return None
    with torch.device("meta"):
        model: Any = auto.from_config(config)
        base = getattr(model, model.base_model_prefix, None)
        if not isinstance(base, nn.Module):
            return None
        pooler = getattr(base, "pooler", None)
        setattr(model, model.base_model_prefix, _Stub(pooler if isinstance(pooler, nn.Module) else None))
        if not _gives(model, width, config.num_labels, shapes):
            return None
    own: nn.Module = model.to_empty(device=torch.get_default_device())
    return own


def _gives(model: nn.Module, width: int, classes: int, shapes: Mapping[str, str]) -> bool:
    """Return True if the outputs of a model on the device ``meta`` depend on hidden states only, and have these shapes."""
    sizes = {"B": 2, "S": 3, "C": classes}
    states, mask = torch.zeros(2, 3, width), torch.ones(2, 3, dtype=torch.int64)  # [B,S,H], [B,S]
    try:
        outputs = model.eval()(inputs_embeds=states, attention_mask=mask)
    except Exception:  # whatever a foreign model raises without its tokens
        return False
    wanted = {name: tuple(sizes[letter] for letter in axes) for name, axes in shapes.items()}
    return all(name in outputs and outputs[name].shape == shape for name, shape in wanted.items())


def _initialize(module: nn.Module) -> None:
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=_INITIAL_STD * (_ITS_WIDTH / part.in_features) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
