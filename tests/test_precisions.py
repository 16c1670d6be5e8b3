"""Precisions of exports: checked by each head's metric, and chosen automatically only if they were."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from answering import TEXTS, contents, copied, rewritten, run
from click.testing import Result

import nlptasks
from nlptasks.data.datasets import load_part
from nlptasks.errors import BackendError, DataError, ModelError, UsageError
from nlptasks.exporting import exporter as exporting
from nlptasks.exporting import precisions
from nlptasks.exporting.drift import Check, check_all, refuse_drift
from nlptasks.exporting.exporter import ExportReport, export
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.sources import StoredSource
from nlptasks.exporting.tracing import _PLAIN
from nlptasks.heads.ner import NerHead
from nlptasks.heads.seq2seq import GeneratedText
from nlptasks.inference.engine import Engine
from nlptasks.inference.scoring import Evaluation, load_gold, measured
from nlptasks.models.folder import ModelFolder
from nlptasks.models.model import Model
from nlptasks.pipeline import pipeline
from nlptasks.runtimes.base import Choice
from nlptasks.runtimes.onnx_backend import OnnxBackend
from nlptasks.runtimes.pytorch import open_torch
from nlptasks.storage.atomic import unsealed
from nlptasks.testing import checks

CPU = torch.device("cpu")

# X2: precisions, checked by the metric


def test_the_backend_opens_every_precision_of_exports() -> None:
    assert tuple(PRECISIONS) == OnnxBackend.precisions


@pytest.fixture(scope="module")
def gold(conll_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled data with some wrong labels, so that no metric is 0 or 1."""
    path = tmp_path_factory.mktemp("gold") / "test.conll"
    path.write_text((conll_data / "dev.conll").read_text().replace("Rome\tB-LOC", "Rome\tO"))
    return path


@dataclass(frozen=True)
class Made:
    """An export that was made by command line, and the output of the command."""

    model: Path
    done: Result

    def report(self, precision: str) -> dict[str, Any]:
        return unsealed((self.model / "onnx" / precision / "report.json").read_bytes())


