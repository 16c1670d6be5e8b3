"""The checks of the test kit, as functions: each runs one head on one backbone, with some of its sample data.

They raise AssertionError. Run them with pytest, which shows the values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from nlptasks.exporting.sources import StoredSource
from nlptasks.heads.base import AnyHead, check_backbone, read_gold, sample_folder, without_gold
from nlptasks.inference.batching import Instance, collate, collate_instances, make_instances
from nlptasks.inference.engine import Engine
from nlptasks.inference.scoring import measured
from nlptasks.models.folder import ModelFolder
from nlptasks.models.head_checks import HeadChecks, WrongOutputError, check_inputs, check_targets
from nlptasks.models.manifest import HeadRecord
from nlptasks.models.model import Model
from nlptasks.networks.base import Network, make_network
from nlptasks.pipeline import pipeline
from nlptasks.registry import head_class, make_backend
from nlptasks.runtimes.base import ENCODE
from nlptasks.runtimes.pytorch import open_torch
from nlptasks.text.windows import Tokenizer
from nlptasks.training.data_warnings import warnings_of
from nlptasks.types import FIRST, SPECIAL, Row

_NAME = "probe"
_ROWS = 12
_FEW = 3
_WIDER = 3
_TOLERANCE = 1e-5
_WITHOUT_GRADIENT = tuple(f".{key}.bias" for key in ("key", "key_proj", "k", "k_proj", "k_lin"))
"""The bias of all keys adds the same number to every attention score, which softmax removes."""


@dataclass
class HeadUnderTest:
    """A new head on a backbone, with some of its sample data.

    Attributes:
        task: the registered task.
        backbone: the backbone.
        head: the head.
        network: its network, untrained.
        rows: the first rows of its sample data.
        tokenizer: the backbone's tokenizer.
    """

    task: str
    backbone: Backbone
    head: AnyHead
    network: Network
    rows: Sequence[Row]
    tokenizer: Tokenizer

    @property
    def examples(self) -> list[Any]:
        """The examples of the rows, with gold answers."""
        return read_gold(self.head, self.rows)

    @property
    def instances(self) -> list[Instance]:
        """The examples with their windows and targets."""
        return make_instances(self.head, self.tokenizer, self.examples, self.network.targets)

    def model(self) -> Model:
        """Return a model with this head, in evaluation mode."""
        record = HeadRecord(self.task, recorded(self.head.config))
        return Model(self.backbone, {_NAME: self.head}, {_NAME: self.network}, {_NAME: record}).eval()


def check_all(task: str, backbone_folder: Path, model_folder: Path) -> None:
    """Check everything except the command line, for one head on one backbone."""
    head = make_head(task, backbone_folder)
    check_export(head, model_folder, check_without_export(head, model_folder))
    check_spacy(head, model_folder)


def check_without_export(head: HeadUnderTest, model_folder: Path) -> list[Any]:
    """Check everything on PyTorch, and return the results."""
    check_reading(head)
    check_outputs(head)
    check_counting(head)
    check_learning(head)
    results = check_saving(head, model_folder)
    check_spacy(head, model_folder)
    return results


def make_head(task: str, backbone_folder: Path) -> HeadUnderTest:
    """Return a new head of a task on a backbone, the same every time."""
    cls = head_class(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = load_backbone(str(backbone_folder))
        check_backbone(cls, backbone.info)
        rows = load_data(sample_folder(cls), cls.schema.formats, {}).parts["train"]
        head = cls(cls.configure(rows, cls.Config(), backbone.info), backbone.info)
        network = make_network(head.network, backbone.info, head.network_options())
    return HeadUnderTest(task, backbone, head, network, rows[:_ROWS], backbone.tokenizer())


def check_reading(head: HeadUnderTest) -> None:
    """Check the examples: gold answers can be compared, inputs are texts, targets fit the windows, offsets fit the text."""
    codec = head.head
    warnings_of(codec, {"train": head.rows}, {"train": head.examples})  # it puts gold answers into sets
    for example, row in zip(head.examples, head.rows, strict=True):
        assert codec.gold(example) is not None
        assert codec.gold(codec.read(without_gold(row, codec.schema))) is None
        labels = codec.presenter.labels
        assert not labels or set(codec.presenter.gold_labels(example)) <= set(labels)
        with _asserting("inputs"):
            check_inputs(codec.inputs(example))
        for one in codec.inputs(example):
            [windows] = head.tokenizer.windows([one])
            for window in windows:
                for part, (start, end) in zip(window.parts, window.offsets, strict=True):
                    text = one.texts[0] if part == FIRST else one.texts[-1]
                    assert part == SPECIAL or 0 <= start <= end <= len(text)
    with _asserting("targets"):
        check_targets(head.instances, head.network.targets)


def check_outputs(head: HeadUnderTest) -> None:
    """Check outputs and loss: names, shapes and numbers are as declared, and padding changes no output."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        HeadChecks(head.model(), _NAME, head.tokenizer, _asserting).check_network(head.instances[:_FEW])
        _check_padding(head)


