"""A model: a backbone and its named heads, in memory and as a folder.

The folder has ``nlptasks.json`` (what the model is, and the sha256 of every file), ``backbone/`` in Hugging Face's layout and
``heads/NAME.safetensors``. It is written beside its place and renamed into it, ``nlptasks.json`` last: half a folder is never
taken for a model. safetensors and JSON only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nlptasks.backbones.architecture import read_config, refusing
from nlptasks.backbones.backbone import (
    CHAT_TEMPLATE,
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Backbone,
    BackboneInfo,
    read_tokenizer,
)
from nlptasks.backbones.graph import Graph
from nlptasks.backbones.layer_sharing import Branch, SharedPass
from nlptasks.config import attached, file_fields
from nlptasks.errors import ModelError, NlptasksError, PluginError, UsageError, did_you_mean, quote
from nlptasks.heads.base import Head, further_graphs
from nlptasks.models.manifest import (
    EXPORTS,
    MANIFEST,
    REPORT_NAME,
    HeadRecord,
    head_file,
    read_manifest,
    read_report,
    write_manifest,
)
from nlptasks.registry import find, package_of
from nlptasks.runtimes.base import ENCODE
from nlptasks.storage.atomic import restored, restored_inside, written_beside
from nlptasks.storage.integrity import RESTORE, check_files, check_output, plain_files, read_whole
from nlptasks.storage.safetensors import check_header, own_tensors, read_header, read_into, write
from nlptasks.text.windowing import Tokenizer

_log = logging.getLogger("nlptasks")

_PACKAGE = re.compile("[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*")

IN_BACKBONE = "backbone."
"""What the names of the layers that a head owns begin with, in its file; no tensor of the head itself is named so."""

_MAX_ITEMS = 1000
"""Entries of a list in a head's config, where its weights have no axis so long."""


