"""The backbone: a pretrained Transformer that turns tokens into hidden states.

Of an encoder-decoder the encoder is the backbone. The weights of the decoder and of a pooler stay on disk and are copied when the
backbone is saved. A folder that was written here is read strictly; `nlptasks.backbones.pretrained` reads everybody else's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from nlptasks.backbones.architecture import build, freeze_computed, hf_config, plan, read_config
from nlptasks.backbones.info import (
    CONFIG,
    DECODER,
    ENCODER,
    ENCODER_DECODER,
    WEIGHTS,
    BackboneInfo,
    read_tokenizer,
)
from nlptasks.backbones.layer_sharing import Branch, layer_count, make_slots, new_branch
from nlptasks.errors import ModelError, refusing
from nlptasks.storage import safetensors as weights
from nlptasks.storage.integrity import RESTORE, read_whole
from nlptasks.text.windows import Tokenizer

BEYOND = "beyond.safetensors"
"""Pretrained weights that Hugging Face's base model has no place for, such as the output layer of a decoder."""
MAX_TOKENS = {ENCODER: 512, ENCODER_DECODER: 1024, DECODER: 2048}
"""Longest window by kind, whatever the backbone could read: the cost of attention grows with the square of the length. Many
encoder-decoders were trained on whole documents, and decoders continue long prompts."""


