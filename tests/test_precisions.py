"""A precision is proved by the metric of each head, and is taken without being asked for only where it was."""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Callable, Iterator, Sequence
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
from nlptasks import pipeline as pipelines
from nlptasks.data.datasets import load_part
from nlptasks.errors import BackendError, DataError, ModelError, UsageError
from nlptasks.exporting import drift as proof
from nlptasks.exporting import exporter as exporting
from nlptasks.exporting import precisions
from nlptasks.exporting.drift import Check, check_all, refuse_drift
from nlptasks.exporting.exporter import ExportReport, export
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.tracing import _PLAIN
from nlptasks.heads.ner import NerHead
from nlptasks.heads.seq2seq import GeneratedText
from nlptasks.inference.scoring import Evaluation, read_gold
from nlptasks.models.folder import ModelFolder
from nlptasks.pipeline import pipeline
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.storage.atomic import unsealed
from nlptasks.testing import checks

CPU = torch.device("cpu")

# X2: precisions, by the metric


@pytest.fixture(scope="module")
def gold(conll_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled data, some of it wrong, so that no metric is 0 or 1."""
    path = tmp_path_factory.mktemp("gold") / "test.conll"
    path.write_text((conll_data / "dev.conll").read_text().replace("Rome\tB-LOC", "Rome\tO"))
    return path


@dataclass(frozen=True)
class Made:
    """An export that was made by command line, and what that said."""

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
        patch.setattr("nlptasks.runtimes.providers.loads_cuda", lambda: False)
        return Made(model, run("export", model, "--precision", "fp16", "--check", f"ner={gold}"))


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_check_tells_both_metrics(precision: str, gold: Path, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(precision)
    assert made.done.exit_code == 0, made.done.output
    before, after = (
        nlptasks.evaluate(made.model, f"ner={gold}", backend=backend, device="cpu")
        for backend in ("torch", f"onnx:{precision}")
    )
    one, two = before.metrics["f1"], after.metrics["f1"]
    assert 0.5 < one < 1
    rows = len(ModelFolder.open(made.model).heads(["ner"])["ner"].read_gold(rows_of(gold)))
    check = made.report(precision)["checks"]["ner"]
    assert check.pop("points") == pytest.approx(100 * (two - one))
    assert check == {"metric": "f1", "split": before.split, "rows": rows, "torch": one, "onnx": two}
    assert f"ner: f1 {one:.4f} on PyTorch, {two:.4f} on ONNX Runtime (" in made.done.stdout
    assert f"points) on {rows} rows of {before.split}\n" in made.done.stdout
    assert f"use it: --backend onnx:{precision}" in made.done.stdout
    assert "not checked" not in made.done.stdout
    assert ("not verified: it was compared on the cpu" in made.done.stdout) == (precision == "fp16")


def rows_of(path: Path) -> list[Any]:
    return load_part(path, None, NerHead.formats, {})[1]


def test_int8_is_smaller_and_other_than_the_model_itself(int8: Made, both_exported: Path) -> None:
    sizes = [
        sum(len(content) for name, content in contents(place / "onnx").items() if ".onnx" in name)
        for place in (int8.model, both_exported)
    ]
    assert sizes[0] < 0.8 * sizes[1]  # embeddings stay as they are
    kinds = [weight.data_type for weight in onnx.load(int8.model / "onnx/int8/model.onnx").graph.initializer]
    assert onnx.TensorProto.INT8 in kinds
    graph = onnx.load(int8.model / "onnx/int8/model.onnx").graph
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
        r"moves f1 of ner from 0\.\d{4} to 0\.0000 \(-\d\d\.\d\d points on \d+ rows of all\), by more than 0.5 points"
    )
    fix = "take another precision, or accept it with --accept-drift"
    said = r"exporting encode in int8\nmeasuring ner on both, on \d+ rows of all\n"
    told = rf"{said}error: {re.escape(str(model))} in int8: {moved}: the older export stays; {fix}\n"
    assert re.fullmatch(told, done.stderr), done.stderr
    assert contents(model) == contents(int8.model)
    done = run(*command, "--accept-drift")
    assert done.exit_code == 0, done.stderr
    assert "0.0000 on ONNX Runtime (-" in done.stdout
    assert Made(model, done).report("int8")["checks"]["ner"]["points"] < -50
    assert not pipeline("ner", model=model, backend="onnx:int8", device="cpu")(TEXTS[0])


def test_a_wrong_check_is_told_before_the_work_begins(
    trained: Path, gold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_export_graphs", lambda *given: pytest.fail("the work has begun"))
    model = copied(trained, tmp_path / "model")
    empty = tmp_path / "empty.conll"
    empty.touch()
    for check, error in ((f"nerr={gold}", UsageError), (f"ner={gold}.no", DataError), (f"ner={empty}", DataError)):
        with pytest.raises(error):
            export(model, precision="int8", checks=[check])
    with pytest.raises(UsageError, match="take one of fp32, fp16, int8"):
        export(model, precision="int4")
    assert contents(model) == contents(trained)


def told(metric: str, *, before: float, after: float, perfect: float) -> Check:
    """What is made of two values of a metric."""

    def measure(engine: Any) -> Evaluation:
        return Evaluation("head", "test", metric, {metric: engine})

    return proof._check(
        SimpleNamespace(head="head", split="test", examples=[1], measure=measure), perfect, before, after
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "perfect", "before", "after", "points"),
    [
        ("f1", 1.0, 0.9, 0.894, -0.6),
        ("f1", 1.0, 0.9, 0.906, 0.6),
        ("f1", 1.0, 0.9, 0.896, -0.4),
        ("bleu", 100.0, 30.0, 29.4, -0.6),
        ("bleu", 100.0, 30.0, 29.6, -0.4),
    ],
)
def test_points_are_hundredths_of_a_perfect_metric(
    metric: str, perfect: float, before: float, after: float, points: float
) -> None:
    check = told(metric, before=before, after=after, perfect=perfect)
    assert check == Check(metric, "test", 1, before, after, pytest.approx(points))
    if abs(points) < 0.5:
        refuse_drift("model in int8", {"head": check}, older=False)
    else:
        with pytest.raises(
            BackendError, match=rf"moves {metric} of head .* \({points:+.2f} points on .*\)".replace("+", r"\+")
        ):
            refuse_drift("model in int8", {"head": check}, older=False)


@pytest.mark.parametrize("task", ["translation", "summarization"])
def test_a_head_that_writes_says_what_its_metric_is_for_perfect_answers(task: str, backbones: Path) -> None:
    subject = checks.make_subject(task, backbones / "bert")
    perfect = [GeneratedText(example.targets[0], 1.0, False) for example in subject.examples]
    metrics = subject.head.metrics(subject.examples, perfect)
    assert metrics[subject.head.main_metric] == pytest.approx(subject.head.perfect)


def test_each_head_is_checked_on_its_own_scale(trained: Path, gold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NerHead, "perfect", 50.0)
    stored = ModelFolder.open(trained)
    model, other = stored.model(), stored.model()
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    examples = read_gold(nlptasks.Target("ner", "ner", str(gold)), "ner", model.heads["ner"])
    found = check_all(model, stored.tokenizer(), TorchRuntime(other.graphs(), CPU), [examples])
    assert found["ner"].torch > 0.5
    assert found["ner"].points == pytest.approx(2 * (found["ner"].onnx - found["ner"].torch))
    assert check_all(model, stored.tokenizer(), TorchRuntime(other.graphs(), CPU), []) == {}


# X2: what `auto` takes

Said = tuple[str, dict[str, float]]
"""Of a report, the device that the export was compared on, and by how many points it moves each metric."""


def report_of(stored: ModelFolder, device: str, moved: dict[str, float], *, stale: str = "") -> dict[str, Any]:
    """The report of an export as far as it is asked, in which a head may be another one than the model's."""
    made_from = dict(stored.manifest["files"])
    if stale:
        made_from[f"heads/{stale}.safetensors"] = "0" * 64
    checks = {name: {"points": points} for name, points in moved.items()}
    return {"device": device, "checks": checks, "made_from": made_from}


@pytest.fixture
def choosing(both: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Says which backend is taken for some exports, on a machine that is made up."""
    stored = ModelFolder.open(both)
    monkeypatch.setattr(pipelines, "_open_onnx", lambda precision: precision)
    monkeypatch.setattr(pipelines, "_open_torch", lambda precision: "torch")

    def choose(
        exports: dict[str, Said], heads: Sequence[str], *, gpu: bool, stale: Sequence[str] = (), wanted: str = "auto"
    ) -> str:
        monkeypatch.setattr(pipelines, "wanted_providers", lambda device: ["GPU", "CPU"] if gpu else ["CPU"])
        made = {name: report_of(stored, *said, stale="ner" if name in stale else "") for name, said in exports.items()}
        chosen = pipelines._backend(replace(stored, exports=made), wanted, list(heads), "auto")
        return str(chosen)

    return choose


@pytest.mark.parametrize(
    ("exports", "on_cpu", "on_gpu"),
    [
        ({}, "torch", "torch"),
        ({"fp32": ("cpu", {})}, "fp32", "fp32"),
        ({"fp32": ("cuda", {"ner": 0.0})}, "fp32", "fp32"),
        ({"fp32": ("cpu", {}), "int8": ("cpu", {"ner": 0.0})}, "fp32", "fp32"),
        ({"int8": ("cpu", {"ner": 0.0})}, "torch", "torch"),
        ({"fp32": ("cpu", {}), "fp16": ("cpu", {"ner": 0.0})}, "fp32", "fp32"),
        ({"fp16": ("cpu", {"ner": 0.0})}, "torch", "torch"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {})}, "fp32", "fp16"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": -0.5})}, "fp32", "fp16"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": -0.6})}, "fp32", "fp32"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": 0.6})}, "fp32", "fp32"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": float("nan")})}, "fp32", "fp32"),
        ({"fp32": ("cpu", {}), "fp16": ("cuda", {"mood": -9.0})}, "fp32", "fp16"),
        ({"fp16": ("cuda", {})}, "torch", "fp16"),
    ],
)
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_auto_takes_what_was_compared_on_the_device_and_moves_no_metric(
    choosing: Callable[..., str], exports: dict[str, Said], on_cpu: str, on_gpu: str, gpu: bool
) -> None:
    expected = on_gpu if gpu else on_cpu
    assert choosing(exports, ["ner"], gpu=gpu) == expected
    assert choosing(exports, ["ner"], gpu=gpu, wanted="onnx") == ("fp32" if expected == "torch" else expected)
    assert choosing(exports, ["ner"], gpu=gpu, stale=exports) == "torch"
    if expected == "fp16" and "fp32" in exports:
        assert choosing(exports, ["ner"], gpu=gpu, stale=["fp16"]) == "fp32"


def test_a_metric_that_moves_counts_for_heads_that_are_opened(choosing: Callable[..., str]) -> None:
    exports: dict[str, Said] = {"fp32": ("cpu", {}), "fp16": ("cuda", {"ner": 0.1, "mood": -9.0})}
    assert choosing(exports, ["ner", "topic"], gpu=True) == "fp16"
    assert choosing(exports, ["ner", "mood"], gpu=True) == "fp32"
    assert choosing(exports, ["topic"], gpu=True, stale=list(exports)) == "fp16"  # which is stale for ner alone


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What is logged."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("nlptasks").addHandler(handler)
    yield told
    logging.getLogger("nlptasks").removeHandler(handler)


@pytest.mark.parametrize(
    ("exports", "told"),
    [
        ({"int8": ("cpu", {"ner": 0.0})}, "in int8, which is taken only if it is named; PyTorch is used"),
        (
            {"fp16": ("cpu", {})},
            "in fp16, which is taken only if it is named: it was not compared with PyTorch on cuda; PyTorch",
        ),
        (
            {"fp16": ("cuda", {"ner": 7.0})},
            "in fp16, which is taken only if it is named: it moves the metric of ner; PyTorch is",
        ),
        ({"fp16": ("cuda", {})}, "in fp16, which is made for another device; PyTorch is used"),
    ],
)
def test_it_is_told_why_an_export_is_not_taken(
    choosing: Callable[..., str], notes: list[str], exports: dict[str, Said], told: str
) -> None:
    assert choosing(exports, ["ner"], gpu=False) == "torch"
    [note] = notes
    assert told in note
    assert choosing({}, ["ner"], gpu=False) == "torch"
    assert len(notes) == 1


def test_an_export_in_int8_is_taken_only_if_it_is_named(int8: Made) -> None:
    for heads in ("ner", None):
        assert pipeline(heads, model=int8.model, device="cpu").backend == "PyTorch on the CPU"
        named = pipeline(heads, model=int8.model, backend="onnx:int8", device="cpu")
        assert named.backend == "ONNX Runtime int8 on the CPU"
    with pytest.raises(ModelError, match="has no ONNX export in fp32"):
        pipeline("ner", model=int8.model, backend="onnx", device="cpu")
    [shown] = [line for line in run("show", int8.model).stdout.splitlines() if line.startswith("onnx int8: ")]
    told = r"onnx int8: fresh, ner f1 0\.\d{4} \([+-]\d\.\d\d points on \d+ rows\), is taken only if it is named"
    assert re.fullmatch(told, shown)


def test_what_is_made_for_cuda_is_not_verified_without_it(fp16: Made) -> None:
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
    report = ExportReport("", precision, "", 20, device, 0.0, {}, 1.0, (), {}, {}, {})
    assert report.verified == verified


def test_an_export_in_a_precision_of_another_version_is_passed_over(
    choosing: Callable[..., str], notes: list[str]
) -> None:
    assert choosing({"fp8": ("cpu", {})}, ["ner"], gpu=False) == "torch"
    assert choosing({"fp8": ("cpu", {}), "fp32": ("cpu", {})}, ["ner"], gpu=False) == "fp32"
    assert notes == []


def test_what_speaks_against_an_export_that_is_named_is_told(fp16: Made, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "nlptasks"):
        pipeline("ner", model=fp16.model, backend="onnx:fp16", device="cpu")
        pipeline("ner", model=fp16.model, backend="torch", device="cpu")
    assert caplog.messages == [f"{fp16.model}: the export in fp16 was not compared with PyTorch on cuda"]


# What the graphs consist of


def test_what_overflows_in_fp16_is_computed_in_fp32(fp16: Made) -> None:
    model = onnx.load(fp16.model / "onnx/fp16/model.onnx")
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
def test_a_heads_name_decides_no_precision(name: str, is_cache: bool) -> None:
    assert precisions._handed_on(name) == is_cache


def test_a_precision_that_fails_is_not_blamed_on_the_architecture(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise ValueError("cannot quantize X")

    monkeypatch.setattr(exporting, "engines", lambda fusions: _PLAIN[:1])
    monkeypatch.setattr(exporting, "PRECISIONS", {**PRECISIONS, "int8": replace(PRECISIONS["int8"], convert=fails)})
    model = copied(trained, tmp_path / "model")
    told = r"cannot be exported in int8 \(.*cannot quantize X\); take another precision, or run it on PyTorch"
    with pytest.raises(BackendError, match=told):
        export(model, precision="int8")
    assert contents(model) == contents(trained)


def test_company_changes_few_answers_in_int8(int8: Made) -> None:
    pipe = pipeline("ner", model=int8.model, backend="onnx:int8", device="cpu")
    names = [f"{first} {last} {verb} {place} ." for first in ("Ada", "Bob", "Cleo", "Dan") for last in ("Smith", "saw")
             for verb in ("saw", "left") for place in ("Rome", "Paris", "Berlin", "London")]  # fmt: skip
    together = [[(one.label, one.start, one.end) for one in own] for own in pipe(names)]
    alone = [[(one.label, one.start, one.end) for one in pipe(name)] for name in names]
    assert sum(map(operator.eq, together, alone)) >= 0.9 * len(names)
