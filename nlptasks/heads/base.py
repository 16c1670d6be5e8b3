"""The contract of a head: everything that is particular to one task, in one class.

The library tokenizes, cuts windows, fills batches, trains, evaluates, saves, exports and runs; the head says what a row means,
what the backbone is to read for it, what is learned from the states, and what the outputs mean.

Notation of shapes: B batch, S tokens, H width of the backbone.
"""

from __future__ import annotations

import copy
import importlib.resources
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, TokenClassifierOutput

from nlptasks.backbone import BackboneInfo
from nlptasks.errors import DataError, each, listing
from nlptasks.files import TABLES
from nlptasks.types import Floats, Ints, Reader, Row, Source, Window

IGNORED = -100
"""The label of a token that the loss leaves out."""

_INITIAL_STD = 0.02


class Head(nn.Module, ABC):
    """One trained task on a backbone. It holds its own tensors only, never a module of the backbone.

    A row becomes an example (any object of the head's own), an example its sources, a source its windows; the outputs for the
    windows become a result.

    Args:
        config: an instance of `Config`.
        backbone: what stands below.
    """

    Config: ClassVar[type]
    """Frozen dataclass: the head's options and what the data decided, each field with its unit."""
    main_metric: ClassVar[str]
    """The key of `metrics` by which training chooses; larger is better."""
    fields: ClassVar[tuple[str, ...]]
    """The names of a row's fields that `read` knows; ``--columns`` gives other columns these names."""
    sample: ClassVar[str]
    """Folder with a small train, dev and test, inside the head's top-level package."""
    formats: ClassVar[Mapping[str, Reader]] = TABLES
    """Readers of the data files, by suffix."""
    outputs: ClassVar[Mapping[str, str]]
    """The outputs of `forward` and their shapes in letters, ``BSC`` for one row of scores a token, ``BC`` for one a window."""
    hf_auto: ClassVar[str | None] = None
    """The Hugging Face auto class whose layers the head has, such as ``AutoModelForTokenClassification``."""

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
        return each(self._read_gold, rows)

    def _read_gold(self, row: Row) -> Any:
        example = self.read(row)
        if self.gold(example) is None:
            fix = "label it, or name the column: --columns WANTED=FOUND"
            raise DataError(row.where, f"has no gold answer among {listing(row.fields)}", fix)
        return example

    @abstractmethod
    def sources(self, example: Any) -> list[Source]:
        """What the backbone reads for this example."""

    @abstractmethod
    def features(self, example: Any, window: Window) -> dict[str, Ints]:
        """What `loss` needs beside the tokens, one number per token [S], such as ``labels`` (padded with `IGNORED`)."""

    @abstractmethod
    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named outputs for states [B,S,H] and ``batch["mask"]`` [B,S]; traced for export."""

    @abstractmethod
    def loss(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss, as a sum, and the count that it is a sum over: scalars."""

    @abstractmethod
    def decode(self, example: Any, windows: Sequence[Window], outputs: Sequence[Mapping[str, Floats]]) -> Any:
        """The result for an example, from its windows and the outputs for each, padding cut off [S,...]."""

    @abstractmethod
    def metrics(self, examples: Sequence[Any], results: Sequence[Any]) -> dict[str, float]:
        """The metrics of results against the examples' gold answers."""

    def show(self, example: Any, result: Any) -> list[tuple[str, str]]:
        """The result for people: pieces of text, each with a style (a label, or empty for plain text)."""
        return [(str(result), "")]

    def annotate(self, doc: Any, result: Any, name: str) -> None:
        """Write a result where spaCy has a place for it; `result` itself already stands in ``doc._.nlptasks[name]``."""

    @classmethod
    def sample_folder(cls) -> Path:
        """Where the task's sample data are."""
        package = importlib.resources.files(cls.__module__.partition(".")[0])
        return Path(str(package.joinpath(cls.sample)))


class HuggingFaceLayers(nn.Module):
    """The layers that a Hugging Face auto class puts on this backbone, without the backbone.

    The auto class builds the whole model (without memory), its base model is replaced by a stub that hands the states through,
    and what remains is the head. So no table of architectures is needed, and checkpoints can go either way. Where the
    architecture has no such class, the layers are the usual ones: dropout and a linear layer.

    Args:
        hf_auto: name of the auto class.
        info: the backbone's info.
        classes: number of classes C.
    """

    def __init__(self, hf_auto: str, info: BackboneInfo, *, classes: int) -> None:
        super().__init__()
        config = copy.deepcopy(info.config)
        config.num_labels = classes
        auto = getattr(transformers, hf_auto)
        if type(config) in auto._model_mapping:
            self.model: nn.Module = _headless(auto, config)
        else:
            self.model = _Usual(getattr(config, "dropout", 0.1), info.width, classes)
        _initialize(self.model)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Logits [B,S,C] (or [B,C], as the auto class has it) for states [B,S,H] and mask [B,S]."""
        logits: Tensor = self.model(inputs_embeds=states, attention_mask=mask).logits
        return logits


class _Stub(nn.Module):
    """Stands where the base model stood: the states come in as embeddings and go out as its last hidden state."""

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class _Usual(nn.Module):
    def __init__(self, dropout: float, width: int, classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=self.classifier(self.dropout(inputs_embeds)))


def _headless(auto: Any, config: Any) -> nn.Module:
    with torch.device("meta"):
        model: Any = auto.from_config(config)
    setattr(model, model.base_model_prefix, _Stub())
    own: nn.Module = model.to_empty(device=torch.get_default_device())
    return own


def _initialize(module: nn.Module) -> None:
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=_INITIAL_STD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
