"""Training: from data and settings to a model folder, by one loop over `accelerate`, for whatever the heads are.

Batches have equal lengths and a budget of tokens; the learning rate rises and falls linearly; the heads learn faster than the
backbone; after each epoch dev is evaluated through the same engine that predicts, and the weights of the best epoch are kept.
Several heads learn in turn.
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
from nlptasks.config import RUNS, Target, TrainSettings, owned_layers, parse_target, parse_weights, recorded
from nlptasks.data.datasets import CALIBRATION, DataSet, check_trainable, load_data, with_calibration, with_dev
from nlptasks.data.readers import check_columns
from nlptasks.errors import DataError, TrainingError, UsageError, did_you_mean, first_line, listing
from nlptasks.heads.base import Head
from nlptasks.models.manifest import HeadRecord
from nlptasks.models.model import Model
from nlptasks.registry import head_class
from nlptasks.runtimes.pytorch import torch_device
from nlptasks.storage.checkpoints import Checkpoints, newest
from nlptasks.text.windowing import Tokenizer
from nlptasks.training.auto_settings import chosen, chosen_precision, default_lr
from nlptasks.training.callbacks import Reporter, Silent
from nlptasks.training.data_warnings import warnings_of
from nlptasks.training.fingerprint import as_json, check_same, of_head, of_run, recorded_of
from nlptasks.training.head_validation import attributed, configured, read_gold, try_out, units_of
from nlptasks.training.optimizer import make_accelerator
from nlptasks.training.output import Destination, ExistingModel, NewModel
from nlptasks.training.run_state import Lesson, Subject
from nlptasks.training.trainer import Loop
from nlptasks.types import Row
from nlptasks.version import __version__


@dataclass(frozen=True)
class HeadResult:
    """What training made of one head.

    Attributes:
        main_metric: the key of the metric that counts most.
        metrics: metrics of the kept weights, by part of the data.
        example_row: the fields of a row that the head could answer.
        unseen: rows that it was not trained on, of test, else of dev.
    """

    main_metric: str
    metrics: Mapping[str, Mapping[str, float]]
    example_row: Mapping[str, str]
    unseen: Sequence[Row]


@dataclass(frozen=True)
class TrainResult:
    """What a training run made.

    Attributes:
        folder: the model's folder.
        heads: the heads that were trained, by name.
        seconds: of the whole training, evaluation included.
        is_main_process: whether this process, of all that train, is the one that writes and speaks to the user.
    """

    folder: Path
    heads: Mapping[str, HeadResult]
    seconds: float
    is_main_process: bool


@dataclass(frozen=True)
class _Course:
    """A target with its data, before there is a head.

    Attributes:
        target: what is to be trained on what.
        cls: the head's class.
        data: its data.
        config: the head's, as far as the data decide it.
    """

    target: Target
    cls: type[Head]
    data: DataSet
    config: Any


def train(
    targets: str | Target | Sequence[str | Target],
    *,
    output: str | Path | None = None,
    add_to: str | Path | None = None,
    settings: TrainSettings | None = None,
    overwrite: bool = False,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Fine-tune new heads on a backbone and write the model, or add them to one.

    Checkpoints stand in the output folder until the model takes their place. SIGINT and SIGTERM end the step, write one more
    and then act as usual (KeyboardInterrupt, SystemExit 143).

    Args:
        targets: what to train on what, as on the command line (``ner=DATA``) or as an object; several learn together.
        output: the new model's folder; ``runs/`` and the heads' names joined by ``+`` unless given.
        add_to: the folder of a model that the heads are to be added to, in place; what its other heads answer does not change.
        settings: how; None for the defaults.
        overwrite: whether `output`, or heads of the same names in `add_to`, may be replaced.
        resume: whether to go on from the checkpoints in the folder; the weights come out as if nothing had happened in between.
        reporter: hears how it goes.

    Raises:
        UsageError: the output folder is not empty, the model has such a head, or an option is wrong.
        DataError: the data cannot be used.
        ModelError: the backbone, or the model, cannot be used.
        TrainingError: the loss is not finite, or a run cannot be resumed.
        PluginError: a head's package is broken, or the head does not do what the contract says.
    """
    given = [targets] if isinstance(targets, str | Target) else targets
    wanted = [parse_target(target) if isinstance(target, str) else target for target in given]
    names = [target.name for target in wanted]
    settings = settings or TrainSettings()
    _check_names(names, settings)
    destination = _destination(output, add_to, names, overwrite=overwrite)
    settings = destination.settings(settings)
    destination.check(names, resume=resume)
    courses = [_course(target) for target in wanted]
    device = torch_device(settings.device)
    with torch.random.fork_rng(devices=["cuda"] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        backbone = destination.backbone(settings)
        settings = replace(settings, tune=settings.tune or destination.default_tune(backbone))
        model = _new_model(backbone, courses, settings)
        lesson = _lesson(courses, settings, model, device, reporter or Silent())
        for target in wanted:
            try_out(model, lesson.of(target.name), lesson.tokenizer, task=target.task)
        logs = (_finished(destination, lesson) if resume else None) or _trained(destination, lesson, resume=resume)
    return TrainResult(
        folder=destination.folder,
        heads={subject.name: _result(subject, logs[subject.name]) for subject in lesson.subjects},
        seconds=logs[names[0]]["seconds"],
        is_main_process=lesson.accelerator.is_main_process,
    )


def _check_names(names: Sequence[str], settings: TrainSettings) -> None:
    """Refuse heads without names of their own, and weights of heads that are not there."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        problem = f"names the head {twice[0]!r} twice" if twice else "has no TASK"
        raise UsageError("train", problem, "name them apart, as one:TASK=DATA two:TASK=DATA")
    for name in parse_weights(settings.head_weights):
        if name not in names:
            raise UsageError("--head-weights", f"has no head {name!r} to weigh", did_you_mean(name, names))


def _destination(
    output: str | Path | None, add_to: str | Path | None, names: Sequence[str], *, overwrite: bool
) -> Destination:
    if add_to is None:
        return NewModel(Path(output or Path(RUNS) / "+".join(names)), overwrite=overwrite)
    if output is not None:
        raise UsageError(
            f"--output {output}", f"is for new models; --add-to changes {add_to} in place", "leave one out"
        )
    return ExistingModel(Path(add_to), overwrite=overwrite)


def _course(target: Target) -> _Course:
    cls = head_class(target.task)
    check_columns(target.columns, cls.fields)
    data = load_data(Path(target.data) if target.data else cls.sample_folder(), cls.formats, target.columns)
    check_trainable(data)
    return _Course(target, cls, data, configured(target.task, cls, data, target.options))


def _new_model(backbone: Backbone, courses: Sequence[_Course], settings: TrainSettings) -> Model:
    """A pretrained backbone with new heads."""
    heads, branches = {}, {}
    depth = owned_layers(settings.tune)
    for course in courses:
        course.cls.check_backbone(backbone.info)
        with attributed(course.target.task, "for_backbone"):
            config = course.cls.for_backbone(course.config, course.data.parts["train"], backbone.info)
        with attributed(course.target.task, "__init__"):
            head = course.cls(config, backbone=backbone.info)
        head.adopt(backbone.pretrained)
        heads[course.target.name] = head
        if depth:
            branches[course.target.name] = backbone.branch(depth)
    return Model(backbone, heads, {}, branches)


def _lesson(
    courses: Sequence[_Course], settings: TrainSettings, model: Model, device: torch.device, reporter: Reporter
) -> Lesson:
    tokenizer = model.backbone.tokenizer()
    data, subjects = {}, []
    for course in courses:
        name = course.target.name
        data[name], subject = _subject(course, model.heads[name], tokenizer, settings)
        subjects.append(subject)
    precision = chosen_precision(settings.precision, device)
    accelerator = make_accelerator(precision, device, heads=len(subjects))
    count, lowest = model.backbone.parameter_count(), min(subject.head.lr_scale for subject in subjects)
    # Heads learn at a rate that goes by the whole backbone, layers that a head owns at one that goes by their own size.
    own_lr = settings.lr or lowest * default_lr(count)
    owned = [sum(weight.numel() for weight in branch.parameters()) for branch in model.branches.values()]
    settings = chosen(
        replace(settings, precision=precision),
        parameters=max(owned, default=count),
        tokens=[unit.tokens for subject in subjects for unit in subject.units],
        lr_scale=lowest,
        processes=accelerator.num_processes,
        heads=len(subjects),
    )
    subjects = [replace(subject, rate=settings.head_lr or subject.head.own_lr_scale * own_lr) for subject in subjects]
    own = {
        course.target.name: of_head(course.target, data[course.target.name], subject)
        for course, subject in zip(courses, subjects, strict=True)
    }
    return Lesson(
        model=model,
        subjects=subjects,
        tokenizer=tokenizer,
        settings=settings,
        accelerator=accelerator,
        reporter=reporter if accelerator.is_main_process else Silent(),
        identity=as_json({"order": list(own), "heads": own, **of_run(settings, model, accelerator)}),
    )


def _subject(course: _Course, head: Head, tokenizer: Tokenizer, settings: TrainSettings) -> tuple[DataSet, Subject]:
    """What a head learns, and its data with what is held out of train."""
    name, task = course.target.name, course.target.task
    data, examples = _split(task, head, course.data, settings.seed)
    units = units_of(task, head, tokenizer, examples["train"])
    if not units:
        raise DataError(data.parts["train"][0].where, "and all rows after it are empty", "give rows with text")
    weight = parse_weights(settings.head_weights).get(name, 1.0)
    return data, Subject(name, head, data.parts, examples, units, rate=0.0, weight=weight)


def _split(task: str, head: Head, data: DataSet, seed: int) -> tuple[DataSet, dict[str, list[Any]]]:
    """The data with what is held out of train, and the examples of each part."""
    read = {
        id(row): example
        for rows in data.parts.values()
        for row, example in zip(rows, read_gold(task, head, rows), strict=True)
    }

    def texts_of(row: Row) -> list[str]:
        sources = head.sources(read[id(row)])
        return [text for source in sources for text in (source.first, source.second) if text]

    data = with_dev(data, texts_of, seed=seed)
    if head.has_temperature:
        data = with_calibration(data, texts_of, seed=seed)
    return data, {part: [read[id(row)] for row in rows] for part, rows in data.parts.items()}


def _finished(destination: Destination, lesson: Lesson) -> Mapping[str, Any] | None:
    """How the heads in the model came to be; None if this run has not come to its model yet."""
    names = [subject.name for subject in lesson.subjects]
    logs = destination.logs(names)
    if logs is None:
        return None
    for name in names:
        if name not in logs:
            fix = "give another -o, or --overwrite to train anew"
            raise TrainingError(str(destination.folder), f"has no head {name!r}, it has {listing(logs)}", fix)
        now = recorded_of(lesson, name)
        check_same({key: logs[name].get(key) for key in now}, now, destination.folder)
    lesson.reporter.note(f"{destination.folder} is trained already")
    return logs


def _trained(destination: Destination, lesson: Lesson, *, resume: bool) -> Mapping[str, Any]:
    """Train and write the model: what its ``training.json`` says of these heads."""
    _announce(lesson)
    output = destination.folder
    main, seconds = lesson.accelerator.is_main_process, lesson.settings.checkpoint_seconds
    own = Checkpoints(output, fresh=not resume, seconds=seconds) if main else nullcontext()
    with own as checkpoints:
        found = (checkpoints.newest() if checkpoints else newest(output)) if resume else None
        if found:
            check_same(found.record["identity"], lesson.identity, output)
        elif resume:
            lesson.reporter.note("there is no checkpoint to go on from: this is the beginning")
        loop = Loop(lesson, checkpoints=checkpoints, found=found)
        try:
            outcomes = loop.run()
        except torch.OutOfMemoryError as error:
            where, fix = f"after step {loop.progress.step}", "take fewer --batch-tokens, or a smaller backbone"
            raise TrainingError(where, f"out of memory ({first_line(error)})", fix) from error
    logs = {
        subject.name: {**_log_of(lesson, subject, loop), **asdict(outcomes[subject.name])}
        for subject in lesson.subjects
    }
    if main:
        model, branches = lesson.model, lesson.model.branches
        for name, log in logs.items():
            depth = branches[name].depth if name in branches else 0
            config = recorded(model.heads[name].config)
            model.records[name] = HeadRecord(log["task"], config, log["metrics"], branch=depth)
        destination.write(model.eval().cpu(), logs)  # in the place of the checkpoints
    lesson.accelerator.wait_for_everyone()
    return logs


def _log_of(lesson: Lesson, subject: Subject, loop: Loop) -> dict[str, Any]:
    """What ``training.json`` says of a head, beside what it came to."""
    progress = loop.progress
    learned = sum(len(one.units) * loop.schedule.passes[one.name] for one in lesson.subjects) * progress.epoch
    return {
        "nlptasks": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **recorded_of(lesson, subject.name),
        "rows": {part: len(rows) for part, rows in subject.examples.items()},
        "seconds": round(progress.seconds, 1),
        "rows_per_second": round(learned / progress.learning_seconds, 2),
        "history": progress.history,
        "kept_epoch": progress.best_epoch,
        "measured_by": subject.head.measured_by(),
    }


def _result(subject: Subject, log: Mapping[str, Any]) -> HeadResult:
    head = subject.head
    unseen = subject.rows.get("test") or subject.rows["dev"]
    return HeadResult(head.main_metric, log["metrics"], head.example_row(), unseen)


def _announce(lesson: Lesson) -> None:
    settings, note = lesson.settings, lesson.reporter.note
    for subject in lesson.subjects:
        split = lesson.identity["heads"][subject.name]["data"]["split"]
        sizes = ", ".join(f"{part} {len(rows)}" for part, rows in subject.rows.items())
        note(f"{subject.name}: rows {sizes}" + (f" ({split})" if split else ""))
    rates = ", ".join(f"{rate:.2g}" for rate in dict.fromkeys(subject.rate for subject in lesson.subjects))
    note(
        f"backbone {settings.backbone}, tune {settings.tune}, {settings.epochs} epochs at most, "
        f"{settings.batch_tokens} tokens a batch, learning rate {settings.lr:.2g} (head {rates}), {settings.precision}, "
        f"seed {settings.seed}"
    )
    for subject in lesson.subjects:
        rows = {part: own for part, own in subject.rows.items() if part != CALIBRATION}
        examples = [subject.examples["train"][unit.index] for unit in subject.units]
        own = subject.head.warnings(examples, [unit.windows for unit in subject.units])
        begin = f"{subject.name}: " if len(lesson.subjects) > 1 else ""
        for warning in [*warnings_of(subject.head, rows, subject.examples), *own]:
            note(f"warning: {begin}{warning}")