def _check_padding(head: HeadUnderTest) -> None:
    network, longest = head.network, head.backbone.info.max_tokens - _WIDER
    batch = {name: tensor[:, :longest] for name, tensor in tensors_of(head, head.examples[:_FEW]).items()}
    outputs = network(head.backbone(batch), batch)
    wider = {name: torch.nn.functional.pad(tensor, (0, _WIDER)) for name, tensor in batch.items()}
    again = network(head.backbone(wider), wider)
    for name, axes in network.outputs.items():
        one, two = outputs[name], again[name]
        if "S" in axes:
            one, two = one.swapaxes(1, axes.index("S")), two.swapaxes(1, axes.index("S"))[:, : batch["mask"].shape[1]]
        real = batch["mask"] == 1 if "S" in axes else slice(None)
        torch.testing.assert_close(one[real], two[real], atol=_TOLERANCE, rtol=0)


def check_counting(head: HeadUnderTest) -> None:
    """Check results, counts and metrics: results are plain data, and merged counts give the metrics of all examples."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        checks = HeadChecks(head.model(), _NAME, head.tokenizer, _asserting)
        checks.check_results(head.examples[:_FEW], head.rows[:_FEW])


def check_learning(head: HeadUnderTest, *, steps: int = 90) -> None:
    """Check that the loss is halved, and that every weight of network and backbone that is trained gets a gradient."""
    batch = tensors_of(head, head.examples, with_targets=True)
    module = torch.nn.ModuleList(
        [head.backbone.eval(), head.network.eval()]
    )  # without dropout, whose noise hides progress
    fixed = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total, count = head.network.loss(head.network.training_outputs(head.backbone(batch), batch), batch)
        (total / count).backward()  # type: ignore[no-untyped-call]
        losses.append((total / count).item())
        if len(losses) == 1:
            names = {name for name, weight in module.named_parameters() if weight.grad is None or not weight.grad.any()}
            assert not {name for name in names - fixed if not (name[0] == "0" and name.endswith(_WITHOUT_GRADIENT))}
        if losses[-1] < losses[0] / 2:
            break
        optimizer.step()
    assert losses[-1] < losses[0] / 2, losses


def check_saving(head: HeadUnderTest, folder: Path) -> list[Any]:
    """Check that a saved model loads and gives exactly the same results, and return these."""
    model = head.model()
    model.save(folder)
    runtime = open_torch(copy.deepcopy(model).graphs(), "cpu", outputs=model.outputs)
    unsaved = Engine({_NAME: head.head}, head.tokenizer, runtime, head.backbone.info)
    before = [found[_NAME] for found in unsaved.stream({_NAME: example} for example in head.examples)]
    after = [one.results[_NAME] for one in pipeline(_NAME, model=folder, backend="torch").predict(head.rows, gold=True)]
    assert before == after
    assert len(after) == len(head.rows)
    return after


def check_export(head: HeadUnderTest, folder: Path, expected: Sequence[Any]) -> None:
    """Check that exported graphs give PyTorch's outputs for one row and for several, and the same metrics."""
    assert export(folder).max_difference <= 1e-4
    check_numbers(folder, batches_of(head))
    found = [one.results[_NAME] for one in pipeline(_NAME, model=folder, backend="onnx").predict(head.rows, gold=True)]
    exported, original = (
        measured(head.head, zip(head.examples, results, strict=True)).values for results in (found, expected)
    )
    assert set(exported) == set(original)
    for name, value in original.items():  # counts are equal, sums of rounded numbers nearly
        np.testing.assert_allclose(exported[name], value, atol=_TOLERANCE, rtol=_TOLERANCE)


