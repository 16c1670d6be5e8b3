"""Change the heads of a model on disk: add, rename, remove, merge.

The files of the backbone and of all other heads are copied byte by byte into a new folder, which then replaces the old one: a
crash leaves the model unchanged.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nlptasks.backbones.info import CONFIG, TOKENIZER, WEIGHTS
from nlptasks.config import check_head_name
from nlptasks.errors import ModelError, UsageError, did_you_mean, listing
from nlptasks.models.folder import ModelFolder
from nlptasks.models.manifest import EXPORTS, LOG, MANIFEST, REPORT, HeadRecord, write_manifest
from nlptasks.models.model import Model
from nlptasks.models.model_card import model_card
from nlptasks.storage.atomic import locked, restored, sha256, sweep, written_beside
from nlptasks.storage.checkpoints import is_begun
from nlptasks.storage.integrity import CARD, RESTORE, RUNNING, check_output, read_json

_log = logging.getLogger("nlptasks")

Logs = Mapping[str, Any]
"""How each head was made, by its name, as in ``training.json``."""


@dataclass(frozen=True)
class _Kept:
    """A head that is copied.

    Attributes:
        stored: its model.
        name: its name there.
    """

    stored: ModelFolder
    name: str


def read_logs(stored: ModelFolder) -> dict[str, Any]:
    """Return how each head of a model was made, as far as it is known."""
    path = stored.path / LOG
    return read_json(path) if path.is_file() else {}


def logs_as_text(logs: Logs) -> str:
    """Return the content of ``training.json``."""
    return json.dumps(logs, indent=1, ensure_ascii=False) + "\n"


def add(stored: ModelFolder, new: Model, logs: Logs) -> None:
    """Add trained heads to a model; heads of the same names are replaced, the backbone is not changed.

    Args:
        stored: the model.
        new: the heads, on its backbone.
        logs: how they were made.

    Raises:
        ModelError: the model cannot be written; it is unchanged.
    """
    kept = {name: _Kept(stored, name) for name in stored.records if name not in new.heads}
    _write(stored.path, stored, kept, new=new, logs=logs)


def rename_head(folder: str | Path, old: str, new: str) -> None:
    """Rename a head, in place.

    Raises:
        UsageError: there is no such head, or the new name is taken or no valid name.
        ModelError: the folder is no model, or cannot be written; it is unchanged.
    """
    stored = _editable(folder)
    _check_has(stored, old)
    check_head_name(new)
    if new in stored.records:
        raise UsageError(
            f"head {new!r}", f"already exists in {folder}", "choose another name, or remove that head first"
        )
    _write(stored.path, stored, {new if one == old else one: _Kept(stored, one) for one in stored.records})


def remove_head(folder: str | Path, head: str) -> None:
    """Remove a head, in place.

    Raises:
        UsageError: there is no such head, or it is the only one.
        ModelError: the folder is no model, or cannot be written; it is unchanged.
    """
    stored = _editable(folder)
    _check_has(stored, head)
    if len(stored.records) == 1:
        raise UsageError(f"head {head!r}", f"is the only one of {folder}", "delete the whole folder")
    _write(stored.path, stored, {one: _Kept(stored, one) for one in stored.records if one != head})


def merge_models(folders: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> None:
    """Write a model with the heads of several models, whose backbones must be identical.

    Raises:
        UsageError: two heads have the same name, there is only one folder, or the output folder is not empty.
        ModelError: a folder is no model, the backbones differ, or it cannot be written.
    """
    check_output(Path(output), overwrite=overwrite)
    if len(folders) < 2:
        raise UsageError("merge", f"has {len(folders)} model, expected at least 2", "name the models to merge")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise UsageError("merge", "names a model twice", "name each model once")
    if is_begun(Path(output)):
        raise UsageError(str(output), "contains checkpoints of an unfinished run", "use another `output`")
    place = Path(output).resolve()
    if any(place in (own := Path(folder).resolve(), *own.parents) or own in place.parents for folder in folders):
        raise UsageError(str(output), "contains a model to merge, or is inside one", "use another `output`")
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
    """Open a model to change it.

    Raises:
        ModelError: it is no model, or has an unfinished training run.
    """
    check_output(Path(folder), overwrite=True)
    stored = ModelFolder.open(folder)
    _check_not_in_training(stored)
    return stored


def _check_has(stored: ModelFolder, head: str) -> None:
    """Refuse anything but the name of a head; the name of a task, which is allowed elsewhere, is not precise enough here."""
    if head not in stored.records:
        raise UsageError(str(stored.path), f"has no head {head!r}", did_you_mean(head, stored.records))


def _check_not_in_training(stored: ModelFolder) -> None:
    if is_begun(stored.path):
        fix = f"finish it (nlptasks train ... --add-to {stored.path} --resume), or delete {stored.path}/checkpoints"
        raise ModelError(str(stored.path), "contains checkpoints of an unfinished run", fix)


def _check_same_backbone(one: ModelFolder, other: ModelFolder) -> None:
    differs = [
        name
        for name in (f"backbone/{WEIGHTS}", f"backbone/{TOKENIZER}")
        if one.manifest["files"][name] != other.manifest["files"][name]
    ]
    differs += [f"backbone/{CONFIG}"] * (_config_of(one) != _config_of(other))
    differs += [
        key for key in ("max_tokens", "pad_id") if one.manifest["backbone"][key] != other.manifest["backbone"][key]
    ]
    if differs:
        raise ModelError(
            str(other.path),
            f"has another backbone than {one.path}: {listing(differs)} differ",
            "merge models whose heads were trained with tune head or top:K on the same backbone, or train there: "
            f"nlptasks train TASK=DATA --add-to {one.path}",
        )


def _config_of(stored: ModelFolder) -> dict[str, Any]:
    config = read_json(stored.path / "backbone" / CONFIG)
    return {key: value for key, value in config.items() if key != "transformers_version"}


def _write(
    target: Path, base: ModelFolder, kept: Mapping[str, _Kept], *, new: Model | None = None, logs: Logs | None = None
) -> None:
    """Write a model with the backbone of one model, heads of others, and new heads.

    Args:
        target: the folder; its content is replaced.
        base: the model with the backbone, and with all files that belong to no head. If it is replaced itself, its exports are
            kept: they stay valid for the heads that have not changed.
        kept: heads to copy, by their new names.
        new: further heads, on the same backbone.
        logs: how these were made.
    """
    in_place = target.resolve() == base.path.resolve()
    with locked(target, ModelError):
        if in_place:
            _check_unchanged(base, training=new is not None)
        restored(target)
        sweep(target)
        with written_beside(target, ModelError) as place:
            _fill(place, base, kept, new=new, logs=logs or {}, in_place=in_place)


def _check_unchanged(base: ModelFolder, *, training: bool) -> None:
    """Refuse to replace a model that another process has changed, or begun to train, since it was opened."""
    now = ModelFolder.open(base.path)
    if now.manifest != base.manifest:
        raise ModelError(str(base.path), "was changed by another process meanwhile", "try again")
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
    """Write the files of the model into a new folder."""
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
    """Copy what does not belong to the model itself: exports, and what others put there, such as a licence or ``.git``."""
    for precision, report in base.exports.items():
        folder = Path(EXPORTS) / precision
        (place / folder).mkdir(parents=True)
        for name in (REPORT, *report["files"]):
            if (base.path / folder / name).is_file():  # a damaged export stays what it is
                shutil.copyfile(base.path / folder / name, place / folder / name)
    own = {PurePosixPath(name).parts[0] for name in base.manifest["files"]} | {MANIFEST, EXPORTS, RUNNING}
    for path in base.path.iterdir():
        if path.name not in own and path.is_dir() and not path.is_symlink():
            shutil.copytree(path, place / path.name, symlinks=True)
        elif path.name not in own:
            shutil.copyfile(path, place / path.name, follow_symlinks=False)


def _kept_logs(kept: Mapping[str, _Kept]) -> dict[str, Any]:
    """Return the logs of heads by their new names; inside, a log has the names from when it was written."""
    return {name: log for name, one in kept.items() if (log := read_logs(one.stored).get(one.name))}


def _card(
    base: ModelFolder, kept: Mapping[str, _Kept], new: Model | None, records: Mapping[str, HeadRecord], logs: Logs
) -> str:
    heads = {name: one.stored.heads([one.name])[one.name] for name, one in kept.items() if _is_known(name, one)}
    return model_card(base.backbone_info(), heads | (new.heads if new else {}), records, logs)


def _is_known(name: str, kept: _Kept) -> bool:
    """Return True if a head's package can be used; if it is broken or missing, the head is copied but not described."""
    problem = kept.stored.problem_of(kept.name)
    if problem:
        _log.warning("the model card does not describe the head %s: %s", name, problem)
    return problem is None


def _keep_edited_card(base: ModelFolder, place: Path) -> dict[str, str]:
    """Keep a model card that somebody has edited. Return the sha256 to list for it: that of the card before it was edited."""
    old, listed = base.path / CARD, base.manifest["files"].get(CARD)
    if not listed or not old.is_file() or sha256(old) == listed:
        return {}
    _log.warning("%s was edited: it is kept, and does not mention this change", old)
    shutil.copyfile(old, place / CARD)
    return {CARD: listed}


def _copy(stored: ModelFolder, name: str, target: Path) -> None:
    """Copy a file of a model.

    Raises:
        ModelError: it has changed since the model was opened.
    """
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(stored.path / name, target)
    if sha256(target) != stored.manifest["files"][name]:
        raise ModelError(str(stored.path / name), "has changed while it was copied", RESTORE)
