"""Where the decoder of a head that writes comes from: with the backbone, pretrained, or new, with a vocabulary of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tokenizers
from torch import Tensor, nn

from nlptasks.backbones.architecture import refusing
from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.errors import ModelError, listing
from nlptasks.generation.target_vocabulary import own_config
from nlptasks.storage.integrity import RESTORE
from nlptasks.storage.safetensors import own_tensors
from nlptasks.text.windowing import plain


class Origin(Protocol):
    """What a head asks of its decoder's origin.

    Attributes:
        config: the Hugging Face config of the whole model.
        vocabulary: what the decoder writes in.
        lr_scale: the learning rate of its weights, in relation to the backbone's.
    """

    config: Any
    vocabulary: tokenizers.Tokenizer
    lr_scale: float

    def adopt(self, decoder: nn.Module, pretrained: Callable[[], Mapping[str, Tensor]]) -> None:
        """Give a decoder, of Hugging Face's class, the weights to begin with.

        Raises:
            ModelError: some are missing.
        """

    def borrowed(self, decoder: nn.Module) -> nn.Module | None:
        """The layers that Hugging Face's model has, too: none of a decoder of our own."""


class OfBackbone:
    """The decoder came with the backbone, an encoder-decoder."""

    lr_scale = 1.0

    def __init__(self, backbone: BackboneInfo) -> None:
        self._source = backbone.source
        self.config, self.vocabulary = backbone.config, backbone.vocabulary()

    def adopt(self, decoder: nn.Module, pretrained: Callable[[], Mapping[str, Tensor]]) -> None:
        found, base = pretrained(), f"{decoder.base_model_prefix}."
        needed = dict(decoder.named_parameters())
        for name, weight in own_tensors(decoder).items():
            theirs = found.get(name.removeprefix(base))
            if theirs is not None and theirs.shape == weight.shape:
                weight.copy_(theirs)
                needed.pop(name, None)
        if needed:
            problem = f"has no pretrained weights for {listing(needed)}"
            raise ModelError(self._source, problem, "take a complete encoder-decoder")

    def borrowed(self, decoder: nn.Module) -> nn.Module | None:
        return decoder


class New:
    """The decoder and its vocabulary were made for the head, as `nlptasks.generation.target_vocabulary` makes them."""

    lr_scale = 4.0

    def __init__(self, config: str, vocabulary: str) -> None:
        with refusing("decoder", "cannot be built from its config and vocabulary", RESTORE):
            self.config, self.vocabulary = own_config(config), plain(tokenizers.Tokenizer.from_str(vocabulary))

    def adopt(self, decoder: nn.Module, pretrained: Callable[[], Mapping[str, Tensor]]) -> None:
        pass

    def borrowed(self, decoder: nn.Module) -> nn.Module | None:
        return None
