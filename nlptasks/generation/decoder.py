"""Decoder: the part of an encoder-decoder that generates text, run token by token from a cache that is passed along.

The Hugging Face model of a sequence-to-sequence config is built and its encoder removed. The keys and values of its attention are
plain tensors that go in and come out, so that PyTorch and ONNX Runtime run the same graph, and nothing is kept between two calls.

Letters for shapes beside the usual: G sources, K hypotheses of each, R = G*K, T new tokens, t tokens in the cache, P rows of the
cache, N attention heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
)
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutput

from nlptasks.backbones.architecture import freeze_computed
from nlptasks.generation.cache import CROSS, PAST, PRESENT, cache_names

_ATTENTION = "sdpa_by_source"


@dataclass(frozen=True)
class Layout:
    """Where the hypotheses of a step are: as rows [R,...], and by source [G,K,...].

    Indexing converts between the two, not reshaping. So R is a symbol of its own to the tracer, not the product G*K, which would
    appear in the shapes of all layers: reasoning about it takes the tracer as long as everything else.

    Attributes:
        places: index of each row [G,K].
        every: indices of all rows [R].
    """

    places: Tensor
    every: Tensor

    @classmethod
    def of(cls, tokens: Tensor, rows: Tensor) -> Layout:
        """Return the layout of tokens [G,K,T] that continue these rows [R] of a cache."""
        groups, beams, _ = tokens.shape
        places = torch.arange(groups * beams, device=rows.device).reshape(groups, beams)
        return cls(places, torch.arange(rows.shape[0], device=rows.device))  # `len` would become a constant in a trace

    def flat(self, grouped: Tensor) -> Tensor:
        """Return as rows [R,...] what is given by source [G,K,...]."""
        return grouped.flatten(0, 1).index_select(0, self.every)

    def repeated(self, of_sources: Tensor) -> Tensor:
        """Return as rows [R,S] what each hypothesis' source has [G,S]."""
        return self.flat(of_sources[:, None].expand(-1, self.places.shape[1], -1))

    def grouped(self, flat: Tensor) -> Tensor:
        """Return by source [G,K,...] what is given as rows [R,...]."""
        return flat[self.places]


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)
"""Layout of the current step."""


class Decoder(nn.Module):
    """The decoder and the output layer of a sequence-to-sequence model.

    Args:
        config: the Hugging Face config of the whole model.

    Attributes:
        model: Hugging Face's model without its encoder.
        width: width of the hidden states that it attends to.
        layers: number of layers.
        vocabulary_size: number of token ids.
        cache_shape: N and D of the cache of a layer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        model = _without_encoder(config)
        self.width = int(model.config.hidden_size)
        with torch.device("meta"):
            states, mask = torch.zeros(1, 2, self.width), torch.ones(1, 2, dtype=torch.int64)
            cross = _cross_attention(model.eval(), states, mask)
        self.model = _with_memory(model.train(), torch.get_default_device())
        self.layers = len(cross)
        self.vocabulary_size = int(self.model.config.vocab_size)
        _, heads, _, width = cross[0][0].shape
        self.cache_shape = (int(heads), int(width))

    @property
    def crosses(self) -> list[str]:
        """Names of the outputs of `cross`."""
        return cache_names(CROSS, self.layers)

    @property
    def past(self) -> list[str]:
        """Names of the tensors of the cache that `step` takes."""
        return cache_names(PAST, self.layers)

    @property
    def present(self) -> list[str]:
        """Names of the tensors of the cache that `step` returns, in the same order."""
        return cache_names(PRESENT, self.layers)

    def cross(self, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return keys and values [G,N,S,D] of the cross attention to hidden states [G,S,H], by name."""
        found = _cross_attention(self.model, states, mask)
        return dict(zip(self.crosses, (tensor for pair in found for tensor in pair), strict=True))

    def logits(self, states: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits [G,T,V] after each token of whole targets [G,T]."""
        outputs = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=tokens,
            use_cache=False,
        )
        found: Tensor = outputs.logits
        return found

    def step(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read some more tokens.

        Args:
            given: ``tokens`` [G,K,T]; ``rows`` [R], the row of the cache that each hypothesis continues; ``mask`` [G,S] of
                the sources; the outputs of `cross` [G,N,S,D]; and the cache [P,N,t,D], where t may be 0.

        Returns:
            ``logits`` [R,V] after the last token, and the cache [R,N,t+T,D].
        """
        tokens, rows, mask = given["tokens"], given["rows"], given["mask"]
        layout = Layout.of(tokens, rows)
        own = continued([given[name] for name in self.past], rows)  # each [R,N,t,D]
        cache = _cache(own, [given[name] for name in self.crosses])
        unused = given[self.crosses[0]].new_zeros(rows.shape[0], mask.shape[1], 1)  # stands for states that are cached
        before = _LAYOUT.set(layout)
        try:
            outputs = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=unused),
                attention_mask=layout.repeated(mask),
                decoder_input_ids=layout.flat(tokens),
                past_key_values=cache,
                use_cache=True,
            )
        finally:
            _LAYOUT.reset(before)
        grown = [tensor for layer in cache.self_attention_cache.layers for tensor in (layer.keys, layer.values)]
        return {
            "logits": outputs.logits[:, -1],  # [R,V]
            **dict(zip(self.present, grown, strict=True)),
        }