def check_numbers(folder: Path, batches: Iterable[Mapping[str, Any]]) -> None:
    """Check that the exported heads of a model give PyTorch's outputs for batches, as `batches_of` returns them."""
    stored = ModelFolder.open(folder)
    source, info = StoredSource(stored, list(stored.records)), stored.backbone_info()
    known = (make_backend(name) for name in ("torch", "onnx"))
    one, two = (backend.open(source, backend.precisions[0], "cpu") for backend in known)
    for arrays in batches:
        inputs = {name: arrays[name] for name in info.inputs}
        ours, theirs = (
            {key: each.fetch(value) for key, value in each.run(ENCODE, inputs).items()} for each in (one, two)
        )
        assert set(ours) == set(theirs)
        for key in ours:
            head, _, output = key.rpartition(".")
            axes = one.outputs[head][output]
            real = arrays["mask"] == 1 if "S" in axes else slice(None)
            first = axes.index("S") if "S" in axes else 0
            found, wanted = theirs[key].swapaxes(1, first), ours[key].swapaxes(1, first)
            np.testing.assert_allclose(found[real], wanted[real], atol=_TOLERANCE, rtol=0)


def check_spacy(head: HeadUnderTest, folder: Path) -> None:
    """Check that spaCy documents have the pipeline's results, also as bytes, exactly at the places that the head declares."""
    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(folder)})
    texts = [
        row.fields["text"] if isinstance(row.fields.get("text"), str) else head.head.inputs(example)[0].texts[0]
        for row, example in zip(head.rows[:2], head.examples[:2], strict=True)
    ]
    docs = list(nlp.pipe(texts))
    assert [doc._.nlptasks for doc in docs] == pipeline(model=folder)(texts)
    for doc in docs:
        assert Doc(nlp.vocab).from_bytes(doc.to_bytes())._.nlptasks == doc._.nlptasks
    assigns = set(head.head.spacy.assigns) if head.head.spacy else set()
    own = [place for place in assigns if place.startswith("doc._.")]
    written = {
        "doc.ents": any(doc.ents for doc in docs),
        "doc.spans": any(_NAME in doc.spans for doc in docs),
        "doc.cats": any(doc.cats for doc in docs),
        **{place: all(doc._.get(place.removeprefix("doc._.")) is not None for doc in docs) for place in own},
    }
    places = {place for place, is_written in written.items() if is_written}
    assert places <= assigns
    was_read = any(doc._.nlptasks for doc in docs)
    assert not was_read or assigns - {"doc.ents"} <= places  # an untrained head may find no entity


def batches_of(head: HeadUnderTest) -> list[dict[str, Any]]:
    """Return batches of one example and of several, with padding."""
    examples = head.examples
    return [arrays_of(head, few) for few in (examples[:1], examples[:3], examples[3:10])]


def arrays_of(head: HeadUnderTest, examples: Sequence[Any]) -> dict[str, Any]:
    """Return one batch of all windows of the examples."""
    inputs = [one for example in examples for one in head.head.inputs(example)]
    windows = [window for own in head.tokenizer.windows(inputs) for window in own]
    return dict(collate(windows, head.backbone.info))


def tensors_of(head: HeadUnderTest, examples: Sequence[Any], *, with_targets: bool = False) -> Mapping[str, Tensor]:
    """Return the same batch as tensors, with the targets that the loss reads."""
    if with_targets:
        instances = make_instances(head.head, head.tokenizer, examples, head.network.targets)
        arrays: Mapping[str, Any] = collate_instances(instances, head.backbone.info)
    else:
        arrays = arrays_of(head, examples)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@contextmanager
def _asserting(method: str) -> Iterator[None]:
    """Turn a broken contract into a failed test."""
    try:
        yield
    except WrongOutputError as error:
        raise AssertionError(f"{method} {error}") from error
