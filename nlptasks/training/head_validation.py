"""Head validation: a head is tried out on a few rows before it is trained.

If a head of another package breaks the contract, the error names the method and the package at once, and does not come from
inside the library an hour later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from nlptasks.backbones.info import BackboneInfo
from nlptasks.config import check_options, naming
from nlptasks.data.datasets import DataSet
from nlptasks.errors import NlptasksError, PluginError, first_line
from nlptasks.heads.base import AnyHead, read_gold
from nlptasks.inference.batching import Instance, make_instances
from nlptasks.models.head_checks import HeadChecks, WrongOutputError, check_config, check_inputs, check_targets
from nlptasks.models.model import Model
from nlptasks.registry import find, place_of
from nlptasks.text.windows import Tokenizer
from nlptasks.training.run_state import TrainTask
from nlptasks.types import Row

_EXAMPLES = 2


@contextmanager
def attributed(task: str, method: str) -> Iterator[None]:
    """Name the method and the package of a head in errors. Errors of the library pass unchanged: they are complete.

    Raises:
        PluginError: there was another error.
    """
    try:
        yield
    except (NlptasksError, MemoryError, torch.OutOfMemoryError):
        raise
    except WrongOutputError as error:
        raise PluginError(place_of(task), f"{method} {error}", "repair or uninstall the package") from None
    except Exception as error:
        one = find(task)
        line = one.line_in(error) if one else ""
        problem = f"{method} failed{line and f' at {line}'} ({first_line(error)})"
        raise PluginError(place_of(task), problem, "repair or uninstall the package") from error


def configured(
    task: str, cls: type[AnyHead], data: DataSet, options: Mapping[str, Any], backbone: BackboneInfo, name: str
) -> Any:
    """Return the config of a head for its training rows.

    Args:
        task: the head's task.
        cls: its class.
        data: its data.
        options: the user's options.
        backbone: the backbone below.
        name: the head's name, for messages.

    Raises:
        UsageError: an option is unknown, or does not fit.
        DataError: the rows cannot be used.
        ModelError: the head cannot run on this backbone.
        PluginError: its package is broken.
    """
    with naming(name):
        with attributed(task, "Config"):
            given = cls.Config(**check_options(cls.Config, options))
        with attributed(task, "configure"):
            config = cls.configure(data.parts["train"], given, backbone)
            check_config(cls, config)
    return config


def read_examples(task: str, head: AnyHead, rows: Sequence[Row]) -> list[Any]:
    """Return the examples of rows that must have gold answers. The first ones are checked.

    Raises:
        DataError: a row is wrong.
        PluginError: the head's package is broken.
    """
    with attributed(task, "read"):
        examples = read_gold(head, rows)
    with attributed(task, "gold"):
        for example in examples[:_EXAMPLES]:
            hash(head.gold(example))
    with attributed(task, "inputs"):
        for example in examples[:_EXAMPLES]:
            check_inputs(head.inputs(example))
    return examples


def instances_of(
    task: str, head: AnyHead, tokenizer: Tokenizer, examples: Sequence[Any], axes: Mapping[str, str]
) -> list[Instance]:
    """Return the examples with their windows and targets, which are checked.

    Args:
        task: the head's task.
        head: the head.
        tokenizer: the backbone's.
        examples: examples with gold answers.
        axes: the axes of the network's targets by name.

    Raises:
        PluginError: the head's package is broken.
    """
    with attributed(task, "targets"):
        instances = make_instances(head, tokenizer, examples, axes)
        check_targets(instances, axes)
    return instances


def try_out(model: Model, train_task: TrainTask, tokenizer: Tokenizer, *, task: str) -> None:
    """Run a new head on its first examples and check everything that it returns.

    Args:
        model: the model with the head; it is in evaluation mode afterwards.
        train_task: the head with its data.
        tokenizer: the backbone's.
        task: the head's task.

    Raises:
        PluginError: a method fails, or returns something that breaks the contract.
    """
    checks = HeadChecks(model.eval(), train_task.name, tokenizer, lambda method: attributed(task, method))
    instances = train_task.instances[:_EXAMPLES]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        checks.check_network(instances)
        if train_task.head.generator is None:  # generating text takes long
            indices = [instance.index for instance in instances]
            examples, rows = train_task.examples["train"], train_task.rows["train"]
            checks.check_results([examples[index] for index in indices], [rows[index] for index in indices])
