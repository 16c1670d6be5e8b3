"""What a config.json describes: read without letting it name code, and built without memory before anything is allocated."""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto import CONFIG_MAPPING

from nlptasks.errors import ModelError, NlptasksError, first_line, quote
from nlptasks.storage.atomic import parsed
from nlptasks.storage.safetensors import MAX_TENSORS, Header

_CODE = ("auto_map", "trust_remote_code", "quantization_config", "custom_generate")
_CODE_PREFIXES = ("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation")
"""With these a config names code: classes in files beside it, kernels to be fetched (CVE-2026-4372, CVE-2026-5241)."""

_COUNTED = re.compile("layer|label|expert|block|depth")
"""Settings that config classes make lists of, before any module is built."""

_COMPUTED = "Sinusoidal"
"""What the classes of positions that are computed have in their names."""

_SPARE_TENSORS = 64
"""A pooler and tied weights are in the model, and not in its file."""


@contextlib.contextmanager
def refusing(where: str, problem: str, fix: str) -> Iterator[None]:
    """Turn whatever a broken file makes the libraries raise into a ModelError, a panic of Rust code too."""
    try:
        yield
    except NlptasksError:
        raise
    except BaseException as error:
        # A panic is no Exception, so that nobody goes on after it by chance; its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(where, f"{problem} ({first_line(error)})", fix) from error


def read_config(content: bytes, *, where: str) -> Any:
    """A Hugging Face config from its JSON, by the architecture's own class.

    Raises:
        ModelError: unknown architecture, or no config, or one that names code.
    """
    with refusing(where, "has no usable config.json", "restore the folder, or upgrade transformers"):
        values = parsed(content)
        refuse_code(values, where=f"{where}: config.json")
        _check_numbers(values)
        # outputs are read by their names
        return CONFIG_MAPPING[values["model_type"]].from_dict({**values, "return_dict": True})


def refuse_code(values: Any, *, where: str) -> None:
    """Refuse JSON values that name code to be run, at any depth.

    Raises:
        ModelError: they do; it names the key.
    """
    for key, value in _members(values):
        # Much that was published says `_attn_implementation_autoset: true`, which names nothing.
        if key in _CODE or (key.startswith(_CODE_PREFIXES) and not isinstance(value, bool | None)):
            raise ModelError(
                where, f"has the key {quote(key)}, which names code to be run", "take a model that needs no code"
            )


def _check_numbers(values: Any) -> None:
    for key, value in _members(values):
        if isinstance(value, float) and math.isnan(value):  # a dropout of NaN passes every comparison until it is used
            raise ValueError(f"{key} is no number")
        if _COUNTED.search(key) and isinstance(value, int) and value > MAX_TENSORS:
            raise ValueError(f"{key} is {value}, expected at most {MAX_TENSORS}")


def _members(values: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values at any depth."""
    todo = [values]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield from value.items()
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def build(config: Any) -> PreTrainedModel:
    """The base model that a config describes, its weights not set, where `torch.device` says."""
    with no_init_weights():
        model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model


def freeze_computed(model: nn.Module) -> None:
    """Leave positions that are computed, not learned, out of what is trained: no gradient comes to them."""
    for module in model.modules():
        if _COMPUTED in type(module).__name__:
            module.requires_grad_(False)


def plan(config: Any, header: Header, *, where: str) -> PreTrainedModel:
    """The base model that a config describes, without memory, given up as soon as it is too much for the weights' file.

    Args:
        config: the config.
        header: of the file or files that hold the weights.
        where: for messages.

    Raises:
        ModelError: the config describes no model, or a larger one than the file's.
    """
    fix = "restore config.json: it is not that of these weights"
    with refusing(where, "has a config.json that gives no model", fix):
        with _at_most(2 * len(header) + _SPARE_TENSORS), torch.device("meta"):
            model = build(config)
        described, held = sum(weight.numel() for weight in model.parameters()), sum(s.size for s in header.values())
        if described > 2 * held:
            raise ValueError(f"it describes {described} weights, the file holds {held}")
        return model


@contextlib.contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Stop this thread from building a model of more tensors."""
    left, thread = iter(range(tensors)), threading.get_ident()

    def count(module: nn.Module, name: str, weight: nn.Parameter) -> None:
        if threading.get_ident() == thread and next(left, None) is None:
            raise ValueError(f"it describes more than {tensors} tensors")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
