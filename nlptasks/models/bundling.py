"""A model folder that is stored with something else: as a copy, as bytes, or as a reference with a checksum."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nlptasks.errors import ModelError, UsageError
from nlptasks.models.folder import ModelFolder
from nlptasks.models.manifest import EXPORTS, MANIFEST, REPORT
from nlptasks.storage.atomic import sha256, written_beside
from nlptasks.storage.integrity import CARD, check_list, check_shape, read_json

REFERENCE = "reference.json"
"""The file that replaces a model folder."""

_REFERENCE_SHAPE = {"model": str, "sha256": str}
_AGAIN = "use the bytes that to_bytes returned, and check the free space"


@dataclass(frozen=True)
class Reference:
    """A model folder in one state.

    Attributes:
        model: the folder.
        sha256: of its manifest, which has the sha256 of each file; empty if it is no model folder.
    """

    model: str
    sha256: str

    @classmethod
    def to(cls, model: str) -> Reference:
        """Return a reference to the current state of a model: a folder by its absolute path, a checkpoint by its name."""
        path = Path(model)
        whole = str(path.resolve()) if path.is_dir() else model
        return cls(whole, _digest(whole))


def copy_model(model: Reference, target: Path) -> None:
    """Copy a model folder with its exports; the target is replaced.

    Raises:
        ModelError: the model has changed, or the copy cannot be written.
    """
    source, names = Path(model.model), _names(model)
    if source.resolve() == target.resolve():
        return
    with written_beside(target, ModelError) as place:
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, place / name)


def model_files(model: Reference) -> dict[str, bytes]:
    """Return the files of a model folder by their paths in it.

    Raises:
        ModelError: the model has changed.
    """
    return {name: (Path(model.model) / name).read_bytes() for name in _names(model)}


def write_files(files: Mapping[str, bytes], place: Path) -> None:
    """Write what `model_files` returned into a folder. The model is not checked.

    Raises:
        ModelError: these are no files by name, a name is no path inside the folder, or the disk refuses.
    """
    if not all(isinstance(name, str) and isinstance(content, bytes) for name, content in files.items()):
        raise ModelError("the bytes", "hold no files by name", _AGAIN)
    check_list({name: hashlib.sha256(content).hexdigest() for name, content in files.items()}, where="the bytes")
    try:
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    except OSError as error:
        raise ModelError("the bytes", f"cannot be written to {place} ({error})", _AGAIN) from error


def write_reference(model: Reference, target: Path) -> None:
    """Write a folder that refers to a model folder; the target is replaced.

    Raises:
        ModelError: the model has changed, or the reference cannot be written.
    """
    record = asdict(checked(model))
    with written_beside(target, ModelError) as place:
        (place / REFERENCE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def model_in(place: Path, *, or_else: str) -> str:
    """Return the model that a folder contains or refers to.

    Args:
        place: the folder.
        or_else: another place to look for the model if it was moved.

    Raises:
        ModelError: the model has changed.
    """
    file = place / REFERENCE
    return read_reference(read_json(file), where=str(file), or_else=or_else).model if file.exists() else str(place)


def read_reference(record: Mapping[str, Any], *, where: str, or_else: str) -> Reference:
    """Return a reference to a model that has not changed, here or in another place.

    Raises:
        ModelError: the reference is damaged, or its model is missing or has changed.
    """
    try:
        check_shape(record, _REFERENCE_SHAPE, name="the reference")
    except ValueError as error:
        raise ModelError(where, f"is damaged ({error})", "save the pipeline again") from error
    moved = Reference.to(or_else)
    return moved if moved.sha256 == record["sha256"] else checked(Reference(**record), where=where)


def checked(model: Reference, *, where: str = "the component") -> Reference:
    """Return a reference if its model exists and has not changed.

    Raises:
        ModelError: it is missing or has changed.
    """
    found = _digest(model.model)
    if found != model.sha256:
        problem = f"refers to the model {model.model}, which " + ("was changed since" if found else "is not there")
        fix = "put that model back, set the config's model to its place, or save the pipeline again with store='copy'"
        raise ModelError(where, problem, fix)
    return model


def _digest(model: str) -> str:
    """Return the sha256 of a model's manifest; empty if it has none."""
    file = Path(model) / MANIFEST
    return sha256(file) if file.is_file() else ""


def _names(model: Reference) -> list[str]:
    """Return the files to copy.

    Raises:
        UsageError: it is no model folder.
    """
    if not model.sha256:
        fix = "import it (nlptasks import) and use the folder, or use store='reference'"
        raise UsageError(f"the model {model.model}", "is a checkpoint, of which no copy can be kept", fix)
    stored = ModelFolder.open(checked(model).model)
    exports = [
        name
        for precision, report in stored.exports.items()
        for name in (f"{EXPORTS}/{precision}/{file}" for file in (REPORT, *report["files"]))
        if (stored.path / name).is_file()  # an export may be damaged: the model itself is good
    ]
    card = [CARD] if (stored.path / CARD).is_file() else []
    return list(dict.fromkeys([MANIFEST, *stored.manifest["files"], *exports, *card]))
