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
    make_target,
    metric_lines,
    next_steps,
    set_option,
    settings_options,
)
from nlptasks.cli.configfile import read_config
from nlptasks.config import RUNS, TrainSettings

_SHOWN = 3


@click.command("train", cls=Command)
@click.argument("target", metavar="TASK[=DATA]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="the new model's folder  [default: runs/HEAD]")
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
@click.option("--resume", is_flag=True, help="go on from the checkpoints in the output folder")
@click.option("--overwrite", is_flag=True, help="replace what is in the output folder")
def command(
    target: str,
    output: Path | None,
    columns: str,
    options: tuple[str, ...],
    resume: bool,
    overwrite: bool,
    **settings: Any,
) -> None:
    """Fine-tune a head on DATA (a folder with train, dev and test, or a file) and write a model.

    Without DATA the task's sample data are used. NAME:TASK=DATA names the head.
    """
    wanted = make_target(target, columns=columns, options=options)
    chosen = given_settings(TrainSettings, settings)

    from nlptasks.cli.progress import ProgressBar
    from nlptasks.training import train

    place = output or Path(RUNS) / wanted.name
    with ProgressBar() as progress:
        result = train(wanted, output=place, settings=chosen, overwrite=overwrite, resume=resume, reporter=progress)
    if not result.is_main_process:
        return
    for part, metrics in result.metrics.items():
        click.echo(f"{result.head} on {part}:")
        click.echo("\n".join(metric_lines(metrics, result.main_metric)))
    _show_predictions(result.folder, result.head, list(result.unseen[:_SHOWN]))
    click.echo(f"\nmodel: {result.folder}   ({result.seconds:.0f} s)")
    click.echo(next_steps(result.folder, result.example_row))


def _show_predictions(folder: Path, name: str, rows: list[Any]) -> None:
    from nlptasks.pipeline import pipeline

    pipe = pipeline([name], model=folder, backend="torch", device="cpu")
    click.echo("\npredictions on texts that it has not seen:")
    for row in rows:
        item = pipe.item(row)
        results = next(pipe.engine.stream([item]))
        click.echo("  " + highlighted(pipe.heads[name].show(item[name], results[name]), color=sys.stdout.isatty()))
