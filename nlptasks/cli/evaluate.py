"""``nlptasks evaluate``."""

from __future__ import annotations

import json

import click

from nlptasks.cli.common import (
    Command,
    backend_option,
    columns_option,
    device_option,
    make_targets,
    metric_lines,
    set_option,
)
from nlptasks.cli.options import Given, with_options


@click.command("evaluate", cls=Command)
@click.argument("model")
@click.argument("targets", nargs=-1, required=True, metavar="HEAD=DATA...")
@click.option("--split", help="part of the data: train, dev or test  [default: test, else dev; all of a single file]")
@backend_option
@device_option
@columns_option
@set_option
@click.option("--json", "as_json", is_flag=True, help="print a JSON object for each head")
def command(
    model: str,
    targets: tuple[str, ...],
    split: str | None,
    backend: str,
    device: str,
    columns: str,
    options: tuple[Given, ...],
    as_json: bool,
) -> None:
    """Evaluate heads of MODEL on labelled data."""
    from nlptasks.evaluation import evaluate
    from nlptasks.exporting.sources import class_of

    named = make_targets(targets, columns=columns)
    for target in with_options(named, options, lambda target: class_of(model, target.name)):
        found = evaluate(model, target, split=split, backend=backend, device=device)
        if as_json:
            record = {name: value for name, value in found.to_dict().items() if value != ""}
            click.echo(json.dumps(record, ensure_ascii=False))
        else:
            click.echo(f"{found.head} on {found.split}:")
            click.echo("\n".join(metric_lines(found.metrics, found.main_metric)))
            if found.signature:
                click.echo(f"    {found.signature}")
