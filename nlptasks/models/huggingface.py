"""Fine-tuned Hugging Face checkpoints in, and heads out as such checkpoints, with the same logits.

A head with `hf_auto` has the very layers that the auto class puts on the backbone, so weights are copied by name, for whatever
the architecture is. Every import and every checkpoint is compared with its origin as numbers, and refused if they differ: that
is how architectures are found out that answer by more than the states of their tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from nlptasks.backbones.architecture import read_config, refusing
from nlptasks.backbones.backbone import CONFIG, WEIGHTS
from nlptasks.backbones.pretrained import from_foreign, locate, read_weights
from nlptasks.config import check_head_name, recorded
from nlptasks.errors import DataError, ModelError, UsageError, listing
from nlptasks.heads.base import Head
from nlptasks.inference.batching import random_batch
from nlptasks.models.editing import logs_as_text
from nlptasks.models.manifest import LOG, HeadRecord
from nlptasks.models.model import Model, ModelFolder
from nlptasks.models.model_card import model_card
from nlptasks.registry import head_class
from nlptasks.storage.atomic import written_beside
from nlptasks.storage.integrity import CARD, check_output, read_whole
from nlptasks.storage.safetensors import check_finite
from nlptasks.version import __version__

TOLERANCE = 1e-5
"""Largest difference of any logit from the original's."""

GENERATION_CONFIG = "generation_config"

_SHAPES = ((1, 2), (2, 9), (3, 17))
"""Batch and length of the random inputs that are compared."""


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
        source: its folder, or its name on the hub (``owner/name@revision``).
        task: the task that it was fine-tuned for.
        output: the new model's folder.
        name: the head's; the task unless given.
        options: of the head.
        overwrite: whether `output` may be replaced.

    Raises:
        UsageError: the task has no such checkpoints, an option is wrong, or the output folder is not empty.
        ModelError: the checkpoint cannot be read, is not one for this task, or would not have the same logits.
    """
    check_output(Path(output), overwrite=overwrite)
    name = name or task
    model = read_checkpoint(source, task=task, name=name, options=options)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    logs = {name: {"nlptasks": __version__, "date": date, "imported": str(source)}}
    card = model_card(model.backbone.info, model.heads, model.records, logs)
    model.save(output, overwrite=overwrite, extra={CARD: card, LOG: logs_as_text(logs)})
    return model


def read_checkpoint(source: str | Path, *, task: str, name: str, options: Mapping[str, Any] | None = None) -> Model:
    """A fine-tuned Hugging Face checkpoint as a model with one head, in memory; see `import_checkpoint`."""
    check_head_name(name)
    cls = head_class(task)
    if cls.hf_auto is None:
        raise UsageError(f"task {task!r}", "has no checkpoints of others", "train it")
    folder, revision = locate(str(source))
    backbone = from_foreign(folder, source=str(source), revision=revision)
    cls.check_backbone(backbone.info)
    config = read_config(read_whole(folder / CONFIG, links=True), where=str(source))
    try:
        head = cls(cls.from_hugging_face(backbone.info, options or {}), backbone=backbone.info)
    except (DataError, ModelError) as error:
        raise ModelError(f"{source}: {error.where}", error.problem, error.fix) from error
    original = _original(folder, cls.hf_auto, config, str(source))
    _take_over(_borrowed(head, str(source)), original, str(source))
    model = Model(backbone, {name: head}, {name: HeadRecord(task, recorded(head.config))}).eval()
    _check_same(model, name, original.eval(), where=str(source))
    return model


def to_hugging_face(
    folder: str | Path, head: str, *, output: str | Path, overwrite: bool = False
) -> tuple[str, list[str]]:
    """Write one head of a model as a Hugging Face checkpoint with the same logits, at the head's temperature.

    Args:
        folder: the model's.
        head: the head's name.
        output: the checkpoint's folder.
        overwrite: whether `output` may be replaced.

    Returns:
        The auto class that loads it, and what such a checkpoint cannot say of the head, in words.

    Raises:
        UsageError: there is no such head, or the output folder is not empty.
        ModelError: the folder is no model, or Hugging Face has no such class for this backbone.
    """
    check_output(Path(output), overwrite=overwrite)
    stored = ModelFolder.open(folder)
    name = stored.head_name(head)
    model = stored.model([name])
    own = model.heads[name]
    said, lost = own.to_hugging_face()
    full = _assembled(model, name, said, where=f"{folder}: {name}")
    assets = {key: content for key, content in model.backbone.assets.items() if key not in (CONFIG, WEIGHTS)}
    with written_beside(Path(output), ModelError) as place:
        for key, content in assets.items():
            (place / key).write_bytes(content)
        full.save_pretrained(place)
        config = read_config(read_whole(place / CONFIG), where=str(output))
        again = _original(place, str(own.hf_auto), config, str(output))
        _check_same(model, name, again.eval(), where=f"{folder}: {name}", temperature=_temperature(own))
    return str(own.hf_auto), lost


def _borrowed(head: Head, where: str) -> nn.Module:
    if head.borrowed is None:
        kind = head.backbone_info.config.model_type
        problem = f"has the architecture {kind}, for which {head.hf_auto} has nothing that works on the states alone"
        raise ModelError(where, problem, "take an encoder, such as BERT or ModernBERT")
    return head.borrowed


def _original(folder: Path, hf_auto: str, config: Any, where: str) -> Any:
    """The checkpoint as Hugging Face has it."""
    auto = getattr(transformers, hf_auto)
    if type(config) not in auto._model_mapping:
        raise ModelError(
            where, f"has the architecture {config.model_type}, for which there is no {hf_auto}", "train one"
        )
    with refusing(where, f"is no checkpoint of {hf_auto}", "take a complete one with model.safetensors"):
        model, report = read_weights(auto, folder, config)
    if report["missing_keys"] or report["mismatched_keys"]:
        lacks = listing(sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])))
        fix = f"take one that was fine-tuned for this task, or train on it: --backbone {where}"
        raise ModelError(where, f"is no checkpoint of {hf_auto}: it lacks {lacks}", fix)
    return model


def _take_over(borrowed: nn.Module, original: nn.Module, where: str) -> None:
    own, theirs = borrowed.state_dict(), original.state_dict()
    lacks = sorted(name for name in own if name not in theirs or theirs[name].shape != own[name].shape)
    if lacks:
        raise ModelError(where, f"has no {listing(lacks)}", "take another checkpoint")
    borrowed.load_state_dict({name: theirs[name] for name in own})
    check_finite(own, where=where)


def _assembled(model: Model, name: str, said: Mapping[str, Any], *, where: str) -> Any:
    """Hugging Face's model with the weights of the backbone and of a head, whose temperature is in its last layer."""
    backbone, head = model.backbone, model.heads[name]
    borrowed = _borrowed(head, where)
    config = copy.deepcopy(backbone.info.config)
    for key, value in said.items():
        if key != GENERATION_CONFIG:
            setattr(config, key, value)
    if "id2label" in said:
        config.label2id = {label: index for index, label in config.id2label.items()}
    with refusing(where, f"cannot be written for {head.hf_auto}", "report this with your versions"):
        full = getattr(transformers, str(head.hf_auto)).from_config(config, dtype=torch.float32)
        _emptied(full)
        trunk = full.get_encoder() if config.is_encoder_decoder else full.base_model
        unknown = trunk.load_state_dict(model.trunk_weights(name), strict=False).unexpected_keys
        unknown += full.load_state_dict(_cooled(borrowed, _temperature(head)), strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"unknown are {listing(unknown)}")
        _tie_equal(full)
        if GENERATION_CONFIG in said:
            full.generation_config = transformers.GenerationConfig(**said[GENERATION_CONFIG])
    check_finite(dict(full.named_parameters()), where=where)
    return full


