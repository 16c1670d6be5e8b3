"""The backbone: a pretrained Transformer that reads tokens and gives states.

Of an encoder-decoder the encoder is the backbone: the decoder's weights, and a pooler's, stay on disk and are carried along
when the backbone is saved. A folder that was written here is read strictly;
`nlptasks.backbones.pretrained` reads everybody else's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from nlptasks.backbones.architecture import build, freeze_computed, plan, read_config, refusing
from nlptasks.backbones.layer_sharing import Branch, layer_count, make_slots, new_branch
from nlptasks.errors import ModelError
from nlptasks.runtimes.base import ENCODE_INPUTS
from nlptasks.storage import safetensors as weights
from nlptasks.storage.atomic import parsed
from nlptasks.storage.integrity import RESTORE, plain_files, read_whole
from nlptasks.text.windowing import Tokenizer, plain

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
BEYOND = "beyond.safetensors"
"""Pretrained weights that Hugging Face's base model has no place for, such as the layer behind a decoder."""
_MARKS = (
    "decoder_start_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
)
"""What is said for ``generate`` of how every target begins and ends, and what it never has."""
ENCODER, ENCODER_DECODER, DECODER = "encoder", "encoder-decoder", "decoder"
"""Kinds of backbones: of an encoder-decoder the encoder is the backbone; a decoder reads only to the left."""
MAX_TOKENS = {ENCODER: 512, ENCODER_DECODER: 1024, DECODER: 2048}
"""Windows are never longer, whatever the backbone could read: attention's cost grows with the square of the length. Many
encoder-decoders were trained on whole documents of theirs, and decoders read a prompt and go on behind it."""


