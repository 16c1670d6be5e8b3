"""Exporting a model to ONNX: one graph `encode` with every head, and the further graphs of networks.

Each graph is written by the first engine whose result agrees with PyTorch, then converted to the wanted precision and compared
with PyTorch again. Whether a precision is good enough depends on the task, so each head's main metric can be checked on
labelled data.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from nlptasks.config import Target, parse_target
from nlptasks.errors import BackendError, ModelError, NlptasksError, UsageError, first_line, listing
from nlptasks.exporting.drift import Check, check_all, refuse_drift
from nlptasks.exporting.parity import Found, Parity, compare, outputs_of, worst
from nlptasks.exporting.precisions import PRECISIONS, Precision
from nlptasks.exporting.sources import ingredients
from nlptasks.exporting.tracing import SHAPES, Traceable, bare, engines, traceables, with_one_head
from nlptasks.inference.engine import Engine
from nlptasks.inference.scoring import GoldData, load_gold
from nlptasks.models.folder import ModelFolder
from nlptasks.models.manifest import EXPORTS, REPORT, graph_file
from nlptasks.models.model import Model, load_model
from nlptasks.runtimes.base import ENCODE, GraphSpec, Runtime, head_in
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import TorchRuntime, open_torch
from nlptasks.storage.atomic import locked, restored, sealed, sha256, sweep, written_beside
from nlptasks.types import Result
from nlptasks.version import __version__

_log = logging.getLogger("nlptasks")

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_TOLERANCE = 1e-4
"""Largest difference of any output between PyTorch and ONNX Runtime in fp32."""


class NotExportableError(BackendError):
    """No engine can export a graph that agrees with PyTorch."""


@dataclass(frozen=True)
class ExportReport(Result):
    """How an export was made, and how it compares with PyTorch.

    Attributes:
        nlptasks: version of the library.
        precision: of the weights.
        engine: engines that traced the graphs.
        opset: version of ONNX's standard operators.
        device: device it was compared on, ``cpu`` or ``cuda``.
        max_difference: largest absolute difference of any output for random tokens, in the output's own unit.
        differences: the largest difference by head.
        agreement: fraction of the tokens with the same best label, in 0..1; None if no output has labels.
        shapes: batch size and length of the inputs that were compared.
        checks: by head, its main metric before and after.
        outputs: for each head the outputs of its network and their axes.
        graphs: the inputs of each graph.
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
    outputs: Mapping[str, Mapping[str, str]]
    graphs: Mapping[str, GraphSpec]
    made_from: Mapping[str, str]
    files: Mapping[str, str]

    @property
    def verified(self) -> bool:
        """True if it was compared on the kind of device that it is made for."""
        return PRECISIONS[self.precision].suits(self.device)


