"""Opening an export of a model, and what speaks against one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.errors import BackendError, ModelError, listing
from nlptasks.exporting.drift import moves
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.heads.base import Head, further_graphs
from nlptasks.models.manifest import EXPORTS
from nlptasks.models.model import ModelFolder
from nlptasks.runtimes.base import ENCODE
from nlptasks.runtimes.onnx import OnnxRuntime


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
    return open_graphs(
        stored.path / EXPORTS / precision, heads, stored.backbone_info(), precision=precision, device=device
    )


def open_graphs(
    place: Path, heads: Mapping[str, Head], info: BackboneInfo, *, precision: str, device: str
) -> OnnxRuntime:
    """The runtime of the graphs in a folder, with the outputs of some heads."""
    graphs = further_graphs(heads)
    runtime = OnnxRuntime(
        {graph: place / graph_file(graph) for graph in [ENCODE, *graphs]},
        device=device,
        precision=precision,
        wanted=lambda output: "." not in output or output.partition(".")[0] in heads,
        limits={ENCODE: info.limits, **{name: graph.limits for name, graph in graphs.items()}},
    )
    missing = {f"{name}.{output}" for name, head in heads.items() for output in head.outputs} - runtime.outputs(ENCODE)
    if missing:
        raise BackendError(str(place), f"does not give {listing(sorted(missing))}", "export the model again")
    return runtime


def graph_file(graph: str) -> str:
    return f"{'model' if graph == ENCODE else graph}.onnx"


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
    stale = [head for head in heads if not ingredients(stored, [head]).items() <= report["made_from"].items()]
    if stale:
        return f"has a stale ONNX export in {precision}: the model has changed since, for {listing(stale)}"
    return None


def ingredients(stored: ModelFolder, heads: Iterable[str]) -> dict[str, str]:
    """The files that the answers of these heads are a function of, and their sha256."""
    parts = ("backbone/", *(f"heads/{head}." for head in heads))
    return {name: digest for name, digest in stored.manifest["files"].items() if name.startswith(parts)}