@dataclass(frozen=True)
class BackboneInfo:
    """What a head may know of the backbone below it.

    Attributes:
        source: the name it was loaded by.
        revision: the hub's commit, if it came from the hub.
        config: the Hugging Face config.
        max_tokens: longest window, special tokens included.
        pad_id: id of the padding token.
        has_types: whether it reads token type ids.
        tokenizer: its ``tokenizer.json``.
        generation: what it says for ``generate``, by name; once it has been saved here, only how what is written begins and
            ends.
        chat: its tokenizer's chat template, as ``template``, and the special tokens that it may name; empty if it has none.
    """

    source: str
    revision: str | None
    config: Any
    max_tokens: int
    pad_id: int
    has_types: bool
    tokenizer: bytes = field(default=b"", repr=False)
    generation: Mapping[str, Any] = field(default_factory=dict, repr=False)
    chat: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> str:
        """``encoder``, ``encoder-decoder`` or ``decoder``."""
        return kind_of(self.config)

    @property
    def width(self) -> int:
        """Width H of the states."""
        return int(self.config.hidden_size)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the integer inputs [B,S] of `Backbone.forward`."""
        return ENCODE_INPUTS if self.has_types else ENCODE_INPUTS[:2]

    @property
    def limits(self) -> dict[str, int]:
        """For each of them, one more than the largest number that it may hold."""
        most = {"ids": int(self.config.vocab_size), "mask": 2, "types": int(getattr(self.config, "type_vocab_size", 1))}
        return {name: most[name] for name in self.inputs}

    def vocabulary(self) -> tokenizers.Tokenizer:
        """A new Rust tokenizer of its, for texts alone."""
        return plain(tokenizers.Tokenizer.from_str(self.tokenizer.decode("utf-8")))

    def record(self) -> dict[str, Any]:
        """What a model folder keeps of it beside the Hugging Face files."""
        return {
            "source": self.source,
            "revision": self.revision,
            "max_tokens": self.max_tokens,
            "pad_id": self.pad_id,
            "has_types": self.has_types,
            "generation": {name: self.generation.get(name) for name in _MARKS} if self.generation else {},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], config: Any, files: Mapping[str, bytes]) -> BackboneInfo:
        """The info that `record` wrote, with the small files that stand beside it."""
        return cls(config=config, tokenizer=files[TOKENIZER], chat=chat_in(files), **record)


class Backbone(nn.Module):
    """A pretrained encoder with its tokenizer.

    Args:
        full: the Hugging Face base model; of an encoder-decoder only the encoder is kept, and no pooler.
        info: what heads may know.
        assets: its small files (configs and tokenizer), by name, as they are saved.
        left_out: gives the weights of `full` that the backbone does not hold, by their names there.
        beyond: gives pretrained weights that are not even in `full`, such as the layer behind a decoder.
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
        self.trunk = trunk_of(full)
        freeze_computed(self.trunk)
        make_slots(self.trunk)
        self.names = names_of(full, self.trunk)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """States of a batch.

        Args:
            batch: ``ids``, ``mask`` and, if the backbone reads them, ``types`` [B,S].

        Returns:
            States [B,S,H].
        """
        given = {"input_ids": batch["ids"], "attention_mask": batch["mask"]}
        if self.info.has_types:
            given["token_type_ids"] = batch["types"]
        more = {"use_cache": False} if self.info.kind == DECODER else {}
        states: Tensor = self.trunk(**given, **more).last_hidden_state  # [B,S,H]
        return states

    def branch(self, depth: int) -> Branch:
        """A branch of so many layers, which begins as a copy of the backbone's own.

        Raises:
            UsageError: the backbone has not so many layers, or no list of them.
        """
        return new_branch(self.trunk, depth)

    @property
    def layers(self) -> int:
        """How many layers a head can own; 0 if the architecture has no list of them."""
        return layer_count(self.trunk)

    def tokenizer(self) -> Tokenizer:
        """A new tokenizer of this backbone."""
        return read_tokenizer(self.info)

    def parameter_count(self) -> int:
        """Weights in the layers, embeddings left out: what one token's pass costs, and what learning rates go by."""
        tables = {
            id(weight)
            for module in self.modules()
            if isinstance(module, nn.Embedding)
            for weight in module.parameters()
        }
        return sum(weight.numel() for weight in self.parameters() if id(weight) not in tables)

    def save(self, folder: Path) -> None:
        """Write the Hugging Face layout into an existing folder, the weights that were left on disk included.

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
        """All pretrained weights, as far as they are known, by their names in the base model."""
        return {**self._beyond(), **self._whole()}

    def _whole(self) -> dict[str, Tensor]:
        held = self.trunk.state_dict()
        return {**self._left_out(), **{full: held[own] for own, full in self.names.items()}}

    @classmethod
    def from_folder(cls, folder: Path, record: Mapping[str, Any]) -> Backbone:
        """A backbone that `save` wrote: built from its config, every tensor in its place.

        Raises:
            ModelError: the files do not fit each other.
        """
        path = folder / WEIGHTS
        assets = {name: read_whole(folder / name) for name in plain_files(folder) if name not in (WEIGHTS, BEYOND)}
        config = read_config(read_whole(folder / CONFIG), where=str(folder))
        _check_weights(path, config)
        with refusing(str(folder), f"has an unusable {CONFIG}", RESTORE):
            full = build(config)
        backbone = cls(
            full,
            info=BackboneInfo.from_record(record, config, assets),
            assets=assets,
            left_out=lambda: weights.read_without(path, set(backbone.names.values())),
            beyond=lambda: weights.read_without(folder / BEYOND, ()) if (folder / BEYOND).is_file() else {},
        )
        held = backbone.trunk.state_dict()
        weights.read_into(path, {full: held[own] for own, full in backbone.names.items()})
        backbone.eval()._check(str(folder))
        return backbone

    def _check(self, where: str) -> None:
        """Check that what is known of the backbone is so, and that it runs: a wrong setting shows here, not at a text."""
        longest = longest_window(self.trunk, self.info.config)
        if self.info.max_tokens > longest:
            raise ModelError(where, f"is said to read {self.info.max_tokens} tokens, it reads {longest}", RESTORE)
        if self.info.has_types and not reads_types(self.trunk, self.info.config):
            raise ModelError(where, "is said to read token types, it reads none", RESTORE)
        if not 0 <= self.info.pad_id < self.info.config.vocab_size:
            raise ModelError(where, f"has no token of the padding's id {self.info.pad_id}", RESTORE)
        one = torch.ones(1, 2, dtype=torch.int64)  # [B,S]
        with refusing(where, "does not run", RESTORE), torch.no_grad():
            self({name: one if name == "mask" else torch.zeros_like(one) for name in self.info.inputs})


def _check_weights(path: Path, config: Any) -> None:
    """Check names and shapes of the file against what the config describes, before any of it is in memory."""
    header = weights.read_header(path)
    model = plan(config, header, where=str(path.parent))
    known = {**dict(model.named_parameters()), **model.state_dict()}
    own = set(names_of(model, trunk_of(model)).values())
    weights.check_header(path, header, known, optional=known.keys() - own)


def chat_in(files: Mapping[str, bytes]) -> dict[str, str]:
    """The chat template among a tokenizer's files, with the special tokens that it may name; empty if there is none.

    Raises:
        ModelError: the tokenizer's config is no JSON.
    """
    if CHAT_TEMPLATE not in files:
        return {}
    with refusing(TOKENIZER_CONFIG, "cannot be read", RESTORE):
        said = parsed(files.get(TOKENIZER_CONFIG, b"{}"))
        tokens = {name: value for name, value in said.items() if name.endswith("_token") and isinstance(value, str)}
        return {"template": files[CHAT_TEMPLATE].decode("utf-8"), **tokens}


def read_tokenizer(info: BackboneInfo) -> Tokenizer:
    """A new tokenizer of a backbone.

    Raises:
        ModelError: it cannot be read, or has tokens that the backbone does not have.
    """
    with refusing(TOKENIZER, "cannot be read", RESTORE):
        backend = info.vocabulary()
        check_vocabulary(backend, info.config, where=TOKENIZER)
        return Tokenizer(backend, max_tokens=info.max_tokens)


def check_vocabulary(backend: tokenizers.Tokenizer, config: Any, *, where: str) -> None:
    """Check that every token, the special ones around a text too, has its row in the table of embeddings.

    Raises:
        ModelError: one has not.
    """
    around = backend.encode("a", "a")
    known = max([*backend.get_vocab(with_added_tokens=True).values(), *around.ids], default=-1) + 1
    if known > config.vocab_size:
        raise ModelError(
            where, f"has a tokenizer of {known} tokens for a table of {config.vocab_size}", "resize the embeddings"
        )
    types = max(around.type_ids, default=0) + 1
    if types > max(2, getattr(config, "type_vocab_size", 0)):
        raise ModelError(where, f"has a tokenizer of {types} token types, expected at most 2", RESTORE)


def kind_of(config: Any) -> str:
    """The kind of backbone that a Hugging Face config describes."""
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    writes = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return DECODER if writes else ENCODER


def longest_window(trunk: nn.Module, config: Any) -> int:
    """Tokens that a backbone can read at once, special ones included; at most `MAX_TOKENS` of its kind."""
    most = MAX_TOKENS[kind_of(config)]
    positions = getattr(config, "max_position_embeddings", None) or MAX_TOKENS[ENCODER]  # T5 does not say
    for name, module in trunk.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # RoBERTa counts positions from behind the padding's
            positions = module.num_embeddings - module.padding_idx - 1
    return int(min(positions, most))


def reads_types(trunk: nn.Module, config: Any) -> bool:
    """Whether a backbone tells the first text of a pair from the second by token types."""
    return "token_type_ids" in inspect.signature(trunk.forward).parameters and getattr(config, "type_vocab_size", 0) > 1


def trunk_of(full: PreTrainedModel) -> nn.Module:
    """The part that turns tokens into states: the encoder, or the model itself without its pooler."""
    if full.config.is_encoder_decoder:
        encoder: nn.Module = full.get_encoder()
        return encoder
    if isinstance(getattr(full, "pooler", None), nn.Module):
        full.pooler = None
    bare: nn.Module = full
    return bare


def names_of(full: PreTrainedModel, trunk: nn.Module) -> dict[str, str]:
    """For each tensor that the trunk holds, its name there and in the full model's file; of tied ones the first.

    What the architecture ties goes by the one name even where the decoder has come to have other values: those are left out.
    """
    tied = full.get_expanded_tied_weights_keys(all_submodels=True)
    in_file: dict[int, str] = {}
    for name, tensor in full.state_dict(keep_vars=True).items():
        in_file.setdefault(id(tensor), name)
    names: dict[str, str] = {}
    taken: set[int] = set()
    for name, tensor in trunk.state_dict(keep_vars=True).items():
        if id(tensor) not in taken:
            names[name] = tied.get(in_file[id(tensor)], in_file[id(tensor)])
            taken.add(id(tensor))
    return names
