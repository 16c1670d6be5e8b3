"""``nlptasks train``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nlptasks.cli.common import (
    Command,
    OutputPath,
    columns_option,
    given_settings,
    highlighted,
    make_targets,
    metric_lines,
    next_steps,
    printable,
    set_option,
    settings_options,
)
from nlptasks.cli.configfile import read_config
from nlptasks.cli.options import Given, with_options
from nlptasks.config import TrainSettings

if TYPE_CHECKING:
    from nlptasks.types import Row

_SHOWN = 3
"""Predictions that are shown for each new head."""


@click.command("train", cls=Command)
@click.argument("targets", nargs=-1, required=True, metavar="TASK[=DATA]...")
@click.option(
    "-o",
    "--output",
    type=OutputPath(),
    help="the new model's folder  [default: runs/HEAD, or runs/HEAD+HEAD]",
)
@click.option(
    "--add-to",
    type=OutputPath(),
    metavar="MODEL",
    help="add the heads to this model, in place; the answers of its other heads do not change",
)
@settings_options(TrainSettings)
@columns_option
@set_option
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    metavar="FILE.toml",
    help="TOML file with options: lr = 1e-4, [columns] text = ..., [heads.HEAD] OPTION = ...; the command line overrides it",
)
@click.option(
    "--resume", is_flag=True, help="continue from the checkpoints in the output folder, or in the model with --add-to"
)
@click.option(
    "--overwrite", is_flag=True, help="replace the contents of the output folder; with --add-to heads of the same names"
)
def command(
    targets: tuple[str, ...],
    output: Path | None,
    add_to: Path | None,
    columns: str,
    options: tuple[Given, ...],
    resume: bool,
    overwrite: bool,
    **settings: Any,
) -> None:
    """Fine-tune heads on DATA (a folder with train, dev and test, or a file) and write a model, or add them to a model.

    Without DATA the task's sample data are used. NAME:TASK=DATA names the head. Several heads are trained together.
    """
    chosen = given_settings(TrainSettings, settings)

    from nlptasks.cli.progress import ProgressBar
    from nlptasks.registry import head_class
    from nlptasks.training.run import train

    named = make_targets(targets, columns=columns)
    wanted = with_options(named, options, lambda target: head_class(target.task))
    with ProgressBar() as progress:
        result = train(
            wanted,
            output=output,
            add_to=add_to,
            settings=chosen,
            overwrite=overwrite,
            resume=resume,
            callback=progress,
        )
    if not result.is_main_process:
        return
    for name, head in result.heads.items():
        for part, metrics in head.metrics.items():
            click.echo(f"{name} on {part}:")
            click.echo("\n".join(metric_lines(metrics, head.main_metric)))
    click.echo("\npredictions on texts that it has not seen:")
    for name, head in result.heads.items():
        prefix = f"{name}: " if len(result.heads) > 1 else ""
        _show_predictions(result.folder, name, head.unseen[:_SHOWN], prefix=prefix)
    click.echo(f"\nmodel: {printable(str(result.folder))}   ({result.seconds:.0f} s)")
    click.echo(next_steps(result.folder, next(iter(result.heads.values())).example_row))


def _show_predictions(folder: Path, name: str, rows: Sequence[Row], *, prefix: str) -> None:
    from nlptasks.pipeline import pipeline

    pipe = pipeline([name], model=folder, backend="torch", device="cpu")
    presenter = pipe.heads[name].presenter
    for found in pipe.predict(rows):
        pieces = presenter.render(found.examples[name], found.results[name])
        click.echo(f"  {prefix}{highlighted(pieces, color=sys.stdout.isatty())}")
