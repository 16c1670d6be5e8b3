"""The model card: a README that says what the model answers, how well, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.data.datasets import CALIBRATION
from nlptasks.heads.base import Head
from nlptasks.metrics.calibration import BINS
from nlptasks.models.manifest import HeadRecord


def model_card(
    info: BackboneInfo, heads: Mapping[str, Head], records: Mapping[str, HeadRecord], logs: Mapping[str, Any]
) -> str:
    """The card of a model.

    Args:
        info: of the backbone.
        heads: its heads.
        records: what is remembered of each.
        logs: how each came to be, as ``training.json`` has it.
    """
    own = [_head_section(name, head, records[name], logs.get(name, {}), info) for name, head in heads.items()]
    what = "A model" if len(heads) == 1 else f"A model with {len(heads)} heads, which answer in one pass,"
    commit = f" at commit `{info.revision}`" if info.revision else ""
    lines = [
        f"# {' + '.join(heads)}",
        "",
        f"{what} on the backbone `{info.source}`{commit}.",
        "",
        *_use(heads),
        *(line for section in own for line in section),
    ]
    return "\n".join(lines)


def _use(heads: Mapping[str, Head]) -> list[str]:
    names = list(heads)
    asked = json.dumps(names[0] if len(names) == 1 else names)
    row = {key: value for head in heads.values() for key, value in head.example_row().items()}
    text = row["text"] if row.keys() == {"text"} else None
    return [
        "## Use",
        "",
        "```python",
        "import nlptasks.pipeline",
        "",
        f'pipe = nlptasks.pipeline.pipeline({asked}, model="THIS FOLDER")',
        f"pipe({json.dumps(text or row)})",
        "```",
        "",
        "Or on the command line: "
        + (f'`nlptasks predict THIS_FOLDER "{text}"`' if text else "`nlptasks predict THIS_FOLDER --input ROWS.jsonl`"),
        "",
    ]


def _head_section(name: str, head: Head, record: HeadRecord, log: Mapping[str, Any], info: BackboneInfo) -> list[str]:
    owns = {0: "", 1: " It owns the top layer of the backbone."}.get(
        record.branch, f" It owns the {record.branch} top layers of the backbone."
    )
    how = "imported" if "imported" in log else "made"
    made = f", {how} with nlptasks {log['nlptasks']} on {log['date'][:10]}" if log else ""
    return [
        f"## Head `{name}`",
        "",
        f"For the task `{record.task}`{made}.{owns}",
        "",
        *([f"Labels: {', '.join(f'`{label}`' for label in head.labels)}", ""] if head.labels else []),
        *(_trained(name, head, log) if "history" in log else _imported(log) if log else []),
    ]


def _trained(name: str, head: Head, log: Mapping[str, Any]) -> list[str]:
    rows = ", ".join(f"{part} {count}" for part, count in log["rows"].items())
    return [
        "### Quality",
        "",
        *_metric_table(log["metrics"], head.main_metric),
        "",
        f"Measured on the weights after epoch {log['kept_epoch']}, the best on dev"
        + (", with thresholds, if it has any, that were fitted on dev")
        + (f"; {log['data']['split']}." if log["data"]["split"] else ".")
        + (f" {log['measured_by']}." if log["measured_by"] else ""),
        "",
        *_together(log),
        *_scores(log),
        "### Training",
        "",
        f"Rows: {rows}. {len(log['history'])} epochs in {log['seconds']} seconds on {log['device']}"
        f" with {log['threads']} threads. All settings, versions and the sha256 of the data stand in `training.json`.",
        "",
    ]


def _together(log: Mapping[str, Any]) -> list[str]:
    """Of heads that learned together, each one's own best, and what it has at the weights that are kept."""
    if len(log["together"]) == 1:
        return []
    kept = log["history"][log["kept_epoch"] - 1]["dev"]
    rows = []
    for other in log["together"]:
        best = max(log["history"], key=lambda epoch: epoch["dev"][other])
        rows.append(f"| {other} | {_number(kept[other])} | {_number(best['dev'][other])} | {best['epoch']} |")
    partners = ", ".join(f"`{other}`" for other in log["together"] if other != log["head"])
    return [
        f"It learned together with {partners}; the weights that "
        "are kept had, when they were evaluated, the best mean over the heads of the main metric on dev, each as a share of "
        "its best so far:",
        "",
        f"| head | after epoch {log['kept_epoch']} | its own best | after epoch |",
        "|---|---:|---:|---:|",
        *rows,
        "",
    ]


def _imported(log: Mapping[str, Any]) -> list[str]:
    return [
        "### Origin",
        "",
        f"All weights are those of `{log['imported']}`, and so are the logits. Its terms and its card hold for this head "
        "too. Scores are probabilities as the checkpoint gives them; they were not calibrated here.",
        "",
    ]


def _scores(log: Mapping[str, Any]) -> list[str]:
    """How far the scores of answers can be believed."""
    errors = {part: values for part, values in log["calibration_error"].items() if values["after"] is not None}
    if not errors:
        return []
    rows = log["rows"].get(CALIBRATION)
    how = f"fitted to {rows} rows held out of train" if rows else "none was fitted: there are fewer than 200 rows"
    return [
        "### Scores",
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