class Backbone(nn.Module):
    """A pretrained Transformer with its tokenizer.

    Args:
        full: the Hugging Face base model; of an encoder-decoder only the encoder is kept, and no pooler.
        info: facts about it.
        assets: its small files (configs and tokenizer) by name, as they are saved.
        left_out: returns the weights of `full` that the backbone does not hold, by their names there.
        beyond: returns pretrained weights that are not in `full`, such as the output layer of a decoder.
    """

    def __init__(
        self,
        full: PreTrainedModel,
        *,
        info: BackboneInfo,
        assets: Mapping[str, bytes],
        left_out: Callable[[], dict[str, Tensor]],
        beyond: Callable[[], dict[str, Tensor]] = dict,
    ) -> None:
        super().__init__()
        self.info = info
        self.assets = assets
        self._left_out = left_out
        self._beyond = beyond
        self.base_model = base_model_of(full)
        freeze_computed(self.base_model)
        make_slots(self.base_model)
        self.names = names_of(full, self.base_model)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the hidden states [B,S,H].

        Args:
            batch: ``ids``, ``mask`` and, if the backbone reads them, ``types`` [B,S].
        """
        given = {"input_ids": batch["ids"], "attention_mask": batch["mask"]}
        if self.info.has_types:
            given["token_type_ids"] = batch["types"]
        more = {"use_cache": False} if self.info.kind == DECODER else {}
        states: Tensor = self.base_model(**given, **more).last_hidden_state  # [B,S,H]
        return states

    def branch(self, depth: int) -> Branch:
        """Return copies of the top layers, for a head to own.

        Raises:
            UsageError: the backbone has fewer layers, or no list of layers.
        """
        return new_branch(self.base_model, depth)

    @property
    def layers(self) -> int:
        """Number of layers that a head can own; 0 if the architecture has no list of layers."""
        return layer_count(self.base_model)

    def tokenizer(self) -> Tokenizer:
        """Return a new tokenizer."""
        return read_tokenizer(self.info)

    def parameter_count(self) -> int:
        """Return the number of weights without embeddings: the cost of a token, and what default learning rates depend on."""
        tables = {
            id(weight)
            for module in self.modules()
            if isinstance(module, nn.Embedding)
            for weight in module.parameters()
        }
        return sum(weight.numel() for weight in self.parameters() if id(weight) not in tables)

    def save(self, folder: Path) -> None:
        """Write the Hugging Face layout into an existing folder, including the weights that were left on disk.

        Raises:
            OSError: the disk refuses.
        """
        for name, content in self.assets.items():
            (folder / name).write_bytes(content)
        whole, beyond = self._whole(), self._beyond()
        weights.write(folder / WEIGHTS, whole)
        tied = {tensor.data_ptr() for name, tensor in beyond.items() if name in whole}
        more = {name: tensor for name, tensor in beyond.items() if name not in whole and tensor.data_ptr() not in tied}
        if more:
            weights.write(folder / BEYOND, more)

    def pretrained(self) -> dict[str, Tensor]:
        """Return all known pretrained weights by their names in the base model."""
        return {**self._beyond(), **self._whole()}

    def _whole(self) -> dict[str, Tensor]:
        held = self.base_model.state_dict()
        return {**self._left_out(), **{full: held[own] for own, full in self.names.items()}}

    @classmethod
    def from_folder(cls, folder: Path, record: Mapping[str, Any], files: Collection[str]) -> Backbone:
        """Return a backbone that `save` wrote.

        Args:
            folder: its folder.
            record: what `BackboneInfo.record` returned.
            files: names of its files.

        Raises:
            ModelError: the files do not fit each other.
        """
        path = folder / WEIGHTS
        assets = {name: read_whole(folder / name) for name in files if name not in (WEIGHTS, BEYOND)}
        config = read_config(read_whole(folder / CONFIG), where=str(folder))
        _check_weights(path, config)
        with refusing(str(folder), f"has an unusable {CONFIG}", RESTORE):
            full = build(config)
        backbone = cls(
            full,
            info=BackboneInfo.from_record(record, assets),
            assets=assets,
            left_out=lambda: weights.read_without(path, set(backbone.names.values())),
            beyond=lambda: weights.read_without(folder / BEYOND, ()) if (folder / BEYOND).is_file() else {},
        )
        held = backbone.base_model.state_dict()
        weights.read_into(path, {full: held[own] for own, full in backbone.names.items()})
        backbone.eval()._check(str(folder))
        return backbone

    def _check(self, where: str) -> None:
        """Check that the recorded facts are true and that the model runs, so that a wrong record shows here."""
        facts = facts_of(self.base_model, hf_config(self.info))
        wrong = [name for name, value in facts.items() if getattr(self.info, name) != value]
        if wrong:
            found, known = getattr(self.info, wrong[0]), facts[wrong[0]]
            raise ModelError(where, f"records {wrong[0]}={found!r} for its backbone, which has {known!r}", RESTORE)
        longest = longest_window(self.base_model, hf_config(self.info))
        if not 0 < self.info.max_tokens <= longest:
            raise ModelError(
                where, f"records windows of {self.info.max_tokens} tokens, its backbone reads {longest}", RESTORE
            )
        if not 0 <= self.info.pad_id < self.info.vocabulary_size:
            raise ModelError(where, f"has no token with the padding's id {self.info.pad_id}", RESTORE)
        one = torch.ones(1, 2, dtype=torch.int64)  # [B,S]
        with refusing(where, "does not run", RESTORE), torch.no_grad():
            self({name: one if name == "mask" else torch.zeros_like(one) for name in self.info.inputs})


def _check_weights(path: Path, config: Any) -> None:
    """Check names and shapes of the file against what the config describes, before any of it is in memory."""
    header = weights.read_header(path)
    model = plan(config, header, where=str(path.parent))
    known = {**dict(model.named_parameters()), **model.state_dict()}
    own = set(names_of(model, base_model_of(model)).values())
    weights.check_header(path, header, known, optional=known.keys() - own)


def facts_of(base_model: nn.Module, config: Any) -> dict[str, Any]:
    """Return what `BackboneInfo` says of an architecture, by its names.

    Args:
        base_model: the part that is the backbone.
        config: the Hugging Face config of the whole model.
    """
    reads_types = "token_type_ids" in inspect.signature(base_model.forward).parameters
    types = int(getattr(config, "type_vocab_size", 0) or 0)
    positions = getattr(config, "max_position_embeddings", None)
    return {
        "kind": _kind_of(config),
        "width": int(config.hidden_size),
        "positions": None if positions is None else int(positions),
        "vocabulary_size": int(config.vocab_size),
        "token_types": types if reads_types and types > 1 else 0,
    }


def _kind_of(config: Any) -> str:
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    generates = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return DECODER if generates else ENCODER


def longest_window(base_model: nn.Module, config: Any) -> int:
    """Return the tokens that a backbone can read at once, special tokens included; at most `MAX_TOKENS` of its kind."""
    positions = getattr(config, "max_position_embeddings", None) or MAX_TOKENS[ENCODER]  # T5 does not say
    for name, module in base_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # RoBERTa's first position comes after that of the padding.
            positions = module.num_embeddings - module.padding_idx - 1
    return int(min(positions, MAX_TOKENS[_kind_of(config)]))


def base_model_of(full: PreTrainedModel) -> nn.Module:
    """Return the part that turns tokens into hidden states: the encoder, or the model itself without its pooler."""
    if full.config.is_encoder_decoder:
        encoder: nn.Module = full.get_encoder()
        return encoder
    if isinstance(getattr(full, "pooler", None), nn.Module):
        full.pooler = None
    bare: nn.Module = full
    return bare


def names_of(full: PreTrainedModel, base_model: nn.Module) -> dict[str, str]:
    """Return the name of each tensor in the base model and in the full model's file; of tied tensors the first.

    Tensors that the architecture ties share one name even if the decoder's values differ: those are left out.
    """
    tied = full.get_expanded_tied_weights_keys(all_submodels=True)
    in_file: dict[int, str] = {}
    for name, tensor in full.state_dict(keep_vars=True).items():
        in_file.setdefault(id(tensor), name)
    names: dict[str, str] = {}
    taken: set[int] = set()
    for name, tensor in base_model.state_dict(keep_vars=True).items():
        if id(tensor) not in taken:
            names[name] = tied.get(in_file[id(tensor)], in_file[id(tensor)])
            taken.add(id(tensor))
    return names
