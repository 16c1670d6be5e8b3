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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from nlptasks.config import Target, parse_target
from nlptasks.errors import BackendError, ModelError, NlptasksError, UsageError, first_line, listing
from nlptasks.exporting.drift import Check, check_all, refuse_drift
from nlptasks.exporting.opening import graph_file, ingredients, open_graphs
from nlptasks.exporting.parity import Found, Parity, compare, outputs_of, worst
from nlptasks.exporting.precisions import PRECISIONS, Precision
from nlptasks.exporting.tracing import SHAPES, Traceable, bare, engines, traceables, with_one_head
from nlptasks.inference.scoring import Gold, read_gold
from nlptasks.models.manifest import EXPORTS, REPORT
from nlptasks.models.model import Model, ModelFolder
from nlptasks.runtimes.base import ENCODE
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.onnx_validation import OldRuntimeError, check_versions
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.storage.atomic import locked, restored, sealed, sha256, sweep, written_beside
from nlptasks.version import __version__

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
            opset=_opset(place / graph_file(ENCODE)),
            device=runtime.device,
            max_difference=parity.max_difference,
            differences=parity.differences,
            agreement=parity.agreement,
            shapes=(*SHAPES, (1, model.backbone.info.max_tokens)),
            checks=found,
            made_from=ingredients(stored, stored.records),
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
            exported.append(export_graph(graph, place / graph_file(name), precision))
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
            export_graph(traceables(model)[ENCODE], Path(place) / graph_file(ENCODE), precision)
        except NotExportableError:
            return False
    return True


def _opened(model: Model, place: Path, precision: Precision) -> OnnxRuntime:
    """The runtime of what was just written, and it opens for each head alone, too."""
    info, device = model.backbone.info, _device(precision)
    for name, head in model.heads.items() if len(model.heads) > 1 else ():
        open_graphs(place, {name: head}, info, precision=precision.name, device=device)
    return open_graphs(place, model.heads, info, precision=precision.name, device=device)


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


def _opset(path: Path) -> int:
    """Of the standard's operators."""
    model = onnx.load(path, load_external_data=False)
    return next(int(found.version) for found in model.opset_import if found.domain in ("", "ai.onnx"))
