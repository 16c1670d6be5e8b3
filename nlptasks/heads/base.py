"""The contract of a head: everything that is particular to one task, without PyTorch.

A head turns rows into what the backbone reads and outputs into results. The layers that it adds to the backbone are a `Network`,
which it names and does not import.

Letters for shapes: B windows in a batch, S tokens, H width of the backbone, C classes.
"""

from __future__ import annotations

import importlib.resources
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from nlptasks.backbones.info import DECODER, ENCODER, ENCODER_DECODER, BackboneInfo
from nlptasks.data.readers import TABLES
from nlptasks.errors import DataError, ModelError, each, listing
from nlptasks.metrics.base import Counts, Metrics
from nlptasks.metrics.calibration import Likelihood
from nlptasks.runtimes.base import EncodedBatch
from nlptasks.types import Array, ExampleT, HeadOutputs, ModelInput, Outputs, Reader, ResultT, Row, Window

CONTRACT = 2
"""Version of the contract that this library implements."""

ConfigT = TypeVar("ConfigT")

_KINDS = {
    ENCODER: "an encoder, such as BERT or ModernBERT",
    ENCODER_DECODER: "an encoder-decoder, such as T5 or BART",
    DECODER: "a decoder, such as GPT-2, Llama or Qwen",
}


@dataclass(frozen=True)
class Schema:
    """The rows that a head reads and the results that it gives.

    Attributes:
        contract: version of the contract that the head was written for.
        fields: names of the fields that `read` knows; ``--columns`` maps other columns to them.
        gold: those that hold the gold answer; they are removed from rows that are only predicted.
        results: dataclasses that the results consist of.
        sample: folder with a small train, dev and test part, inside the head's top-level package.
        formats: readers of data files by suffix.
        backbones: kinds of backbones that the head runs on.
    """

    contract: int
    fields: tuple[str, ...]
    gold: tuple[str, ...] = ()
    results: tuple[type, ...] = ()
    sample: str = "sample"
    formats: Mapping[str, Reader] = field(default_factory=lambda: TABLES)
    backbones: tuple[str, ...] = (ENCODER, ENCODER_DECODER)


class Calibration(ABC, Generic[ExampleT, ResultT]):
    """Makes the scores of a head calibrated probabilities. The head's config has a field ``temperature``."""

    @abstractmethod
    def likelihood(self, outputs: Iterable[HeadOutputs[ExampleT]]) -> Likelihood:
        """Return the likelihood of the gold answers as a function of the temperature.

        Args:
            outputs: of rows that were held out of training; they are computed while they are read.
        """

    def thresholds(self, outputs: Iterable[HeadOutputs[ExampleT]]) -> Mapping[str, Any]:
        """Return config fields that make the best decisions on dev, once the temperature is set; none by default."""
        return {}

    @abstractmethod
    def confidences(self, example: ExampleT, result: ResultT) -> list[tuple[float, bool]]:
        """Return the scores in a result, each with True if what it scores agrees with the gold answer."""


class HuggingFaceFormat(ABC, Generic[ConfigT]):
    """Converts a head's config from and to the config of a Hugging Face checkpoint."""

    @abstractmethod
    def to_config(self, backbone: BackboneInfo, options: Mapping[str, Any]) -> ConfigT:
        """Return the head's config for a checkpoint.

        Args:
            backbone: the checkpoint's, with its complete config.
            options: options that the user set, by name.

        Raises:
            UsageError: an option does not fit the checkpoint.
            ModelError: the checkpoint does something that this head cannot do.
        """

    @abstractmethod
    def to_checkpoint(self, config: ConfigT, backbone: BackboneInfo) -> tuple[dict[str, Any], list[str]]:
        """Return the entries of the checkpoint's config, and what a checkpoint cannot express, in words for people."""


class SpacyWriter(ABC, Generic[ResultT]):
    """Writes results into a spaCy document.

    Attributes:
        assigns: places that `write` writes to: ``doc.cats``, ``doc.ents``, ``doc.spans`` (then a result is a list whose items
            have ``start``, ``end`` and ``score``, and ``doc.spans[name]`` has a span for each, in order) or ``doc._.NAME``
            (then the value is plain data: strings, numbers, lists and dicts).
    """

    assigns: ClassVar[tuple[str, ...]]

    @abstractmethod
    def write(self, doc: Any, result: ResultT, name: str) -> None:
        """Write one result.

        ``doc.ents`` holds the entities of the heads before this one and ``doc.cats`` is empty; what was there before the
        component ran is merged in afterwards. An attribute is None unless a head before this one has set it.

        Args:
            doc: the document; ``doc._.nlptasks[name]`` has the result already.
            result: the head's result.
            name: the head's name.
        """


class Presenter(Generic[ExampleT, ResultT]):
    """Shows results to people.

    Attributes:
        labels: the labels that the head can give; empty if the answer is open.
    """

    labels: tuple[str, ...] = ()

    def gold_labels(self, example: ExampleT) -> Sequence[str]:
        """Return the labels in the gold answer, once for each occurrence."""
        return ()

    def example_row(self) -> Mapping[str, str]:
        """Return the fields of a row that the head could answer."""
        return {"text": "A text."}

    def render(self, example: ExampleT, result: ResultT) -> list[tuple[str, str]]:
        """Return the result on one line, as pieces of text with a label each, empty for plain text."""
        return [(str(result), "")]


class Streamer(Protocol):
    """Receives a text while it is generated."""

    def __call__(self, piece: str) -> None:
        """Take the next piece, in whole characters."""


