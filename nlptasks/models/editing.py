"""Changing the heads of a model on disk: add, rename, remove, merge.

The files of all other heads, and of the backbone, are copied byte by byte, and the folder takes its place as a whole: a crash
leaves the model as it was.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlptasks.backbones.backbone import CONFIG, TOKENIZER, WEIGHTS
from nlptasks.config import check_head_name
from nlptasks.errors import ModelError, UsageError, did_you_mean, listing
from nlptasks.models.manifest import EXPORTS, LOG, REPORT, HeadRecord, write_manifest
from nlptasks.models.model import Model, ModelFolder
from nlptasks.models.model_card import model_card
from nlptasks.storage.atomic import locked, sha256, sweep, written_beside
from nlptasks.storage.checkpoints import is_begun
from nlptasks.storage.integrity import CARD, RESTORE, check_output, read_json

_log = logging.getLogger("nlptasks")

Logs = Mapping[str, Any]
"""How each head came to be, by its name, as ``training.json`` has it."""


@dataclass(frozen=True)
class _Kept:
    """A head that is taken over as it is.

    Attributes:
        stored: the model it is in.
        name: its name there.
    """

    stored: ModelFolder
    name: str


def read_logs(stored: ModelFolder) -> dict[str, Any]:
    """How each head of a model came to be, as far as it is known."""
    path = stored.path / LOG
    return read_json(path) if path.is_file() else {}


def logs_as_text(logs: Logs) -> str:
    """The content of ``training.json``."""
    return json.dumps(logs, indent=1, ensure_ascii=False) + "\n"


def add(stored: ModelFolder, new: Model, logs: Logs) -> None:
    """Add trained heads to a model, in place of those that have their names; its backbone is not changed.

    Args:
        stored: the model, as it is now.
        new: the heads, on its backbone.
        logs: how they came to be.

    Raises:
        ModelError: it cannot be written; it is as it was.
    """
    kept = {name: _Kept(stored, name) for name in stored.records if name not in new.heads}
    _write(stored.path, stored, kept, new=new, logs=logs)


def rename(folder: str | Path, old: str, new: str) -> None:
    """Give a head another name, in place.

    Raises:
        UsageError: there is no such head, or the new name is one's already, or no name.
        ModelError: the folder is no model, or cannot be written; it is as it was.
    """
    stored = _editable(folder)
    _check_has(stored, old)
    check_head_name(new)
    if new in stored.records:
        raise UsageError(f"head {new!r}", f"is in {folder} already", "take another name, or remove that head first")
    _write(stored.path, stored, {new if one == old else one: _Kept(stored, one) for one in stored.records})


def remove(folder: str | Path, head: str) -> None:
    """Remove a head, in place.

    Raises:
        UsageError: there is no such head, or it is the only one.
        ModelError: the folder is no model, or cannot be written; it is as it was.
    """
    stored = _editable(folder)
    _check_has(stored, head)
    if len(stored.records) == 1:
        raise UsageError(f"head {head!r}", f"is the only one of {folder}", "remove the whole folder")
    _write(stored.path, stored, {one: _Kept(stored, one) for one in stored.records if one != head})


def merge(folders: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> None:
    """Write a model with the heads of several, whose backbones must be the same, byte by byte.

    Raises:
        UsageError: two heads have one name, there is one folder only, or the output folder is not empty.
        ModelError: a folder is no model, the backbones differ, or it cannot be written.
    """
    check_output(Path(output), overwrite=overwrite)
    if len(folders) < 2:
        raise UsageError("merge", f"has {len(folders)} model, expected at least 2", "name the models to be merged")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise UsageError("merge", "names one model twice", "name each once")
    if is_begun(Path(output)):
        raise UsageError(
            f"-o {output}", "has checkpoints of a training that did not come to its end", "give another -o"
        )
    place = Path(output).resolve()
    if any(place in (own := Path(folder).resolve(), *own.parents) or own in place.parents for folder in folders):
        raise UsageError(f"-o {output}", "holds a model that is merged, or is inside one", "give another -o")
    models = [ModelFolder.open(folder) for folder in folders]
    kept: dict[str, _Kept] = {}
    for stored in models:
        _check_same_backbone(models[0], stored)
        for name in stored.records:
            if name in kept:
                problem = f"is in {kept[name].stored.path} and in {stored.path}"
                fix = f"rename one of them: nlptasks rename {stored.path} {name} NEW"
                raise UsageError(f"head {name!r}", problem, fix)
            kept[name] = _Kept(stored, name)
    _write(Path(output), models[0], kept)


def _editable(folder: str | Path) -> ModelFolder:
    """A model that no training is about to change.

    Raises:
        ModelError: it is no model, or a training is under way in it.
    """
    check_output(Path(folder), overwrite=True)
    stored = ModelFolder.open(folder)
    _check_not_in_training(stored)
    return stored


def _check_has(stored: ModelFolder, head: str) -> None:
    """Refuse what is no head's own name: a task may stand for its only head where one asks, not where one changes."""
    if head not in stored.records:
        raise UsageError(str(stored.path), f"has no head {head!r}", did_you_mean(head, stored.records))


def _check_not_in_training(stored: ModelFolder) -> None:
    if is_begun(stored.path):
        fix = f"let it end (nlptasks train ... --add-to {stored.path} --resume), or remove {stored.path}/checkpoints"
        raise ModelError(str(stored.path), "is being trained, or was until somebody stopped it", fix)


