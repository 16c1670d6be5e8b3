"""Base of heads on decoders, backbones that read from left to right only: they score a text, or continue a prompt.

A text to learn or to score is encoded. A prompt is not: the graph `step` of the network reads it, see `nlptasks.types.End`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from nlptasks.backbones.info import BackboneInfo
from nlptasks.config import derived
from nlptasks.errors import ModelError, UsageError
from nlptasks.generation.generation_config import end_tokens, search_options
from nlptasks.generation.options import SearchOptions
from nlptasks.heads.base import Generator, Head, HuggingFaceFormat
from nlptasks.types import ExampleT, Ints, ResultT, Row, Window

_NOT_FOR_DECODERS = ("max_length", "min_length", "prefix")
"""Settings for ``generate`` that count the prompt, or that do not apply to decoders."""


@dataclass(frozen=True)
class CausalConfig(SearchOptions):
    """Options of a head on a decoder, and what its backbone decided."""

    end: tuple[int, ...] = derived((), "the tokens that end a text")


CausalConfigT = TypeVar("CausalConfigT", bound=CausalConfig)


class CausalFormat(HuggingFaceFormat[CausalConfigT]):
    """Checkpoints of decoders: their settings for ``generate`` become options.

    Args:
        config_class: the config of the head.
    """

    def __init__(self, config_class: type[CausalConfigT]) -> None:
        self._config_class = config_class

    def to_config(self, backbone: BackboneInfo, options: Mapping[str, Any]) -> CausalConfigT:
        settings = {name: value for name, value in backbone.generation.items() if name not in _NOT_FOR_DECODERS}
        try:
            config = self._config_class(**search_options(settings))
        except UsageError as error:
            raise ModelError("generation_config.json", f"says that {error.where} {error.problem}", error.fix) from error
        return replace(config, **options, end=end_tokens(backbone))

    def to_checkpoint(self, config: CausalConfigT, backbone: BackboneInfo) -> tuple[dict[str, Any], list[str]]:
        # Weights that the architecture ties were trained as two.
        return {"tie_word_embeddings": False, "eos_token_id": list(config.end)}, []


class CausalHead(Head[CausalConfigT, ExampleT, ResultT]):
    """Scores a text token by token, and continues prompts. A task declares what the texts are.

    An example to learn or to score has inputs that are encoded, with the target ``learned`` [S] for each window: 1 for a token
    whose next token counts (for the last one the end of the text), else 0. A prompt has one input with ``cut=End(...)``.

    Attributes:
        vocabulary: the backbone's vocabulary.
    """

    network = "nlptasks.networks.causal_lm:CausalLM"

    def __init__(self, config: CausalConfigT, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone)
        self.vocabulary = backbone.vocabulary()
        self._max_tokens, self._positions = backbone.max_tokens, backbone.positions

    @classmethod
    def configure(cls, rows: Sequence[Row], options: CausalConfigT, backbone: BackboneInfo) -> CausalConfigT:
        return replace(options, end=end_tokens(backbone))

    def network_options(self) -> Mapping[str, Any]:
        return {"end": self.config.end[0]}

    @property
    def reserved(self) -> int:
        """Tokens of a window that stay free for what is generated after a prompt."""
        return min(self.config.max_new_tokens, self._max_tokens // 2)

    @property
    def longest_answer(self) -> int:
        """Most tokens that are generated: `max_new_tokens`, or fewer if there are no positions for them."""
        longest = self.config.max_new_tokens
        return longest if self._positions is None else min(longest, self._positions - self._max_tokens + self.reserved)

    def learned(self, window: Window) -> Ints:
        """Return the target ``learned`` [S] of a window in which every token after the first counts, and the end of the text."""
        learned = np.ones(len(window), dtype=np.int64)
        learned[-1] = window.closes and window.ids[-1] not in self.config.end
        return learned

    @property
    def generator(self) -> Generator:
        from nlptasks.generation.causal_generator import CausalGenerator  # imports torch

        return CausalGenerator(self.vocabulary, self.config.end, self.config, longest=self.longest_answer)
