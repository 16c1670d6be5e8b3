"""Exporting a model to ONNX: one graph `encode` with every head, and those that heads add, proved before they are kept.

Each graph is written by the first engine whose graph gives the model's own numbers, then turned into the precision that is
wanted, and compared with PyTorch again. Whether a precision is good enough is a question of the task: that is asked in the
task's own metric, on data of the user's.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from nlptasks import __version__
from nlptasks.backbone import BackboneInfo
from nlptasks.config import Target, parse_target
from nlptasks.disk import locked, restored, sealed, sha256, sweep, written_beside
from nlptasks.errors import BackendError, ModelError, NlptasksError, UsageError, first_line, listing
from nlptasks.heads.base import Head, further_graphs
from nlptasks.manifest import EXPORTS, REPORT
from nlptasks.measuring import Gold, read_gold
from nlptasks.model import Model, ModelFolder
from nlptasks.parity import Found, Parity, compare, outputs_of, worst
from nlptasks.precisions import PRECISIONS, Precision
from nlptasks.proof import Check, check_all, moves, refuse_drift
from nlptasks.runtime.guarding import OldRuntimeError, check_versions
from nlptasks.runtime.onnx import OnnxRuntime
from nlptasks.runtime.pytorch import TorchRuntime
from nlptasks.tracing import SHAPES, Traceable, bare, engines, traceables, with_one_head
from nlptasks.types import ENCODE

_log = logging.getLogger("nlptasks")

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_TOLERANCE = 1e-4
"""Largest difference of any output between PyTorch and ONNX Runtime in fp32."""


class NotExportableError(BackendError):
    """No engine can export a graph with the model's own numbers."""


@dataclass(frozen=True)
class ExportReport:
    """What an export was made from, and how it compares with PyTorch.

    Attributes:
        precision: of the weights.
        engine: what exported it.
        opset: of the standard's operators.
        device: ``cpu`` or ``cuda``: where it was run to be compared.
        max_difference: largest absolute difference of any output, in the output's own unit, on random tokens.
        differences: the largest of each head's.
        agreement: share of best labels that are the same on these, in 0..1; None where no output has labels.
        shapes: batch and length of the inputs that were compared.
        checks: by head, its metric on both.
        made_from: sha256 of the model's files.
        files: sha256 of the export's files.
    """

    nlptasks: str
    precision: str
    engine: str
    opset: int
    device: str
    max_difference: float
    differences: Mapping[str, float]
    agreement: float | None
    shapes: tuple[tuple[int, int], ...]
    checks: Mapping[str, Check]
    made_from: Mapping[str, str]
    files: Mapping[str, str]

    @property
    def verified(self) -> bool:
        """Whether it was run on the kind of device that it is made for."""
        return PRECISIONS[self.precision].device in (None, self.device)


