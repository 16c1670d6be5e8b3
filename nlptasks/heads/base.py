"""The contract of a head: everything that is particular to one task, in one class.

The library tokenizes, cuts windows, fills batches, trains, evaluates, saves, exports and runs; the head says what a row means,
what the backbone is to read for it, what is learned from the states, and what the outputs mean.

Notation of shapes: B batch, S tokens, H width of the backbone.
"""

from __future__ import annotations

import importlib.resources
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from nlptasks.backbones.backbone import DECODER, ENCODER, ENCODER_DECODER, BackboneInfo
from nlptasks.backbones.graph import Graph
from nlptasks.data.readers import TABLES
from nlptasks.errors import DataError, ModelError, UsageError, each, listing, quote
from nlptasks.runtimes.base import Pass
from nlptasks.types import Floats, Ints, Outputs, Reader, Reading, Row, Source, Window
from nlptasks.version import __version__

CONTRACT = 1
"""The version of the contract that this library follows."""


_EXAMPLES = {
    ENCODER: "an encoder, such as BERT or ModernBERT",
    ENCODER_DECODER: "an encoder-decoder, such as T5 or BART",
    DECODER: "a decoder, such as GPT-2, Llama or Qwen",
}
"""The kinds of backbones that there are, for people."""

_STATED = ("Config", "fields", "sample")
"""What a head's class says and has no default; `main_metric` and `outputs` may be of its instances."""


_TUPLES = ("fields", "gold_fields", "results", "assigns", "backbones", "target_features")
"""What a class says of several things."""


