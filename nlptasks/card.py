"""The model card: a README that says what the model answers, how well, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nlptasks.model import Model


def model_card(model: Model, log: Mapping[str, Any]) -> str:
    """The card of a model that was just trained.

    Args:
        model: the model.
        log: what ``training.json`` says.
    """
    name = log["head"]
    head = model.heads[name]
    info = model.backbone.info
    rows = ", ".join(f"{part} {count}" for part, count in log["rows"].items())
    lines = [
        f"# {name}",
        "",
        f"A model for the task `{log['task']}` on the backbone `{info.source}`"
        + (f" at commit `{info.revision}`" if info.revision else "")
        + f", made with nlptasks {log['nlptasks']} on {log['date'][:10]}.",
        "",
        f"Labels: {', '.join(f'`{label}`' for label in head.labels)}",
        "",
        "## Use",
        "",
        "```python",
        "import nlptasks.pipeline",
        "",
        f'pipe = nlptasks.pipeline.pipeline("{name}", model="THIS FOLDER")',
        'pipe("A text.")',
        "```",
        "",
        'Or on the command line: `nlptasks predict THIS_FOLDER "A text."`',
        "",
        "## Quality",
        "",
        *_metric_table(log["metrics"], head.main_metric),
        "",
        "Measured on the weights of the best epoch on dev"
        + (f"; {log['data']['split']}." if log["data"]["split"] else "."),
        "",
        "## Training",
        "",
        f"Rows: {rows}. {len(log['history'])} epochs in {log['seconds']} seconds on {log['device']}"
        f" with {log['threads']} threads. All settings, versions and the sha256 of the data stand in `training.json`.",
        "",
    ]
    return "\n".join(lines)


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
