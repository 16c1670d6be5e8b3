"""The files that describe a model: ``nlptasks.json``, and the ``report.json`` of each export. Both are checked when read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

from nlptasks.backbones.info import CONFIG, TOKENIZER, WEIGHTS, BackboneInfo
from nlptasks.config import check_head_name
from nlptasks.errors import ModelError, UsageError, listing, quote
from nlptasks.registry import package_of
from nlptasks.storage.atomic import files_in, parsed, sealed, sha256, unsealed
from nlptasks.storage.integrity import RESTORE, check_list, check_shape, read_whole
from nlptasks.version import __version__

MANIFEST = "nlptasks.json"
EXPORTS = "onnx"
REPORT = "report.json"
LOG = "training.json"
"""How each head was made, by its name."""
FORMAT = 1
"""Version of the format of model folders."""

_MANIFEST_SHAPE = {
    "format": int,
    "nlptasks": str,
    "backbone": {
        "source": str,
        "revision": (str, NoneType),
        "kind": str,
        "width": int,
        "max_tokens": int,
        "positions": (int, NoneType),
        "vocabulary_size": int,
        "token_types": int,
        "pad_id": int,
        "generation": dict,
    },
    "heads": {...: {"task": str, "config": dict, "metrics": {...: {...: (float, int)}}, "package": str, "branch": int}},
    "files": {...: str},
}
_REPORT_SHAPE = {
    "nlptasks": str,
    "precision": str,
    "engine": str,
    "opset": int,
    "device": str,
    "max_difference": (float, int),
    "differences": {...: (float, int)},
    "agreement": (float, int, NoneType),
    "shapes": list,
    "checks": {
        ...: {
            "metric": str,
            "split": str,
            "rows": int,
            **dict.fromkeys(("reference", "exported", "points"), (float, int)),
        }
    },
    "outputs": {...: {...: str}},
    "graphs": {...: {"sizes": {...: list}, "limits": {...: int}}},
    "made_from": {...: str},
    "files": {...: str},
}


@dataclass(frozen=True)
class HeadRecord:
    """What a model folder stores about a head, beside its weights.

    Attributes:
        task: the registered task.
        config: the head's config, for JSON.
        metrics: metrics by part of the data.
        package: name and version of the package that registers the task, such as ``nlptasks 0.1.0``; empty until it is saved.
        branch: number of top layers of the backbone that the head owns.
    """

    task: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    package: str = ""
    branch: int = 0


def write_manifest(
    place: Path, *, backbone: BackboneInfo, heads: Mapping[str, HeadRecord], digests: Mapping[str, str] | None = None
) -> None:
    """Write ``nlptasks.json``, which lists all other files in a folder except exports, which have their own lists.

    Args:
        place: the folder.
        backbone: facts about the backbone.
        heads: the record of each head.
        digests: for files that somebody has edited, the sha256 to list: that of the file before it was edited.

    Raises:
        OSError: the disk refuses.
    """
    names = [name for name in sorted(files_in(place)) if not name.startswith((f"{EXPORTS}/", "."))]
    manifest = {
        "format": FORMAT,
        "nlptasks": __version__,
        "backbone": backbone.record(),
        "heads": {name: asdict(_with_package(record)) for name, record in heads.items()},
        "files": {name: sha256(place / name) for name in names} | dict(digests or {}),
    }
    (place / MANIFEST).write_bytes(sealed(manifest))


def read_manifest(file: Path) -> dict[str, Any]:
    """Return the manifest in a file.

    Raises:
        ModelError: it is damaged, or made by a newer library.
    """
    content = read_whole(file)
    try:
        _check_format(file, parsed(content))  # a newer format may be sealed in another way
        manifest = unsealed(content)
    except ValueError as error:
        raise ModelError(str(file), f"is damaged ({error})", RESTORE) from error
    try:
        check_shape(manifest, _MANIFEST_SHAPE, name="")
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}")
        for name, head in manifest["heads"].items():
            check_head_name(name)
            if head["branch"] < 0:
                raise ValueError(f"its head {name} owns {head['branch']} layers")
        needed = {f"backbone/{name}" for name in (CONFIG, TOKENIZER, WEIGHTS)} | set(map(head_file, manifest["heads"]))
        if not needed <= manifest["files"].keys():
            raise ValueError(f"it does not list {listing(sorted(needed - manifest['files'].keys()))}")
    except (ValueError, UsageError) as error:
        raise ModelError(str(file), f"is damaged ({error})", RESTORE) from error
    check_list(manifest["files"], where=str(file))
    return manifest


def _check_format(file: Path, manifest: Any) -> None:
    """Refuse a newer format; anything else that is wrong is found by its shape."""
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(found, int) and found > FORMAT:
        made_by = quote(manifest.get("nlptasks"))
        raise ModelError(str(file), f"has format {found} of nlptasks {made_by}, expected {FORMAT}", "upgrade nlptasks")


def read_report(file: Path) -> dict[str, Any]:
    """Return the report of an export.

    Raises:
        ModelError: it is damaged.
    """
    try:
        report = unsealed(read_whole(file))
        check_shape(report, _REPORT_SHAPE, name="")
        _check_numbers(report)
        _check_graphs(report)
        if report["precision"] != file.parent.name:
            raise ValueError(f"its precision is {quote(report['precision'])}")
    except (ValueError, OverflowError) as error:
        raise ModelError(
            str(file), f"is damaged ({error})", f"remove {file.parent}, and run nlptasks export"
        ) from error
    check_list(report["files"], where=str(file))
    return report


def _check_numbers(report: Mapping[str, Any]) -> None:
    """Check that measured values are finite.

    Raises:
        ValueError: a value is not.
        OverflowError: a value is too large.
    """
    measured = [(check["reference"], check["exported"], check["points"]) for check in report["checks"].values()]
    compared = [report["max_difference"], report["agreement"] or 0, *report["differences"].values()]
    for value in [*compared, *(value for own in measured for value in own)]:
        if not math.isfinite(float(value)):
            raise ValueError(f"it has the number {value}")


def _check_graphs(report: Mapping[str, Any]) -> None:
    """Check that each graph has a file, and inputs with sizes.

    Raises:
        ValueError: a graph has not.
    """
    for graph, record in report["graphs"].items():
        if graph_file(graph) not in report["files"]:
            raise ValueError(f"it does not list the file of the graph {quote(graph)}")
        for sizes in record["sizes"].values():
            for size in sizes:
                check_shape(size, (int, NoneType), name=f"a size of the graph {quote(graph)}")


def graph_file(graph: str) -> str:
    """Return the name of a graph's file in an export."""
    return f"{graph}.onnx"


def head_file(name: str, end: str = "safetensors") -> str:
    """Return the path of a head's file in a model folder."""
    return f"heads/{name}.{end}"


def _with_package(record: HeadRecord) -> HeadRecord:
    return record if record.package else replace(record, package=package_of(record.task))