@pytest.fixture(scope="module")
def int8(both: Path, gold: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The model with three heads in int8, one of them checked."""
    model = copied(both, tmp_path_factory.mktemp("int8") / "model")
    return Made(model, run("export", model, "--precision", "int8", "--check", f"ner={gold}"))


@pytest.fixture(scope="module")
def fp16(trained: Path, gold: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The model in fp16, checked where there is no CUDA."""
    model = copied(trained, tmp_path_factory.mktemp("fp16") / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlptasks.runtimes.onnx.usable_device", lambda device: "cpu")
        return Made(model, run("export", model, "--precision", "fp16", "--check", f"ner={gold}"))


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_check_reports_both_metrics(precision: str, gold: Path, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(precision)
    assert made.done.exit_code == 0, made.done.output
    before, after = (
        nlptasks.evaluate(made.model, f"ner={gold}", backend=backend, device="cpu")
        for backend in ("torch", f"onnx:{precision}")
    )
    one, two = before.metrics["f1"], after.metrics["f1"]
    assert 0.5 < one < 1
    rows = len(rows_of(gold))
    check = made.report(precision)["checks"]["ner"]
    assert check.pop("points") == pytest.approx(100 * (two - one))
    assert check == {"metric": "f1", "split": before.split, "rows": rows, "reference": one, "exported": two}
    assert f"ner: f1 {one:.4f} on PyTorch, {two:.4f} on ONNX Runtime (" in made.done.stdout
    assert f"points) on {rows} rows of {before.split}\n" in made.done.stdout
    assert f"use it: --backend onnx:{precision}" in made.done.stdout
    assert "not checked" not in made.done.stdout
    assert ("not verified: it was compared on the cpu" in made.done.stdout) == (precision == "fp16")


def rows_of(path: Path) -> list[Any]:
    return load_part(path, None, NerHead.schema.formats, {})[1]


def test_int8_is_smaller_and_differs_from_the_model(int8: Made, both_exported: Path) -> None:
    sizes = [
        sum(len(content) for name, content in contents(place / "onnx").items() if ".onnx" in name)
        for place in (int8.model, both_exported)
    ]
    assert sizes[0] < 0.8 * sizes[1]  # embeddings are not converted
    kinds = [weight.data_type for weight in onnx.load(int8.model / "onnx/int8/encode.onnx").graph.initializer]
    assert onnx.TensorProto.INT8 in kinds
    graph = onnx.load(int8.model / "onnx/int8/encode.onnx").graph
    arrays = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    quantized = {name: array for name, array in arrays.items() if array.dtype == np.int8 and array.ndim == 2}
    assert quantized
    for name, array in quantized.items():
        assert np.abs(array).max() <= 64  # 7 bits
        assert arrays[name.removesuffix("_quantized") + "_scale"].shape == array.shape[1:]  # one for each output
    report = int8.report("int8")
    assert report["max_difference"] > 1e-4
    assert report["device"] == "cpu"


def test_drift_is_refused_unless_it_is_accepted(
    int8: Made, gold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = replace(PRECISIONS["int8"], convert=partial(rewritten, number=0))  # every token has the same label
    monkeypatch.setattr(exporting, "PRECISIONS", {**PRECISIONS, "int8": damaged})
    model = copied(int8.model, tmp_path / "model")
    command = ["export", model, "--precision", "int8", "--check", f"ner={gold}"]
    done = run(*command)
    assert done.exit_code == 6
    assert done.stdout == ""
    moved = (
        r"changes f1 of ner from 0\.\d{4} to 0\.0000 \(-\d\d\.\d\d points on \d+ rows of all\), by more than 0.5 points"
    )
    fix = "use another precision, or accept it with --accept-drift"
    logged = r"exporting encode in int8\nevaluating ner on both backends, on \d+ rows of all\n"
    expected = rf"{logged}error: {re.escape(str(model))} in int8: {moved}: the older export is kept; {fix}\n"
    assert re.fullmatch(expected, done.stderr), done.stderr
    assert contents(model) == contents(int8.model)
    done = run(*command, "--accept-drift")
    assert done.exit_code == 0, done.stderr
    assert "0.0000 on ONNX Runtime (-" in done.stdout
    assert Made(model, done).report("int8")["checks"]["ner"]["points"] < -50
    assert not pipeline("ner", model=model, backend="onnx:int8", device="cpu")(TEXTS[0])


def test_a_wrong_check_is_refused_before_the_work_starts(
    trained: Path, gold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_export_graphs", lambda *given: pytest.fail("the work has started"))
    model = copied(trained, tmp_path / "model")
    empty = tmp_path / "empty.conll"
    empty.touch()
    for check, error in ((f"nerr={gold}", UsageError), (f"ner={gold}.no", DataError), (f"ner={empty}", DataError)):
        with pytest.raises(error):
            export(model, precision="int8", checks=[check])
    with pytest.raises(UsageError, match="use one of fp32, fp16, int8"):
        export(model, precision="int4")
    assert contents(model) == contents(trained)


def check_of(metric: str, *, before: float, after: float, scale: float) -> Check:
    """Return the check of a head whose metric has two known values."""

    def evaluate(engine: Any) -> Evaluation:
        return Evaluation("head", "test", metric, {metric: engine}, scale=scale)

    gold: Any = SimpleNamespace(head="head", split="test", examples=[1], evaluate=evaluate)
    engines: Any = (before, after)
    return check_all(*engines, [gold])["head"]


@pytest.mark.parametrize(
    ("metric", "scale", "before", "after", "points"),
    [
        ("f1", 1.0, 0.9, 0.894, -0.6),
        ("f1", 1.0, 0.9, 0.906, 0.6),
        ("f1", 1.0, 0.9, 0.896, -0.4),
        ("bleu", 100.0, 30.0, 29.4, -0.6),
        ("bleu", 100.0, 30.0, 29.6, -0.4),
    ],
)
def test_points_are_hundredths_of_a_perfect_metric(
    metric: str, scale: float, before: float, after: float, points: float
) -> None:
    check = check_of(metric, before=before, after=after, scale=scale)
    assert check == Check(metric, "test", 1, before, after, pytest.approx(points))
    if abs(points) < 0.5:
        refuse_drift("model in int8", {"head": check}, older=False)
    else:
        message = rf"changes {metric} of head .* \({points:+.2f} points on .*\)".replace("+", r"\+")
        with pytest.raises(BackendError, match=message):
            refuse_drift("model in int8", {"head": check}, older=False)


@pytest.mark.parametrize("task", ["translation", "summarization"])
def test_the_scale_of_a_metric_is_its_value_for_perfect_texts(task: str, backbones: Path) -> None:
    under_test = checks.make_head(task, backbones / "bert")
    pairs = [(example, GeneratedText(example.targets[0], 1.0, False)) for example in under_test.examples]
    metrics = measured(under_test.head, pairs)
    assert metrics.values[metrics.main] == pytest.approx(metrics.scale)


def test_each_head_is_checked_on_its_own_scale(trained: Path, gold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = NerHead.metrics
    monkeypatch.setattr(NerHead, "metrics", lambda self, counts: replace(own(self, counts), scale=50.0))
    stored = ModelFolder.open(trained)
    model, other = Model.load(trained), Model.load(trained)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    engines = [
        Engine(one.heads, stored.tokenizer(), open_torch(one.graphs(), "cpu", outputs=one.outputs), one.backbone.info)
        for one in (model, other)
    ]
    examples = load_gold(nlptasks.Target("ner", "ner", str(gold)), "ner", model.heads["ner"])
    found = check_all(*engines, [examples])
    assert found["ner"].reference > 0.5
    assert found["ner"].points == pytest.approx(2 * (found["ner"].exported - found["ner"].reference))
    assert check_all(*engines, []) == {}


# X2: what `auto` chooses

Described = tuple[str, dict[str, float]]
"""The device that an export was compared on, and the points by which it changes each metric."""


def report_of(stored: ModelFolder, device: str, moved: dict[str, float], *, stale: str = "") -> dict[str, Any]:
    """Return the report of an export as far as it is read, which may be stale for a head."""
    made_from = dict(stored.manifest["files"])
    if stale:
        made_from[f"heads/{stale}.safetensors"] = "0" * 64
    checks = {name: {"points": points} for name, points in moved.items()}
    return {
        "device": device, "checks": checks, "made_from": made_from, "files": {}, "graphs": {}, "outputs": {}
    }  # fmt: skip


@pytest.fixture
def choosing(both: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Choice]:
    """Return what ONNX Runtime's backend chooses among some exports on a simulated machine."""
    stored = ModelFolder.open(both)

    def choose(exports: dict[str, Described], heads: Sequence[str], *, gpu: bool, stale: Sequence[str] = ()) -> Choice:
        monkeypatch.setattr("nlptasks.runtimes.onnx_backend.usable_device", lambda device: "cuda" if gpu else "cpu")
        made = {name: report_of(stored, *own, stale="ner" if name in stale else "") for name, own in exports.items()}
        return OnnxBackend().choose(StoredSource(replace(stored, exports=made), list(heads)), "auto")

    return choose


@pytest.mark.parametrize(
    ("exports", "on_cpu", "on_gpu"),
    [
        ({}, None, None),
        ({"fp32": ("cpu", {})}, "fp32", "fp32"),
        ({"fp32": ("cuda", {"ner": 0.0})}, "fp32", "fp32"),
        ({"fp32": ("cpu", {}), "int8": ("cpu", {"ner": 0.0})}, "fp32", "fp32"),
        ({"int8": ("cpu", {"ner": 0.0})}, None, None),
        ({"fp32": ("cpu", {}), "fp16": ("cpu", {"ner": 0.0})}, "fp32", "fp32"),
        ({"fp16": ("cpu", {"ner": 0.0})}, None, None),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {})}, "fp32", "fp16"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": -0.5})}, "fp32", "fp16"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": -0.6})}, "fp32", "fp32"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": 0.6})}, "fp32", "fp32"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": float("nan")})}, "fp32", "fp32"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"mood": -9.0})}, "fp32", "fp16"),
        ({"fp16": ("cuda", {})}, None, "fp16"),
    ],
)
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_auto_chooses_what_was_compared_on_the_device_and_changes_no_metric(
    choosing: Callable[..., Choice],
    exports: dict[str, Described],
    on_cpu: str | None,
    on_gpu: str | None,
    gpu: bool,
) -> None:
    expected = on_gpu if gpu else on_cpu
    choice = choosing(exports, ["ner"], gpu=gpu)
    assert choice.precision == expected
    assert not choice.reasons or expected is None
    assert choosing(exports, ["ner"], gpu=gpu, stale=exports).precision is None
    if expected == "fp16" and "fp32" in exports:
        assert choosing(exports, ["ner"], gpu=gpu, stale=["fp16"]).precision == "fp32"


