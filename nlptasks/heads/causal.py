"""Heads on decoders: backbones that read only to the left, and give of every token what may follow it.

Such a head has the layer behind Hugging Face's base model. `encode` tells how likely each token of a text was; a text that is
`continued` is read by the graph `step` alone, which runs the backbone itself, token by token, from a cache passed along, and is
the same on PyTorch and on ONNX Runtime.

Letters for shapes beside the usual: G prompts, K hypotheses of each, R = G*K, T new tokens, t tokens in the cache, P rows of the
cache, N attention heads, D width of one, V vocabulary.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from nlptasks.backbones.architecture import build, refusing
from nlptasks.backbones.backbone import DECODER, Backbone, BackboneInfo
from nlptasks.backbones.graph import Graph
from nlptasks.backbones.layer_sharing import Branch, SharedPass
from nlptasks.config import decided, parse_options
from nlptasks.errors import ModelError, UsageError, listing
from nlptasks.generation.decoder import Layout, continued
from nlptasks.generation.generation_config import end_of, options_of
from nlptasks.generation.search import Marks, SearchOptions, search
from nlptasks.generation.step_graph import MOST_SCORES, as_outputs, hearer
from nlptasks.heads.base import Head
from nlptasks.metrics.calibration import checked
from nlptasks.runtimes.base import STEP, Pass
from nlptasks.storage.safetensors import own_tensors
from nlptasks.types import Ints, Outputs, Window

_SIZES = ((2, 3, 4, 5, 7), (1, 1, 1, 0, 1), (3, 1, 6, 0, 1), (2, 4, 1, 3, 8), (2, 1, 3, 10, 2))
"""Sizes G, K, T, t, P of the inputs by which two ways to run a step are compared."""


_NOT_OURS = ("max_length", "min_length", "prefix")
"""What a checkpoint says for ``generate`` that counts the prompt, or is not said of decoders."""


@dataclass(frozen=True)
class CausalConfig(SearchOptions):
    """Options of a head on a decoder, and what its backbone decided."""

    end: tuple[int, ...] = decided((), "the tokens that end a text")


class CausalHead(Head):
    """Reads a text token by token, says how likely each was, and writes on. A task says what the texts are.

    An example to learn from, or to be measured by, has sources that are encoded, and a feature ``learned`` [S] for each window:
    1 for a token whose next one counts (behind the last one the end of the text), else 0. A prompt has one that is `continued`.

    Attributes:
        vocabulary: what it writes in.
        listener: hears the pieces of texts as they are written, if it is set. Texts are then written one after another.
    """

    Config: ClassVar[type] = CausalConfig
    config: CausalConfig
    backbones = (DECODER,)
    outputs: Mapping[str, str] = {"log_probs": "BS"}
    hf_auto = "AutoModelForCausalLM"
    own_lr_scale = 1.0  # its layer is pretrained, too

    def __init__(self, config: CausalConfig, *, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone=backbone)
        problem = f"has the architecture {backbone.config.model_type}, which cannot be run token by token"
        with refusing(backbone.source, problem, "take another one, such as GPT-2, Llama or Qwen"):
            self.output = OutputLayer(backbone)
            self._shapes = _cache_shapes(backbone.config)
        self.vocabulary = backbone.vocabulary()
        self.listener: Callable[[str], None] | None = None

    @classmethod
    def for_backbone(cls, config: Any, rows: Sequence[Any], backbone: BackboneInfo) -> Any:
        return replace(config, end=end_of(backbone.config, backbone.generation, backbone.source))

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    @property
    def longest_answer(self) -> int:
        """Tokens that are written at most, for lack of positions or by `max_new_tokens`."""
        positions = int(getattr(self.backbone_info.config, "max_position_embeddings", None) or sys.maxsize)
        return min(self.config.max_new_tokens, positions - self.backbone_info.max_tokens + self.reserved)

    @property
    def reserved(self) -> int:
        """Tokens of a window that are left free for what is written behind a prompt."""
        return min(self.config.max_new_tokens, self.backbone_info.max_tokens // 2)

    def learned(self, window: Window) -> Ints:
        """The feature ``learned`` [S] of a window of which every token counts but its first, and the end of the text."""
        learned = np.ones(len(window), dtype=np.int64)
        learned[-1] = window.closes and window.ids[-1] not in self.config.end
        return learned

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``log_probs`` [B,S]: the logarithm of the probability of what follows each token, the text's end behind the last."""
        ids, mask = batch["ids"], batch["mask"]  # each [B,S]
        end = torch.full_like(ids[:, :1], self.config.end[0])
        following = torch.cat([ids[:, 1:], end], 1)
        is_last = torch.cat([mask[:, 1:], torch.zeros_like(end)], 1) == 0
        following = torch.where(is_last, end, following)
        log_probs = self.output(states).float().log_softmax(-1)  # [B,S,V]
        return {"log_probs": log_probs.gather(-1, following.unsqueeze(-1)).squeeze(-1)}

    def loss(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        learned = batch["learned"] == 1  # [B,S]
        return -(self.forward(states, batch)["log_probs"] * learned).sum(), learned.sum()

    def graphs(self) -> Mapping[str, Graph]:
        return {STEP: BackboneStep(self.output, self.backbone_info, self._shapes)}

    def collect(self, passed: Pass) -> list[Outputs]:
        """What was found out of texts that were encoded, or what is written behind those that are not."""
        if passed.outputs:
            return super().collect(passed)
        found: dict[int, Outputs] = {}
        options = replace(
            self.config,
            max_new_tokens=self.longest_answer,
            min_new_tokens=min(self.config.min_new_tokens, self.longest_answer),
        )
        beams = max(options.num_beams, options.num_return_sequences)
        size = 1 if self.listener else max(1, MOST_SCORES // (beams * self.output.vocabulary_size))
        for group in _groups(passed.windows, apart=options.no_repeat_ngram_size > 0):
            for start in range(0, len(group), size):
                rows = group[start : start + size]
                stepper = _Stepper(passed, [passed.windows[row].ids for row in rows], self._shapes)
                hypotheses = search(
                    stepper,
                    sources=[passed.windows[row].ids for row in rows],
                    marks=Marks(prompt=(), end=self.config.end),
                    options=options,
                    listener=hearer(self.vocabulary, self.listener) if self.listener else None,
                    prompts=stepper.prompts,
                )
                found |= zip(rows, map(as_outputs, hypotheses), strict=True)
        return [found[row] for row in passed.windows]

    def adopt(self, pretrained: Callable[[], Mapping[str, Tensor]]) -> None:
        self.output.adopt(pretrained(), where=self.backbone_info.source)

    @property
    def borrowed(self) -> nn.Module | None:
        borrowed: nn.Module = self.output.model
        return borrowed

    def like_hugging_face(
        self, states: Tensor, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"logits": self.output(states)}, {}

    @classmethod
    def from_hugging_face(cls, backbone: BackboneInfo, given: Mapping[str, Any]) -> Any:
        """Options as the checkpoint has them for ``generate``, unless they are given."""
        options = parse_options(cls.Config, given, where=cls.__name__)
        said = options_of({name: value for name, value in backbone.generation.items() if name not in _NOT_OURS})
        try:
            config = cls.Config(**said)
        except UsageError as error:
            raise ModelError("generation_config.json", f"says that {error.where} {error.problem}", error.fix) from error
        return cls.for_backbone(replace(config, **options), [], backbone)

    def to_hugging_face(self) -> tuple[dict[str, Any], list[str]]:
        # What the architecture ties has learned here in two places.
        return {"tie_word_embeddings": False, "eos_token_id": list(self.config.end)}, []


class OutputLayer(nn.Module):
    """What Hugging Face's causal language model has behind its base model: from states to what may follow.

    Args:
        info: the backbone's info.

    Attributes:
        model: Hugging Face's model, its base model replaced by a stub that hands the states through.
        vocabulary_size: tokens that it knows.
    """

    def __init__(self, info: BackboneInfo) -> None:
        super().__init__()
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(info.config), dtype=torch.float32)
            base = f"{model.base_model_prefix}."
            tied = model.get_expanded_tied_weights_keys(all_submodels=True)
            setattr(model, model.base_model_prefix, _Stub())
        device = torch.get_default_device()
        self.model: Any = model.to_empty(device=device)
        if device.type != "meta":
            self.model.initialize_weights()
        self._tied = {own: theirs.removeprefix(base) for own, theirs in tied.items()}
        self.vocabulary_size = int(info.config.vocab_size)

    def forward(self, states: Tensor) -> Tensor:
        """Logits [B,S,V] of what follows each token, by states [B,S,H]."""
        logits: Tensor = self.model(inputs_embeds=states, use_cache=False).logits
        return logits

    def adopt(self, pretrained: Mapping[str, Tensor], *, where: str) -> None:
        """Begin with pretrained weights; what the architecture ties begins as that which it is tied to.

        Raises:
            ModelError: some are missing.
        """
        for name, weight in own_tensors(self.model).items():
            theirs = pretrained.get(name, pretrained.get(self._tied.get(name, "")))
            if theirs is None or theirs.shape != weight.shape:
                raise ModelError(where, f"has no pretrained weights for {listing([name])}", "take a complete decoder")
            weight.copy_(theirs)


class _Stub(nn.Module):
    """Stands where the base model stood."""

    @property
    def decoder(self) -> nn.Module:
        """Itself: OPT asks its base model for one."""
        return self

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


class BackboneStep(Graph):
    """The graph `step` of a head on a decoder; it runs on the backbone that it is given.

    Inputs: ``tokens`` [G,K,T]; ``rows`` [R], the row of the cache that each hypothesis continues; ``mask`` [G,t] of the tokens
    in the cache and ``new`` [G,T] of those that are read now, 0 for padding; and the cache [P,N,t,D], where t may be 0.
    Outputs: ``logits`` [R,V] behind the last token, and the cache [R,N,t+T,D].

    Args:
        output: the head's layer.
        info: the backbone's.
        shapes: N and D of what each layer remembers of a token.
    """

    labels = ("logits",)

    def __init__(self, output: OutputLayer, info: BackboneInfo, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.output, self._shapes = output, shapes
        self.limits = {"tokens": int(info.config.vocab_size), "mask": 2, "new": 2, "rows": sys.maxsize}
        self.axes = {"tokens": (0, 1, 2), "rows": (0,), "mask": (0, 1), "new": (0, 1)} | dict.fromkeys(
            _names("past", shapes), (0, 2)
        )

    def on(self, backbone: Backbone, branch: Branch | None) -> Graph:
        return _Running(self, backbone, branch)

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError("a step runs on the backbone that it is given")

    def run(self, given: Mapping[str, Tensor], backbone: Backbone, branch: Branch | None) -> dict[str, Tensor]:
        """The outputs on this backbone, with these layers in their places."""
        tokens = given["tokens"]
        layout = Layout.of(tokens, given["rows"])
        own = continued([given[name] for name in _names("past", self._shapes)], given["rows"])
        cache = DynamicCache()
        for layer in range(len(self._shapes)):
            cache.update(own[2 * layer], own[2 * layer + 1], layer)  # each [R,N,t,D]
        mask = torch.cat([given["mask"], given["new"]], 1)  # [G,t+T]
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, given["mask"].shape[1] :]  # [G,T]

        def states() -> Tensor:
            found: Tensor = backbone.trunk(
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
            **dict(zip(_names("present", self._shapes), grown, strict=True)),
        }

    def samples(self) -> list[dict[str, Tensor]]:
        return [self._sample(*sizes) for sizes in _SIZES]

    def _sample(self, groups: int, beams: int, new: int, cached: int, rows: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(groups)
        mask = torch.ones(groups, cached + new, dtype=torch.int64)
        mask[1:, : cached // 2] = 0  # what padding that is read itself gives is nobody's
        past = dict(zip(_names("past", self._shapes), [shape for shape in self._shapes for _ in "kv"], strict=True))
        return {
            "tokens": torch.randint(self.output.vocabulary_size, (groups, beams, new), generator=draw),
            "rows": torch.randint(rows, (groups * beams,), generator=draw),
            "mask": mask[:, :cached],
            "new": mask[:, cached:],
            **{name: torch.randn(rows, n, cached, d, generator=draw) for name, (n, d) in past.items()},
        }


class _Running(Graph):
    """A step with the backbone that it runs on."""

    labels = BackboneStep.labels

    def __init__(self, step: BackboneStep, backbone: Backbone, branch: Branch | None) -> None:
        super().__init__()
        self.step, self.backbone, self.branch = step, backbone, branch
        self.axes, self.limits = step.axes, step.limits

    @property
    def trunk(self) -> Any:
        return self.backbone.trunk

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.step.run(given, self.backbone, self.branch)

    def samples(self) -> list[dict[str, Tensor]]:
        return self.step.samples()


class _Stepper:
    """Runs the steps behind some prompts. Shorter ones begin with padding, which is their own first token and is not seen.

    Args:
        passed: the pass, which has the runtime.
        prompts: tokens of each prompt.
        shapes: N and D of what each layer remembers of a token.

    Attributes:
        prompts: the same, as one array [G,L].
    """

    def __init__(self, passed: Pass, prompts: Sequence[Ints], shapes: Sequence[tuple[int, int]]) -> None:
        self._runtime, self._graph, self._shapes = passed.runtime, f"{passed.head}.{STEP}", shapes
        longest = max(map(len, prompts))
        self.prompts = np.stack([np.pad(ids, (longest - len(ids), 0), mode="edge") for ids in prompts])
        self._new = np.stack([np.arange(longest) >= longest - len(ids) for ids in prompts]).astype(np.int64)
        self._mask = self._new[:, :0]
        sizes = [shape for shape in shapes for _ in "kv"]
        self._cache: dict[str, Any] = {
            name: np.zeros((1, n, 0, d), dtype=np.float32)
            for name, (n, d) in zip(_names("past", shapes), sizes, strict=True)
        }
        self._told_apart = False  # whether hypotheses of a prompt have rows of their own in the cache

    def advance(self, tokens: Ints, rows: Ints) -> Tensor:
        beams = tokens.shape[1]
        is_first = not self._mask.shape[1]
        if is_first:  # all hypotheses are alike: one is read
            tokens, rows = tokens[:, :1], rows[:, :1]
        elif not self._told_apart:
            rows, self._told_apart = rows // beams, True
        new = self._new if is_first else np.ones((len(tokens), tokens.shape[2]), dtype=np.int64)
        given = {"tokens": tokens, "rows": rows.reshape(-1), "mask": self._mask, "new": new, **self._cache}
        outputs = self._runtime.run(self._graph, given)
        self._mask = np.concatenate([self._mask, new], 1)
        names = zip(_names("past", self._shapes), _names("present", self._shapes), strict=True)
        self._cache = {past: outputs[present] for past, present in names}
        logits = torch.from_numpy(checked(self._runtime.fetch(outputs["logits"])))  # [R,V]
        return logits.reshape(*rows.shape, -1).expand(-1, beams, -1)

    def keep(self, groups: Ints) -> None:
        self._mask = self._mask[groups]


def _groups(windows: Mapping[int, Window], *, apart: bool) -> list[list[int]]:
    """The rows that are written together: where padding would count as written, only those of one length."""
    groups: dict[int, list[int]] = {}
    for row, window in windows.items():
        groups.setdefault(len(window) if apart else 0, []).append(row)
    return list(groups.values())


def _names(what: str, shapes: Sequence[object]) -> list[str]:
    return [f"{what}_{kind}_{layer}" for layer in range(len(shapes)) for kind in ("key", "value")]


def _cache_shapes(config: Any) -> tuple[tuple[int, int], ...]:
    """N and D of what each layer of a decoder remembers of a token: of two that it was given."""
    with torch.device("meta"):
        model: Any = build(config).eval()
        cache = DynamicCache()
        two = torch.zeros(1, 2, dtype=torch.int64)  # [B,S]
        mask = torch.zeros(
            1, 1, 2, 2
        )  # as it is added to scores: of another one the values would be asked, and there are none
        model(input_ids=two, attention_mask=mask, position_ids=two, past_key_values=cache, use_cache=True)
    return tuple((int(layer.keys.shape[1]), int(layer.keys.shape[3])) for layer in cache.layers)