class _NoEncoder(nn.Module):
    """Replaces the encoder."""


def _without_encoder(config: Any) -> Any:
    """Return the model of a config without its encoder, on the meta device."""
    with torch.device("meta"):
        model: Any = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    for owner in (model, model.base_model):
        if isinstance(getattr(owner, "encoder", None), nn.Module):
            owner.encoder = _NoEncoder()
    model.set_attn_implementation(_ATTENTION)
    return model


def _with_memory(model: Any, device: torch.device) -> Any:
    """Return the model on a device with new weights; tied weights stay tied."""
    first: dict[int, str] = {}
    named = [
        (name, first.setdefault(id(weight), name)) for name, weight in model.named_parameters(remove_duplicate=False)
    ]
    model.to_empty(device=device)
    for name, same in named:
        if name != same:  # `to_empty` unties weights
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, model.get_parameter(same))
    if device.type != "meta":
        model.initialize_weights()
    freeze_computed(model)
    return model


def _cross_attention(model: Any, states: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of each layer's cross attention: what a cache holds of them after any one token."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        decoder_input_ids=torch.zeros_like(mask[:, :1]),
        past_key_values=cache,
        use_cache=True,
    )
    return [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]


def continued(cache: list[Tensor], rows: Tensor) -> list[Tensor]:
    """Return the rows of the cache that continue; all rows in their order are not copied."""
    if (
        not torch.compiler.is_exporting()
        and rows.device.type == "cpu"
        and torch.equal(rows, torch.arange(len(cache[0])))
    ):
        return cache
    return [tensor.index_select(0, rows) for tensor in cache]


def _cache(own: list[Tensor], cross: list[Tensor]) -> EncoderDecoderCache:
    """Return a cache that holds these keys and values, two tensors a layer."""
    caches = DynamicCache(), DynamicCache()
    for cache, tensors in zip(caches, (own, cross), strict=True):
        for layer in range(len(tensors) // 2):
            cache.update(tensors[2 * layer], tensors[2 * layer + 1], layer)
    both = EncoderDecoderCache(*caches)
    for layer in range(len(cross) // 2):
        both.is_updated[layer] = True
    return both


def _by_source(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of several hypotheses [R,N,T,D] to the keys of their source [G,N,S,D], which are not copied for each.

    Where there are as many keys as queries, as in self-attention, K is 1.
    """
    new = query.shape[2]
    bias = _bias(attention_mask, position_bias)  # [R,1 or N,T,S]
    layout = _LAYOUT.get()
    if layout is None or statically_known_true(
        query.shape[0] == key.shape[0]
    ):  # unknown in a trace, where K is a symbol
        found = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling
        )
        return found.transpose(1, 2), None
    query = layout.grouped(query).transpose(1, 2).flatten(2, 3)  # [G,N,K*T,D]
    bias = layout.grouped(bias).transpose(1, 2).flatten(2, 3)  # [G,1 or N,K*T,S]
    found = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling
    )  # [G,N,K*T,D]
    sizes = *found.shape[:2], layout.places.shape[1], new, found.shape[3]
    return layout.flat(found.reshape(sizes).permute(0, 2, 3, 1, 4)), None  # of [G,K,T,N,D]


def _bias(mask: Tensor, position_bias: Tensor | None) -> Tensor:
    """Return what is added to the scores of each row, or a boolean mask if there is no position bias."""
    if position_bias is None:
        return mask
    added = torch.zeros_like(mask, dtype=position_bias.dtype).masked_fill(~mask, torch.finfo(position_bias.dtype).min)
    return position_bias + added


def _mask(**given: Any) -> Tensor | None:
    """Always build a mask: deciding that none is needed would read values, which a traced graph does not know."""
    mask: Tensor | None = sdpa_mask(**{**given, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    return mask


AttentionInterface.register(_ATTENTION, _by_source)
AttentionMaskInterface.register(_ATTENTION, _mask)