class Head(nn.Module, ABC):
    """One trained task on a backbone. It holds its own tensors only, never a module of the backbone.

    A row becomes an example (any object of the head's own), an example its sources, a source its windows; the outputs for the
    windows become a result.

    Args:
        config: an instance of `Config`.
        backbone: what stands below.
    """

    contract: ClassVar[int]
    """The version of the contract that the head was written for. Each registered class says it itself."""
    Config: ClassVar[type]
    """Frozen dataclass: the head's options and what the data decided, each field with its unit."""
    main_metric: str
    """The key of `metrics` by which training chooses; larger is better. A head whose data decide it sets it in `__init__`."""
    perfect: ClassVar[float] = 1.0
    """What this metric gives for answers without a fault; a point is a hundredth of it."""
    fields: ClassVar[tuple[str, ...]]
    """The names of a row's fields that `read` knows; ``--columns`` gives other columns these names."""
    gold_fields: ClassVar[tuple[str, ...]] = ()
    """Those of `fields` that hold the gold answer alone: whoever only predicts does not read them."""
    sample: ClassVar[str]
    """Folder with a small train, dev and test, inside the head's top-level package."""
    formats: ClassVar[Mapping[str, Reader]] = TABLES
    """Readers of the data files, by suffix."""
    outputs: Mapping[str, str]
    """The outputs of `forward` and their shapes in letters, ``BSC`` for one row of scores a token, ``BC`` for one a window. A
    head whose config decides them sets them in `__init__`."""
    target_features: ClassVar[tuple[str, ...]] = ()
    """Those of its features that are texts to be written, which cost as much as the tokens that are read."""
    backbones: ClassVar[tuple[str, ...]] = (ENCODER, ENCODER_DECODER)
    """The kinds of backbones that it stands on, as `BackboneInfo.kind` says them."""
    lr_scale: ClassVar[float] = 1.0
    """The default learning rate in relation to that of heads which judge every token: of few numbers a text, less is learned
    well."""
    own_lr_scale: float = 10.0
    """The default learning rate of the head's own layers in relation to the backbone's: new ones learn faster."""
    hf_auto: ClassVar[str | None] = None
    """The Hugging Face auto class whose layers the head keeps as `layers`, such as ``AutoModelForTokenClassification``. A
    head that has one can be imported from its checkpoints and written as one; see `from_hugging_face`. None where such
    checkpoints would not be this task's, even if the layers are an auto class's."""

    results: ClassVar[tuple[type, ...]] = ()
    """The dataclasses that its results consist of; with a document of spaCy, no others go to other processes."""
    assigns: ClassVar[tuple[str, ...]] = ()
    """Where `annotate` writes beside ``doc._.nlptasks``: ``doc.cats``, ``doc.ents``, ``doc.spans`` (then a result is a list whose
    items have ``start``, ``end`` and ``score``, and ``doc.spans[name]`` a span for each, in order), or ``doc._.NAME`` (then plain
    data: strings, numbers, lists and dicts, so that documents can be written as bytes)."""

    def __init__(self, config: Any, *, backbone: BackboneInfo) -> None:
        super().__init__()
        self.config = config
        self.backbone_info = backbone

    @classmethod
    @abstractmethod
    def configure(cls, rows: Sequence[Row], given: Mapping[str, Any]) -> Any:
        """The config for these training rows: the options given, and what the data decide.

        Raises:
            DataError: the rows cannot be used.
        """

    @classmethod
    def for_backbone(cls, config: Any, rows: Sequence[Row], backbone: BackboneInfo) -> Any:
        """The config for this backbone: what the training rows and it decide together.

        Raises:
            ModelError: this head cannot stand on it.
        """
        return config

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """What the head can answer, for people; empty if that is open."""

    @abstractmethod
    def read(self, row: Row) -> Any:
        """The example of a row, with its gold answer if the row has one.

        Raises:
            DataError: the row is wrong; with file, line, field and the fix.
        """

    @abstractmethod
    def gold(self, example: Any) -> Hashable | None:
        """The gold answer, to learn from or to be measured by, comparable with others; None if the example has none."""

    def gold_labels(self, example: Any) -> Sequence[str]:
        """The labels in the gold answer, to be counted; none if the head has no labels."""
        return ()

    def read_gold(self, rows: Sequence[Row]) -> list[Any]:
        """The examples of rows that must have gold answers.

        Raises:
            DataError: a row is wrong, or has none; what is wrong with several is told together (`DataErrors`).
        """
        return each(self.read_gold_row, rows)

    def read_gold_row(self, row: Row) -> Any:
        """The example of a row to learn from or to be measured by.

        Raises:
            DataError: it is wrong, or has no gold answer.
        """
        example = self.read(row)
        if self.gold(example) is None:
            fix = "label it, or name the column: --columns WANTED=FOUND"
            raise DataError(row.where, f"has no gold answer among {listing(row.fields)}", fix)
        return example

    @abstractmethod
    def sources(self, example: Any) -> list[Source]:
        """What the backbone reads for this example."""

    @abstractmethod
    def features(self, example: Any, window: Window) -> Mapping[str, Ints | Floats]:
        """What `loss` needs beside the tokens, such as ``labels``, padded with `IGNORED` in a batch.

        Each is one number for each token [S], or the same count of numbers in every window (what is among `target_features` may
        be of any length): int64, or float32 where they are no whole numbers.
        """

    @abstractmethod
    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named outputs for states [B,S,H] and ``batch["mask"]`` [B,S]; traced for export."""

    def graphs(self) -> Mapping[str, Graph]:
        """Further graphs beside `forward`, by name."""
        return {}

    def collect(self, passed: Pass) -> list[Outputs]:
        """What `decode` is to get of each window: its outputs, padding cut off. Other heads run their further graphs here."""
        arrays = {name: passed.runtime.fetch(tensor) for name, tensor in passed.outputs.items()}  # [B,...]
        by_token = {name for name, axes in self.outputs.items() if axes[1:2] == "S"}
        return [
            {name: array[row, : len(window)] if name in by_token else array[row] for name, array in arrays.items()}
            for row, window in passed.windows.items()
        ]

    @abstractmethod
    def loss(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss, as a sum, and the count that it is a sum over: scalars.

        The batch has the features, and ``example`` [B]: the number of the example, from 0, whose window a row is. All windows
        of an example are in one batch, side by side.
        """

    def adopt(self, pretrained: Callable[[], Mapping[str, Tensor]]) -> None:
        """Take over pretrained weights before training begins.

        Args:
            pretrained: gives all that were pretrained, the backbone's too, by their names in the base model.

        Raises:
            ModelError: what the head needs is not among them.
        """

    def warnings(self, examples: Sequence[Any], windows: Sequence[Sequence[Window]]) -> list[str]:
        """What to tell the user of the training rows before anything is learned from them, a line each.

        Args:
            examples: the examples that have tokens.
            windows: the windows of each.
        """
        return []

    def calibrate(self, readings: Iterable[Reading]) -> Any:
        """The config with a temperature fitted to gold answers that were held out of training; the passes are made on demand."""
        return self.config

    @property
    def has_temperature(self) -> bool:
        """Whether there is something to calibrate, so that rows are held out of training for it."""
        return type(self).calibrate is not Head.calibrate

    def fit_thresholds(self, readings: Iterable[Reading]) -> Any:
        """The config with the thresholds by which it answers best on dev, after `calibrate`; the passes are made on demand."""
        return self.config

    def scored(self, example: Any, result: Any) -> list[tuple[float, bool]]:
        """The scores in a result and whether what they stand for is right by the gold answer: for the calibration error."""
        return []

    @abstractmethod
    def decode(self, example: Any, windows: Sequence[Window], outputs: Sequence[Outputs]) -> Any:
        """The result for an example, from its windows and the outputs for each, padding cut off [S,...]."""

    @abstractmethod
    def metrics(self, examples: Sequence[Any], results: Sequence[Any]) -> dict[str, float]:
        """The metrics of results against the examples' gold answers."""

    def measured_by(self) -> str:
        """How `metrics` computed what it gave last, where the numbers alone do not say it; for the record."""
        return ""

    def example_row(self) -> dict[str, str]:
        """The fields of a row that it could answer, for people."""
        return {"text": "A text."}

    def show(self, example: Any, result: Any) -> list[tuple[str, str]]:
        """The result for people, in one line: pieces of text, each with a style (a label, or empty for plain text)."""
        return [(str(result), "")]

    def annotate(self, doc: Any, result: Any, name: str) -> None:
        """Write a result to the places in `assigns`; the result itself stands in ``doc._.nlptasks[name]`` already.

        What was in ``doc.ents`` and ``doc.cats`` before is put aside, and joined with what is written: ``doc.ents`` has at most
        what heads before this one have found, ``doc.cats`` nothing. An attribute of its own is None unless such a head has set
        it.
        """

    @property
    def borrowed(self) -> nn.Module | None:
        """What `hf_auto` puts on the backbone, if this head has it: by default that of its `layers`."""
        return getattr(getattr(self, "layers", None), "borrowed", None)

    def like_hugging_face(
        self, states: Tensor, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What `hf_auto` gives, by its names, and what it is to be given beside tokens and mask to give that."""
        return self.forward(states, batch), {}

    @classmethod
    def from_hugging_face(cls, backbone: BackboneInfo, given: Mapping[str, Any]) -> Any:
        """The head's config for a checkpoint of `hf_auto`.

        Args:
            backbone: the checkpoint's, with its whole config.
            given: the head's options.

        Raises:
            UsageError: this head cannot be had from a checkpoint, or an option is wrong.
            ModelError: what the checkpoint answers is not what this head answers.
        """
        raise UsageError(cls.__name__, "cannot be imported from a checkpoint", "train it")

    def to_hugging_face(self) -> tuple[dict[str, Any], list[str]]:
        """What a checkpoint of `hf_auto` says of this head in its config, and what it cannot say, in words for people."""
        raise UsageError(type(self).__name__, "cannot be written as a checkpoint", "export it to ONNX instead")

    @classmethod
    def check_backbone(cls, backbone: BackboneInfo) -> None:
        """Refuse a backbone of a kind that this head does not stand on.

        Raises:
            ModelError: it is one.
        """
        if backbone.kind not in cls.backbones:
            what = f"is of the kind {backbone.kind} ({backbone.config.model_type})"
            what += ", which reads only to the left" if backbone.kind == DECODER else ""
            examples = listing(_EXAMPLES[kind] for kind in cls.backbones)
            raise ModelError(backbone.source, f"{what}, and {cls.__name__} does not stand on such", f"take {examples}")

    @classmethod
    def contract_problem(cls) -> tuple[str, str] | None:
        """What this class lacks to be registered as a head, and the fix; None if nothing."""
        own = vars(cls).get("contract")
        if not isinstance(own, int):
            said = "does not say" if own is None else f"has contract {quote(own)}, which does not say"
            return f"{said} for which contract it was written", f"write contract = {CONTRACT} into the class"
        if own != CONTRACT:
            problem = f"was written for contract {own}, and nlptasks {__version__} has contract {CONTRACT}"
            return (
                problem,
                "upgrade nlptasks, or take an older version of the package" if own > CONTRACT else "upgrade it",
            )
        if missing := sorted(cls.__abstractmethods__):
            return f"lacks the methods {listing(missing)}", "write them, or upgrade the package"
        if missing := [name for name in _STATED if not hasattr(cls, name)]:
            return f"does not say its {listing(missing)}", "write them into the class, or upgrade the package"
        if wrong := [name for name in _TUPLES if not isinstance(getattr(cls, name), tuple)]:
            return f"has {listing(wrong)} that are no tuples", "write a comma behind a single one: (NAME,)"
        if not set(cls.backbones) <= set(_EXAMPLES) or not cls.backbones:
            return f"stands on the backbones {listing(cls.backbones)}", f"take some of {listing(_EXAMPLES)}"
        if not is_dataclass(cls.Config):
            return "has a Config that is no dataclass", "write @dataclass(frozen=True) above it"
        if not cls._has_sample():
            return f"has no sample data in {cls.sample}", "put them into the package (as package-data)"
        return None

    @classmethod
    def _has_sample(cls) -> bool:
        try:
            return isinstance(cls.sample, str) and cls.sample_folder().is_dir()
        except TypeError:  # a module alone, which can have no folder
            return False

    @classmethod
    def sample_folder(cls) -> Path:
        """Where the task's sample data are."""
        package = importlib.resources.files(cls.__module__.partition(".")[0])
        return Path(str(package.joinpath(cls.sample)))


def further_graphs(heads: Mapping[str, Head]) -> dict[str, Graph]:
    """The graphs that these heads add to `encode`, as ``HEAD.graph``."""
    return {f"{name}.{graph}": module for name, head in heads.items() for graph, module in head.graphs().items()}
