"""``nlptasks import``."""

from __future__ import annotations

from pathlib import Path

import click

from nlptasks.cli.common import Command, next_steps, options_of, printable, set_option


@click.command("import", cls=Command)
@click.argument("source", metavar="HF_NAME_OR_DIR")
@click.option("--task", required=True, help="the task that it was fine-tuned for")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="the new model's folder")
@click.option("--name", help="the head's name  [default: the task]")
@set_option
@click.option("--overwrite", is_flag=True, help="replace what is in the output folder")
def command(source: str, task: str, output: Path, name: str | None, options: tuple[str, ...], overwrite: bool) -> None:
    """Write a fine-tuned Hugging Face checkpoint (a folder or OWNER/NAME@REVISION) as a model, with the same logits."""
    head = name or task
    given = options_of(options, [head])[head]

    from nlptasks.errors import listing
    from nlptasks.models.huggingface import TOLERANCE, import_checkpoint

    model = import_checkpoint(source, task=task, output=output, name=head, options=given, overwrite=overwrite)
    labels = model.heads[head].labels
    click.echo(f"{head}: logits are the original's within {TOLERANCE:.0e}")
    if labels:
        click.echo(f"labels: {printable(listing(labels))}")
    click.echo(f"model: {output}")
    click.echo(next_steps(output, model.heads[head].example_row()))
