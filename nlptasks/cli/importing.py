"""``nlptasks import``."""

from __future__ import annotations

from pathlib import Path

import click

from nlptasks.cli.common import (
    Command,
    next_steps,
    output_option,
    overwrite_option,
    printable,
    set_option,
)
from nlptasks.cli.options import Given, options_of


@click.command("import", cls=Command)
@click.argument("source", metavar="HF_NAME_OR_DIR")
@click.option("--task", required=True, help="the task that the checkpoint was fine-tuned for")
@output_option
@click.option("--name", help="the head's name  [default: the task]")
@set_option
@overwrite_option
def command(
    source: str, task: str, output: Path, name: str | None, options: tuple[Given, ...], overwrite: bool
) -> None:
    """Convert a fine-tuned Hugging Face checkpoint (a folder or OWNER/NAME@REVISION) to a model with the same logits."""
    head = name or task

    from nlptasks.errors import listing
    from nlptasks.models.huggingface import TOLERANCE, import_checkpoint
    from nlptasks.registry import head_class

    given = options_of(options, lambda _: head_class(task), heads=[head]).get(head)
    model = import_checkpoint(source, task=task, output=output, name=head, options=given, overwrite=overwrite)
    presenter = model.heads[head].presenter
    click.echo(f"{head}: logits are the original's within {TOLERANCE:.0e}")
    if presenter.labels:
        click.echo(f"labels: {printable(listing(presenter.labels))}")
    click.echo(f"model: {printable(str(output))}")
    click.echo(next_steps(output, presenter.example_row()))
