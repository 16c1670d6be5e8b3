"""What a model folder says of itself: ``nlptasks.json``, and the ``report.json`` of each export, read without trust."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

from nlptasks.backbones.backbone import CONFIG, TOKENIZER, WEIGHTS, BackboneInfo
from nlptasks.config import check_head_name
from nlptasks.errors import ModelError, UsageError, listing, quote
from nlptasks.registry import package_of
from nlptasks.storage.atomic import NoSealError, files_in, parsed, sealed, sha256, unsealed
from nlptasks.storage.integrity import RESTORE, check_list, check_shape, read_whole
from nlptasks.version import __version__

MANIFEST = "nlptasks.json"
EXPORTS = "onnx"
REPORT = "report.json"
LOG = "training.json"
"""How each head came to be, by its name."""
FORMAT = 1
REPORT_NAME = re.compile(f"{EXPORTS}/([^/]+)/{re.escape(REPORT)}")
"""Where the report of an export stands in a model; its group is the precision."""

_MANIFEST_SHAPE = {
    "format": int,
    "nlptasks": str,
    "backbone": {
        "source": str,
        "revision": (str, NoneType),
        "max_tokens": int,
        "pad_id": int,
        "has_types": bool,
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
        ...: {"metric": str, "split": str, "rows": int, **dict.fromkeys(("torch", "onnx", "points"), (float, int))}
    },
    "made_from": {...: str},
    "files": {...: str},
}


_FIRST_REPORTS = {"opset": 0, "device": "cpu", "differences": {}, "agreement": None, "checks": {}}
"""What the first reports of this format, which are of fp32, did not say."""


@dataclass(frozen=True)
class HeadRecord:
    """What a model remembers of a head.

    Attributes:
        task: the registered task.
        config: the head's config, as JSON has it.
        metrics: metrics by part of the data.
        package: name and version of the package that registers the task, such as ``nlptasks 0.1.0``; empty until it is saved.
        branch: layers of the backbone that the head owns, from the top.
    """

    task: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    package: str = ""
    branch: int = 0


def write_manifest(
    place: Path, *, backbone: BackboneInfo, heads: Mapping[str, HeadRecord], digests: Mapping[str, str] | None = None
) -> None:
    """Write ``nlptasks.json`` over what else stands in a folder; exports keep their own lists.

    Args:
        place: the folder.
        backbone: what is known of the backbone.
        heads: what is remembered of each head.
        digests: sha256 to be listed for files that somebody has edited: their own before that.

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
    """The manifest in a file.

    Raises:
        ModelError: it is damaged, or made by a newer library.
    """
    content = read_whole(file)
    try:
        manifest = unsealed(content)
    except NoSealError as error:  # damaged, or a newer format with another kind of seal
        with contextlib.suppress(ValueError):
            _check_format(file, parsed(content))
        raise ModelError(str(file), f"is damaged ({error})", RESTORE) from error
    except ValueError as error:
        raise ModelError(str(file), f"is damaged ({error})", RESTORE) from error
    _check_format(file, manifest)
    try:
        _complete(manifest)
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


def _complete(manifest: Any) -> None:
    """Add what the first models of this format did not say."""
    backbone, heads = manifest.get("backbone"), manifest.get("heads")
    if isinstance(backbone, dict):
        backbone.setdefault("generation", {})
    for head in heads.values() if isinstance(heads, dict) else ():
        if isinstance(head, dict):
            head.setdefault("branch", 0)


def _check_format(file: Path, manifest: Any) -> None:
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(found, int) and found > FORMAT:
        made_by = quote(manifest.get("nlptasks"))
        raise ModelError(str(file), f"has format {found} of nlptasks {made_by}, expected {FORMAT}", "upgrade nlptasks")


def read_report(file: Path) -> dict[str, Any]:
    """The report of an export.

    Raises:
        ModelError: it is damaged.
    """
    try:
        report = {**_FIRST_REPORTS, **unsealed(read_whole(file))}
        check_shape(report, _REPORT_SHAPE, name="")
        _check_numbers(report)
        if report["precision"] != file.parent.name:
            raise ValueError(f"it is that of {quote(report['precision'])}")
    except (ValueError, OverflowError) as error:
        raise ModelError(
            str(file), f"is damaged ({error})", f"remove {file.parent}, and run nlptasks export"
        ) from error
    check_list(report["files"], where=str(file))
    return report


def _check_numbers(report: Mapping[str, Any]) -> None:
    """Check that what is measured are numbers.

    Raises:
        ValueError: one is not.
        OverflowError: one is too large.
    """
    measured = [(check["torch"], check["onnx"], check["points"]) for check in report["checks"].values()]
    compared = [report["max_difference"], report["agreement"] or 0, *report["differences"].values()]
    for value in [*compared, *(value for own in measured for value in own)]:
        if not math.isfinite(float(value)):
            raise ValueError(f"it has the number {value}")


def head_file(name: str, end: str = "safetensors") -> str:
    """Where a file of a head stands in a model."""
    return f"heads/{name}.{end}"


def _with_package(record: HeadRecord) -> HeadRecord:
    return record if record.package else replace(record, package=package_of(record.task))