def test_a_metric_that_changes_counts_for_heads_that_are_opened(choosing: Callable[..., Choice]) -> None:
    exports: dict[str, Described] = {"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": 0.1, "mood": -9.0})}
    assert choosing(exports, ["ner", "topic"], gpu=True).precision == "fp16"
    assert choosing(exports, ["ner", "mood"], gpu=True).precision == "fp32"
    assert choosing(exports, ["topic"], gpu=True, stale=list(exports)).precision == "fp16"  # it is stale for ner only


@pytest.mark.parametrize(
    ("exports", "stale", "reason"),
    [
        ({"int8": ("cpu", {"ner": 0.0})}, [], "has an ONNX export in int8, which is used only if it is named"),
        (
            {"fp16": ("cpu", {})},
            [],
            "has an ONNX export in fp16, which is used only if it is named: it was not compared with PyTorch on cuda",
        ),
        (
            {"fp16": ("cuda", {"ner": 7.0})},
            [],
            "has an ONNX export in fp16, which is used only if it is named: it changes the metric of ner",
        ),
        ({"fp16": ("cuda", {})}, [], "has an ONNX export in fp16, which is made for another device"),
        ({"fp32": ("cpu", {})}, ["fp32"], "has a stale ONNX export in fp32: the model has changed since, for ner"),
    ],
)
def test_the_reason_is_given_if_an_export_is_not_chosen(
    choosing: Callable[..., Choice], exports: dict[str, Described], stale: list[str], reason: str
) -> None:
    assert choosing(exports, ["ner"], gpu=False, stale=stale) == Choice(None, [reason])


