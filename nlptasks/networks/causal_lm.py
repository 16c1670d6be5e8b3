"""Causal language model: the output layer of a decoder, which scores the tokens that may follow each token.

Letters for shapes beside the usual: G prompts, K hypotheses of each, R = G*K, T new tokens, t tokens in the cache, P rows of the
cache, N attention heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from nlptasks.backbones.architecture import build, hf_config
from nlptasks.backbones.backbone import Backbone
from nlptasks.backbones.graph import Graph
from nlptasks.backbones.info import BackboneInfo
from nlptasks.backbones.layer_sharing import Branch, SharedPass
from nlptasks.errors import ModelError, listing, refusing
from nlptasks.generation.cache import PAST, PRESENT, cache_names
from nlptasks.generation.decoder import Layout, continued
from nlptasks.networks.base import Network
from nlptasks.runtimes.base import STEP
from nlptasks.storage.safetensors import own_tensors

_SIZES = ((2, 3, 4, 5, 7), (1, 1, 1, 0, 1), (3, 1, 6, 0, 1), (2, 4, 1, 3, 8), (2, 1, 3, 10, 2))
"""Sizes G, K, T, t, P of the inputs on which two runtimes are compared."""


class CausalLM(Network):
    """Scores a text token by token, and continues prompts.

    Args:
        backbone: the backbone below, a decoder.
        end: the token that follows the last token of a text.
    """

    outputs: Mapping[str, str] = {"log_probs": "BS"}
    targets: Mapping[str, str] = {"learned": "BS"}
    hf_auto = "AutoModelForCausalLM"
    own_lr_scale = 1.0  # the output layer is pretrained, too

    def __init__(self, backbone: BackboneInfo, *, end: int) -> None:
        super().__init__()
        problem = f"has the architecture {backbone.architecture}, which cannot be run token by token"
        with refusing(backbone.source, problem, "use another one, such as GPT-2, Llama or Qwen"):
            config = hf_config(backbone)
            self.output = OutputLayer(config)
            self._shapes = _cache_shapes(config)
        self._source, self._end = backbone.source, end

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``log_probs`` [B,S]: the log-probability of the token after each token, for the last one of the end token."""
        return {"log_probs": self._log_probs(self.output(states), batch)}

    def training_outputs(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``logits`` [B,S,V] of the tokens that may follow each token."""
        return {"logits": self.output(states)}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        learned = batch["learned"] == 1  # [B,S]
        return -(self._log_probs(outputs["logits"], batch) * learned).sum(), learned.sum()

    def _log_probs(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        ids, mask = batch["ids"], batch["mask"]  # each [B,S]
        end = torch.full_like(ids[:, :1], self._end)
        following = torch.cat([ids[:, 1:], end], 1)
        is_last = torch.cat([mask[:, 1:], torch.zeros_like(end)], 1) == 0
        following = torch.where(is_last, end, following)
        return logits.float().log_softmax(-1).gather(-1, following.unsqueeze(-1)).squeeze(-1)

    def graphs(self) -> Mapping[str, Graph]:
        return {STEP: BackboneStep(self.output, self._shapes)}

    def load_pretrained(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self.output.load_pretrained(weights(), where=self._source)

    @property
    def hf_module(self) -> nn.Module | None:
        model: nn.Module = self.output.model
        return model


class OutputLayer(nn.Module):
    """The layers that Hugging Face's causal language model adds to its base model.

    Args:
        config: the Hugging Face config.

    Attributes:
        model: Hugging Face's model, whose base model is replaced by a stub that passes hidden states through.
        vocabulary_size: number of token ids.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
            base = f"{model.base_model_prefix}."
            tied = model.get_expanded_tied_weights_keys(all_submodels=True)
            setattr(model, model.base_model_prefix, _Stub())
        device = torch.get_default_device()
        self.model: Any = model.to_empty(device=device)
        if device.type != "meta":
            self.model.initialize_weights()
        self._tied = {own: theirs.removeprefix(base) for own, theirs in tied.items()}
        self.vocabulary_size = int(config.vocab_size)

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits [B,S,V] of the tokens that may follow each token, for hidden states [B,S,H]."""
        logits: Tensor = self.model(inputs_embeds=states, use_cache=False).logits
        return logits

    def load_pretrained(self, weights: Mapping[str, Tensor], *, where: str) -> None:
        """Start from pretrained weights; a weight that the architecture ties starts as a copy of the other one.

        Raises:
            ModelError: some are missing.
        """
        for name, weight in own_tensors(self.model).items():
            theirs = weights.get(name, weights.get(self._tied.get(name, "")))
            if theirs is None or theirs.shape != weight.shape:
                raise ModelError(where, f"has no pretrained weights for {listing([name])}", "use a complete decoder")
            weight.copy_(theirs)


class _Stub(nn.Module):
    """Replaces the base model."""

    @property
    def decoder(self) -> nn.Module:
        """Itself, because OPT asks its base model for its decoder."""
        return self

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


class BackboneStep(Graph):
    """The graph `step` of a causal language model, which runs on the backbone.

    Inputs: ``tokens`` [G,K,T]; ``rows`` [R], the row of the cache that each hypothesis continues; ``mask`` [G,t] of the tokens
    in the cache and ``new`` [G,T] of the tokens that are read now, 0 for padding; and the cache [P,N,t,D], where t may be 0.
    Outputs: ``logits`` [R,V] after the last token, and the cache [R,N,t+T,D].

    Args:
        output: the output layer.
        shapes: N and D of the cache of each layer.
    """

    labels = ("logits",)

    def __init__(self, output: OutputLayer, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.output, self._shapes = output, shapes
        self._past, self._present = cache_names(PAST, len(shapes)), cache_names(PRESENT, len(shapes))
        self.limits = {"tokens": output.vocabulary_size, "mask": 2, "new": 2, "rows": sys.maxsize}
        self.axes = {"tokens": (0, 1, 2), "rows": (0,), "mask": (0, 1), "new": (0, 1)} | dict.fromkeys(
            self._past, (0, 2)
        )

    def on(self, backbone: Backbone, branch: Branch | None) -> Graph:
        return _RunningStep(self, backbone, branch)

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError("this graph runs on a backbone: call `on` first")

    def run(self, given: Mapping[str, Tensor], backbone: Backbone, branch: Branch | None) -> dict[str, Tensor]:
        """Return the outputs on a backbone, with a branch in place of its top layers."""
        tokens = given["tokens"]
        layout = Layout.of(tokens, given["rows"])
        own = continued([given[name] for name in self._past], given["rows"])
        cache = DynamicCache()
        for layer in range(len(self._shapes)):
            cache.update(own[2 * layer], own[2 * layer + 1], layer)  # each [R,N,t,D]
        mask = torch.cat([given["mask"], given["new"]], 1)  # [G,t+T]
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, given["mask"].shape[1] :]  # [G,T]

        def states() -> Tensor:
            found: Tensor = backbone.base_model(
                input_ids=layout.flat(tokens),
                attention_mask=layout.repeated(mask),
                position_ids=layout.repeated(places),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            return found  # [R,T,H]

        logits = self.output(SharedPass(states, [branch]).states(branch)[:, -1:])  # [R,1,V]
        grown = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return {
            "logits": logits[:, 0],  # [R,V]
            **dict(zip(self._present, grown, strict=True)),
        }

    def samples(self) -> list[dict[str, Tensor]]:
        return [self._sample(*sizes) for sizes in _SIZES]

    def _sample(self, groups: int, beams: int, new: int, cached: int, rows: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(groups)
        mask = torch.ones(groups, cached + new, dtype=torch.int64)
        mask[1:, : cached // 2] = 0  # not of new tokens: outputs for padding are never read
        past = dict(zip(self._past, [shape for shape in self._shapes for _ in "kv"], strict=True))
        return {
            "tokens": torch.randint(self.output.vocabulary_size, (groups, beams, new), generator=draw),
            "rows": torch.randint(rows, (groups * beams,), generator=draw),
            "mask": mask[:, :cached],
            "new": mask[:, cached:],
            **{name: torch.randn(rows, n, cached, d, generator=draw) for name, (n, d) in past.items()},
        }


class _RunningStep(Graph):
    """A step with the backbone that it runs on."""

    labels = BackboneStep.labels

    def __init__(self, step: BackboneStep, backbone: Backbone, branch: Branch | None) -> None:
        super().__init__()
        self.step, self.backbone, self.branch = step, backbone, branch
        self.axes, self.limits = step.axes, step.limits

    @property
    def base_model(self) -> Any:
        return self.backbone.base_model

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.step.run(given, self.backbone, self.branch)

    def samples(self) -> list[dict[str, Tensor]]:
        return self.step.samples()


def _cache_shapes(config: Any) -> tuple[tuple[int, int], ...]:
    """Return N and D of each layer's cache, read off a run on the meta device."""
    with torch.device("meta"):
        model: Any = build(config).eval()
        cache = DynamicCache()
        two = torch.zeros(1, 2, dtype=torch.int64)  # [B,S]
        mask = torch.zeros(1, 1, 2, 2)  # additive: the values of another mask would be read, and there are none
        model(input_ids=two, attention_mask=mask, position_ids=two, past_key_values=cache, use_cache=True)
    return tuple((int(layer.keys.shape[1]), int(layer.keys.shape[3])) for layer in cache.layers)
