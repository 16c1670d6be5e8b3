"""The backbone: a pretrained Transformer that reads tokens and gives states.

Of an encoder-decoder the encoder is the backbone: the decoder's weights, and a pooler's, stay on disk and are carried along
when the backbone is saved. A folder that was written here is read strictly; `nlptasks.pretrained` reads everybody else's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto import CONFIG_MAPPING

from nlptasks.errors import ModelError, first_line, listing
from nlptasks.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
_TOKENIZER = "tokenizer.json"


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
    """

    source: str
    revision: str | None
    config: Any
    max_tokens: int
    pad_id: int
    has_types: bool

    @property
    def width(self) -> int:
        """Width H of the states."""
        return int(self.config.hidden_size)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the integer inputs [B,S] of `Backbone.forward`."""
        return ("ids", "mask", "types") if self.has_types else ("ids", "mask")

    def record(self) -> dict[str, Any]:
        """What a model folder keeps of it beside the Hugging Face files."""
        return {
            "source": self.source,
            "revision": self.revision,
            "max_tokens": self.max_tokens,
            "pad_id": self.pad_id,
            "has_types": self.has_types,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], config: Any) -> BackboneInfo:
        """The info that `record` wrote."""
        return cls(config=config, **record)


class Backbone(nn.Module):
    """A pretrained encoder with its tokenizer.

    Args:
        full: the Hugging Face base model; of an encoder-decoder only the encoder is kept, and no pooler.
        info: what heads may know.
        assets: its small files (config and tokenizer), by name, as they are saved.
        rest: gives the weights of `full` that the backbone does not hold.
    """

    def __init__(
        self,
        full: PreTrainedModel,
        *,
        info: BackboneInfo,
        assets: Mapping[str, bytes],
        rest: Callable[[], dict[str, Tensor]],
    ) -> None:
        super().__init__()
        self.info = info
        self.assets = assets
        self._rest = rest
        self.trunk = trunk_of(full)
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
        states: Tensor = self.trunk(**given).last_hidden_state  # [B,S,H]
        return states

    def tokenizer(self) -> Tokenizer:
        """A new tokenizer of this backbone."""
        return read_tokenizer(self.assets[_TOKENIZER], max_tokens=self.info.max_tokens)

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
        """Write the Hugging Face layout into an existing folder, the weights that were left on disk included."""
        for name, content in self.assets.items():
            (folder / name).write_bytes(content)
        held = self.trunk.state_dict()
        weights = {full: held[own].detach().contiguous().cpu() for own, full in self.names.items()}
        save_file({**self._rest(), **weights}, folder / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def from_folder(cls, folder: Path, record: Mapping[str, Any]) -> Backbone:
        """A backbone that `save` wrote: built from its config, every tensor in its place.

        Raises:
            ModelError: the files do not fit each other.
        """
        config = read_config((folder / "config.json").read_bytes(), where=str(folder))
        with no_init_weights():
            full = AutoModel.from_config(config)
        full.tie_weights()
        assets = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != WEIGHTS}
        all_names = {name for name, _ in full.named_parameters()} | set(full.state_dict())
        backbone = cls(
            full,
            info=BackboneInfo.from_record(record, config),
            assets=assets,
            rest=lambda: _read_tensors(folder / WEIGHTS, without=set(backbone.names.values())),
        )
        backbone._load(folder / WEIGHTS, all_names)
        return backbone

    def _load(self, path: Path, known: set[str]) -> None:
        own = {full: name for name, full in self.names.items()}
        held = self.trunk.state_dict()
        try:
            with safe_open(path, framework="pt") as file:
                found = set(file.keys())
                if not set(own) <= found <= known:
                    raise ModelError(
                        str(path),
                        f"lacks {listing(sorted(set(own) - found))}; has unknown {listing(sorted(found - known))}",
                        "restore the folder from where it was made",
                    )
                for full, name in own.items():
                    held[name].copy_(file.get_tensor(full))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ModelError(
                str(path), f"cannot be read ({error})", "restore the folder from where it was made"
            ) from error


def read_config(content: bytes, *, where: str) -> Any:
    """A Hugging Face config from its JSON, by the architecture's own class.

    Raises:
        ModelError: unknown architecture, or no config.
    """
    try:
        values = json.loads(content)
        return CONFIG_MAPPING[values["model_type"]].from_dict(values)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            where, f"has no usable config.json ({first_line(error)})", "restore the folder, or upgrade transformers"
        ) from error


def read_tokenizer(content: bytes, *, max_tokens: int) -> Tokenizer:
    """A tokenizer from its ``tokenizer.json``.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:
        raise ModelError(
            _TOKENIZER, f"cannot be read ({first_line(error)})", "restore the folder from where it was made"
        ) from error
    return Tokenizer(backend, max_tokens=max_tokens)


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
    """For each tensor that the trunk holds, its name there and in the full model's file; of tied ones the first."""
    in_file: dict[int, str] = {}
    for name, tensor in full.state_dict(keep_vars=True).items():
        in_file.setdefault(id(tensor), name)
    names: dict[str, str] = {}
    taken: set[int] = set()
    for name, tensor in trunk.state_dict(keep_vars=True).items():
        if id(tensor) not in taken:
            names[name] = in_file[id(tensor)]
            taken.add(id(tensor))
    return names


def _read_tensors(path: Path, *, without: set[str]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name not in without}  # noqa: SIM118
