"""A model: a backbone and its named heads, in memory and as a folder.

The folder has ``nlptasks.json`` (what the model is, and the sha256 of every file), ``backbone/`` in Hugging Face's layout and
``heads/NAME.safetensors``. It is written beside its place and renamed into it, ``nlptasks.json`` last: half a folder is never
taken for a model. safetensors and JSON only.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from nlptasks import __version__
from nlptasks.architecture import read_config, refusing
from nlptasks.backbone import CONFIG, TOKENIZER, WEIGHTS, Backbone, BackboneInfo, read_tokenizer
from nlptasks.config import attached, check_head_name, file_fields
from nlptasks.disk import NoSealError, files_in, parsed, sealed, sha256, unsealed, written_beside
from nlptasks.errors import ModelError, UsageError, did_you_mean, listing, quote
from nlptasks.folders import RESTORE, check_files, check_list, check_shape, plain_files, read_whole
from nlptasks.heads.base import Head, further_graphs
from nlptasks.registry import head_class, package_of, tasks
from nlptasks.tokenizer import Tokenizer
from nlptasks.types import ENCODE
from nlptasks.weights import check_header, own_tensors, read_header, read_into, write

MANIFEST = "nlptasks.json"
EXPORTS = "onnx"
REPORT = "report.json"
FORMAT = 1
_REPORT_NAME = re.compile(f"{EXPORTS}/([^/]+)/{re.escape(REPORT)}")
_PACKAGE = re.compile("[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*")

_MAX_ITEMS = 1000
"""Entries of a list in a head's config, where its weights have no axis so long."""

_MANIFEST_SHAPE = {
    "format": int,
    "nlptasks": str,
    "backbone": {"source": str, "revision": (str, NoneType), "max_tokens": int, "pad_id": int, "has_types": bool},
    "heads": {...: {"task": str, "config": dict, "metrics": {...: {...: (float, int)}}, "package": str}},
    "files": {...: str},
}
_REPORT_SHAPE = {
    "nlptasks": str,
    "precision": str,
    "engine": str,
    "max_difference": (float, int),
    "shapes": list,
    "made_from": {...: str},
    "files": {...: str},
}


@dataclass(frozen=True)
class HeadRecord:
    """What a model remembers of a head.

    Attributes:
        task: the registered task.
        config: the head's config, as JSON has it.
        metrics: metrics by part of the data.
        package: name and version of the package that registers the task, such as ``nlptasks 0.1.0``; empty until it is saved.
    """

    task: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    package: str = ""


