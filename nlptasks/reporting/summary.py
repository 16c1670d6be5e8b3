"""The parts of a model: its backbone, heads and exports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.sources import auto_skip_reason, export_problem
from nlptasks.models.editing import read_logs
from nlptasks.models.folder import ModelFolder
from nlptasks.types import Result


@dataclass(frozen=True)
class HeadSummary(Result):
    """A head of a model.

    Attributes:
        task: its task.
        own_layers: number of the backbone's top layers that it owns copies of.
        bytes: size of its weights on disk.
        labels: the labels that it can give; empty if the answer is open.
        main_metric: the metric that training maximised; empty if it was not trained here.
        metrics: metrics by part of the data.
        problem: why it cannot be used, such as a package that is not installed; empty if it can.
    """

    task: str
    own_layers: int
    bytes: int
    labels: tuple[str, ...]
    main_metric: str
    metrics: Mapping[str, Mapping[str, float]]
    problem: str


@dataclass(frozen=True)
class ModelSummary(Result):
    """The parts of a model.

    Attributes:
        folder: its folder.
        nlptasks: version of the library that wrote it.
        backbone: hub name or folder of the backbone.
        layers: layers of the backbone; 0 if it has no list of layers.
        max_tokens: tokens in a window.
        bytes: size of the backbone on disk.
        heads: the heads, by name.
        exports: the state of the ONNX export in each precision, in words.
    """

    folder: str
    nlptasks: str
    backbone: str
    layers: int
    max_tokens: int
    bytes: int
    heads: Mapping[str, HeadSummary]
    exports: Mapping[str, str]


def show(model: str | Path) -> ModelSummary:
    """Return the parts of a model.

    Raises:
        ModelError: the folder is no model, or is damaged.
    """
    from nlptasks.backbones.architecture import hf_config  # imports transformers

    stored = ModelFolder.open(model)
    backbone = stored.backbone_info()
    logs = read_logs(stored)
    return ModelSummary(
        folder=str(stored.path),
        nlptasks=stored.manifest["nlptasks"],
        backbone=backbone.source,
        layers=int(getattr(hf_config(backbone), "num_hidden_layers", 0)),
        max_tokens=backbone.max_tokens,
        bytes=_size(stored.path / "backbone"),
        heads={name: _head(stored, name, str(logs.get(name, {}).get("main_metric", ""))) for name in stored.records},
        exports={precision: _export(stored, precision) for precision in PRECISIONS},
    )


def _head(stored: ModelFolder, name: str, main_metric: str) -> HeadSummary:
    record, problem = stored.records[name], stored.problem_of(name)
    return HeadSummary(
        task=record.task,
        own_layers=record.branch,
        bytes=_size(stored.path / "heads" / f"{name}.safetensors"),
        labels=() if problem else stored.heads([name])[name].presenter.labels,
        main_metric=main_metric,
        metrics=record.metrics,
        problem=str(problem) if problem else "",
    )


def _export(stored: ModelFolder, precision: str) -> str:
    """Return the state of an export: why it cannot be used, or its checks."""
    heads = list(stored.records)
    if problem := export_problem(stored, precision, heads):
        return problem
    checks = ", ".join(
        f"{head} {check['metric']} {check['exported']:.4f} ({check['points']:+.2f} points on {check['rows']} rows)"
        for head, check in stored.exports[precision]["checks"].items()
    )
    parts = ("fresh", checks or "checked on no data", auto_skip_reason(stored, precision, heads))
    return ", ".join(filter(None, parts))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
