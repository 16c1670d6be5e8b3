"""The model card: a README that says what the model answers, how well, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nlptasks import __version__
from nlptasks.data import CALIBRATION
from nlptasks.model import Model
from nlptasks.probabilities import BINS


def model_card(model: Model, log: Mapping[str, Any]) -> str:
    """The card of a model that was just trained.

    Args:
        model: the model.
        log: what ``training.json`` says.
    """
    name = log["head"]
    rows = ", ".join(f"{part} {count}" for part, count in log["rows"].items())
    return _card(
        model,
        name,
        made=f"made with nlptasks {log['nlptasks']} on {log['date'][:10]}",
        sections=[
            "## Quality",
            "",
            *_metric_table(log["metrics"], model.heads[name].main_metric),
            "",
            "Measured on the weights of the best epoch on dev, with thresholds, if it has any, that were fitted on dev"
            + (f"; {log['data']['split']}." if log["data"]["split"] else ".")
            + (f" {log['measured_by']}." if log["measured_by"] else ""),
            "",
            *_scores(log),
            "## Training",
            "",
            f"Rows: {rows}. {len(log['history'])} epochs in {log['seconds']} seconds on {log['device']}"
            f" with {log['threads']} threads. All settings, versions and the sha256 of the data stand in `training.json`.",
        ],
    )


def imported_card(model: Model, name: str) -> str:
    """The card of a model that was imported from somebody's checkpoint."""
    return _card(
        model,
        name,
        made=f"imported with nlptasks {__version__}",
        sections=[
            "## Origin",
            "",
            f"All weights are those of `{model.backbone.info.source}`, and so are the logits. Its terms and its card hold for "
            "this model too. Scores are probabilities as the checkpoint gives them; they were not calibrated here.",
        ],
    )


def _card(model: Model, name: str, *, made: str, sections: Sequence[str]) -> str:
    head, info = model.heads[name], model.backbone.info
    row = head.example_row()
    text = row["text"] if row.keys() == {"text"} else None
    task = model.records[name].task
    lines = [
        f"# {name}",
        "",
        f"A model for the task `{task}` on the backbone `{info.source}`"
        + (f" at commit `{info.revision}`" if info.revision else "")
        + f", {made}.",
        "",
        *([f"Labels: {', '.join(f'`{label}`' for label in head.labels)}", ""] if head.labels else []),
        "## Use",
        "",
        "```python",
        "import nlptasks.pipeline",
        "",
        f'pipe = nlptasks.pipeline.pipeline("{name}", model="THIS FOLDER")',
        f"pipe({json.dumps(text or row)})",
        "```",
        "",
        "Or on the command line: "
        + (f'`nlptasks predict THIS_FOLDER "{text}"`' if text else "`nlptasks predict THIS_FOLDER --input ROWS.jsonl`"),
        "",
        *sections,
        "",
    ]
    return "\n".join(lines)


def _scores(log: Mapping[str, Any]) -> list[str]:
    """How far the scores of answers can be believed."""
    errors = {part: values for part, values in log["calibration_error"].items() if values["after"] is not None}
    if not errors:
        return []
    rows = log["rows"].get(CALIBRATION)
    how = f"fitted to {rows} rows held out of train" if rows else "none was fitted: there are fewer than 200 rows"
    return [
        "## Scores",
        "",
        f"Scores are probabilities at a temperature ({how}). Expected calibration error, {BINS} bins, before and after:",
        "",
        "| part | before | after |",
        "|---|---:|---:|",
        *(f"| {part} | {_number(own['before'])} | {_number(own['after'])} |" for part, own in errors.items()),
        "",
    ]


def _metric_table(metrics: Mapping[str, Mapping[str, float]], main: str) -> list[str]:
    """Rows are parts of the data and labels, columns are metrics; the main metric comes first."""
    columns: list[str] = []
    table: dict[tuple[str, str], dict[str, float]] = {}
    for part, values in metrics.items():
        for key, value in values.items():
            label, _, metric = key.rpartition(".")
            table.setdefault((part, label), {})[metric] = value
            if metric not in columns:
                columns.append(metric)
    columns.sort(key=lambda metric: metric != main)
    return [
        f"| part | label | {' | '.join(columns)} |",
        f"|---|---|{'---:|' * len(columns)}",
        *(
            f"| {part} | {label or 'all'} | {' | '.join(_number(values.get(metric)) for metric in columns)} |"
            for (part, label), values in table.items()
        ),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if value > 1 else f"{value:.4f}"
