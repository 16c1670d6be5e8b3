"""What every head must do, whoever wrote it, as functions: each takes a head on a backbone with some of its sample data.

They raise AssertionError; pytest, with which they are meant to be run, says what was and what should have been.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import spacy
import torch
from spacy.tokens import Doc
from torch import Tensor

from nlptasks.backbones.backbone import Backbone
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.config import recorded
from nlptasks.data.datasets import load_data
from nlptasks.exporting.exporter import export
from nlptasks.heads.base import Head
from nlptasks.inference.batching import collate, collate_units, make_units
from nlptasks.models.manifest import HeadRecord
from nlptasks.models.model import Model
from nlptasks.pipeline import pipeline
from nlptasks.registry import head_class
from nlptasks.runtimes.base import ENCODE
from nlptasks.runtimes.pytorch import open_torch
from nlptasks.text.windowing import Tokenizer
from nlptasks.training.data_warnings import warnings_of
from nlptasks.types import FIRST, SPECIAL, Row

_NAME = "probe"
_ROWS = 12
_WIDER = 3
_TOLERANCE = 1e-5
_WITHOUT_GRADIENT = tuple(f".{key}.bias" for key in ("key", "key_proj", "k", "k_proj", "k_lin"))
"""A bias of all keys adds the same to every attention score, which softmax takes out again."""


@dataclass
class Subject:
    """A head on a backbone, with some of its sample data.

    Attributes:
        task: the registered task.
        backbone: what it stands on.
        head: the head, untrained.
        rows: the first rows of its sample data.
        tokenizer: the backbone's.
    """

    task: str
    backbone: Backbone
    head: Head
    rows: Sequence[Row]
    tokenizer: Tokenizer

    @property
    def examples(self) -> list[Any]:
        """The rows as examples to learn from."""
        return self.head.read_gold(self.rows)

    def model(self) -> Model:
        """Both as a model, in evaluation mode."""
        record = HeadRecord(self.task, recorded(self.head.config))
        return Model(self.backbone, {_NAME: self.head}, {_NAME: record}).eval()


def check_all(task: str, backbone_folder: Path, model_folder: Path) -> None:
    """Everything but the command line, for one head on one backbone."""
    subject = make_subject(task, backbone_folder)
    check_export(subject, model_folder, check_without_export(subject, model_folder))
    check_spacy(subject, model_folder)


def check_without_export(subject: Subject, model_folder: Path) -> list[Any]:
    """Everything on PyTorch; the results are returned."""
    check_reading(subject)
    check_outputs(subject)
    check_learning(subject)
    results = check_saving(subject, model_folder)
    check_spacy(subject, model_folder)
    return results


def make_subject(task: str, backbone_folder: Path) -> Subject:
    """A new head of the task on a backbone, the same every time."""
    cls = head_class(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = load_backbone(str(backbone_folder))
        rows = load_data(cls.sample_folder(), cls.formats, {}).parts["train"]
        config = cls.for_backbone(cls.configure(rows, {}), rows, backbone.info)
        head = cls(config, backbone=backbone.info)
    return Subject(task, backbone, head, rows[:_ROWS], backbone.tokenizer())


def check_reading(subject: Subject) -> None:
    """Sources are text, gold answers can be compared, features fit the windows, offsets point into the text."""
    warnings_of(subject.head, {"train": subject.rows}, {"train": subject.examples})  # it puts gold answers into sets
    for example in subject.examples:
        assert subject.head.gold(example) is not None
        assert set(subject.head.gold_labels(example)) <= set(subject.head.labels)
        for source in subject.head.sources(example):
            [windows] = subject.tokenizer.windows([source])
            for window in windows:
                for values in subject.head.features(example, window).values():
                    assert values.ndim == 1
                    assert len(values)
                for part, (start, end) in zip(window.parts, window.offsets, strict=True):
                    text = source.first if part == FIRST else source.second or ""
                    assert part == SPECIAL or 0 <= start <= end <= len(text)


def check_outputs(subject: Subject) -> None:
    """The outputs have the names and shapes that the head declares, and do not change with padding."""
    longest = subject.backbone.info.max_tokens - _WIDER
    batch = {name: tensor[:, :longest] for name, tensor in tensors_of(subject, subject.examples[:3]).items()}
    states = subject.backbone.eval()(batch)
    outputs = subject.head.eval()(states, batch)
    assert set(outputs) == set(subject.head.outputs)
    sizes = {"B": states.shape[0], "S": states.shape[1]}
    for name, axes in subject.head.outputs.items():
        assert len(outputs[name].shape) == len(axes)
        for letter, size in zip(axes, outputs[name].shape, strict=True):
            assert sizes.setdefault(letter, size) == size
    wider = {name: torch.nn.functional.pad(tensor, (0, _WIDER)) for name, tensor in batch.items()}
    again = subject.head(subject.backbone(wider), wider)
    for name, axes in subject.head.outputs.items():
        one, two = outputs[name], again[name]
        if "S" in axes:
            one, two = one.swapaxes(1, axes.index("S")), two.swapaxes(1, axes.index("S"))[:, : sizes["S"]]
        real = batch["mask"] == 1 if "S" in axes else slice(None)
        torch.testing.assert_close(one[real], two[real], atol=_TOLERANCE, rtol=0)


def check_learning(subject: Subject, *, steps: int = 90) -> None:
    """The loss falls to its half, and every weight of head and backbone that is not fixed gets a gradient."""
    batch = tensors_of(subject, subject.examples, with_features=True)
    module = torch.nn.ModuleList(
        [subject.backbone.eval(), subject.head.eval()]
    )  # no dropout: the loss must fall for sure
    fixed = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total, count = subject.head.loss(subject.backbone(batch), batch)
        assert total.shape == count.shape == ()
        (total / count).backward()  # type: ignore[no-untyped-call]
        losses.append((total / count).item())
        if len(losses) == 1:
            names = {name for name, weight in module.named_parameters() if weight.grad is None or not weight.grad.any()}
            assert not {name for name in names - fixed if not (name[0] == "0" and name.endswith(_WITHOUT_GRADIENT))}
        if losses[-1] < losses[0] / 2:
            break
        optimizer.step()
    assert losses[-1] < losses[0] / 2, losses


def check_saving(subject: Subject, folder: Path) -> list[Any]:
    """A saved model loads and gives the very same results, which are returned."""
    model = subject.model()
    model.save(folder)
    loaded = pipeline(_NAME, model=folder, backend="torch").engine
    unsaved = replace(loaded, heads={_NAME: subject.head}, runtime=open_torch(copy.deepcopy(model).graphs(), "cpu"))
    before, after = ([found[_NAME] for found in engine.stream(_items(subject))] for engine in (unsaved, loaded))
    assert before == after
    assert len(after) == len(subject.rows)
    return after


def _items(subject: Subject) -> list[dict[str, Any]]:
    return [{_NAME: example} for example in subject.examples]


def check_export(subject: Subject, folder: Path, expected: Sequence[Any]) -> None:
    """The exported graph gives PyTorch's numbers for one row and for several, with padding, and the same results."""
    assert export(folder).max_difference <= 1e-4
    check_numbers(folder, batches_of(subject))
    exported = pipeline(_NAME, model=folder, backend="onnx").engine
    found = [results[_NAME] for results in exported.stream(_items(subject))]
    measured = [subject.head.metrics(subject.examples, results) for results in (found, expected)]
    assert set(measured[0]) == set(measured[1])
    for name, value in measured[1].items():  # counts are the same to the last, sums of rounded numbers nearly
        np.testing.assert_allclose(measured[0][name], value, atol=_TOLERANCE, rtol=_TOLERANCE)