def export(
    folder: str | Path,
    *,
    precision: str = "fp32",
    checks: Iterable[str | Target] = (),
    split: str | None = None,
    accept_drift: bool = False,
) -> ExportReport:
    """Export the model in a folder to its ``onnx/PRECISION/``, replacing an older export.

    Args:
        folder: the model folder.
        precision: ``fp32``; ``fp16``, for GPUs; ``int8``, for CPUs.
        checks: heads with labelled data, as on the command line (``ner=DATA``) or as objects: each head's main metric is
            measured on PyTorch and on the export.
        split: the part of these data, as for `evaluate`.
        accept_drift: True to keep an export that changes a metric by more than half a point.

    Raises:
        UsageError: unknown precision or head.
        DataError: the labelled data cannot be used.
        ModelError: the folder is no model, or cannot be written to.
        BackendError: no engine can export it so that it agrees with PyTorch, or a metric changes too much.
    """
    if precision not in PRECISIONS:
        fix = f"use one of {listing(PRECISIONS)}"
        raise UsageError(f"precision {precision!r}", "is unknown", fix, argument="precision")
    stored, model = ModelFolder.read(folder, lambda stored: (stored, load_model(stored)))
    gold = _gold(stored, model, checks, split)
    target = stored.path / EXPORTS / precision
    with _sole_writer(target), contextlib.ExitStack() as stack, _written(stored, target) as place:
        graphs = traceables(model)
        exported = _export_graphs(model, graphs, place, PRECISIONS[precision])
        runtime = _opened(model, graphs, place, PRECISIONS[precision])
        found = _checks(stored, model, runtime, gold)
        if not accept_drift:
            refuse_drift(f"{stored.path} in {precision}", found, older=precision in stored.exports)
        parity = worst(one for _, one in exported)
        report = ExportReport(
            nlptasks=__version__,
            precision=precision,
            engine=", ".join(dict.fromkeys(engine for engine, _ in exported)),
            opset=_opset(place / graph_file(ENCODE)),
            device=runtime.device,
            max_difference=parity.max_difference,
            differences=parity.differences,
            agreement=parity.agreement,
            shapes=(*SHAPES, (1, model.backbone.info.max_tokens)),
            checks=found,
            outputs=model.outputs,
            graphs={name: graph.spec for name, graph in graphs.items()},
            made_from=ingredients(stored, stored.records),
            files={path.name: sha256(path) for path in sorted(place.iterdir())},
        )
        (place / REPORT).write_bytes(sealed(asdict(report)))
        stack.enter_context(locked(stored.path, ModelError))  # released when the folder has its name
        if ModelFolder.open(folder).manifest != stored.manifest:
            raise _changed(stored)
    return report


@contextlib.contextmanager
def _sole_writer(target: Path) -> Iterator[None]:
    """Keep other processes from exporting to the same place, and remove what killed ones left there.

    The model itself is only locked at the end: an export may take long, and others may add heads meanwhile.
    """
    with locked(target, ModelError):
        restored(target)
        sweep(target)
        yield


@contextlib.contextmanager
def _written(stored: ModelFolder, target: Path) -> Iterator[Path]:
    """Return a folder to write an export into. If it disappears, another process has replaced the whole model."""
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
    return ModelError(str(stored.path), "was changed during the export", "export it again")


def export_graph(graph: Traceable, path: Path, precision: Precision) -> tuple[str, Parity]:
    """Write one graph, and return the engine's name and the comparison with PyTorch.

    Raises:
        BackendError: no engine writes a graph that agrees with PyTorch.
    """
    expected = outputs_of(TorchRuntime({graph.name: graph.module}, torch.device("cpu")), graph)
    failures = []
    for engine in engines(precision.fusions):
        try:
            engine(graph, path)
            return engine.name, _verified(graph, path, precision, expected)
        except (OSError, MemoryError):  # another engine would fail, too
            raise
        except Exception as error:  # exporters, converters and runtimes raise anything
            failures.append(f"{engine.name}: {_reason(error)}")
        _log.info("export of %s: %s", graph.name, failures[-1])
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
    problem = f"cannot be exported in {precision.name} ({'; '.join(failures)})"
    fix = "use another precision, or PyTorch" if precision.convert else "use PyTorch"
    raise NotExportableError(f"the graph {graph.name}", problem, fix)


def _reason(error: BaseException) -> str:
    """Return the cause of an error in one line without colours."""
    while error.__cause__ is not None and not isinstance(error, BackendError):
        error = error.__cause__
    said: str = error.problem if isinstance(error, BackendError) else first_line(error)
    return _COLOURS.sub("", said)[:200]


def _verified(graph: Traceable, path: Path, precision: Precision, expected: Found) -> Parity:
    """Compare a new graph with PyTorch, convert it, and return the comparison of the result.

    Raises:
        ValueError: the outputs differ in fp32, or are not finite.
    """
    parity = _parity(graph, path, expected, device="cpu")
    if not parity.max_difference <= _TOLERANCE:
        raise ValueError(f"outputs differ by {parity.max_difference:.1e}")
    if precision.convert:
        precision.convert(path)
        parity = _parity(graph, path, expected, device=_device(precision))
        if not np.isfinite(parity.max_difference):
            raise ValueError(f"outputs in {precision.name} are not finite")
    return parity


