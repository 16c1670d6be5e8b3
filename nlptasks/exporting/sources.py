"""Models that backends open: a model folder, or a checkpoint. Nothing is loaded before a backend asks for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlptasks.backbones import hub
from nlptasks.backbones.info import CONFIG
from nlptasks.config import RUNS
from nlptasks.errors import ModelError, UsageError, listing
from nlptasks.exporting.drift import moves
from nlptasks.exporting.precisions import PRECISIONS, Precision
from nlptasks.heads.base import AnyHead
from nlptasks.models.folder import ModelFolder
from nlptasks.models.manifest import EXPORTS, MANIFEST, graph_file
from nlptasks.registry import head_class
from nlptasks.runtimes.base import ExportedGraphs, ExportState, GraphSpec
from nlptasks.storage.atomic import restored
from nlptasks.storage.integrity import check_files

if TYPE_CHECKING:
    from nlptasks.models.model import Model


@dataclass(frozen=True, eq=False)
class StoredSource:
    """Some heads of a model folder.

    Attributes:
        stored: the model folder.
        heads: names of the heads.
    """

    stored: ModelFolder
    heads: Sequence[str]

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.stored.path)

    @cached_property
    def _model(self) -> Model:
        from nlptasks.models.model import load_model  # imports PyTorch

        return load_model(self.stored, list(self.heads))

    def graphs(self) -> Mapping[str, Any]:
        """Load the model, and return the PyTorch module of each graph."""
        return self._model.graphs()

    def outputs(self) -> Mapping[str, Mapping[str, str]]:
        """Return the outputs of the networks of `graphs` and their axes, by the head's name."""
        return self._model.outputs

    def export_states(self, device: str) -> list[ExportState]:
        """Return the state of each export, those that are made for the device ``cpu`` or ``cuda`` first."""
        found = [one for one in PRECISIONS.values() if one.name in self.stored.exports]
        found.sort(key=lambda one: (not one.suits(device), one.device is None))
        return [ExportState(one.name, self._skip_message(one, device)) for one in found]

    def _skip_message(self, precision: Precision, device: str) -> str | None:
        problem = export_problem(self.stored, precision.name, self.heads)
        if problem:
            return problem
        reason = auto_skip_reason(self.stored, precision.name, self.heads)
        if reason is None and not precision.suits(device):
            reason = "is made for another device"
        return f"has an ONNX export in {precision.name}, which {reason}" if reason else None

    def exported(self, precision: str) -> ExportedGraphs:
        """Return the export in a precision, once its files have been checked.

        Raises:
            ModelError: there is none, or it is damaged or older than the model.
        """
        if precision not in self._exported:
            problem = export_problem(self.stored, precision, self.heads)
            if problem:
                fix = f"run: nlptasks export {self.where} --precision {precision}"
                raise ModelError(self.where, problem, fix)
            self._exported[precision] = self._checked(precision)
        return self._exported[precision]

    @cached_property
    def _exported(self) -> dict[str, ExportedGraphs]:
        return {}

    def _checked(self, precision: str) -> ExportedGraphs:
        folder, report = self.stored.path / EXPORTS / precision, self.stored.exports[precision]
        again = f"remove {folder}, and run: nlptasks export {self.where} --precision {precision}"
        check_files(folder, report["files"], fix=again)
        return ExportedGraphs(
            precision,
            files={graph: folder / graph_file(graph) for graph in report["graphs"]},
            outputs=report["outputs"],
            specs={graph: _spec(record) for graph, record in report["graphs"].items()},
            unverified_reason=unverified_reason(self.stored, precision, self.heads),
        )


