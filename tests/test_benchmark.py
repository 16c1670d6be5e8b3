"""Benchmarks: the choice of a backend, what is measured, and candidates that fail."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from answering import contents, copied, run

import nlptasks
from nlptasks.benchmarking import candidates, runner, worker
from nlptasks.benchmarking.candidates import (
    TRANSFORMERS,
    BackendCandidate,
    Size,
    TransformersCandidate,
    Workload,
    size_of,
)
from nlptasks.benchmarking.runner import Benchmark, Measured, _best, benchmark
from nlptasks.benchmarking.worker_process import Worker, start_worker
from nlptasks.cli.benchmark import _table
from nlptasks.config import Target
from nlptasks.errors import BackendError, DataError, NlptasksError, PluginError, UsageError
from nlptasks.models.folder import ModelFolder
from nlptasks.registry import backends
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.testing import checks
from nlptasks.types import ModelInput

BACKENDS = [f"{name}:{precision}" for name, one in backends().items() for precision in one.make().precisions]
PRECISIONS = {name: name.partition(":")[2] for name in BACKENDS}

BASELINE = "torch:fp32"


def measured(name: str, speed: float, **metrics: float) -> Measured:
    """Return measurements of a candidate; metrics are those of the head ``ner``."""
    return Measured(name, speed, 9 * speed, 0.0123, 0.0456, 512.4, {"ner": metrics} if metrics else {})


def best(found: list[Measured], scales: dict[str, float], *, verified: bool = True) -> str:
    return _best({one.name: one for one in found}, BASELINE, PRECISIONS, scales, verified=verified)


# The choice of a backend


@pytest.mark.parametrize(
    ("scale", "metrics", "expected"),
    [
        (1.0, {"torch:fp32": 0.9, "onnx:fp32": 0.9, "onnx:int8": 0.8949}, "onnx:fp32"),
        (1.0, {"torch:fp32": 0.9, "onnx:fp32": 0.9, "onnx:int8": 0.8951}, "onnx:int8"),
        (1.0, {"torch:fp32": 0.9, "onnx:fp32": 0.9, "onnx:int8": 0.9051}, "onnx:fp32"),
        (1.0, {"torch:fp32": 0.9, "onnx:fp32": 0.8, "onnx:int8": 0.7}, "torch:fp32"),
        (100.0, {"torch:fp32": 30.0, "onnx:fp32": 30.0, "onnx:int8": 29.6}, "onnx:int8"),
        (100.0, {"torch:fp32": 30.0, "onnx:fp32": 30.0, "onnx:int8": 29.4}, "onnx:fp32"),
    ],
)
def test_the_fastest_that_keeps_the_metric_is_chosen(scale: float, metrics: dict[str, float], expected: str) -> None:
    speeds = {"torch:fp32": 10.0, "onnx:fp32": 20.0, "onnx:int8": 30.0}
    found = [measured(name, speeds[name], metric=value) for name, value in metrics.items()]
    found.append(measured(TRANSFORMERS, 99.0))
    assert best(found, {"ner": scale}) == expected
    assert best(found[::-1], {"ner": scale}) == expected


def test_every_head_must_keep_its_metric() -> None:
    found = [
        replace(measured(name, speed), metrics={"ner": {"f1": 0.9}, "translation": {"bleu": bleu}})
        for name, speed, bleu in (("torch:fp32", 1.0, 30.0), ("onnx:int8", 9.0, 29.0), ("onnx:fp32", 5.0, 30.0))
    ]
    assert best(found, {"ner": 1.0, "translation": 100.0}) == "onnx:fp32"
    assert best(found, {"ner": 1.0, "translation": 300.0}) == "onnx:int8"


def test_without_gold_answers_only_the_precision_of_the_baseline_is_chosen() -> None:
    speeds = {"torch:fp32": 1.0, "torch:bf16": 8.0, "onnx:int8": 9.0, "onnx:fp32": 2.0, TRANSFORMERS: 99.0}
    found = [measured(name, speed) for name, speed in speeds.items()]
    assert best(found, {}, verified=False) == "onnx:fp32"
    assert best([one for one in found if one.name != "onnx:fp32"], {}, verified=False) == "torch:fp32"


def test_one_head_without_gold_answers_leaves_only_the_precision_of_the_baseline() -> None:
    speeds = {"torch:fp32": 1.0, "onnx:int8": 9.0, "onnx:fp32": 2.0}
    found = [measured(name, speed, f1=0.0) for name, speed in speeds.items()]
    assert best(found, {"ner": 1.0}) == "onnx:int8"
    assert best(found, {"ner": 1.0}, verified=False) == "onnx:fp32"


def test_the_baseline_is_chosen_if_a_metric_is_nan() -> None:
    found = [measured(name, 1.0, f1=float("nan")) for name in ("torch:fp32", "onnx:fp32")]
    assert best(found, {"ner": 1.0}) == "torch:fp32"


def test_the_table_shows_what_was_measured_and_what_failed() -> None:
    own = (measured("torch:fp32", 1234.5, f1=0.91), replace(measured("onnx:int8", 99.4, f1=0.9), memory=None))
    failed = {"torch:bf16": "it\x1b[2J fails"}
    found = Benchmark(20, 345, (*own, measured(TRANSFORMERS, 7.0)), failed, {}, (), "torch:fp32")
    assert _table(found) == [
        "20 different texts, 345 tokens",
        "                       texts/s  tokens/s  p50 ms  p95 ms  MiB  ner f1",
        "torch:fp32                1234     11110    12.3    45.6  512  0.9100",
        "onnx:int8                   99       895    12.3    45.6    -  0.9000",
        "transformers.pipeline        7        63    12.3    45.6  512       -",
        "torch:bf16: not measured: it\\x1b[2J fails",
        "fastest that keeps every metric: --backend torch:fp32",
    ]
    assert _table(replace(found, temporary={"torch:fp32": "nlptasks export m"}))[-1] == (
        "its export was temporary; to make a permanent one: nlptasks export m"
    )
    exact = replace(found, candidates=(measured("torch:fp32", 1.0),), failed={}, unverified=("ner", "mood"))
    assert _table(exact)[-1] == (
        "fastest in the model's own precision (to verify others: ner=DATA mood=DATA): --backend torch:fp32"
    )


# Data


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["ner", "ner"], "ner: has data twice; pass data once for each head that is run"),
        (["mood"], r"mood: has data and is not run \(ner are\)"),
    ],
)
def test_data_belong_to_heads_that_are_run_once_each(both: Path, targets: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        benchmark(both, [Target(name, name, "data") for name in targets], heads=["ner"])


def test_heads_with_data_are_run_unless_others_are_named(both: Path) -> None:
    stored, mood = ModelFolder.open(both), Target("mood", "mood", "data")
    assert runner._data(stored, None, [mood]) == (["mood"], {"mood": mood})
    assert runner._data(stored, ["ner", "mood"], [mood]) == (["ner", "mood"], {"mood": mood})
    assert runner._data(stored, None, []) == (["ner", "mood", "topic"], {})


# Candidates


@pytest.fixture
def workload(exported: Path, conll_data: Path) -> Workload:
    """Seven rows, of which four are different."""
    return Workload(str(exported), "cpu", ["ner"], {"ner": Target("ner", "ner", str(conll_data))}, None, None, 7)


def candidate(workload: Workload, name: str) -> BackendCandidate:
    backend, _, precision = name.partition(":")
    return BackendCandidate(backend, precision, workload.model)


@pytest.fixture
def _closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of the worker are called in this process, which has no candidate open before and after."""
    monkeypatch.setattr(worker, "_runner", None)