def _parity(graph: Traceable, path: Path, expected: Found, *, device: str) -> Parity:
    runtime = OnnxRuntime({graph.name: path}, device=device, precision="")
    return compare(graph, expected, outputs_of(runtime, graph))


def _device(precision: Precision) -> str:
    """Return the device to compare an export on: CUDA, if it is made for it and it is there."""
    return "cpu" if precision.suits("cpu") else "auto"


def _export_graphs(
    model: Model, graphs: Mapping[str, Traceable], place: Path, precision: Precision
) -> list[tuple[str, Parity]]:
    """Write every graph of a model.

    Raises:
        BackendError: a graph cannot be exported; it names the heads that cause it.
    """
    exported = []
    for name, graph in graphs.items():
        _log.info("exporting %s in %s", name, precision.name)
        try:
            exported.append(export_graph(graph, place / graph_file(name), precision))
        except NotExportableError as error:
            raise _with_culprit(model, graph, precision, error) from error
    return exported


def _with_culprit(model: Model, graph: Traceable, precision: Precision, error: BackendError) -> BackendError:
    """Return the error with the name of what cannot be exported: heads, or the architecture if it fails without them."""
    head = head_in(graph.name)
    heads = [head] if head else _culprits(model, precision)
    where = f"the head {listing(heads)}" if heads else f"the architecture {model.backbone.info.architecture}"
    return NotExportableError(where, error.problem, error.fix)


def _culprits(model: Model, precision: Precision) -> list[str]:
    """Return the heads that cannot be exported, each alone; none if the backbone cannot."""
    if not _is_exportable(bare(model), precision):
        return []
    return [name for name in model.heads if not _is_exportable(with_one_head(model, name), precision)]


def _is_exportable(model: Model, precision: Precision) -> bool:
    with tempfile.TemporaryDirectory() as place:
        try:
            export_graph(traceables(model)[ENCODE], Path(place) / graph_file(ENCODE), precision)
        except NotExportableError:
            return False
    return True


def _opened(model: Model, graphs: Mapping[str, Traceable], place: Path, precision: Precision) -> OnnxRuntime:
    """Return a runtime of a new export, after it was opened for each head alone."""
    files = {name: place / graph_file(name) for name in graphs}
    specs = {name: graph.spec for name, graph in graphs.items()}

    def opened(heads: Iterable[str]) -> OnnxRuntime:
        return OnnxRuntime(
            files,
            device=_device(precision),
            precision=precision.name,
            outputs=model.outputs,
            specs=specs,
            heads=list(heads),
        )

    for name in model.heads if len(model.heads) > 1 else ():
        opened([name])
    return opened(model.heads)


def _checks(stored: ModelFolder, model: Model, runtime: Runtime, gold: list[GoldData]) -> dict[str, Check]:
    """Measure heads on PyTorch and on the export; the model can only be used for inference afterwards."""
    if not gold:
        return {}
    reference = open_torch(model.graphs(), "cpu", outputs=model.outputs)
    before, after = (Engine(model.heads, stored.tokenizer(), one, model.backbone.info) for one in (reference, runtime))
    return check_all(before, after, gold)


def _gold(stored: ModelFolder, model: Model, checks: Iterable[str | Target], split: str | None) -> list[GoldData]:
    """Return the labelled examples of the heads to check, which are read before the long work starts."""
    targets = [parse_target(check) if isinstance(check, str) else check for check in checks]
    names = [stored.head_name(target.name) for target in targets]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise UsageError(f"the check of {double}", "is given twice", "give each head one data set")
    return [
        load_gold(target, name, model.heads[name], split=split) for target, name in zip(targets, names, strict=True)
    ]


def _opset(path: Path) -> int:
    """Return the version of the standard operators in a graph."""
    model = onnx.load(path, load_external_data=False)
    return next(int(found.version) for found in model.opset_import if found.domain in ("", "ai.onnx"))