class Model(nn.Module):
    """A backbone and its heads.

    Args:
        backbone: the backbone.
        heads: heads by name.
        records: what is remembered of each head.
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, Head], records: Mapping[str, HeadRecord]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = dict(heads)
        for name, head in heads.items():
            self.add_module(f"head {name}", head)  # so that no head's name can be one of Module's own
        self.records = dict(records)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The graph `encode`: one pass over the backbone and every head's outputs, named ``HEAD.output``."""
        states = self.backbone(batch)  # [B,S,H]
        return {
            f"{name}.{output}": tensor
            for name, head in self.heads.items()
            for output, tensor in head(states, batch).items()
        }

    def graphs(self) -> dict[str, nn.Module]:
        """Every graph: `encode`, and those that heads add, as ``HEAD.graph``."""
        return {ENCODE: self, **further_graphs(self.heads)}

    def only(self, names: Sequence[str]) -> Model:
        """The same backbone with some of the heads."""
        return Model(self.backbone, {name: self.heads[name] for name in names}, {})

    @classmethod
    def load(cls, folder: str | Path) -> Model:
        """The model in a folder.

        Raises:
            ModelError: it is no model, or a file is missing, changed or too many.
            PluginError: a head's package is broken.
        """
        with ModelFolder.checked(folder) as stored:
            return stored.model()

    def save(self, folder: str | Path, *, overwrite: bool = False, extra: Mapping[str, str] | None = None) -> Path:
        """Write the model into a new folder, atomically.

        Args:
            folder: where; it must not hold anything yet.
            overwrite: whether what is there may be replaced.
            extra: further text files by name, such as the model card.

        Raises:
            UsageError: the folder is not empty.
            ModelError: it cannot be written.
        """
        target = Path(folder)
        check_output(target, overwrite=overwrite)
        with written_beside(target, ModelError) as place:
            (place / "backbone").mkdir()
            (place / "heads").mkdir()
            self.backbone.save(place / "backbone")
            for name, head in self.heads.items():
                write(place / _head_file(name), own_tensors(head))
                for key, text in attached(head.config).items():
                    (place / _head_file(name, file_fields(head.Config)[key])).write_text(text, encoding="utf-8")
            for name, content in (extra or {}).items():
                (place / name).write_text(content, encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "nlptasks": __version__,
                "backbone": self.backbone.info.record(),
                "heads": {name: asdict(_with_package(record)) for name, record in self.records.items()},
                "files": {name: sha256(place / name) for name in sorted(files_in(place))},
            }
            (place / MANIFEST).write_bytes(sealed(manifest))
        return target


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: every file is checked when it is opened, and only what is asked for is read.

    Attributes:
        path: the folder.
        manifest: its ``nlptasks.json``.
        exports: the ``report.json`` of each ONNX export, by precision.
    """

    path: Path
    manifest: Mapping[str, Any]
    exports: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, folder: str | Path) -> ModelFolder:
        """Read and check a model folder.

        Raises:
            ModelError: it is no model, made by a newer library, or not as it was written.
        """
        with cls.checked(folder) as stored:
            return stored

    @classmethod
    @contextlib.contextmanager
    def checked(cls, folder: str | Path) -> Iterator[ModelFolder]:
        """A model folder, whose files are checked while the block reads them; nothing of the block counts if one is wrong.

        Raises:
            ModelError: it is no model, made by a newer library, or not as it was written.
        """
        path = Path(folder)
        if not os.path.lexists(path / MANIFEST):
            what = "has no nlptasks.json" if path.is_dir() else "is no folder"
            fix = "give the folder that 'nlptasks train' wrote with -o"
            if (path / CONFIG).is_file():
                what, fix = "is a Hugging Face checkpoint", f"run: nlptasks import {path} --task TASK -o DIR"
            raise ModelError(str(path), f"{what}, so it is no model", fix)
        manifest = _read_manifest(path / MANIFEST)
        names = list(plain_files(path))
        reports = {match[1]: match[0] for match in map(_REPORT_NAME.fullmatch, names) if match}
        exports = {precision: _read_report(path / name) for precision, name in reports.items()}
        listed = dict(manifest["files"])
        for precision, report in exports.items():
            listed |= {f"{EXPORTS}/{precision}/{name}": digest for name, digest in report["files"].items()}
        sealed_ones = {MANIFEST, *reports.values()}
        with ThreadPoolExecutor(1) as threads:
            check = threads.submit(check_files, path, [name for name in names if name not in sealed_ones], listed)
            try:
                yield cls(path, manifest, exports)
            finally:
                check.result()  # names the file, where the block's own error may only name what came of it

    @property
    def records(self) -> dict[str, HeadRecord]:
        """What is remembered of each head."""
        return {name: HeadRecord(**record) for name, record in self.manifest["heads"].items()}

    def head_name(self, wanted: str) -> str:
        """A head's name from its name, or from a task of which there is one head.

        Raises:
            UsageError: there is none, or several.
        """
        records = self.records
        if wanted in records:
            return wanted
        same = [name for name, record in records.items() if record.task == wanted]
        if len(same) == 1:
            return same[0]
        problem = f"has {len(same)} heads for {wanted!r}" if same else f"has no head {wanted!r}"
        raise UsageError(str(self.path), problem, did_you_mean(wanted, same or records))

    def head_names(self, wanted: list[str] | None) -> list[str]:
        """The heads that are wanted, all without a wish."""
        return list(self.records) if wanted is None else [self.head_name(name) for name in wanted]

    def model(self) -> Model:
        """The model.

        Raises:
            ModelError: its files do not fit each other, or a head's package is not installed.
            PluginError: a head's package is broken.
        """
        backbone = Backbone.from_folder(self.path / "backbone", self.manifest["backbone"])
        return Model(backbone, self.heads(), self.records).eval()

    def backbone_info(self) -> BackboneInfo:
        """What heads may know of the backbone, without its weights."""
        config = read_config(read_whole(self.path / "backbone" / CONFIG), where=str(self.path))
        tokenizer = read_whole(self.path / "backbone" / TOKENIZER)
        return BackboneInfo.from_record(self.manifest["backbone"], config, tokenizer)

    def tokenizer(self) -> Tokenizer:
        """The backbone's tokenizer."""
        return read_tokenizer(self.backbone_info())

    def heads(self, names: list[str] | None = None, *, device: str = "cpu") -> dict[str, Head]:
        """The heads; on the device ``meta`` they have no weights and take no memory.

        Raises:
            ModelError: a head does not fit its weights, or its package is not installed.
            PluginError: its package is broken.
        """
        info = self.backbone_info()
        return {name: self._head(name, info, device) for name in self.head_names(names)}

    def _head(self, name: str, info: BackboneInfo, device: str) -> Head:
        path = self.path / _head_file(name)
        header = read_header(path)
        axes = max((axis for spec in header.values() for axis in spec.shape), default=0)
        for key, value in self.records[name].config.items():
            if isinstance(value, list) and len(value) > max(axes, _MAX_ITEMS):
                raise ModelError(
                    str(self.path / MANIFEST), f"has {len(value)} {key} for a head with {axes} outputs", RESTORE
                )
        head = self._built(name, info, "meta")
        check_header(path, header, own_tensors(head))
        if device != "meta":
            head = self._built(name, info, device)
            read_into(path, own_tensors(head))
        return head

    def _built(self, name: str, info: BackboneInfo, device: str) -> Head:
        """A new head as its config says."""
        record = self.records[name]
        cls = self._head_class(name, record)
        with (
            refusing(str(self.path / MANIFEST), f"has an unusable head {name!r}", RESTORE),
            torch.random.fork_rng(devices=[]),
            torch.device(device),
        ):
            values = {key: _frozen(value) for key, value in record.config.items()}
            for key, end in file_fields(cls.Config).items():
                if values.get(key):
                    values[key] = read_whole(self.path / _head_file(name, end)).decode("utf-8")
            config = cls.Config(**values)
            return cls(config, backbone=info).eval()

    def _head_class(self, name: str, record: HeadRecord) -> type[Head]:
        """The class of a head by what is registered here: nothing is imported because a model names it."""
        if record.task not in tasks():
            package = record.package.partition(" ")[0]
            fix = f"pip install {package}" if _PACKAGE.fullmatch(package) else "install the package that has it"
            raise ModelError(
                str(self.path),
                f"needs for {name!r} the head {quote(record.task)} of the package {quote(record.package)}",
                fix,
            )
        return head_class(record.task)


