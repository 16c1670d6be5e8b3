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
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate heads of MODEL on labelled data."""
    wanted = make_targets(targets, columns=columns, options=options)

    from nlptasks.evaluation import evaluate

    for target in wanted:
        found = evaluate(model, target, split=split, backend=backend, device=device)
        if as_json:
            record = {name: value for name, value in found.to_dict().items() if value != ""}
            click.echo(json.dumps(record, ensure_ascii=False))
        else:
            click.echo(f"{found.head} on {found.split}:")
            click.echo("\n".join(metric_lines(found.metrics, found.main_metric)))
            if found.signature:
                click.echo(f"    {found.signature}")