class Generator(Protocol):
    """Runs the further graphs of a head's network, such as the step of a decoder."""

    def run(self, batch: EncodedBatch, streamer: Streamer | None) -> list[Outputs]:
        """Return what `decode` gets for each window of a batch.

        Args:
            batch: the outputs of the network's `forward`.
            streamer: receives the text while it is generated; then the batch has one window.
        """


class Head(ABC, Generic[ConfigT, ExampleT, ResultT]):
    """One trained task on a backbone, without its weights.

    Attributes:
        Config: frozen dataclass with the head's options and what the training data decided.
        network: module and class of its network, ``nlptasks.networks.token_classifier:TokenClassifier``.
        schema: the rows it reads and the results it gives.
        config: its config.
        hugging_face: converts configs from and to checkpoints; None if the network's `hf_auto` has no checkpoints of this task.
        spacy: writes results into documents; None if they only appear in ``doc._.nlptasks``.

    Args:
        config: the config.
        backbone: the backbone below.
    """

    Config: ClassVar[type]
    network: ClassVar[str]
    schema: ClassVar[Schema]
    hugging_face: ClassVar[HuggingFaceFormat[Any] | None] = None
    spacy: ClassVar[SpacyWriter[Any] | None] = None

    def __init__(self, config: ConfigT, backbone: BackboneInfo) -> None:
        self.config = config

    @classmethod
    @abstractmethod
    def configure(cls, rows: Sequence[Row], options: ConfigT, backbone: BackboneInfo) -> ConfigT:
        """Return the config for training rows.

        Args:
            rows: the training rows.
            options: a config with the options of the user; derived fields have their defaults.
            backbone: the backbone below.

        Raises:
            DataError: the rows cannot be used.
            UsageError: an option does not fit them; it names the option.
            ModelError: the head cannot run on this backbone.
        """

    def network_options(self) -> Mapping[str, Any]:
        """Return the keyword arguments of the network, such as ``{"classes": 9}``."""
        return {}

    @abstractmethod
    def read(self, row: Row) -> ExampleT:
        """Return the example of a row. A row with fields of the gold answer becomes an example with a gold answer.

        Raises:
            DataError: the row is wrong.
        """

    @abstractmethod
    def gold(self, example: ExampleT) -> Hashable | None:
        """Return the gold answer in a form that can be compared, or None if there is none."""

    @abstractmethod
    def inputs(self, example: ExampleT) -> list[ModelInput]:
        """Return what the backbone reads for an example."""

    @abstractmethod
    def targets(self, example: ExampleT, window: Window) -> Mapping[str, Array]:
        """Return the targets of one window, with the shapes that the network declares: int64 or float32, without B."""

    @abstractmethod
    def decode(self, example: ExampleT, windows: Sequence[Window], outputs: Sequence[Outputs]) -> ResultT:
        """Return the result from the outputs for each window [S,...]. A text without tokens has no window."""

    @abstractmethod
    def count(self, example: ExampleT, result: ResultT) -> Counts:
        """Compare a result with the gold answer."""

    @abstractmethod
    def metrics(self, counts: Counts) -> Metrics:
        """Return the metrics for the merged counts of at least one example."""

    @property
    def calibration(self) -> Calibration[ExampleT, ResultT] | None:
        """Calibrates the scores, or None if they are no probabilities."""
        return None

    @property
    def presenter(self) -> Presenter[ExampleT, ResultT]:
        """Shows results to people."""
        return Presenter()

    @property
    def generator(self) -> Generator | None:
        """Runs the network's further graphs, or None if it has none."""
        return None


AnyHead = Head[Any, Any, Any]
"""A head of any task."""


def read_gold(head: Head[Any, ExampleT, Any], rows: Iterable[Row]) -> list[ExampleT]:
    """Return the examples of rows that must have gold answers.

    Raises:
        DataError: a row is wrong or has no gold answer; several are reported together.
    """

    def read(row: Row) -> ExampleT:
        example = head.read(row)
        if head.gold(example) is None:
            fix = 'label it, or name the column: `columns={"FIELD": "COLUMN"}`'
            raise DataError(row.where, f"has no gold answer among {listing(row.fields)}", fix)
        return example

    return each(read, rows)


def examples_of(
    heads: Mapping[str, AnyHead], row: Row, *, gold: bool = False
) -> tuple[dict[str, Any], dict[str, DataError]]:
    """Return the example of a row for each head that can read it, and the errors of the others, by name.

    Args:
        heads: the heads by name.
        row: the row.
        gold: True to read gold answers; they are ignored otherwise.
    """
    examples: dict[str, Any] = {}
    problems: dict[str, DataError] = {}
    for name, head in heads.items():
        try:
            examples[name] = head.read(row if gold else without_gold(row, head.schema))
        except DataError as problem:
            problems[name] = problem
    return examples, problems


def without_gold(row: Row, schema: Schema) -> Row:
    """Return a row without its gold answer, which may be wrong where nobody asks for it."""
    fields = {name: value for name, value in row.fields.items() if name not in schema.gold}
    return Row(fields, row.where, row.lines, gold=False)


def check_backbone(cls: type[AnyHead], backbone: BackboneInfo) -> None:
    """Refuse a backbone of a kind that a head does not run on.

    Raises:
        ModelError: it is one.
    """
    if backbone.kind not in cls.schema.backbones:
        problem = f"is of the kind {backbone.kind} ({backbone.architecture}), and {cls.__name__} does not run on it"
        fix = f"use {listing(_KINDS[kind] for kind in cls.schema.backbones)}"
        raise ModelError(backbone.source, problem, fix)


def sample_folder(cls: type[AnyHead]) -> Path:
    """Return the folder of a head's sample data."""
    package = importlib.resources.files(cls.__module__.partition(".")[0])
    return Path(str(package.joinpath(cls.schema.sample)))
