"""Where the decoder of a sequence-to-sequence network comes from: pretrained with the backbone, or fresh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PegasusConfig

from nlptasks.backbones.architecture import hf_config
from nlptasks.backbones.info import BackboneInfo
from nlptasks.errors import ModelError, listing, refusing
from nlptasks.generation.target_vocabulary import read_decoder_config
from nlptasks.storage.integrity import RESTORE
from nlptasks.storage.safetensors import own_tensors


class DecoderInit(Protocol):
    """The origin of a decoder.

    Attributes:
        config: the Hugging Face config of the whole model.
        lr_scale: default learning rate of the decoder relative to the backbone's.
    """

    config: Any
    lr_scale: float

    def load(self, decoder: nn.Module, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Start a decoder of Hugging Face's class from pretrained weights, if there are any.

        Raises:
            ModelError: some are missing.
        """

    def hf_module(self, decoder: nn.Module) -> nn.Module | None:
        """Return the decoder if a Hugging Face checkpoint of the backbone has it, too."""


class PretrainedDecoder:
    """The decoder of the backbone, an encoder-decoder."""

    lr_scale = 1.0

    def __init__(self, backbone: BackboneInfo) -> None:
        self._source = backbone.source
        self.config = hf_config(backbone)

    def load(self, decoder: nn.Module, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        found, base = weights(), f"{decoder.base_model_prefix}."
        needed = dict(decoder.named_parameters())
        for name, weight in own_tensors(decoder).items():
            theirs = found.get(name.removeprefix(base))
            if theirs is not None and theirs.shape == weight.shape:
                weight.copy_(theirs)
                needed.pop(name, None)
        if needed:
            problem = f"has no pretrained weights for {listing(needed)}"
            raise ModelError(self._source, problem, "use a complete encoder-decoder")

    def hf_module(self, decoder: nn.Module) -> nn.Module | None:
        return decoder


class FreshDecoder:
    """A decoder with new weights, for a backbone that has none.

    Args:
        config: its config as JSON, see `nlptasks.generation.target_vocabulary.decoder_config`.
    """

    lr_scale = 4.0

    def __init__(self, config: str) -> None:
        with refusing("decoder", "cannot be built from its config", RESTORE):
            self.config = PegasusConfig(**read_decoder_config(config))

    def load(self, decoder: nn.Module, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        pass

    def hf_module(self, decoder: nn.Module) -> nn.Module | None:
        return None