def check_numbers(folder: Path, batches: Iterable[Mapping[str, Any]]) -> None:
    """All heads of an exported model give PyTorch's numbers for some batches, as `batches_of` gives them."""
    one, two = (pipeline(model=folder, backend=backend).engine for backend in ("torch", "onnx"))
    for arrays in batches:
        inputs = {name: arrays[name] for name in one.info.inputs}
        numbers = [{k: e.runtime.fetch(v) for k, v in e.runtime.run(ENCODE, inputs).items()} for e in (one, two)]
        assert set(numbers[0]) == set(numbers[1])
        for key in numbers[0]:
            head, _, output = key.rpartition(".")
            axes = one.heads[head].outputs[output]
            real = arrays["mask"] == 1 if "S" in axes else slice(None)
            ours, theirs = (found[key].swapaxes(1, axes.index("S") if "S" in axes else 0) for found in numbers)
            np.testing.assert_allclose(ours[real], theirs[real], atol=_TOLERANCE, rtol=0)


def check_spacy(subject: Subject, folder: Path) -> None:
    """Documents of spaCy have the pipeline's results, as bytes too, and are written to where the head says, and nowhere else."""
    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(folder)})
    texts = [
        row.fields["text"] if isinstance(row.fields.get("text"), str) else subject.head.sources(example)[0].first
        for row, example in zip(subject.rows[:2], subject.examples[:2], strict=True)
    ]
    docs = list(nlp.pipe(texts))
    assert [doc._.nlptasks for doc in docs] == pipeline(model=folder)(texts)
    for doc in docs:
        assert Doc(nlp.vocab).from_bytes(doc.to_bytes())._.nlptasks == doc._.nlptasks
    own = [place for place in subject.head.assigns if place.startswith("doc._.")]
    written = {
        "doc.ents": any(doc.ents for doc in docs),
        "doc.spans": any(_NAME in doc.spans for doc in docs),
        "doc.cats": any(doc.cats for doc in docs),
        **{place: all(doc._.get(place.removeprefix("doc._.")) is not None for doc in docs) for place in own},
    }
    places = {place for place, is_written in written.items() if is_written}
    read = any(doc._.nlptasks for doc in docs)
    assert places <= {*subject.head.assigns}
    assert (
        not read or {*subject.head.assigns} - {"doc.ents"} <= places
    )  # of an untrained head, a text may have no entity


def batches_of(subject: Subject) -> list[dict[str, Any]]:
    """Batches of one example and of several, with padding."""
    return [
        arrays_of(subject, examples)
        for examples in (subject.examples[:1], subject.examples[:3], subject.examples[3:10])
    ]


def arrays_of(subject: Subject, examples: Sequence[Any]) -> dict[str, Any]:
    """One batch of all windows of the examples."""
    sources = [source for example in examples for source in subject.head.sources(example)]
    windows = [window for own in subject.tokenizer.windows(sources) for window in own]
    return dict(collate(windows, subject.backbone.info))


def tensors_of(subject: Subject, examples: Sequence[Any], *, with_features: bool = False) -> Mapping[str, Tensor]:
    """The same as tensors, with the features that the loss needs."""
    if with_features:
        arrays = collate_units(make_units(subject.head, subject.tokenizer, examples), subject.backbone.info)
    else:
        arrays = arrays_of(subject, examples)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
