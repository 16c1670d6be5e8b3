"""The command ``nlptasks``. Finds its subcommands without importing torch."""

from __future__ import annotations

import importlib

import click

from nlptasks.version import __version__

_COMMANDS = {
    "train": "train",
    "evaluate": "evaluate",
    "predict": "predict",
    "export": "export",
    "benchmark": "benchmark",
    "import": "importing",
    "to-hf": "to_hf",
    "rename": "rename",
    "remove": "remove",
    "merge": "merge",
    "show": "show",
    "tasks": "tasks",
    "plugin": "plugin",
    "doctor": "doctor",
}
"""The commands and their modules."""


class _Commands(click.Group):
    """Subcommands, each in its own module, which is imported when the subcommand is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"nlptasks.cli.{_COMMANDS[cmd_name]}").command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="nlptasks")
def main() -> None:
    """Fine-tune task heads on one pretrained Transformer, and run them on PyTorch or ONNX Runtime.

    Try: nlptasks train ner
    """