def _check_same_backbone(one: ModelFolder, other: ModelFolder) -> None:
    differs = [
        name
        for name in (f"backbone/{WEIGHTS}", f"backbone/{TOKENIZER}")
        if one.manifest["files"][name] != other.manifest["files"][name]
    ]
    differs += [f"backbone/{CONFIG}"] * (_config_of(one) != _config_of(other))
    differs += [
        key
        for key in ("max_tokens", "pad_id", "has_types")
        if one.manifest["backbone"][key] != other.manifest["backbone"][key]
    ]
    if differs:
        raise ModelError(
            str(other.path),
            f"has another backbone than {one.path}: {listing(differs)} differ",
            "merge takes models that left one backbone as it was (--tune head or top:K); or train there: "
            f"nlptasks train TASK=DATA --add-to {one.path}",
        )


def _config_of(stored: ModelFolder) -> dict[str, Any]:
    config = read_json(stored.path / "backbone" / CONFIG)
    return {key: value for key, value in config.items() if key != "transformers_version"}


def _write(
    target: Path, base: ModelFolder, kept: Mapping[str, _Kept], *, new: Model | None = None, logs: Logs | None = None
) -> None:
    """Write a model with the backbone of one, heads of others, and new ones.

    Args:
        target: where; what stands there is replaced.
        base: gives the backbone, and whatever else belongs to no head. Its exports stay if it is replaced itself: they are
            still good for the heads that have not changed.
        kept: heads that are taken over, by their names here.
        new: further heads, on the same backbone.
        logs: how these came to be.
    """
    in_place = target.resolve() == base.path.resolve()
    with locked(target, ModelError):
        if in_place:
            _check_unchanged(base, training=new is not None)
            sweep(target)
        with written_beside(target, ModelError) as place:
            _fill(place, base, kept, new=new, logs=logs or {}, in_place=in_place)


def _check_unchanged(base: ModelFolder, *, training: bool) -> None:
    """Refuse to replace what others have changed, or begun to train, since it was read."""
    now = ModelFolder.open(base.path)
    if now.manifest != base.manifest:
        raise ModelError(str(base.path), "was changed by another process meanwhile", "do it again")
    if not training:
        _check_not_in_training(now)


def _fill(
    place: Path,
    base: ModelFolder,
    kept: Mapping[str, _Kept],
    *,
    new: Model | None,
    logs: Logs,
    in_place: bool,
) -> None:
    """Write the files of `_write` into a folder."""
    for name in base.manifest["files"]:
        if name not in (CARD, LOG) and not name.startswith("heads/"):
            _copy(base, name, place / name)
    for name, one in kept.items():
        begin = f"heads/{one.name}."
        for file in one.stored.manifest["files"]:
            if file.startswith(begin):
                _copy(one.stored, file, place / f"heads/{name}.{file.removeprefix(begin)}")
    if new:
        new.save_heads(place)
    if in_place:
        _keep_beside(base, place)
    records = {name: one.stored.records[one.name] for name, one in kept.items()} | (new.records if new else {})
    all_logs = _kept_logs(kept) | dict(logs)
    (place / LOG).write_text(logs_as_text(all_logs), encoding="utf-8")
    (place / CARD).write_text(_card(base, kept, new, records, all_logs), encoding="utf-8")
    edited = _keep_edited_card(base, place) if in_place else {}
    write_manifest(place, backbone=base.backbone_info(), heads=records, digests=edited)


def _keep_beside(base: ModelFolder, place: Path) -> None:
    """Take over what is not the model's own: exports, and hidden entries, such as those of version control."""
    for precision, report in base.exports.items():
        folder = Path(EXPORTS) / precision
        (place / folder).mkdir(parents=True)
        for name in (REPORT, *report["files"]):
            shutil.copyfile(base.path / folder / name, place / folder / name)
    for path in base.path.iterdir():
        if path.name.startswith(".") and path.is_dir() and not path.is_symlink():
            shutil.copytree(path, place / path.name, symlinks=True)
        elif path.name.startswith("."):
            shutil.copyfile(path, place / path.name, follow_symlinks=False)


def _kept_logs(kept: Mapping[str, _Kept]) -> dict[str, Any]:
    """How these heads came to be, by the names that they have now; inside they have those that they had then."""
    return {name: log for name, one in kept.items() if (log := read_logs(one.stored).get(one.name))}


def _card(
    base: ModelFolder, kept: Mapping[str, _Kept], new: Model | None, records: Mapping[str, HeadRecord], logs: Logs
) -> str:
    heads = {
        name: one.stored.heads([one.name], device="meta")[one.name]
        for name, one in kept.items()
        if _is_known(name, one)
    }
    return model_card(base.backbone_info(), heads | (new.heads if new else {}), records, logs)


def _is_known(name: str, kept: _Kept) -> bool:
    """Whether a head can be told of: one whose package is broken, or gone, is kept as it is all the same."""
    problem = kept.stored.problem_of(kept.name)
    if problem:
        _log.warning("the card does not tell of the head %s: %s", name, problem)
    return problem is None


def _keep_edited_card(base: ModelFolder, place: Path) -> dict[str, str]:
    """Leave a card that somebody has edited as it is: the sha256 that it had before, for the list."""
    old, listed = base.path / CARD, base.manifest["files"].get(CARD)
    if not listed or not old.is_file() or sha256(old) == listed:
        return {}
    _log.warning("%s was edited: it stays as it is, and does not tell of this change", old)
    shutil.copyfile(old, place / CARD)
    return {CARD: listed}


def _copy(stored: ModelFolder, name: str, target: Path) -> None:
    """Copy a file of a model as it was written.

    Raises:
        ModelError: it is no longer so.
    """
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(stored.path / name, target)
    if sha256(target) != stored.manifest["files"][name]:
        raise ModelError(str(stored.path / name), "has changed while it was copied", RESTORE)