def export(
    folder: str | Path,
    *,
    precision: str = "fp32",
    checks: Iterable[str | Target] = (),
    split: str | None = None,
    accept_drift: bool = False,
) -> ExportReport:
    """Export the model in a folder into its ``onnx/PRECISION/``, replacing an older export.

    Args:
        folder: the model's.
        precision: ``fp32``; ``fp16``, for GPUs; ``int8``, for CPUs.
        checks: heads and labelled data, as on the command line (``ner=DATA``) or as objects: each head's main metric is
            measured on PyTorch and on the export.
        split: the part of these data, as for `evaluate`.
        accept_drift: whether an export is kept that moves a metric by more than half a point.

    Raises:
        UsageError: unknown precision or head.
        DataError: the data to be checked on cannot be used.
        ModelError: the folder is no model, or cannot be written to.
        BackendError: no engine can export it with the model's own numbers, the installed ONNX Runtime is too old for the
            graph, or a metric moves too far.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r}", "is unknown", f"take one of {listing(PRECISIONS)}")
    stored = ModelFolder.open(folder)
    model = stored.model()
    gold = _gold(stored, model, checks, split)
    target = stored.path / EXPORTS / precision
    with _sole_writer(target), contextlib.ExitStack() as stack, _written(stored, target) as place:
        exported = _export_graphs(model, place, PRECISIONS[precision])
        runtime = _opened(model, place, PRECISIONS[precision])
        found = check_all(model, stored.tokenizer(), runtime, gold)
        if not accept_drift:
            refuse_drift(f"{stored.path} in {precision}", found, older=precision in stored.exports)
        parity = worst(one for _, one in exported)
        report = ExportReport(
            nlptasks=__version__,
            precision=precision,
            engine=", ".join(dict.fromkeys(engine for engine, _ in exported)),
            opset=_opset(place / _file(ENCODE)),
            device=runtime.device,
            max_difference=parity.max_difference,
            differences=parity.differences,
            agreement=parity.agreement,
            shapes=(*SHAPES, (1, model.backbone.info.max_tokens)),
            checks=found,
            made_from=_ingredients(stored, stored.records),
            files={path.name: sha256(path) for path in sorted(place.iterdir())},
        )
        (place / REPORT).write_bytes(sealed(asdict(report)))
        stack.enter_context(locked(stored.path, ModelError))  # let go when the folder has its name
        if ModelFolder.open(folder).manifest != stored.manifest:
            raise _changed(stored)
    return report


@contextlib.contextmanager
def _sole_writer(target: Path) -> Iterator[None]:
    """Keep others from exporting to the same place, and clear up what those have left who were killed.

    The model itself is locked in the end only: others may add heads to it meanwhile, and wait for hours to do so.
    """
    with locked(target, ModelError):
        restored(target)
        sweep(target)
        yield


@contextlib.contextmanager
def _written(stored: ModelFolder, target: Path) -> Iterator[Path]:
    """A folder to write an export in; if that is gone, who edited the model has replaced all of it, and this is said."""
    with written_beside(target, ModelError) as place:
        try:
            yield place
        except (OSError, NlptasksError) as error:
            if place.exists():
                raise
            raise _changed(stored) from error
        if not place.exists():
            raise _changed(stored)


def _changed(stored: ModelFolder) -> ModelError:
    return ModelError(str(stored.path), "was changed while it was exported", "export it again")


def export_graph(graph: Traceable, path: Path, precision: Precision) -> tuple[str, Parity]:
    """Write one graph: the name of the engine, and how it compares with PyTorch.

    Raises:
        BackendError: no engine writes it with the model's own numbers, or ONNX Runtime is too old for it.
    """
    expected = outputs_of(TorchRuntime({graph.name: graph.module}, torch.device("cpu")), graph)
    failures = []
    for engine in engines(precision.fusions):
        try:
            engine(graph, path)
            check_versions(onnx.load(path, load_external_data=False), f"what {engine.name} writes")
            return engine.name, _proved(graph, path, precision, expected)
        except (OSError, MemoryError, OldRuntimeError):  # with another engine it would not go better
            raise
        except Exception as error:  # exporters, converters and runtimes raise whatever their many parts raise
            failures.append(f"{engine.name}: {_reason(error)}")
        _log.info("export of %s: %s", graph.name, failures[-1])
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
    problem = f"cannot be exported in {precision.name} ({'; '.join(failures)})"
    fix = "take another precision, or run it on PyTorch" if precision.convert else "run it on PyTorch"
    raise NotExportableError(f"the graph {graph.name}", problem, fix)


def _reason(error: BaseException) -> str:
    """What an error goes back to, in a line without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    said: str = error.problem if isinstance(error, BackendError) else first_line(error)
    return _COLOURS.sub("", said)[:200]


def _proved(graph: Traceable, path: Path, precision: Precision, expected: Found) -> Parity:
    """How a graph that was just written compares with PyTorch, in the end; in fp32 it must give the same.

    Raises:
        ValueError: it gives other numbers, or none.
    """
    parity = _parity(graph, path, expected, device="cpu")
    if not parity.max_difference <= _TOLERANCE:
        raise ValueError(f"outputs differ by {parity.max_difference:.1e}")
    if precision.convert:
        precision.convert(path)
        parity = _parity(graph, path, expected, device=_device(precision))
        if not np.isfinite(parity.max_difference):
            raise ValueError(f"outputs in {precision.name} are no numbers")
    return parity


def _parity(graph: Traceable, path: Path, expected: Found, *, device: str) -> Parity:
    runtime = OnnxRuntime({graph.name: path}, device=device, precision="")
    return compare(graph, expected, outputs_of(runtime, graph))


def _device(precision: Precision) -> str:
    """Where an export is run to be compared: what is made for CUDA there, if it is there."""
    return "auto" if precision.device == "cuda" else "cpu"


def _export_graphs(model: Model, place: Path, precision: Precision) -> list[tuple[str, Parity]]:
    """Write every graph of a model.

    Raises:
        BackendError: one cannot be exported; a head that alone is to blame is named.
    """
    exported = []
    for name, graph in traceables(model).items():
        _log.info("exporting %s in %s", name, precision.name)
        try:
            exported.append(export_graph(graph, place / _file(name), precision))
        except NotExportableError as error:
            raise _blamed(model, graph, precision, error) from error
    return exported


def _blamed(model: Model, graph: Traceable, precision: Precision, error: BackendError) -> BackendError:
    """The error with the name of what cannot be exported: a head, if the backbone can be without it, else that."""
    kind = model.backbone.info.config.model_type
    heads = _culprits(model, precision) if graph.name == ENCODE else [graph.name.partition(".")[0]]
    where = f"the head {listing(heads)}" if heads else f"the architecture {kind}"
    return NotExportableError(where, error.problem, error.fix)


def _culprits(model: Model, precision: Precision) -> list[str]:
    """The heads that cannot be exported, each alone; none if the backbone cannot."""
    if not _is_exportable(bare(model), precision):
        return []
    return [name for name in model.heads if not _is_exportable(with_one_head(model, name), precision)]