def test_the_reasons_are_logged_once(int8: Made, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "nlptasks"):
        pipeline("ner", model=int8.model, device="cpu")
    assert caplog.messages == [f"{int8.model} has an ONNX export in int8, which is used only if it is named"]


def test_an_export_in_int8_is_used_only_if_it_is_named(int8: Made) -> None:
    for heads in ("ner", None):
        assert pipeline(heads, model=int8.model, device="cpu").backend == "PyTorch on the CPU"
        named = pipeline(heads, model=int8.model, backend="onnx:int8", device="cpu")
        assert named.backend == "ONNX Runtime int8 on the CPU"
    with pytest.raises(ModelError, match="has no ONNX export in fp32"):
        pipeline("ner", model=int8.model, backend="onnx", device="cpu")
    [shown] = [line for line in run("show", int8.model).stdout.splitlines() if line.startswith("onnx int8: ")]
    expected = r"onnx int8: fresh, ner f1 0\.\d{4} \([+-]\d\.\d\d points on \d+ rows\), is used only if it is named"
    assert re.fullmatch(expected, shown)


def test_an_export_for_cuda_is_not_verified_without_it(fp16: Made) -> None:
    assert fp16.report("fp16")["device"] == "cpu"
    assert fp16.report("fp16")["checks"].keys() == {"ner"}
    assert pipeline("ner", model=fp16.model, device="cpu").backend == "PyTorch on the CPU"
    assert "it was not compared with PyTorch on cuda" in run("show", fp16.model).stdout


