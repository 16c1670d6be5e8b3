"""Training: from data and settings to a model folder, by one loop over `accelerate`, for whatever the head is.

Batches have equal lengths and a budget of tokens; the learning rate rises and falls linearly; the head learns faster than the
backbone; after each epoch dev is evaluated through the same engine that predicts, and the weights of the best epoch are kept.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from nlptasks import __version__
from nlptasks.batching import make_units
from nlptasks.card import model_card
from nlptasks.checkpoint import Checkpoints, is_begun, newest
from nlptasks.checks import warnings_of
from nlptasks.config import Target, TrainSettings, parse_target, recorded
from nlptasks.data import CALIBRATION, DataSet, check_trainable, load_data, with_calibration, with_dev
from nlptasks.defaults import chosen, chosen_precision
from nlptasks.disk import restored
from nlptasks.errors import DataError, ModelError, TrainingError, UsageError, first_line, listing, quote
from nlptasks.files import check_columns
from nlptasks.folders import RUNNING
from nlptasks.heads.base import Head
from nlptasks.loop import Lesson, Loop, Outcome, Progress, digest_of
from nlptasks.model import MANIFEST, HeadRecord, Model, ModelFolder, check_output
from nlptasks.optimization import make_accelerator
from nlptasks.pretrained import load_backbone
from nlptasks.registry import head_class
from nlptasks.runtime.pytorch import torch_device
from nlptasks.types import Reporter, Row, Silent

LOG = "training.json"
_MAY_DIFFER = ("settings.backbone", "settings.device", "settings.checkpoint_seconds")
"""Settings that may differ when a run is resumed: what the first two name is compared itself, the last changes nothing."""


@dataclass(frozen=True)
class TrainResult:
    """What a training run made.

    Attributes:
        folder: the model's folder.
        head: the head's name.
        main_metric: the key of the metric that counts most.
        metrics: metrics of the kept weights, by part of the data.
        example_row: the fields of a row that the head could answer.
        unseen: rows that it was not trained on, of test, else of dev.
        seconds: of the whole training, evaluation included.
        is_main_process: whether this process, of all that train, is the one that writes and speaks to the user.
    """

    folder: Path
    head: str
    main_metric: str
    metrics: Mapping[str, Mapping[str, float]]
    example_row: Mapping[str, str]
    unseen: Sequence[Row]
    seconds: float
    is_main_process: bool


def train(
    target: str | Target,
    *,
    output: str | Path,
    settings: TrainSettings | None = None,
    overwrite: bool = False,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Fine-tune a new head on a backbone and write the model.

    Checkpoints stand in the output folder until the model takes their place. SIGINT and SIGTERM end the step, write one more
    and then act as usual (KeyboardInterrupt, SystemExit 143).

    Args:
        target: what to train on what, as on the command line (``ner=DATA``) or as an object.
        output: the new model's folder.
        settings: how; None for the defaults.
        overwrite: whether `output` may be replaced.
        resume: whether to go on from the checkpoints in `output`; the weights come out as if nothing had happened in between.
        reporter: hears how it goes.

    Raises:
        UsageError: the output folder is not empty, or an option is wrong.
        DataError: the data cannot be used.
        ModelError: the backbone cannot be used.
        TrainingError: the loss is not finite, or a run cannot be resumed.
    """
    target = parse_target(target) if isinstance(target, str) else target
    settings = settings or TrainSettings()
    cls = head_class(target.task)
    place = Path(output)
    _check_place(place, overwrite=overwrite, resume=resume)
    check_columns(target.columns, cls.fields)
    source = Path(target.data) if target.data else cls.sample_folder()
    data = load_data(source, cls.formats, target.columns)
    check_trainable(data)
    config = cls.configure(data.parts["train"], target.options)
    device = torch_device(settings.device)
    with torch.random.fork_rng(devices=["cuda"] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model = _new_model(target.name, cls, config, data.parts["train"], settings.backbone)
        lesson = _lesson(target, settings, data, model, device, reporter or Silent())
        log = (_finished(place, lesson) if resume else None) or _trained(
            place, lesson, resume=resume, overwrite=overwrite
        )
    unseen = lesson.rows.get("test") or lesson.rows["dev"]
    return TrainResult(
        folder=place,
        head=target.name,
        main_metric=lesson.head.main_metric,
        metrics=log["metrics"],
        example_row=lesson.head.example_row(),
        unseen=unseen,
        seconds=log["seconds"],
        is_main_process=lesson.accelerator.is_main_process,
    )


def _new_model(name: str, cls: type[Head], config: Any, rows: Sequence[Row], backbone_name: str) -> Model:
    """A pretrained backbone with a new head."""
    backbone = load_backbone(backbone_name)
    head = cls(cls.for_backbone(config, rows, backbone.info), backbone=backbone.info)
    head.adopt(backbone.pretrained)
    return Model(backbone, {name: head}, {})


def _check_place(output: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse an output folder with anything in it that would be lost.

    Raises:
        UsageError: it is not empty, and neither is it to be overwritten nor does it hold a run to be resumed.
    """
    if resume:
        restored(output)
        finished = (output / MANIFEST).is_file() and (output / LOG).is_file()
        if not overwrite and not finished and not is_begun(output) and output.is_dir() and any(output.iterdir()):
            raise UsageError(str(output), "is not empty, and no run has begun there", "give another -o, or --overwrite")
    check_output(output, overwrite=overwrite or resume, resumable=True)


def _lesson(
    target: Target, settings: TrainSettings, data: DataSet, model: Model, device: torch.device, reporter: Reporter
) -> Lesson:
    head, tokenizer = model.heads[target.name], model.backbone.tokenizer()
    data, examples = _split(head, data, settings.seed)
    units = make_units(head, tokenizer, examples["train"])
    if not units:
        raise DataError(data.parts["train"][0].where, "and all rows after it are empty", "give rows with text")
    precision = chosen_precision(settings.precision, device)
    accelerator = make_accelerator(precision, device)
    settings = chosen(
        replace(settings, precision=precision),
        parameters=model.backbone.parameter_count(),
        tokens=[unit.tokens for unit in units],
        lr_scale=head.lr_scale,
        own_lr_scale=head.own_lr_scale,
        processes=accelerator.num_processes,
    )
    return Lesson(
        name=target.name,
        model=model,
        rows=data.parts,
        examples=examples,
        units=units,
        tokenizer=tokenizer,
        settings=settings,
        accelerator=accelerator,
        reporter=reporter if accelerator.is_main_process else Silent(),
        identity=_identity(target, settings, data, model, accelerator),
    )


def _split(head: Head, data: DataSet, seed: int) -> tuple[DataSet, dict[str, list[Any]]]:
    """The data with what is held out of train, and the examples of each part."""
    read = {
        id(row): example
        for rows in data.parts.values()
        for row, example in zip(rows, head.read_gold(rows), strict=True)
    }

    def texts_of(row: Row) -> list[str]:
        sources = head.sources(read[id(row)])
        return [text for source in sources for text in (source.first, source.second) if text]

    data = with_dev(data, texts_of, seed=seed)
    if head.has_temperature:
        data = with_calibration(data, texts_of, seed=seed)
    return data, {part: [read[id(row)] for row in rows] for part, rows in data.parts.items()}


def _identity(
    target: Target, settings: TrainSettings, data: DataSet, model: Model, accelerator: Accelerator
) -> dict[str, Any]:
    """Everything that the weights are a function of, as JSON has it."""
    assets = "".join(hashlib.sha256(content).hexdigest() for content in model.backbone.assets.values())
    weights = digest_of(model.backbone.state_dict())
    device = accelerator.device
    identity = {
        "head": target.name,
        "task": target.task,
        "config": recorded(model.heads[target.name].config),
        "settings": asdict(settings),
        "data": {
            "files": {Path(name).name: digest for name, digest in data.files.items()},
            "split": data.split,
            "columns": dict(target.columns),
        },
        "backbone": hashlib.sha256((assets + weights).encode()).hexdigest(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "versions": {
            "nlptasks": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "tokenizers", "numpy")},
        },
    }
    as_json: dict[str, Any] = json.loads(json.dumps(identity))
    return as_json


def _finished(output: Path, lesson: Lesson) -> dict[str, Any] | None:
    """The log of the model in the output folder; None if this run has not come to its model yet."""
    if is_begun(output) or not (output / LOG).is_file():
        return None
    ModelFolder.open(output)  # its log, too, must be the one that was written
    log: dict[str, Any] = json.loads((output / LOG).read_text(encoding="utf-8"))
    _check_same(lesson, {key: log.get(key) for key in lesson.identity}, output)
    lesson.reporter.note(f"{output} is trained already")
    return log


def _trained(output: Path, lesson: Lesson, *, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Train and write the model: what its ``training.json`` says."""
    _announce(lesson)
    main, seconds = lesson.accelerator.is_main_process, lesson.settings.checkpoint_seconds
    own = Checkpoints(output, fresh=not resume, seconds=seconds) if main else nullcontext()
    with own as checkpoints:
        found = (checkpoints.newest() if checkpoints else newest(output)) if resume else None
        if found:
            _check_same(lesson, found.record["identity"], output)
        elif resume:
            lesson.reporter.note("there is no checkpoint to go on from: this is the beginning")
        loop = Loop(lesson, checkpoints=checkpoints, found=found)
        try:
            outcome = loop.run()
        except torch.OutOfMemoryError as error:
            where, fix = f"after step {loop.progress.step}", "take fewer --batch-tokens, or a smaller backbone"
            raise TrainingError(where, f"out of memory ({first_line(error)})", fix) from error
    log = _log_of(lesson, loop.progress, outcome)
    if main:
        _check_untouched(output, overwrite=overwrite)
        _write(output, lesson, log)
    lesson.accelerator.wait_for_everyone()
    return log


def _check_untouched(output: Path, *, overwrite: bool) -> None:
    """Refuse to replace what somebody has put into the folder since the run began."""
    inside = {path.name for path in output.iterdir()} - {RUNNING} if output.is_dir() else set()
    if inside and MANIFEST not in inside and not overwrite:  # a model there was to be overwritten from the beginning
        problem = f"has {listing(sorted(inside))}, which was not there when training began"
        raise ModelError(str(output), problem, "move it elsewhere, and go on with --resume")


def _check_same(lesson: Lesson, before: Mapping[str, Any], output: Path) -> None:
    differences = [
        difference
        for difference in _differences(before, lesson.identity)
        if difference.partition(" ")[0] not in _MAY_DIFFER
    ]
    if differences:
        raise TrainingError(
            str(output),
            f"was trained otherwise: {listing(differences)}",
            "resume it with what it began with, or train anew with --overwrite",
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """``settings.lr was 0.1, is 0.2`` for every value that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name} was {quote(before)}, is {quote(now)}"


def _log_of(lesson: Lesson, progress: Progress, outcome: Outcome) -> dict[str, Any]:
    """What ``training.json`` says."""
    return {
        "nlptasks": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **lesson.identity,
        "rows": {part: len(rows) for part, rows in lesson.examples.items()},
        "seconds": round(progress.seconds, 1),
        "rows_per_second": round(len(lesson.units) * progress.epoch / progress.learning_seconds, 2),
        "history": progress.history,
        "measured_by": lesson.head.measured_by(),
        **asdict(outcome),
    }


def _write(output: Path, lesson: Lesson, log: Mapping[str, Any]) -> None:
    model = lesson.model
    model.records[lesson.name] = HeadRecord(log["task"], recorded(lesson.head.config), log["metrics"])
    extra = {LOG: json.dumps(log, indent=1, ensure_ascii=False) + "\n", "README.md": model_card(model, log)}
    model.eval().cpu().save(output, overwrite=True, extra=extra)  # in the place of the checkpoints


def _announce(lesson: Lesson) -> None:
    settings, data = lesson.settings, lesson.identity["data"]
    sizes = ", ".join(f"{part} {len(rows)}" for part, rows in lesson.rows.items())
    lesson.reporter.note(f"{lesson.name}: rows {sizes}" + (f" ({data['split']})" if data["split"] else ""))
    lesson.reporter.note(
        f"backbone {settings.backbone}, {settings.epochs} epochs at most, {settings.batch_tokens} tokens a batch, "
        f"learning rate {settings.lr:.2g} (head {settings.head_lr:.2g}), {settings.precision}, seed {settings.seed}"
    )
    rows = {part: own for part, own in lesson.rows.items() if part != CALIBRATION}
    examples = [lesson.examples["train"][unit.index] for unit in lesson.units]
    own = lesson.head.warnings(examples, [unit.windows for unit in lesson.units])
    for warning in [*warnings_of(lesson.head, rows, lesson.examples), *own]:
        lesson.reporter.note(f"warning: {warning}")
