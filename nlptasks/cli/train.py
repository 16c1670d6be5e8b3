"""``nlptasks train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from nlptasks.cli.common import (
    Command,
    columns_option,
    given_settings,
    highlighted,
    make_targets,
    metric_lines,
    next_steps,
    set_option,
    settings_options,
)
from nlptasks.cli.configfile import read_config
from nlptasks.config import TrainSettings

_SHOWN = 3


@click.command("train", cls=Command)
@click.argument("targets", nargs=-1, required=True, metavar="TASK[=DATA]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="the new model's folder  [default: runs/HEAD, or runs/HEAD+HEAD]",
)
@click.option(
    "--add-to",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="add the heads to this model, in place; what its other heads answer does not change",
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
    help="options as a TOML file: lr = 1e-4, [columns] text = ..., [heads.HEAD] OPTION = ...; the command line comes first",
)
@click.option(
    "--resume", is_flag=True, help="go on from the checkpoints in the output folder, or in the model with --add-to"
)
@click.option(
    "--overwrite", is_flag=True, help="replace what is in the output folder; with --add-to heads of the same names"
)
def command(
    targets: tuple[str, ...],
    output: Path | None,
    add_to: Path | None,
    columns: str,
    options: tuple[str, ...],
    resume: bool,
    overwrite: bool,
    **settings: Any,
) -> None:
    """Fine-tune heads on DATA (a folder with train, dev and test, or a file) and write a model, or add them to one.

    Without DATA the task's sample data are used. NAME:TASK=DATA names the head. Several heads learn together.
    """
    wanted = make_targets(targets, columns=columns, options=options)
    chosen = given_settings(TrainSettings, settings)

    from nlptasks.cli.progress import ProgressBar
    from nlptasks.training.run import train

    with ProgressBar() as progress:
        result = train(
            wanted,
            output=output,
            add_to=add_to,
            settings=chosen,
            overwrite=overwrite,
            resume=resume,
            reporter=progress,
        )
    if not result.is_main_process:
        return
    for name, head in result.heads.items():
        for part, metrics in head.metrics.items():
            click.echo(f"{name} on {part}:")
            click.echo("\n".join(metric_lines(metrics, head.main_metric)))
    click.echo("\npredictions on texts that it has not seen:")
    for name, head in result.heads.items():
        _show_predictions(result.folder, name, list(head.unseen[:_SHOWN]), several=len(result.heads) > 1)
    click.echo(f"\nmodel: {result.folder}   ({result.seconds:.0f} s)")
    click.echo(next_steps(result.folder, next(iter(result.heads.values())).example_row))


def _show_predictions(folder: Path, name: str, rows: list[Any], *, several: bool) -> None:
    from nlptasks.pipeline import pipeline

    pipe = pipeline([name], model=folder, backend="torch", device="cpu")
    for row in rows:
        item = pipe.item(row)
        results = next(pipe.engine.stream([item]))
        click.echo(
            f"  {name}: " * several
            + "  " * (not several)
            + highlighted(pipe.heads[name].show(item[name], results[name]), color=sys.stdout.isatty())
        )