@pytest.mark.usefixtures("_closed")
@pytest.mark.parametrize("name", ["torch:fp32", "onnx:fp32"])
def test_a_backend_is_measured(workload: Workload, name: str) -> None:
    worker.open_candidate(candidate(workload, name), workload)
    assert worker.throughput() > 0
    single = worker.latencies(4)
    assert len(single) == 4
    assert min(single) > 0
    [found] = worker.evaluate()
    assert (found.head, found.main_metric, found.scale) == ("ner", "f1", 1.0)
    expected = nlptasks.evaluate(workload.model, workload.targets["ner"]).metrics["f1"]
    assert found.metrics["f1"] == pytest.approx(expected, abs=0.2)
    memory = worker.peak_memory()
    assert memory is None or memory > 50


def test_the_size_is_what_the_backbone_reads(workload: Workload) -> None:
    stored = ModelFolder.open(workload.model)
    rows = workload.rows(stored.heads(["ner"]))
    windows = stored.tokenizer().windows([ModelInput((" ".join(row.fields["tokens"]),)) for row in rows])
    assert size_of(workload) == Size(4, sum(len(window) for own in windows for window in own))


def test_a_text_that_is_there_twice_is_run_once(workload: Workload, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ada saw Rome\nBob left\n" * 3)
    assert size_of(replace(workload, source=tmp_path / "a.txt")).texts == 2


@pytest.mark.usefixtures("_closed")
def test_a_candidate_that_cannot_be_opened_says_why(workload: Workload) -> None:
    with pytest.raises(UsageError, match="backend 'onx': is unknown; did you mean 'onnx'"):
        worker.open_candidate(candidate(workload, "onx:fp32"), workload)
    with pytest.raises(NlptasksError, match="has no ONNX export in int8"):
        worker.open_candidate(candidate(workload, "onnx:int8"), workload)
    with pytest.raises(UsageError, match="the worker: has no candidate"):
        worker.throughput()


@pytest.mark.usefixtures("_closed")
def test_a_file_of_texts_has_no_metrics(workload: Workload, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ada Smith saw London .\n\nBob left\n" * 9)
    workload = replace(workload, source=tmp_path / "a.txt")
    assert size_of(workload).texts == 3
    worker.open_candidate(candidate(workload, BASELINE), workload)
    assert worker.evaluate() == []


@pytest.mark.usefixtures("_closed")
def test_plain_transformers_is_a_candidate(workload: Workload, tmp_path: Path) -> None:
    checkpoints = runner._checkpoints(ModelFolder.open(workload.model), ["ner"], tmp_path)
    assert checkpoints["ner"][0] == "token-classification"
    worker.open_candidate(TransformersCandidate(checkpoints), workload)
    assert worker.throughput() > 0
    assert len(worker.latencies(4)) == 4
    assert worker.evaluate() == []


@pytest.mark.parametrize(
    ("task", "auto"),
    [("qa", "AutoModelForQuestionAnswering"), ("translation", "AutoModelForSeq2SeqLM")],
)
def test_heads_without_a_transformers_pipeline_are_named(task: str, auto: str, backbones: Path, tmp_path: Path) -> None:
    checks.make_head(task, backbones / "bert").model().save(tmp_path / "model")
    stored = ModelFolder.open(tmp_path / "model")
    with pytest.raises(UsageError, match=rf"does not exist for probe \({auto}\); measure other heads") as caught:
        runner._checkpoints(stored, ["probe"], tmp_path)
    assert caught.value.where == TRANSFORMERS


def test_transformers_does_not_run_heads_that_read_pairs() -> None:
    head: Any = SimpleNamespace(inputs=lambda example: [ModelInput(("a", "b"))])
    with pytest.raises(UsageError, match="is measured on heads that read one text a row"):
        candidates._text(head, "example")


def test_rows_are_run_even_if_their_labels_are_unknown(workload: Workload, conll_data: Path, tmp_path: Path) -> None:
    other = (conll_data / "dev.conll").read_text().replace("PER", "PERSON").replace("LOC", "PLACE")
    (tmp_path / "a.conll").write_text(other)
    foreign = {"ner": Target("ner", "ner", str(tmp_path / "a.conll"))}
    assert size_of(replace(workload, targets=foreign)) == size_of(workload)


# All candidates, whose workers are calls in this process


class Here(Worker):
    """A worker in this process, which takes no seconds to start."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._runner: Any = None

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        worker._runner = self._runner
        try:
            return function(*args)
        finally:
            self._runner, worker._runner = worker._runner, None


@contextmanager
def started_here(name: str, log: Path) -> Iterator[Here]:
    yield Here(name)


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in this process, and no export in int8."""
    monkeypatch.setattr(worker, "_runner", None)
    monkeypatch.setattr(runner, "start_worker", started_here)

    def exporting(folder: Path, *, precision: str) -> None:
        raise BackendError("the head ner", f"cannot be exported in {precision}", "run it on PyTorch")

    monkeypatch.setattr(runner, "export", exporting)


@pytest.mark.usefixtures("_here")
def test_other_candidates_are_measured_if_one_fails(exported: Path, conll_data: Path) -> None:
    found = benchmark(exported, [f"ner={conll_data}"], device="cpu", rounds=1, most=7)
    names = [one.name for one in found.candidates]
    assert [name for name in names if name != "torch:bf16"] == [BASELINE, "onnx:fp32", TRANSFORMERS]
    assert names[0] == BASELINE
    assert found.failed.keys() | {*names} == {*BACKENDS, TRANSFORMERS}
    assert found.failed["onnx:fp16"] == "is for GPUs, and this device is cpu"
    assert found.failed["onnx:int8"] == "cannot be exported in int8"
    assert found.texts == 4  # different ones of seven
    assert found.best in {*names} - {TRANSFORMERS}
    assert found.temporary == {}
    for one in found.candidates:
        assert one.tokens_per_second / one.texts_per_second == pytest.approx(found.tokens / found.texts)
        assert 0 < one.p50 <= one.p95
        assert (one.metrics == {}) == (one.name == TRANSFORMERS)
    onnx = next(one for one in found.candidates if one.name == "onnx:fp32")
    assert found.candidates[0].metrics == {"ner": {"f1": pytest.approx(onnx.metrics["ner"]["f1"])}}


@pytest.mark.usefixtures("_here")
def test_a_broken_backend_is_reported(exported: Path, conll_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise PluginError("backend fast", "does not load", "repair it")

    known = {**backends(), "fast": SimpleNamespace(name="fast", make=broken)}
    monkeypatch.setattr(runner, "backends", lambda: known)
    found = benchmark(exported, [Target("ner", "ner", str(conll_data))], device="cpu", rounds=1, most=3)
    assert found.failed["fast"] == "does not load"
    assert found.candidates[0].name == BASELINE
    del known["torch"]
    with pytest.raises(BackendError, match="PyTorch is not available"):
        benchmark(exported, [Target("ner", "ner", str(conll_data))], device="cpu", rounds=1, most=3)


@pytest.mark.usefixtures("_here")
def test_a_candidate_may_fail_later(exported: Path, conll_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run_ = iter(range(2)), OnnxRuntime.run

    def breaking(self: OnnxRuntime, *given: Any) -> Any:
        if next(calls, None) is None:
            raise RuntimeError("it breaks")
        return run_(self, *given)

    monkeypatch.setattr(OnnxRuntime, "run", breaking)
    found = benchmark(exported, [Target("ner", "ner", str(conll_data))], device="cpu", rounds=2, most=7)
    assert {BASELINE, TRANSFORMERS} <= {one.name for one in found.candidates}
    assert found.failed["onnx:fp32"] == "RuntimeError: it breaks"
    assert found.best.startswith("torch:")


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("place", ["__init__", "run"])
def test_the_baseline_must_run(exported: Path, conll_data: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **more: Any) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(TorchRuntime, place, broken)
    message = rf"cannot be run on {BASELINE} \(.*no memory.*\); run 'nlptasks doctor'"
    with pytest.raises(BackendError, match=message):
        benchmark(exported, [Target("ner", "ner", str(conll_data))], device="cpu", rounds=1, most=3)


@pytest.mark.usefixtures("_here")
def test_a_model_with_other_labels_is_measured_on_the_sample_without_a_metric(both: Path) -> None:
    found = benchmark(both, heads=["mood"], device="cpu", rounds=1, most=7)
    assert found.candidates[0].name == BASELINE
    assert found.candidates[0].metrics == {}
    assert found.unverified == ("mood",)
    assert found.tokens > 7 * 5


def test_missing_exports_are_made_in_a_copy(
    exported: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(runner, "export", lambda folder, *, precision: made.append((folder, precision)))
    before = contents(exported)
    stored = ModelFolder.open(exported)

    def exported_in(precision: str, device: str) -> Path:
        return runner._exported(stored, precision, ["ner"], tmp_path, device=device)

    assert exported_in("fp32", "cpu") == stored.path
    assert made == []
    copy = tmp_path / "model"
    assert exported_in("int8", "cpu") == copy
    assert exported_in("fp16", "cuda") == copy
    assert made == [(copy, "int8"), (copy, "fp16")]
    assert contents(copy) == contents(trained)  # without the old exports
    assert contents(exported) == before
    with pytest.raises(UsageError, match="int8: is for CPUs, and this device is cuda"):
        exported_in("int8", "cuda")
    with pytest.raises(UsageError, match="fp4: is no precision of exports"):
        exported_in("fp4", "cpu")


# Processes


def dying(end: str) -> None:
    """Write a line and end this process."""
    print("no room\n", file=sys.stderr, flush=True)
    if end == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "message"),
    [("exit", "its process ended with 3: no room"), ("kill", "its process was killed by SIGKILL: no room")],
)
def test_a_process_that_dies_is_reported(tmp_path: Path, end: str, message: str) -> None:
    with start_worker("torch:fp32", tmp_path / "log") as one:
        for function in (functools.partial(dying, end), worker.throughput):
            with pytest.raises(BackendError, match=f"torch:fp32: {message}"):
                one.call(function)


def test_output_of_a_process_goes_to_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with start_worker("torch:fp32", tmp_path / "log") as one:
        one.call(print, "a note", flush=True)
        with pytest.raises(BackendError, match="torch:fp32: the worker: has no candidate"):
            one.call(worker.throughput)
        assert one.call(abs, -3) == 3  # it goes on
    assert (tmp_path / "log").read_text() == "a note\n"
    assert capfd.readouterr().out == ""


ORPHANS = """
import os, signal, sys
from pathlib import Path
from nlptasks.benchmarking.worker_process import start_worker

if __name__ == "__main__":
    with start_worker("torch:fp32", Path(sys.argv[1])) as one:
        print(one.call(os.getpid), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    done = subprocess.run([sys.executable, script, tmp_path / "log"], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    child, end = int(done.stdout), time.monotonic() + 30
    while _is_alive(child):
        assert time.monotonic() < end
        time.sleep(0.1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_wrong_arguments_are_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UsageError, match="has no head 'nerr'"):
        benchmark(exported, heads=["nerr"])
    with pytest.raises((UsageError, DataError)):
        benchmark(exported, source=tmp_path / "empty.txt")
    with pytest.raises(DataError):
        benchmark(exported, [Target("ner", "ner", str(tmp_path / "none"))])
    done = run("benchmark", exported, "ner=x", "--input", tmp_path / "empty.txt")
    assert done.exit_code == 2
    assert "pass HEAD=DATA or --input, not both" in done.stderr


# The command


def test_the_command_measures_every_backend_and_does_not_change_the_model(
    exported: Path, conll_data: Path, tmp_path: Path
) -> None:
    model, place = copied(exported, tmp_path / "model"), tmp_path / "temporary"
    place.mkdir()
    before = contents(model)
    options = ["--device", "cpu", "--rounds", "1", "--most", "9", "--json"]
    command = [sys.executable, "-m", "nlptasks", "benchmark", str(model), f"ner={conll_data}", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(place)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"texts", "tokens", "candidates", "failed", "temporary", "unverified", "best"}
    assert found["texts"] == 4  # different ones of nine
    assert found["tokens"] > 5 * 4
    measured = {one["name"]: one for one in found["candidates"]}
    assert next(iter(measured)) == BASELINE
    assert measured.keys() | found["failed"].keys() == {*BACKENDS, TRANSFORMERS}
    assert found["failed"].pop("torch:bf16", "bf16").count("bf16")
    assert found["failed"] == {"onnx:fp16": "is for GPUs, and this device is cpu"}
    assert found["temporary"].keys() == {"onnx:int8"}
    for one in measured.values():
        assert one["texts_per_second"] > 0
        assert 0 < one["p50"] <= one["p95"]
        assert one["memory"] is None or one["memory"] > 50  # with all libraries
        assert list(one["metrics"]) == ([] if one["name"] == TRANSFORMERS else ["ner"])
    assert measured["onnx:fp32"]["metrics"]["ner"]["f1"] == pytest.approx(measured[BASELINE]["metrics"]["ner"]["f1"])
    assert found["best"] in measured.keys() - {TRANSFORMERS}
    assert contents(model) == before
    assert [path.name.partition("-")[0] for path in place.glob("[!.]*")] == ["nlptasks"]  # the locks
