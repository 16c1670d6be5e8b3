"""Import fine-tuned Hugging Face checkpoints, and write heads as such checkpoints, with the same logits.

A network with an `hf_module` has exactly the layers that the auto class adds to the backbone, so weights are copied by name for
every architecture. Each import and each checkpoint is compared with its original on random inputs, and refused if the logits
differ: an architecture may use more than the hidden states of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from nlptasks.backbones.architecture import hf_config, read_config
from nlptasks.backbones.info import CONFIG, WEIGHTS
from nlptasks.backbones.pretrained import from_foreign, locate, read_weights
from nlptasks.config import check_head_name, check_options, naming, recorded
from nlptasks.errors import DataError, ModelError, UsageError, listing, refusing
from nlptasks.heads.base import AnyHead, check_backbone
from nlptasks.inference.batching import random_batch
from nlptasks.models.editing import logs_as_text
from nlptasks.models.folder import ModelFolder
from nlptasks.models.manifest import LOG, HeadRecord
from nlptasks.models.model import Model, load_model
from nlptasks.models.model_card import model_card
from nlptasks.networks.base import Network, make_network
from nlptasks.registry import head_class
from nlptasks.storage.atomic import locked, restored, sweep, written_beside
from nlptasks.storage.integrity import CARD, check_output, read_whole
from nlptasks.storage.safetensors import check_finite
from nlptasks.version import __version__

TOLERANCE = 1e-5
"""Largest allowed difference between two logits."""

GENERATION_CONFIG = "generation_config"

_SHAPES = ((1, 2), (2, 9), (3, 17))
"""Batch size and length of the random inputs that are compared."""


def import_checkpoint(
    source: str | Path,
    *,
    task: str,
    output: str | Path,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Model:
    """Write a fine-tuned Hugging Face checkpoint as a model with one head.

    Args:
        source: folder of the checkpoint, or its name on the hub (``owner/name@revision``).
        task: the task that it was fine-tuned for.
        output: the new model's folder.
        name: the head's name; None for the task's.
        options: the head's options by name.
        overwrite: True to replace `output`.

    Raises:
        UsageError: the task has no such checkpoints, an option is wrong, or the output folder is not empty.
        ModelError: the checkpoint cannot be read, does not fit the task, or would not have the same logits.
    """
    target = Path(output)
    check_output(target, overwrite=overwrite)
    name = name or task
    model = read_checkpoint(source, task=task, name=name, options=options)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    logs = {name: {"nlptasks": __version__, "date": date, "imported": str(source)}}
    card = model_card(model.backbone.info, model.heads, model.records, logs)
    with locked(target, ModelError):
        restored(target)
        sweep(target)
        model.save(target, overwrite=overwrite, extra={CARD: card, LOG: logs_as_text(logs)})
    return model


def read_checkpoint(source: str | Path, *, task: str, name: str, options: Mapping[str, Any] | None = None) -> Model:
    """Return a fine-tuned Hugging Face checkpoint as a model with one head; see `import_checkpoint`."""
    check_head_name(name)
    where, cls = str(source), head_class(task)
    if cls.hugging_face is None:
        raise UsageError(f"task {task!r}", "has no Hugging Face checkpoints", "train it")
    folder, revision = locate(where)
    backbone = from_foreign(folder, source=where, revision=revision)
    check_backbone(cls, backbone.info)
    config = read_config(read_whole(folder / CONFIG), where=where)
    try:
        with naming(name):
            given = check_options(cls.Config, options or {})
            head = cls(cls.hugging_face.to_config(backbone.info, given), backbone.info)
    except (DataError, ModelError) as error:
        raise ModelError(f"{where}: {error.where}", error.problem, error.fix) from error
    network = make_network(cls.network, backbone.info, head.network_options())
    original = _original(folder, network, config, where)
    _copy_weights(_hf_module(network, backbone.info.architecture, where), original, where)
    record = HeadRecord(task, recorded(head.config))
    model = Model(backbone, {name: head}, {name: network}, {name: record}).eval()
    _check_same(model, name, original.eval(), where=where)
    return model


def to_hugging_face(
    folder: str | Path, head: str, *, output: str | Path, overwrite: bool = False
) -> tuple[str, list[str]]:
    """Write one head of a model as a Hugging Face checkpoint with the same logits, at the head's temperature.

    Args:
        folder: the model's folder.
        head: the head's name.
        output: the checkpoint's folder.
        overwrite: True to replace `output`.

    Returns:
        The auto class that loads it, and what the checkpoint cannot express about the head, in words.

    Raises:
        UsageError: there is no such head, its task has no checkpoints, or the output folder is not empty.
        ModelError: the folder is no model, or Hugging Face has no such class for this backbone.
    """
    target = Path(output)
    check_output(target, overwrite=overwrite)
    stored = ModelFolder.open(folder)
    name = stored.head_name(head)
    model = load_model(stored, [name])
    own, network = model.heads[name], model.networks[name]
    if own.hugging_face is None:
        raise UsageError(f"head {name!r}", "cannot be written as a checkpoint", "export it to ONNX instead")
    entries, lost = own.hugging_face.to_checkpoint(own.config, model.backbone.info)
    full = _assembled(model, name, entries, where=f"{folder}: {name}")
    assets = {key: content for key, content in model.backbone.assets.items() if key not in (CONFIG, WEIGHTS)}
    with locked(target, ModelError):
        restored(target)
        sweep(target)
        with written_beside(target, ModelError) as place:
            for key, content in assets.items():
                (place / key).write_bytes(content)
            full.save_pretrained(place)
            config = read_config(read_whole(place / CONFIG), where=str(output))
            again = _original(place, network, config, str(output))
            _check_same(model, name, again.eval(), where=f"{folder}: {name}", temperature=_temperature(own))
    return str(network.hf_auto), lost


def _hf_module(network: Network, architecture: str, where: str) -> nn.Module:
    module = network.hf_module
    if module is None or network.hf_auto is None:
        auto = network.hf_auto or type(network).__name__
        problem = f"has the architecture {architecture}, for which {auto} has no layers that use hidden states alone"
        raise ModelError(where, problem, "use an encoder, such as BERT or ModernBERT")
    return module


def _original(folder: Path, network: Network, config: Any, where: str) -> Any:
    """Return the checkpoint as a model of Hugging Face."""
    auto = getattr(transformers, str(network.hf_auto), None)
    if auto is None or type(config) not in auto._model_mapping:
        problem = f"has the architecture {config.model_type}, for which there is no {network.hf_auto}"
        raise ModelError(where, problem, "train a head")
    with refusing(where, f"is no checkpoint of {network.hf_auto}", "use a complete one with model.safetensors"):
        model, report = read_weights(auto, folder, config)
    if report["missing_keys"] or report["mismatched_keys"]:
        lacks = listing(sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])))
        fix = f"use one that was fine-tuned for this task, or train on it with `backbone={where!r}`"
        raise ModelError(where, f"is no checkpoint of {network.hf_auto}: it lacks {lacks}", fix)
    return model


def _copy_weights(module: nn.Module, original: nn.Module, where: str) -> None:
    own, theirs = module.state_dict(), original.state_dict()
    lacks = sorted(name for name in own if name not in theirs or theirs[name].shape != own[name].shape)
    if lacks:
        raise ModelError(where, f"has no {listing(lacks)}", "use another checkpoint")
    module.load_state_dict({name: theirs[name] for name in own})
    check_finite(own, where=where)


def _assembled(model: Model, name: str, entries: Mapping[str, Any], *, where: str) -> Any:
    """Return Hugging Face's model with the weights of the backbone and a network; the temperature is in its last layer."""
    backbone, network = model.backbone, model.networks[name]
    module = _hf_module(network, backbone.info.architecture, where)
    config = hf_config(backbone.info)
    for key, value in entries.items():
        if key != GENERATION_CONFIG:
            setattr(config, key, value)
    if "id2label" in entries:
        config.label2id = {label: index for index, label in config.id2label.items()}
    with refusing(where, f"cannot be written for {network.hf_auto}", "report this with your versions"):
        full = getattr(transformers, str(network.hf_auto)).from_config(config, dtype=torch.float32)
        _empty(full)
        base_model = full.get_encoder() if config.is_encoder_decoder else full.base_model
        unknown = base_model.load_state_dict(model.base_model_weights(name), strict=False).unexpected_keys
        cooled = _cooled(module, _temperature(model.heads[name]))
        unknown += full.load_state_dict(cooled, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"unknown are {listing(unknown)}")
        _tie_equal(full)
        if GENERATION_CONFIG in entries:
            full.generation_config = transformers.GenerationConfig(**entries[GENERATION_CONFIG])
    check_finite(dict(full.named_parameters()), where=where)
    return full


