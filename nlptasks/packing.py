"""A model folder that goes along with something else: as a copy, as bytes, or as a reference that knows what it refers to."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlptasks.disk import sha256, written_beside
from nlptasks.errors import ModelError, UsageError, quote
from nlptasks.folders import CARD, check_list, check_shape, read_json
from nlptasks.manifest import EXPORTS, MANIFEST, REPORT
from nlptasks.model import ModelFolder

REFERENCE = "reference.json"
"""The file that stands in the place of a model folder."""

_REFERENCE_SHAPE = {"model": str, "sha256": str}


def copy_model(model: str, target: Path) -> None:
    """A copy of a model folder, with its exports; what was there is replaced.

    Raises:
        ModelError: the model is none, or the copy cannot be written.
    """
    source = Path(model)
    if source.resolve() == target.resolve():
        return
    names = _names(model)
    with written_beside(target, ModelError) as place:
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, place / name)


def model_files(model: str) -> dict[str, bytes]:
    """The files of a model folder by their paths from there.

    Raises:
        ModelError: it is none.
    """
    return {name: (Path(model) / name).read_bytes() for name in _names(model)}


def write_files(files: Mapping[str, bytes], place: Path) -> None:
    """Write what `model_files` gave into a folder, which is not checked to be a model.

    Raises:
        ModelError: a name is not that of a file inside the folder.
    """
    check_list({name: hashlib.sha256(content).hexdigest() for name, content in files.items()}, where="the bytes")
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)


def reference(model: str) -> dict[str, str]:
    """Where a model folder is, and the sha256 of its list of files.

    Raises:
        ModelError: it is none.
    """
    return {"model": str(_opened(model).path.resolve()), "sha256": sha256(Path(model) / MANIFEST)}


def write_reference(model: str, target: Path) -> None:
    """Write a reference to a model folder as a file into another one; what was there is replaced.

    Raises:
        ModelError: the model is none, or it cannot be written.
    """
    record = reference(model)
    with written_beside(target, ModelError) as place:
        (place / REFERENCE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def model_in(place: Path) -> str:
    """The model that a folder holds, or refers to.

    Raises:
        ModelError: it is not the one that was referred to.
    """
    file = place / REFERENCE
    return referred(read_json(file), where=str(file)) if file.exists() else str(place)


def referred(record: Mapping[str, Any], *, where: str) -> str:
    """The model that a reference means.

    Raises:
        ModelError: it is not there, or another one is.
    """
    try:
        check_shape(record, _REFERENCE_SHAPE, name="the reference")
    except ValueError as error:
        raise ModelError(where, f"is damaged ({error})", "save the pipeline again") from error
    list_of_files = Path(record["model"]) / MANIFEST
    found = sha256(list_of_files) if list_of_files.is_file() else None
    if found != record["sha256"]:
        problem = f"refers to the model {record['model']}, which " + ("was changed since" if found else "is not there")
        raise ModelError(where, problem, "put that model back, or save the pipeline again with store='copy'")
    return str(record["model"])


def _names(model: str) -> list[str]:
    stored = _opened(model)
    exports = [
        f"{EXPORTS}/{precision}/{name}"
        for precision, report in stored.exports.items()
        for name in (REPORT, *report["files"])
    ]
    card = [CARD] if (stored.path / CARD).is_file() else []
    return list(dict.fromkeys([MANIFEST, *stored.manifest["files"], *exports, *card]))


def _opened(model: str) -> ModelFolder:
    if not (Path(model) / MANIFEST).exists() and not Path(model).is_dir():
        fix = f"import it first: nlptasks import {model} --task TASK -o DIR"
        raise UsageError(f"the model {quote(model)}", "is no folder here, and cannot be kept", fix)
    return ModelFolder.open(model)