def _is_exportable(model: Model, precision: Precision) -> bool:
    with tempfile.TemporaryDirectory() as place:
        try:
            export_graph(traceables(model)[ENCODE], Path(place) / _file(ENCODE), precision)
        except NotExportableError:
            return False
    return True


def _opened(model: Model, place: Path, precision: Precision) -> OnnxRuntime:
    """The runtime of what was just written, and it opens for each head alone, too."""
    info, device = model.backbone.info, _device(precision)
    for name, head in model.heads.items() if len(model.heads) > 1 else ():
        _open(place, {name: head}, info, precision=precision.name, device=device)
    return _open(place, model.heads, info, precision=precision.name, device=device)


def _gold(stored: ModelFolder, model: Model, checks: Iterable[str | Target], split: str | None) -> list[Gold]:
    """The labelled examples of the heads that are to be checked, read before the long work begins."""
    targets = [parse_target(check) if isinstance(check, str) else check for check in checks]
    names = [stored.head_name(target.name) for target in targets]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise UsageError(f"the check of {double}", "is given twice", "give each head one data set")
    return [
        read_gold(target, name, model.heads[name], split=split) for target, name in zip(targets, names, strict=True)
    ]


def open_export(stored: ModelFolder, heads: Mapping[str, Head], *, precision: str, device: str) -> OnnxRuntime:
    """The runtime of a model's export, with the outputs of some heads.

    Args:
        stored: the model.
        heads: whose outputs are wanted, by name.
        precision: of the export.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ModelError: there is no such export, or it is stale.
        BackendError: the device cannot be had.
    """
    problem = export_problem(stored, precision, heads)
    if problem:
        given = "" if precision == "fp32" else f" --precision {precision}"
        raise ModelError(str(stored.path), problem, f"run: nlptasks export {stored.path}{given}")
    return _open(stored.path / EXPORTS / precision, heads, stored.backbone_info(), precision=precision, device=device)


def _open(place: Path, heads: Mapping[str, Head], info: BackboneInfo, *, precision: str, device: str) -> OnnxRuntime:
    """The runtime of the graphs in a folder, with the outputs of some heads."""
    graphs = further_graphs(heads)
    runtime = OnnxRuntime(
        {graph: place / _file(graph) for graph in [ENCODE, *graphs]},
        device=device,
        precision=precision,
        wanted=lambda output: "." not in output or output.partition(".")[0] in heads,
        limits={ENCODE: info.limits, **{name: graph.limits for name, graph in graphs.items()}},
    )
    missing = {f"{name}.{output}" for name, head in heads.items() for output in head.outputs} - runtime.outputs(ENCODE)
    if missing:
        raise BackendError(str(place), f"does not give {listing(sorted(missing))}", "export the model again")
    return runtime


def _file(graph: str) -> str:
    return f"{'model' if graph == ENCODE else graph}.onnx"


def _opset(path: Path) -> int:
    """Of the standard's operators."""
    model = onnx.load(path, load_external_data=False)
    return next(int(found.version) for found in model.opset_import if found.domain in ("", "ai.onnx"))


def untaken(stored: ModelFolder, precision: str, heads: Collection[str]) -> str | None:
    """Why an export is not taken unless it is named, beside that there is no usable one; None if it may be.

    fp32 gives the model's own numbers; fp16 may be taken where it was compared with them on a GPU, and moved no metric of these
    heads by more than half a point.
    """
    reason = doubt(stored, precision, heads)
    if reason:
        return f"is taken only if it is named: it {reason}"
    return "is taken only if it is named" if PRECISIONS[precision].on_request else None


def doubt(stored: ModelFolder, precision: str, heads: Collection[str]) -> str | None:
    """What speaks against an export, as far as it was proved; None if nothing does, or there is none."""
    kind, report = PRECISIONS[precision], stored.exports.get(precision)
    if report is None:
        return None
    if kind.device not in (None, report["device"]):
        return f"was not compared with PyTorch on {kind.device}"
    moved = [name for name, check in report["checks"].items() if name in heads and moves(check["points"])]
    return f"moves the metric of {listing(moved)}" if moved else None


def export_problem(stored: ModelFolder, precision: str, heads: Collection[str]) -> str | None:
    """Why there is no usable export of these heads in this precision; None if there is one."""
    report = stored.exports.get(precision)
    if report is None:
        return f"has no ONNX export in {precision} (made are: {listing(sorted(stored.exports))})"
    stale = [head for head in heads if not _ingredients(stored, [head]).items() <= report["made_from"].items()]
    if stale:
        return f"has a stale ONNX export in {precision}: the model has changed since, for {listing(stale)}"
    return None


def _ingredients(stored: ModelFolder, heads: Iterable[str]) -> dict[str, str]:
    """The files that the answers of these heads are a function of, and their sha256."""
    parts = ("backbone/", *(f"heads/{head}." for head in heads))
    return {name: digest for name, digest in stored.manifest["files"].items() if name.startswith(parts)}