def _empty(full: Any) -> None:
    """Give every weight, including tied ones, its own memory filled with NaN, so that weights that are not set show."""
    for name, weight in list(full.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        setattr(full.get_submodule(owner), leaf, nn.Parameter(torch.full_like(weight, math.nan)))


def _tie_equal(full: Any) -> None:
    """Tie the weights that the architecture ties, except those with different values, which are both kept.

    The two halves of an encoder-decoder are trained here with separate copies of the embeddings.
    """
    weights = dict(full.named_parameters(remove_duplicate=False))
    for one, other in list(full.all_tied_weights_keys.items()):
        apart = not torch.equal(weights[one], weights[other])
        if apart and not weights[one].isnan().any() and not weights[other].isnan().any():
            del full.all_tied_weights_keys[one]
    full.tie_weights(recompute_mapping=False)


def _temperature(head: AnyHead) -> float:
    """Return the temperature that divides a head's logits."""
    return float(head.config.temperature) if head.calibration is not None else 1.0


def _cooled(layers: nn.Module, temperature: float) -> dict[str, Tensor]:
    """Return the weights of layers; those of the last linear layer are divided by the temperature."""
    last = next((name for name, module in reversed([*layers.named_modules()]) if isinstance(module, nn.Linear)), None)
    return {
        name: tensor / temperature if name.rpartition(".")[0] == last else tensor
        for name, tensor in layers.state_dict().items()
    }


def _check_same(model: Model, name: str, other: Any, *, where: str, temperature: float = 1.0) -> None:
    """Compare a network's logits, divided by a temperature, with those of Hugging Face's model.

    Raises:
        ModelError: they differ by more than the tolerance.
    """
    model.eval()
    info, network = model.backbone.info, model.networks[name]
    differences = []
    for seed, shape in enumerate(_SHAPES):
        batch = {name: torch.from_numpy(array) for name, array in random_batch(info, shape, seed).items()}
        given = {"input_ids": batch["ids"], "attention_mask": batch["mask"]}
        if info.has_types:
            given["token_type_ids"] = batch["types"]
        with refusing(where, f"does not run as {info.architecture}", "use another checkpoint"), torch.no_grad():
            ours, more = network.hf_outputs(model.states(name, batch), batch)
            theirs = other(**given, **more)
        for output, found in ours.items():
            real = batch["mask"] == 1 if "S" in network.outputs.get(output, "") else slice(None)
            differences.append((found / temperature - theirs[output])[real].abs().max())
    worst = float(torch.stack(differences).max())  # NaN if any is
    if not worst <= TOLERANCE:
        problem = f"has the architecture {info.architecture}, whose logits differ from the original's by {worst:.1e}"
        fix = "its classifier uses more than the hidden states and cannot be imported; use another architecture"
        raise ModelError(where, problem, fix)
