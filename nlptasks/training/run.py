"""Training: from data and settings to a model folder, for heads of any task.

Batches have equal lengths and fill a token budget; the learning rate has a linear warm-up and decay; networks learn faster than
the backbone; after each epoch dev is evaluated by the engine that predicts, and the weights of the best epoch are kept. Several
heads take turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from nlptasks.backbones.backbone import Backbone
from nlptasks.config import RUNS, Target, TrainSettings, naming, owned_layers, parse_target, recorded
from nlptasks.data.datasets import CALIBRATION, DataSet, check_trainable, load_data, with_calibration, with_dev
from nlptasks.data.readers import check_columns
from nlptasks.errors import DataError, TrainingError, UsageError, did_you_mean, first_line, listing
from nlptasks.heads.base import AnyHead, check_backbone, sample_folder
from nlptasks.models.manifest import HeadRecord
from nlptasks.models.model import Model
from nlptasks.networks.base import make_network
from nlptasks.registry import head_class
from nlptasks.runtimes.pytorch import torch_device
from nlptasks.storage.checkpoints import Checkpoints, newest
from nlptasks.text.windows import Tokenizer
from nlptasks.training.auto_settings import chosen, chosen_precision, default_lr
from nlptasks.training.callbacks import NoOpCallback, TrainingCallback
from nlptasks.training.data_warnings import warnings_of
from nlptasks.training.fingerprint import as_json, check_same, of_head, of_run, recorded_of
from nlptasks.training.head_validation import attributed, configured, instances_of, read_examples, try_out
from nlptasks.training.optimizer import make_accelerator
from nlptasks.training.output import ExistingModel, NewModel, RunOutput
from nlptasks.training.run_state import TrainingRun, TrainTask
from nlptasks.training.trainer import Trainer
from nlptasks.types import Result, Row
from nlptasks.version import __version__


@dataclass(frozen=True)
class HeadResult:
    """The result of training one head.

    Attributes:
        main_metric: name of the metric that training maximised.
        metrics: metrics of the kept weights by part of the data.
        example_row: the fields of a row that the head could answer.
        unseen: rows that it was not trained on, of test, else of dev.
    """

    main_metric: str
    metrics: Mapping[str, Mapping[str, float]]
    example_row: Mapping[str, str]
    unseen: Sequence[Row]


@dataclass(frozen=True)
class TrainResult(Result):
    """The result of a training run.

    Attributes:
        folder: the model's folder.
        heads: the heads that were trained, by name.
        seconds: duration of training, evaluation included.
        is_main_process: True in the one process of all that writes the model and reports to the user.
    """

    folder: Path
    heads: Mapping[str, HeadResult]
    seconds: float
    is_main_process: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary of plain data."""
        return {**super().to_dict(), "folder": str(self.folder)}


@dataclass(frozen=True)
class _Source:
    """A target with its data, before there is a head.

    Attributes:
        target: what is trained on what.
        cls: the head's class.
        data: its data.
    """

    target: Target
    cls: type[AnyHead]
    data: DataSet


