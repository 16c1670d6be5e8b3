"""``nlptasks export``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nlptasks.cli.common import Command, columns_option, make_targets, printable
from nlptasks.exporting.precisions import PRECISIONS

if TYPE_CHECKING:
    from nlptasks.exporting.exporter import ExportReport


@click.command("export", cls=Command)
@click.argument("model")
@click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    default="fp32",
    show_default=True,
    help="precision of the weights: " + "; ".join(f"{one.name} {one.purpose}" for one in PRECISIONS.values()),
)
@click.option(
    "--check",
    "checks",
    multiple=True,
    metavar="HEAD[=DATA]",
    help="compare the head's main metric on PyTorch and on the export, and refuse a change of more than half a point; without "
    "DATA on the sample data of its task; can be repeated",
)
@click.option("--split", help="part of these data: train, dev or test  [default: test, else dev]")
@click.option("--accept-drift", is_flag=True, help="keep the export even if a metric changes by more")
@columns_option
def command(
    model: str, precision: str, checks: tuple[str, ...], split: str | None, accept_drift: bool, columns: str
) -> None:
    """Export MODEL to ONNX, compared with PyTorch, into its folder onnx/PRECISION/."""
    targets = make_targets(checks, columns=columns)

    from nlptasks.exporting.exporter import export

    report = export(model, precision=precision, checks=targets, split=split, accept_drift=accept_drift)
    for line in _report(model, report):
        click.echo(line)


def _report(model: str, report: ExportReport) -> list[str]:
    """Return the report for people."""
    from nlptasks.exporting.precisions import PRECISIONS

    most = f" (of {max(report.differences, key=report.differences.__getitem__)})" if len(report.differences) > 1 else ""
    same = "" if report.agreement is None else f", and {report.agreement:.1%} of labels are the same"
    lines = [
        f"exported {printable(model)} in {report.precision}: on random tokens outputs differ from PyTorch's by "
        f"{report.max_difference:.1e} at most{most}{same}, over {len(report.shapes)} shapes"
    ]
    for head, check in report.checks.items():
        lines.append(
            f"  {head}: {check.metric} {check.reference:.4f} on PyTorch, {check.exported:.4f} on ONNX Runtime "
            f"({check.points:+.2f} points) on {check.rows} rows of {check.split}"
        )
    if not report.verified:
        lines.append(f"  not verified: it was compared on the {report.device}, which it is not made for")
    if PRECISIONS[report.precision].convert and not report.checks:
        lines.append("  not checked on your data: use --check HEAD=DATA, once for each head")
    lines.append(f"use it: --backend onnx:{report.precision}")
    return lines
