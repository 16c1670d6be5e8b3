"""The model card: a README with what the model does, its metrics, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nlptasks.backbones.info import BackboneInfo
from nlptasks.data.datasets import CALIBRATION
from nlptasks.heads.base import AnyHead
from nlptasks.metrics.calibration import BINS
from nlptasks.models.manifest import HeadRecord


def model_card(
    info: BackboneInfo, heads: Mapping[str, AnyHead], records: Mapping[str, HeadRecord], logs: Mapping[str, Any]
) -> str:
    """Return the card of a model.

    Args:
        info: facts about the backbone.
        heads: the heads.
        records: the record of each head.
        logs: how each head was made, as in ``training.json``.
    """
    own = [_head_section(name, head, records[name], logs.get(name, {})) for name, head in heads.items()]
    what = "A model" if len(heads) == 1 else f"A model with {len(heads)} heads, which run in one pass,"
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


def _use(heads: Mapping[str, AnyHead]) -> list[str]:
    names = list(heads)
    asked = json.dumps(names[0] if len(names) == 1 else names)
    row = {key: value for head in heads.values() for key, value in head.presenter.example_row().items()}
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


def _head_section(name: str, head: AnyHead, record: HeadRecord, log: Mapping[str, Any]) -> list[str]:
    owns = {0: "", 1: " It owns the top layer of the backbone."}.get(
        record.branch, f" It owns the {record.branch} top layers of the backbone."
    )
    how = "imported" if "imported" in log else "trained"
    made = f", {how} with nlptasks {log['nlptasks']} on {log['date'][:10]}" if log else ""
    labels = ", ".join(f"`{label}`" for label in head.presenter.labels)
    return [
        f"## Head `{name}`",
        "",
        f"For the task `{record.task}`{made}.{owns}",
        "",
        *([f"Labels: {labels}", ""] if labels else []),
        *(_trained(log) if "history" in log else _imported(log) if log else []),
    ]


def _trained(log: Mapping[str, Any]) -> list[str]:
    rows = ", ".join(f"{part} {count}" for part, count in log["rows"].items())
    return [
        "### Quality",
        "",
        *_metric_table(log["metrics"], log["main_metric"]),
        "",
        f"Measured on the weights after epoch {log['kept_epoch']}, the best on dev, with thresholds (if any) that were fitted on "
        "dev"
        + (f"; {log['data']['split']}." if log["data"]["split"] else ".")
        + (f" {log['signature']}." if log["signature"] else ""),
        "",
        *_together(log),
        *_scores(log),
        "### Training",
        "",
        f"Rows: {rows}. {len(log['history'])} epochs in {log['seconds']} seconds on {log['device']}"
        f" with {log['threads']} threads. "
        "All settings, versions and the sha256 of the data are in `training.json`.",
        "",
    ]


def _together(log: Mapping[str, Any]) -> list[str]:
    """Return, for heads that were trained together, the best metric of each and the one of the kept weights."""
    if len(log["together"]) == 1:
        return []
    kept = log["history"][log["kept_epoch"] - 1]["dev"]
    rows = []
    for other in log["together"]:
        best = max(log["history"], key=lambda epoch: epoch["dev"][other])
        rows.append(f"| {other} | {_number(kept[other])} | {_number(best['dev'][other])} | {best['epoch']} |")
    partners = ", ".join(f"`{other}`" for other in log["together"] if other != log["head"])
    return [
        f"It learned together with {partners}. The epoch with the best mean over the heads was kept, where each main "
        "metric on dev counts relative to the head's best so far:",
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
        f"Weights and logits are those of `{log['imported']}`, whose licence and model card apply to this head, too. "
        "Scores are the probabilities of the checkpoint; they were not calibrated here.",
        "",
    ]


def _scores(log: Mapping[str, Any]) -> list[str]:
    """Return how well the scores are calibrated."""
    errors = {part: values for part, values in log["calibration_error"].items() if values["after"] is not None}
    if not errors:
        return []
    rows = log["rows"].get(CALIBRATION)
    how = f"fitted to {rows} rows held out of train" if rows else "none was fitted: there are fewer than 200 rows"
    return [
        "### Scores",
        "",
        f"Scores are probabilities at a temperature ({how}). Expected calibration error in {BINS} bins, before and after:",
        "",
        "| part | before | after |",
        "|---|---:|---:|",
        *(f"| {part} | {_number(own['before'])} | {_number(own['after'])} |" for part, own in errors.items()),
        "",
    ]


def _metric_table(metrics: Mapping[str, Mapping[str, float]], main: str) -> list[str]:
    """Return a table with a row for each part of the data and label, and a column for each metric, the main one first."""
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
