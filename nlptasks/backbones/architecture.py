"""Hugging Face configs: read without running code that they name, and built without memory before anything is allocated."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto import CONFIG_MAPPING

from nlptasks.backbones.info import BackboneInfo, members, refuse_code
from nlptasks.errors import refusing
from nlptasks.storage.atomic import parsed
from nlptasks.storage.safetensors import MAX_TENSORS, Header

_COUNTED = re.compile("layer|label|expert|block|depth")
"""Settings that config classes turn into lists before any module is built."""

_COMPUTED = "Sinusoidal"
"""Part of the class names of computed position embeddings."""


def read_config(content: bytes, *, where: str) -> Any:
    """Return a Hugging Face config from its JSON, of its architecture's own class.

    Raises:
        ModelError: it is no config, its architecture is unknown, or it names code.
    """
    with refusing(where, "has no usable config.json", "restore the folder, or upgrade transformers"):
        values = parsed(content)
        refuse_code(values, where=f"{where}: config.json")
        _check_numbers(values)
        # outputs are read by their names
        return CONFIG_MAPPING[values["model_type"]].from_dict({**values, "return_dict": True})


def hf_config(info: BackboneInfo) -> Any:
    """Return a new Hugging Face config of a backbone, of its architecture's own class."""
    return CONFIG_MAPPING[info.architecture].from_dict({**info.config, "return_dict": True})


def complete_config(config: Any) -> bytes:
    """Return a Hugging Face config as JSON with all values, so that it can be read without its class."""
    values = {
        name: value
        for name, value in json.loads(config.to_json_string(use_diff=False)).items()
        if name != "_name_or_path"
    }
    return json.dumps(values, indent=2, sort_keys=True).encode("utf-8")


def _check_numbers(values: Any) -> None:
    for key, value in members(values):
        if isinstance(value, float) and math.isnan(value):  # a dropout of NaN passes every comparison until it is used
            raise ValueError(f"{key} is no number")
        if _COUNTED.search(key) and isinstance(value, int) and value > MAX_TENSORS:
            raise ValueError(f"{key} is {value}, expected at most {MAX_TENSORS}")


def build(config: Any) -> PreTrainedModel:
    """Return the base model that a config describes with uninitialised weights, on the current `torch.device`."""
    with no_init_weights():
        model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model


def freeze_computed(model: nn.Module) -> None:
    """Exclude computed position embeddings from training: they get no gradient."""
    for module in model.modules():
        if _COMPUTED in type(module).__name__:
            module.requires_grad_(False)


def plan(config: Any, header: Header, *, where: str) -> PreTrainedModel:
    """Return the base model that a config describes, without memory.

    Args:
        config: the config.
        header: of the file or files that hold the weights.
        where: for messages.

    Raises:
        ModelError: the config describes no model, or a much larger one than the file holds.
    """
    fix = "restore config.json: it does not belong to these weights"
    with refusing(where, "has a config.json that describes no model", fix):
        with torch.device("meta"):
            model = build(config)
        described, held = sum(weight.numel() for weight in model.parameters()), sum(s.size for s in header.values())
        if described > 2 * held:
            raise ValueError(f"it describes {described} weights, the file holds {held}")
        return model