def _emptied(full: Any) -> None:
    """Give every weight memory of its own, tied ones too, and no number, so that it shows what is not set."""
    for name, weight in list(full.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        setattr(full.get_submodule(owner), leaf, nn.Parameter(torch.full_like(weight, math.nan)))


def _tie_equal(full: Any) -> None:
    """Tie what the architecture ties, but for weights that have learned different things: these are both kept.

    An encoder-decoder's two halves are trained here each with its own copy of the embeddings they began with.
    """
    weights = dict(full.named_parameters(remove_duplicate=False))
    for one, other in list(full.all_tied_weights_keys.items()):
        apart = not torch.equal(weights[one], weights[other])
        if apart and not weights[one].isnan().any() and not weights[other].isnan().any():
            del full.all_tied_weights_keys[one]
    full.tie_weights(recompute_mapping=False)


def _temperature(head: Head) -> float:
    """What a head's logits are divided by."""
    return float(getattr(head.config, "temperature", 1.0)) if head.has_temperature else 1.0


def _cooled(layers: nn.Module, temperature: float) -> dict[str, Tensor]:
    """The layers' weights, those of the last linear layer divided by the temperature."""
    last = next((name for name, module in reversed([*layers.named_modules()]) if isinstance(module, nn.Linear)), None)
    return {
        name: tensor / temperature if name.rpartition(".")[0] == last else tensor
        for name, tensor in layers.state_dict().items()
    }


def _check_same(model: Model, name: str, other: Any, *, where: str, temperature: float = 1.0) -> None:
    """Compare the logits of a head, divided by a temperature, with those of Hugging Face's model.

    Raises:
        ModelError: they differ by more than the tolerance.
    """
    model.eval()
    backbone, head = model.backbone, model.heads[name]
    differences = []
    for seed, shape in enumerate(_SHAPES):
        batch = {name: torch.from_numpy(array) for name, array in random_batch(backbone.info, shape, seed).items()}
        given = {"input_ids": batch["ids"], "attention_mask": batch["mask"]}
        if backbone.info.has_types:
            given["token_type_ids"] = batch["types"]
        kind = backbone.info.config.model_type
        with refusing(where, f"does not run as {kind}", "take another checkpoint"), torch.no_grad():
            ours, more = head.like_hugging_face(model.states(name, batch), batch)
            theirs = other(**given, **more)
        for output, found in ours.items():
            real = batch["mask"] == 1 if "S" in head.outputs.get(output, "") else slice(None)
            differences.append((found / temperature - theirs[output])[real].abs().max())
    worst = float(torch.stack(differences).max())  # not a number if one is none
    if not worst <= TOLERANCE:
        problem = f"has the architecture {kind}, whose logits differ from the original's by {worst:.1e}"
        raise ModelError(where, problem, "it needs more than the states of its tokens: take another architecture")