def train(
    targets: str | Target | Sequence[str | Target],
    *,
    output: str | Path | None = None,
    add_to: str | Path | None = None,
    settings: TrainSettings | None = None,
    overwrite: bool = False,
    resume: bool = False,
    callback: TrainingCallback | None = None,
) -> TrainResult:
    """Fine-tune new heads on a backbone and write the model, or add them to an existing model.

    Checkpoints are kept in the output folder until the model replaces them. On SIGINT and SIGTERM the current step is completed
    and a checkpoint written before they act as usual (KeyboardInterrupt, SystemExit 143).

    Args:
        targets: what to train on what, as on the command line (``ner=DATA``) or as objects; several are trained together.
        output: the new model's folder; by default ``runs/`` and the heads' names joined by ``+``.
        add_to: folder of a model that the heads are added to, in place; the answers of its other heads do not change.
        settings: settings of training; None for the defaults.
        overwrite: True to replace `output`, or heads of the same names in `add_to`.
        resume: True to continue from the checkpoints in the folder, with the same result as an uninterrupted run.
        callback: is told about the progress.

    Raises:
        UsageError: the output folder is not empty, the model has such a head, or an option is wrong.
        DataError: the data cannot be used.
        ModelError: the backbone, or the model, cannot be used.
        TrainingError: the loss is not finite, or a run cannot be resumed.
        PluginError: a head's package is broken, or the head breaks the contract.
    """
    given = [targets] if isinstance(targets, str | Target) else targets
    wanted = [parse_target(target) if isinstance(target, str) else target for target in given]
    names = [target.name for target in wanted]
    settings = settings or TrainSettings()
    _check_names(names, settings)
    run_output = _run_output(output, add_to, names, overwrite=overwrite)
    settings = run_output.settings(settings)
    run_output.check(names, resume=resume)
    sources = [_source(target) for target in wanted]
    device = torch_device(settings.device)
    with torch.random.fork_rng(devices=["cuda"] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        backbone = run_output.backbone(settings)
        settings = replace(settings, tune=settings.tune or run_output.default_tune(backbone))
        model = _new_model(backbone, sources, settings)
        run = _training_run(sources, settings, model, device, callback or NoOpCallback())
        for target in wanted:
            try_out(model, run.task(target.name), run.tokenizer, task=target.task)
        logs = (_finished(run_output, run) if resume else None) or _trained(run_output, run, resume=resume)
    return TrainResult(
        folder=run_output.folder,
        heads={task.name: _result(task, logs[task.name]) for task in run.tasks},
        seconds=logs[names[0]]["seconds"],
        is_main_process=run.accelerator.is_main_process,
    )


def _check_names(names: Sequence[str], settings: TrainSettings) -> None:
    """Refuse duplicate names, and sampling weights of unknown heads."""
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if not names or duplicates:
        problem = f"names the head {duplicates[0]!r} twice" if duplicates else "has no TASK"
        raise UsageError("train", problem, "give each a name, as one:TASK=DATA two:TASK=DATA")
    for name in settings.head_weights:
        if name not in names:
            fix = did_you_mean(name, names)
            raise UsageError("head_weights", f"names the unknown head {name!r}", fix, argument="head_weights")


def _run_output(
    output: str | Path | None, add_to: str | Path | None, names: Sequence[str], *, overwrite: bool
) -> RunOutput:
    if add_to is None:
        return NewModel(Path(output or Path(RUNS) / "+".join(names)), overwrite=overwrite)
    if output is not None:
        problem = f"is {str(output)!r}, and `add_to` changes {add_to} in place"
        raise UsageError("output", problem, "use only one of them", argument="output")
    return ExistingModel(Path(add_to), overwrite=overwrite)


def _source(target: Target) -> _Source:
    cls = head_class(target.task)
    check_columns(target.columns, cls.schema.fields)
    data = load_data(Path(target.data) if target.data else sample_folder(cls), cls.schema.formats, target.columns)
    check_trainable(data)
    return _Source(target, cls, data)


def _new_model(backbone: Backbone, sources: Sequence[_Source], settings: TrainSettings) -> Model:
    """Return a pretrained backbone with new heads."""
    heads, networks, branches = {}, {}, {}
    depth, info = owned_layers(settings.tune), backbone.info
    for source in sources:
        name, task, cls = source.target.name, source.target.task, source.cls
        check_backbone(cls, info)
        config = configured(task, cls, source.data, source.target.options, info, name)
        with attributed(task, "__init__"), naming(name):
            heads[name] = cls(config, info)
        with attributed(task, "network"), naming(name):
            networks[name] = make_network(cls.network, info, heads[name].network_options())
        with torch.no_grad():
            networks[name].load_pretrained(backbone.pretrained)
        if depth:
            branches[name] = backbone.branch(depth)
    return Model(backbone, heads, networks, {}, branches)


def _training_run(
    sources: Sequence[_Source],
    settings: TrainSettings,
    model: Model,
    device: torch.device,
    callback: TrainingCallback,
) -> TrainingRun:
    tokenizer = model.backbone.tokenizer()
    data, tasks = {}, []
    for source in sources:
        name = source.target.name
        data[name], task = _train_task(source, model, tokenizer, settings)
        tasks.append(task)
    precision = chosen_precision(settings.precision, device)
    accelerator = make_accelerator(precision, device, heads=len(tasks))
    count, lowest = model.backbone.parameter_count(), min(task.network.lr_scale for task in tasks)
    # The rate of networks depends on the size of the whole backbone, that of owned layers on their own size.
    own_lr = settings.lr or lowest * default_lr(count)
    owned = [sum(weight.numel() for weight in branch.parameters()) for branch in model.branches.values()]
    settings = chosen(
        replace(settings, precision=precision),
        parameters=max(owned, default=count),
        tokens=[instance.tokens for task in tasks for instance in task.instances],
        lr_scale=lowest,
        processes=accelerator.num_processes,
        heads=len(tasks),
    )
    tasks = [replace(task, rate=settings.head_lr or task.network.own_lr_scale * own_lr) for task in tasks]
    own = {
        source.target.name: of_head(source.target, data[source.target.name], task)
        for source, task in zip(sources, tasks, strict=True)
    }
    return TrainingRun(
        model=model,
        tasks=tasks,
        tokenizer=tokenizer,
        settings=settings,
        accelerator=accelerator,
        callback=callback if accelerator.is_main_process else NoOpCallback(),
        fingerprint=as_json({"order": list(own), "heads": own, **of_run(settings, model, accelerator)}),
    )


def _train_task(
    source: _Source, model: Model, tokenizer: Tokenizer, settings: TrainSettings
) -> tuple[DataSet, TrainTask]:
    """Return a head with its data, and the data with what is held out of train."""
    name, task = source.target.name, source.target.task
    head, network = model.heads[name], model.networks[name]
    data, examples = _split(task, head, source.data, settings.seed)
    instances = instances_of(task, head, tokenizer, examples["train"], network.targets)
    if not instances:
        raise DataError(data.parts["train"][0].where, "and all later rows are empty", "give rows with text")
    weight = settings.head_weights.get(name, 1.0)
    return data, TrainTask(name, head, network, data.parts, examples, instances, rate=0.0, weight=weight)


def _split(task: str, head: AnyHead, data: DataSet, seed: int) -> tuple[DataSet, dict[str, list[Any]]]:
    """Return the data with what is held out of train, and the examples of each part."""
    read = {
        id(row): example
        for rows in data.parts.values()
        for row, example in zip(rows, read_examples(task, head, rows), strict=True)
    }

    def texts_of(row: Row) -> list[str]:
        return [text for one in head.inputs(read[id(row)]) for text in one.texts if text]

    data = with_dev(data, texts_of, seed=seed)
    if head.calibration is not None:
        data = with_calibration(data, texts_of, seed=seed)
    return data, {part: [read[id(row)] for row in rows] for part, rows in data.parts.items()}


def _finished(output: RunOutput, run: TrainingRun) -> Mapping[str, Any] | None:
    """Return the logs of a run that is already complete, or None."""
    names = [task.name for task in run.tasks]
    logs = output.logs(names)
    if logs is None:
        return None
    for name in names:
        if name not in logs:
            fix = "use another output folder, or overwrite to train anew"
            raise TrainingError(str(output.folder), f"has no head {name!r}, it has {listing(logs)}", fix)
        now = recorded_of(run, name)
        check_same({key: logs[name].get(key) for key in now}, now, output.folder)
    run.callback.note(f"{output.folder} is already trained")
    return logs


def _trained(output: RunOutput, run: TrainingRun, *, resume: bool) -> Mapping[str, Any]:
    """Train and write the model. Return what its ``training.json`` says of these heads."""
    _announce(run)
    main, seconds = run.accelerator.is_main_process, run.settings.checkpoint_seconds
    own = Checkpoints(output.folder, fresh=not resume, seconds=seconds) if main else nullcontext()
    with own as checkpoints:
        found = (checkpoints.newest() if checkpoints else newest(output.folder)) if resume else None
        if found:
            check_same(found.record["fingerprint"], run.fingerprint, output.folder)
        elif resume:
            run.callback.note("there is no checkpoint to resume from: training starts at the beginning")
        trainer = Trainer(run, checkpoints=checkpoints, found=found)
        try:
            outcomes = trainer.run()
        except torch.OutOfMemoryError as error:
            where, fix = f"after step {trainer.state.step}", "use a smaller `batch_tokens`, or a smaller backbone"
            raise TrainingError(where, f"out of memory ({first_line(error)})", fix) from error
    logs = {task.name: {**_log_of(run, task, trainer), **asdict(outcomes[task.name])} for task in run.tasks}
    if main:
        model, branches = run.model, run.model.branches
        for name, log in logs.items():
            depth = branches[name].depth if name in branches else 0
            config = recorded(model.heads[name].config)
            model.records[name] = HeadRecord(log["task"], config, log["metrics"], branch=depth)
        output.write(model.eval().cpu(), logs)  # replaces the checkpoints
    run.accelerator.wait_for_everyone()
    return logs


def _log_of(run: TrainingRun, task: TrainTask, trainer: Trainer) -> dict[str, Any]:
    """Return what ``training.json`` says of a head beside its outcome."""
    state = trainer.state
    seen = sum(len(one.instances) * trainer.schedule.passes[one.name] for one in run.tasks) * state.epoch
    return {
        "nlptasks": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **recorded_of(run, task.name),
        "rows": {part: len(examples) for part, examples in task.examples.items()},
        "seconds": round(state.seconds, 1),
        "rows_per_second": round(seen / state.learning_seconds, 2),
        "history": state.history,
        "kept_epoch": state.best_epoch,
    }


def _result(task: TrainTask, log: Mapping[str, Any]) -> HeadResult:
    unseen = task.rows.get("test") or task.rows["dev"]
    return HeadResult(log["main_metric"], log["metrics"], task.head.presenter.example_row(), unseen)


def _announce(run: TrainingRun) -> None:
    settings, note = run.settings, run.callback.note
    for task in run.tasks:
        split = run.fingerprint["heads"][task.name]["data"]["split"]
        sizes = ", ".join(f"{part} {len(rows)}" for part, rows in task.rows.items())
        note(f"{task.name}: rows {sizes}" + (f" ({split})" if split else ""))
    rates = ", ".join(f"{rate:.2g}" for rate in dict.fromkeys(task.rate for task in run.tasks))
    note(
        f"backbone {settings.backbone}, tune {settings.tune}, at most {settings.epochs} epochs, "
        f"{settings.batch_tokens} tokens per batch, learning rate {settings.lr:.2g} (head {rates}), {settings.precision}, "
        f"seed {settings.seed}"
    )
    for task in run.tasks:
        rows = {part: own for part, own in task.rows.items() if part != CALIBRATION}
        prefix = f"{task.name}: " if len(run.tasks) > 1 else ""
        for warning in warnings_of(task.head, rows, task.examples):
            note(f"warning: {prefix}{warning}")
