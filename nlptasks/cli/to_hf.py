"""``nlptasks to-hf``."""

from __future__ import annotations

from pathlib import Path

import click

from nlptasks.cli.common import Command, OutputPath, overwrite_option, printable


@click.command("to-hf", cls=Command)
@click.argument("model")
@click.argument("head")
@click.option("-o", "--output", type=OutputPath(), required=True, help="the checkpoint's folder")
@overwrite_option
def command(model: str, head: str, output: Path, overwrite: bool) -> None:
    """Write one HEAD of MODEL as a Hugging Face checkpoint, with its temperature folded into the last layer."""
    from nlptasks.models.huggingface import to_hugging_face

    loaded_by, lost = to_hugging_face(model, head, output=output, overwrite=overwrite)
    click.echo(f"checkpoint: {printable(str(output))}   (load it with transformers.{loaded_by}.from_pretrained)")
    for thing in lost:
        click.echo(f"not in it: {printable(thing)}", err=True)