class Model(nn.Module):
    """A backbone and its heads.

    Args:
        backbone: the backbone.
        heads: heads by name.
        records: what is remembered of each head.
        branches: the layers that heads own, by the head's name.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Mapping[str, Head],
        records: Mapping[str, HeadRecord],
        branches: Mapping[str, Branch] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads, self.branches, self.records = dict(heads), dict(branches), dict(records)
        for name, head in heads.items():
            self.add_module(f"head {name}", head)  # so that no head's name can be one of Module's own
        for name, branch in branches.items():
            self.add_module(f"branch {name}", branch)

    def forward(self, batch: Mapping[str, Tensor], names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The graph `encode`: one pass over the backbone and the outputs of heads, named ``HEAD.output``.

        Args:
            batch: ``ids``, ``mask`` and, if the backbone reads them, ``types`` [B,S].
            names: the heads whose outputs are wanted; None for all. Layers that none of them needs are not run.
        """
        wanted = list(self.heads) if names is None else names
        one_pass = SharedPass(partial(self.backbone, batch), {self.branches.get(name) for name in wanted})
        return {
            f"{name}.{output}": tensor
            for name in wanted
            for output, tensor in self.heads[name](one_pass.states(self.branches.get(name)), batch).items()
        }

    def loss(self, name: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of one head, as a sum, and the count that it is a sum over; see `Head.loss`."""
        return self.heads[name].loss(self.states(name, batch), batch)

    def states(self, name: str, batch: Mapping[str, Tensor]) -> Tensor:
        """The states [B,S,H] that one head reads."""
        branch = self.branches.get(name)
        return SharedPass(partial(self.backbone, batch), [branch]).states(branch)

    def trunk_weights(self, name: str) -> dict[str, Tensor]:
        """The backbone's tensors as one head sees them, by their names in the trunk: what it owns is in its place."""
        branch = self.branches.get(name)
        return {**self.backbone.trunk.state_dict(), **(branch.tensors() if branch else {})}

    def graphs(self) -> dict[str, nn.Module]:
        """Every graph: `encode`, and those that heads add, as ``HEAD.graph``."""
        return {ENCODE: self, **self.further_graphs()}

    def further_graphs(self) -> dict[str, Graph]:
        """Those that heads add alone."""
        return {
            name: graph.on(self.backbone, self.branches.get(name.partition(".")[0]))
            for name, graph in further_graphs(self.heads).items()
        }

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
            self.backbone.save(place / "backbone")
            self.save_heads(place)
            for name, content in (extra or {}).items():
                (place / name).write_text(content, encoding="utf-8")
            write_manifest(place, backbone=self.backbone.info, heads=self.records)
        return target

    def save_heads(self, place: Path) -> None:
        """Write the heads, with the layers that they own, into a folder that is being written.

        Raises:
            OSError: the disk refuses.
        """
        (place / "heads").mkdir(exist_ok=True)
        for name, head in self.heads.items():
            write(place / head_file(name), {**own_tensors(head), **_as_stored(self.branches.get(name))})
            for key, text in attached(head.config).items():
                (place / head_file(name, file_fields(head.Config)[key])).write_text(text, encoding="utf-8")


def _as_stored(branch: Branch | None) -> dict[str, Tensor]:
    """The tensors of a branch, by their names in a head's file."""
    return {f"{IN_BACKBONE}{name}": tensor for name, tensor in branch.tensors().items()} if branch else {}


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
        if restored(path):
            _log.warning("%s: was put back as it was before a writer was killed", path)
        restored_inside(path / EXPORTS)
        if not os.path.lexists(path / MANIFEST):
            what = "has no nlptasks.json" if path.is_dir() else "is no folder"
            fix = "give the folder that 'nlptasks train' wrote with -o"
            if (path / CONFIG).is_file():
                what, fix = "is a Hugging Face checkpoint", f"run: nlptasks import {path} --task TASK -o DIR"
            raise ModelError(str(path), f"{what}, so it is no model", fix)
        manifest = read_manifest(path / MANIFEST)
        names = list(plain_files(path))
        reports = {match[1]: match[0] for match in map(REPORT_NAME.fullmatch, names) if match}
        exports = {precision: read_report(path / name) for precision, name in reports.items()}
        listed: dict[str, str] = dict(manifest["files"])
        fixes: dict[str, str] = {}
        for precision, report in exports.items():
            own = {f"{EXPORTS}/{precision}/{name}": digest for name, digest in report["files"].items()}
            again = f"remove {path / EXPORTS / precision}, and run: nlptasks export {path} --precision {precision}"
            listed, fixes = listed | own, fixes | dict.fromkeys(own, again)
        sealed_ones = {MANIFEST, *reports.values()}
        with ThreadPoolExecutor(1) as threads:
            check = threads.submit(
                check_files, path, [name for name in names if name not in sealed_ones], listed, fixes
            )
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

    def model(self, names: list[str] | None = None) -> Model:
        """The model, with all heads or some.

        Raises:
            ModelError: its files do not fit each other, or a head's package is not installed.
            PluginError: a head's package is broken.
        """
        backbone, heads, records = self.backbone(), self.heads(names), self.records
        branches = {name: self._branch(name, backbone) for name in heads if records[name].branch}
        return Model(backbone, heads, {name: records[name] for name in heads}, branches).eval()

    def backbone(self) -> Backbone:
        """The backbone alone.

        Raises:
            ModelError: its files do not fit each other.
        """
        return Backbone.from_folder(self.path / "backbone", self.manifest["backbone"])

    def _branch(self, name: str, backbone: Backbone) -> Branch:
        path = self.path / head_file(name)
        try:
            branch = backbone.branch(self.records[name].branch)
        except UsageError as error:
            problem = f"is damaged (the head {name} {error.problem})"
            raise ModelError(str(self.path / MANIFEST), problem, RESTORE) from error
        layers = {key: spec for key, spec in read_header(path).items() if key.startswith(IN_BACKBONE)}
        check_header(path, layers, _as_stored(branch))
        read_into(path, _as_stored(branch))
        return branch

    def backbone_info(self) -> BackboneInfo:
        """What heads may know of the backbone, without its weights."""
        place = self.path / "backbone"
        config = read_config(read_whole(place / CONFIG), where=str(self.path))
        small = (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)
        files = {name: read_whole(place / name) for name in small if (place / name).is_file()}
        return BackboneInfo.from_record(self.manifest["backbone"], config, files)

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
        for name in self.head_names(names):
            made, here = self.records[name].package, package_of(self.records[name].task)
            if made.partition(" ")[0] != here.partition(" ")[0] and here:
                by = made or "an unknown package"
                _log.warning("%s: the head %s was made by %s, and is read by %s", self.path, name, by, here)
        return {name: self._head(name, info, device) for name in self.head_names(names)}

    def _head(self, name: str, info: BackboneInfo, device: str) -> Head:
        path = self.path / head_file(name)
        header = {key: spec for key, spec in read_header(path).items() if not key.startswith(IN_BACKBONE)}
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

    def problem_of(self, name: str) -> NlptasksError | None:
        """Why the class of a head cannot be had here: its package is gone, not enabled or broken; None if it can be."""
        try:
            self._head_class(name, self.records[name])
        except (PluginError, ModelError) as error:
            return error
        return None

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
                    values[key] = read_whole(self.path / head_file(name, end)).decode("utf-8")
            config = cls.Config(**values)
            return cls(config, backbone=info).eval()

    def _head_class(self, name: str, record: HeadRecord) -> type[Head]:
        """The class of a head by what is registered here: nothing is imported because a model names it."""
        one = find(record.task)
        if one is None:
            package = record.package.partition(" ")[0]
            fix = f"pip install {package}" if _PACKAGE.fullmatch(package) else "install the package that has it"
            raise ModelError(
                str(self.path),
                f"needs for {name!r} the head {quote(record.task)} of the package {quote(record.package)}",
                fix,
            )
        return one.head_class()


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