@pytest.mark.parametrize(
    ("precision", "device", "verified"),
    [
        ("fp32", "cpu", True),
        ("fp16", "cpu", False),
        ("fp16", "cuda", True),
        ("int8", "cpu", True),
        ("int8", "cuda", False),
    ],
)
def test_an_export_is_verified_on_the_device_that_it_is_made_for(precision: str, device: str, verified: bool) -> None:
    report = ExportReport("", precision, "", 20, device, 0.0, {}, 1.0, (), {}, {}, {}, {}, {})
    assert report.verified == verified


def test_an_export_in_an_unknown_precision_is_ignored(choosing: Callable[..., Choice]) -> None:
    assert choosing({"fp8": ("cpu", {})}, ["ner"], gpu=False) == Choice(None, [])
    assert choosing({"fp8": ("cpu", {}), "fp32": ("cpu", {})}, ["ner"], gpu=False) == Choice("fp32")


def test_an_unverified_export_that_is_named_is_used_with_a_warning(
    fp16: Made, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "nlptasks"):
        pipeline("ner", model=fp16.model, backend="onnx:fp16", device="cpu")
        pipeline("ner", model=fp16.model, backend="torch", device="cpu")
    assert caplog.messages == [f"{fp16.model}: the export in fp16 was not compared with PyTorch on cuda"]


# The operators of graphs


def test_operators_that_overflow_in_fp16_stay_in_fp32(fp16: Made) -> None:
    model = onnx.load(fp16.model / "onnx/fp16/encode.onnx")
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    kinds |= {weight.name: weight.data_type for weight in inferred.graph.initializer}
    careful = [node for node in model.graph.node if node.op_type in precisions._FP32_ALWAYS]
    assert careful
    for node in careful:
        assert kinds[node.input[0]] != onnx.TensorProto.FLOAT16, node.op_type
    assert onnx.TensorProto.FLOAT16 in kinds.values()


@pytest.mark.parametrize(
    ("name", "is_cache"),
    [
        ("cross_ner.logits", False),
        ("past_.logits", False),
        ("logits", False),
        ("german.cross_key_0", True),
        ("present_value_1", True),
        ("past_key_0", True),
    ],
)
def test_the_name_of_a_head_does_not_matter_for_fp16(name: str, is_cache: bool) -> None:
    assert precisions._is_cache(name) == is_cache


def test_a_precision_that_fails_is_not_blamed_on_the_architecture(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise ValueError("cannot quantize X")

    monkeypatch.setattr(exporting, "engines", lambda fusions: _PLAIN[:1])
    monkeypatch.setattr(exporting, "PRECISIONS", {**PRECISIONS, "int8": replace(PRECISIONS["int8"], convert=fails)})
    model = copied(trained, tmp_path / "model")
    message = r"cannot be exported in int8 \(.*cannot quantize X\); use another precision, or PyTorch"
    with pytest.raises(BackendError, match=message):
        export(model, precision="int8")
    assert contents(model) == contents(trained)


def test_the_batch_changes_few_results_in_int8(int8: Made) -> None:
    pipe = pipeline("ner", model=int8.model, backend="onnx:int8", device="cpu")
    names = [f"{first} {last} {verb} {place} ." for first in ("Ada", "Bob", "Cleo", "Dan") for last in ("Smith", "saw")
             for verb in ("saw", "left") for place in ("Rome", "Paris", "Berlin", "London")]  # fmt: skip
    together = [[(one.label, one.start, one.end) for one in own] for own in pipe(names)]
    alone = [[(one.label, one.start, one.end) for one in pipe(name)] for name in names]
    assert sum(map(operator.eq, together, alone)) >= 0.9 * len(names)