def _read_manifest(file: Path) -> dict[str, Any]:
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
        check_shape(manifest, _MANIFEST_SHAPE, name="")
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}")
        for name in manifest["heads"]:
            check_head_name(name)
        needed = {f"backbone/{name}" for name in (CONFIG, TOKENIZER, WEIGHTS)} | set(map(_head_file, manifest["heads"]))
        if not needed <= manifest["files"].keys():
            raise ValueError(f"it does not list {listing(sorted(needed - manifest['files'].keys()))}")
    except (ValueError, UsageError) as error:
        raise ModelError(str(file), f"is damaged ({error})", RESTORE) from error
    check_list(manifest["files"], where=str(file))
    return manifest


def _check_format(file: Path, manifest: Any) -> None:
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(found, int) and found > FORMAT:
        made_by = quote(manifest.get("nlptasks"))
        raise ModelError(str(file), f"has format {found} of nlptasks {made_by}, expected {FORMAT}", "upgrade nlptasks")


def _read_report(file: Path) -> dict[str, Any]:
    try:
        report = unsealed(read_whole(file))
        check_shape(report, _REPORT_SHAPE, name="")
    except ValueError as error:
        raise ModelError(
            str(file), f"is damaged ({error})", f"remove {file.parent}, and run nlptasks export"
        ) from error
    check_list(report["files"], where=str(file))
    return report


def check_output(folder: Path, *, overwrite: bool, resumable: bool = False) -> None:
    """Refuse an output folder that holds something, or that could not be written in the end.

    Args:
        folder: the folder.
        overwrite: whether what is there may be replaced.
        resumable: whether what is there could be gone on with, for the message.

    Raises:
        UsageError: it is not empty, no folder, or its parent cannot be written to.
    """
    target = folder.resolve()
    try:  # asked once: another process may be about to replace it
        inside = list(target.iterdir())
    except FileNotFoundError:
        inside = []
    except NotADirectoryError as error:
        raise UsageError(str(folder), "is a file", "give another -o") from error
    except OSError as error:
        raise UsageError(str(folder), f"cannot be read ({error})", "give another -o") from error
    if inside and not overwrite:
        ways = "--overwrite to replace it, or --resume" if resumable else "or --overwrite to replace it"
        raise UsageError(str(folder), "is not empty", f"give another -o, {ways}")
    if target == Path.cwd() or target.is_mount():
        raise UsageError(str(folder), "cannot be replaced as a whole", "give a folder inside it as -o")
    parent = next(place for place in target.parents if place.exists())
    if not os.access(parent, os.W_OK):
        raise UsageError(str(folder), f"cannot be written: {parent} is not writable", "give another -o")


def _head_file(name: str, end: str = "safetensors") -> str:
    return f"heads/{name}.{end}"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _with_package(record: HeadRecord) -> HeadRecord:
    return record if record.package else replace(record, package=package_of(record.task))
