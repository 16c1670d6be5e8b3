"""``nlptasks benchmark``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nlptasks.cli.common import Command, columns_option, device_option, make_targets, printable

if TYPE_CHECKING:
    from nlptasks.benchmarking.runner import Benchmark, Measured


@click.command("benchmark", cls=Command)
@click.argument("model")
@click.argument("targets", nargs=-1, metavar="[HEAD=DATA]...")
@click.option("--heads", help="heads to run, separated by commas  [default: all]")
@click.option("--input", "source", type=click.Path(path_type=Path), help="a file of texts to use instead")
@click.option("--split", help="part of the data: train, dev or test  [default: test, else dev]")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="runs of each backend")
@click.option(
    "--most", type=click.IntRange(min=1), default=1000, show_default=True, help="most rows of each head's data"
)
@device_option
@columns_option
@click.option("--json", "as_json", is_flag=True, help="print a JSON object")
def command(
    model: str,
    targets: tuple[str, ...],
    heads: str | None,
    source: Path | None,
    split: str | None,
    rounds: int,
    most: int,
    device: str,
    columns: str,
    as_json: bool,
) -> None:
    """Compare PyTorch, ONNX Runtime and plain transformers for MODEL, on labelled data or on the sample data of its heads."""
    if targets and source:
        raise click.UsageError("pass HEAD=DATA or --input, not both")
    wanted = make_targets(targets, columns=columns)

    from nlptasks.benchmarking.runner import benchmark

    found = benchmark(
        model,
        wanted,
        heads=heads.split(",") if heads else None,
        source=source,
        split=split,
        device=device,
        rounds=rounds,
        most=most,
    )
    click.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else "\n".join(_table(found)))


def _table(found: Benchmark) -> list[str]:
    """Return the measurements for people."""
    metrics = [(head, name) for head, own in found.candidates[0].metrics.items() for name in own]
    title = ["", "texts/s", "tokens/s", "p50 ms", "p95 ms", "MiB", *(f"{head} {name}" for head, name in metrics)]
    rows = [title, *(_row(one, metrics) for one in found.candidates)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{found.texts} different texts, {found.tokens} tokens"]
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]))
    lines += [f"{printable(name)}: not measured: {printable(reason)}" for name, reason in found.failed.items()]
    missing = " ".join(f"{printable(name)}=DATA" for name in found.unverified)
    kept = f"in the model's own precision (to verify others: {missing})" if missing else "that keeps every metric"
    lines.append(f"fastest {kept}: --backend {found.best}")
    if command := found.temporary.get(found.best):
        lines.append(f"its export was temporary; to make a permanent one: {printable(command)}")
    return lines


def _row(one: Measured, metrics: list[tuple[str, str]]) -> list[str]:
    measured = [one.metrics.get(head, {}).get(name) for head, name in metrics]
    return [
        one.name,
        f"{one.texts_per_second:.0f}",
        f"{one.tokens_per_second:.0f}",
        f"{1000 * one.p50:.1f}",
        f"{1000 * one.p95:.1f}",
        "-" if one.memory is None else f"{one.memory:.0f}",
        *("-" if value is None else f"{value:.4f}" for value in measured),
    ]