@dataclass(frozen=True, eq=False)
class CheckpointSource:
    """A Hugging Face checkpoint, which is imported into memory when it is needed.

    Attributes:
        where: name or folder of the checkpoint.
        task: the task that it was fine-tuned for, which is also the head's name.
        options: the head's options.
    """

    where: str
    task: str
    options: Mapping[str, Any]

    @cached_property
    def model(self) -> Model:
        """The model.

        Raises:
            UsageError: there is no such task or option.
            ModelError: it is no checkpoint for the task.
        """
        from nlptasks.models.huggingface import read_checkpoint  # imports PyTorch

        return read_checkpoint(self.where, task=self.task, name=self.task, options=self.options)

    @property
    def heads(self) -> Sequence[str]:
        """Name of its head."""
        return [self.task]

    def graphs(self) -> Mapping[str, Any]:
        """Return the PyTorch module of each graph."""
        return self.model.graphs()

    def outputs(self) -> Mapping[str, Mapping[str, str]]:
        """Return the outputs of the networks and their axes, by the head's name."""
        return self.model.outputs

    def export_states(self, device: str) -> list[ExportState]:
        """Return an empty list: it has no exports."""
        return []

    def exported(self, precision: str) -> ExportedGraphs:
        """Refuse: it has no exports.

        Raises:
            UsageError: always.
        """
        fix = f"import it first: nlptasks import {self.where} --task {self.task} -o DIR, and: nlptasks export DIR"
        raise UsageError(self.where, "is a Hugging Face checkpoint, and this backend needs an exported model", fix)


def is_checkpoint(model: str) -> bool:
    """Return True for a Hugging Face checkpoint: a folder without our manifest, or a name of the hub.

    A missing folder inside an existing one, or inside the default output folder, is a typo and no hub name.
    """
    folder = Path(model)
    if folder.exists() or restored(folder):
        return not (folder / MANIFEST).exists() and (folder / CONFIG).exists()
    return hub.is_name(model) and not (len(folder.parts) > 1 and (folder.parent.exists() or folder.parts[0] == RUNS))


def class_of(model: str, head: str) -> type[AnyHead]:
    """Return the class of a head that is named as for `pipeline`. Of a model folder, only the manifest is read.

    Raises:
        UsageError: there is no such head or task.
        ModelError: the folder is no model, or the head's package is not installed.
        PluginError: its package is broken.
    """
    if is_checkpoint(model):
        return head_class(head)
    stored = ModelFolder.unchecked(model)
    return stored.head_class(stored.head_name(head))


def _spec(record: Mapping[str, Any]) -> GraphSpec:
    return GraphSpec({name: tuple(sizes) for name, sizes in record["sizes"].items()}, record["limits"])


def export_problem(stored: ModelFolder, precision: str, heads: Collection[str]) -> str | None:
    """Return why there is no usable export of some heads in a precision, or None if there is one."""
    report = stored.exports.get(precision)
    if report is None:
        return f"has no ONNX export in {precision} (available: {listing(sorted(stored.exports))})"
    stale = [head for head in heads if not ingredients(stored, [head]).items() <= report["made_from"].items()]
    if stale:
        return f"has a stale ONNX export in {precision}: the model has changed since, for {listing(stale)}"
    return None


def auto_skip_reason(stored: ModelFolder, precision: str, heads: Collection[str]) -> str | None:
    """Return why a usable export is not chosen automatically, or None if it may be.

    fp32 has the model's own numbers. Other precisions are chosen if they were compared with it on their device and changed no
    metric of these heads by more than half a point.
    """
    reason = unverified_reason(stored, precision, heads)
    if reason:
        return f"is used only if it is named: it {reason}"
    return "is used only if it is named" if PRECISIONS[precision].on_request else None


def unverified_reason(stored: ModelFolder, precision: str, heads: Collection[str]) -> str | None:
    """Return why the answers of an export may differ from PyTorch's, or None if they were compared."""
    kind, report = PRECISIONS[precision], stored.exports[precision]
    if not kind.suits(report["device"]):
        return f"was not compared with PyTorch on {kind.device}"
    moved = [name for name, check in report["checks"].items() if name in heads and moves(check["points"])]
    return f"changes the metric of {listing(moved)}" if moved else None


def ingredients(stored: ModelFolder, heads: Iterable[str]) -> dict[str, str]:
    """Return the files that the answers of some heads depend on, with their sha256."""
    parts = ("backbone/", *(f"heads/{head}." for head in heads))
    return {name: digest for name, digest in stored.manifest["files"].items() if name.startswith(parts)}
