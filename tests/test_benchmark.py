"""The ways to run a model side by side: what is measured, what is told of those that fail, and which one is taken."""

from __future__ import annotations

import io
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from answering import contents, copied, run

import nlptasks
from nlptasks.benchmarking import runner as benchmarking
from nlptasks.benchmarking import worker as ways
from nlptasks.benchmarking.runner import Benchmark, Measured, _best, _Worker, benchmark
from nlptasks.benchmarking.worker import TRANSFORMERS, Plan, count, serve
from nlptasks.cli.benchmark import _table
from nlptasks.config import Target
from nlptasks.errors import BackendError, DataError, UsageError
from nlptasks.models.model import ModelFolder
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.testing import checks

ONNX = ("onnx:fp32", "onnx:fp16", "onnx:int8")
NOT_MEASURED = "the device does not multiply bf16 itself"


def measured(way: str, speed: float, **metrics: float) -> Measured:
    """A way that was measured; metrics are of the head ``ner``."""
    return Measured(way, speed, 9 * speed, 0.0123, 0.0456, 512.4, {"ner": metrics} if metrics else {})


# Which one is taken


@pytest.mark.parametrize(
    ("perfect", "metrics", "best"),
    [
        (1.0, {"torch": 0.9, "onnx:fp32": 0.9, "onnx:int8": 0.8949}, "onnx:fp32"),
        (1.0, {"torch": 0.9, "onnx:fp32": 0.9, "onnx:int8": 0.8951}, "onnx:int8"),
        (1.0, {"torch": 0.9, "onnx:fp32": 0.9, "onnx:int8": 0.9051}, "onnx:fp32"),
        (1.0, {"torch": 0.9, "onnx:fp32": 0.8, "onnx:int8": 0.7}, "torch"),
        (100.0, {"torch": 30.0, "onnx:fp32": 30.0, "onnx:int8": 29.6}, "onnx:int8"),
        (100.0, {"torch": 30.0, "onnx:fp32": 30.0, "onnx:int8": 29.4}, "onnx:fp32"),
    ],
)
def test_the_fastest_that_keeps_the_metric_is_taken(perfect: float, metrics: dict[str, float], best: str) -> None:
    speeds = {"torch": 10.0, "onnx:fp32": 20.0, "onnx:int8": 30.0}
    found = [measured(way, speeds[way], metric=value) for way, value in metrics.items()]
    found.append(measured(TRANSFORMERS, 99.0))
    assert _best(found, {"ner": perfect}, proved=True) == best
    assert _best(found[::-1], {"ner": perfect}, proved=True) == best


def test_every_head_must_keep_its_metric() -> None:
    found = [
        replace(measured(way, speed), metrics={"ner": {"f1": 0.9}, "translation": {"bleu": bleu}})
        for way, speed, bleu in (("torch", 1.0, 30.0), ("onnx:int8", 9.0, 29.0), ("onnx:fp32", 5.0, 30.0))
    ]
    assert _best(found, {"ner": 1.0, "translation": 100.0}, proved=True) == "onnx:fp32"
    assert _best(found, {"ner": 1.0, "translation": 300.0}, proved=True) == "onnx:int8"


def test_without_gold_answers_only_exact_ways_are_taken() -> None:
    speeds = {"torch": 1.0, "torch:bf16": 8.0, "onnx:int8": 9.0, "onnx:fp32": 2.0, TRANSFORMERS: 99.0}
    found = [measured(way, speed) for way, speed in speeds.items()]
    assert _best(found, {"ner": 1.0}, proved=False) == "onnx:fp32"
    assert _best([one for one in found if one.way != "onnx:fp32"], {"ner": 1.0}, proved=False) == "torch"


def test_one_head_without_gold_answers_leaves_only_exact_ways() -> None:
    speeds = {"torch": 1.0, "onnx:int8": 9.0, "onnx:fp32": 2.0}
    found = [measured(way, speed, f1=0.0) for way, speed in speeds.items()]
    assert _best(found, {"ner": 1.0}, proved=True) == "onnx:int8"
    assert _best(found, {"ner": 1.0, "mood": 1.0}, proved=False) == "onnx:fp32"


def test_where_a_metric_is_no_number_pytorch_is_left() -> None:
    found = [measured(way, 1.0, f1=float("nan")) for way in ("torch", "onnx:fp32")]
    assert _best(found, {"ner": 1.0}, proved=True) == "torch"


def test_the_table_tells_what_was_measured_and_what_was_not() -> None:
    ways = (measured("torch", 1234.5, f1=0.91), replace(measured("onnx:int8", 99.4, f1=0.9), memory=None))
    found = Benchmark(20, 345, (*ways, measured(TRANSFORMERS, 7.0)), {"torch:bf16": "it\x1b[2J fails"}, {}, (), "torch")
    assert _table(found) == [
        "20 different texts, 345 tokens",
        "                       texts/s  tokens/s  p50 ms  p95 ms  MiB  ner f1",
        "torch                     1234     11110    12.3    45.6  512  0.9100",
        "onnx:int8                   99       895    12.3    45.6    -  0.9000",
        "transformers.pipeline        7        63    12.3    45.6  512       -",
        "torch:bf16: not measured: it\\x1b[2J fails",
        "fastest that keeps every metric: --backend torch",
    ]
    exact = replace(found, ways=(measured("torch", 1.0),), failed={}, unproved=("ner", "mood"))
    assert _table(replace(found, made={"torch": "nlptasks export m"}))[-1] == (
        "its export was made for this measurement alone; to keep one: nlptasks export m"
    )
    assert _table(exact)[-1] == (
        "fastest that gives PyTorch's numbers (to prove others: ner=DATA mood=DATA): --backend torch"
    )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["ner", "ner"], "ner: has data twice; give each head that is run one data set"),
        (["mood"], r"mood: has data and is not run \(ner are\)"),
    ],
)
def test_data_is_for_heads_that_are_run_once_each(both: Path, targets: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        benchmark(both, [Target(name, name, "data") for name in targets], heads=["ner"])


def test_heads_that_have_data_are_run_unless_others_are_named(both: Path) -> None:
    stored, mood = ModelFolder.open(both), Target("mood", "mood", "data")
    assert benchmarking._data(stored, None, [mood]) == (["mood"], {"mood": asdict(mood)})
    assert benchmarking._data(stored, ["ner", "mood"], [mood]) == (["ner", "mood"], {"mood": asdict(mood)})
    assert benchmarking._data(stored, None, []) == (["ner", "mood", "topic"], {})


# The far side: a way that answers line by line


@pytest.fixture
def plan(exported: Path, conll_data: Path) -> Plan:
    target = asdict(Target("ner", "ner", str(conll_data)))
    return Plan(str(exported), "torch", "cpu", ["ner"], {"ner": target}, "", None, 7, {})


def answers(plan: Plan | None, *questions: str) -> list[dict[str, Any]]:
    """What a way answers, a line each."""
    first = [] if plan is None else [json.dumps([asdict(plan), count(plan)["texts"]])]
    told = io.StringIO()
    serve(io.StringIO("".join(f"{line}\n" for line in [*first, *questions])), told)
    return [json.loads(line) for line in told.getvalue().splitlines()]


@pytest.mark.parametrize("backend", ["torch", "onnx:fp32"])
def test_a_way_answers_line_by_line(plan: Plan, backend: str) -> None:
    plan = replace(plan, backend=backend)
    opening, seconds, alone, metrics, memory = answers(plan, "throughput", "latencies", "metrics", "memory")
    assert opening == {"found": None}
    assert seconds["found"] > 0
    assert len(alone["found"]) == 4  # different ones, of seven
    assert min(alone["found"]) > 0
    [(metric, value)] = metrics["found"]["ner"].items()
    assert metric == "f1"
    assert value == pytest.approx(nlptasks.evaluate(plan.model, Target(**plan.targets["ner"])).metrics["f1"], abs=0.2)
    assert memory["found"] is None or memory["found"] > 50


def test_texts_and_tokens_are_those_that_the_backbone_reads(plan: Plan) -> None:
    assert count(plan)["texts"] == 4  # different ones, of seven
    tokenizer = ModelFolder.open(plan.model).tokenizer()
    rows = plan.rows(ModelFolder.open(plan.model).heads(["ner"]))
    texts = [" ".join(row.fields["tokens"]) for row in rows]
    windows = tokenizer.windows([nlptasks.types.Source(text) for text in texts])
    assert count(plan)["tokens"] == sum(len(window) for own in windows for window in own)


def test_what_is_said_twice_is_run_once(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ada saw Rome\nBob left\n" * 3)
    assert count(replace(plan, source=str(tmp_path / "a.txt")))["texts"] == 2


def test_what_is_wrong_is_an_answer_too(plan: Plan) -> None:
    [opening] = answers(replace(plan, backend="onx"))
    assert opening["failed"].startswith("backend 'onx': is unknown; did you mean 'onnx")
    [opening] = answers(replace(plan, backend="onnx:int8"))
    assert "has no ONNX export in int8" in opening["failed"]
    opening, nothing, seconds = answers(plan, "nothing", "throughput")
    assert opening == {"found": None}
    assert nothing["failed"].startswith("AttributeError: ")
    assert seconds["found"] > 0  # it goes on
    [refused] = answers(None, "throughput")
    assert refused["failed"].startswith("JSONDecodeError: ")


def test_a_file_of_texts_has_no_metrics(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ada Smith saw London .\n\nBob left\n" * 9)
    plan = replace(plan, source=str(tmp_path / "a.txt"))
    assert count(plan)["texts"] == 3  # different ones, of seven
    assert answers(plan, "metrics") == [{"found": None}, {"found": {}}]


def test_plain_transformers_is_a_way(plan: Plan, tmp_path: Path) -> None:
    checkpoints = benchmarking._checkpoints(ModelFolder.open(plan.model), ["ner"], tmp_path)
    assert checkpoints["ner"][0] == "token-classification"
    theirs = replace(plan, backend=TRANSFORMERS, checkpoints=checkpoints)
    opening, seconds, alone, metrics = answers(theirs, "throughput", "latencies", "metrics")
    assert opening == {"found": None}
    assert seconds["found"] > 0
    assert len(alone["found"]) == 4  # different ones, of seven
    assert metrics == {"found": {}}


@pytest.mark.parametrize(
    ("task", "auto"),
    [("qa", "AutoModelForQuestionAnswering"), ("translation", "AutoModelForSeq2SeqLM")],
)
def test_heads_that_transformers_has_no_pipeline_for_are_told(
    task: str, auto: str, backbones: Path, tmp_path: Path
) -> None:
    checks.make_subject(task, backbones / "bert").model().save(tmp_path / "model")
    stored = ModelFolder.open(tmp_path / "model")
    with pytest.raises(UsageError, match=rf"there is none for probe \({auto}\); measure other heads") as caught:
        benchmarking._checkpoints(stored, ["probe"], tmp_path)
    assert caught.value.where == TRANSFORMERS


def test_heads_that_read_pairs_are_told() -> None:
    head = SimpleNamespace(sources=lambda example: [nlptasks.types.Source("a", "b")])
    with pytest.raises(UsageError, match="is measured on heads that read one text a row"):
        ways._text(head, "example")  # type: ignore[arg-type]


def test_rows_are_read_whatever_their_gold_answers_are(plan: Plan, conll_data: Path, tmp_path: Path) -> None:
    other = (conll_data / "dev.conll").read_text().replace("PER", "PERSON").replace("LOC", "PLACE")
    (tmp_path / "a.conll").write_text(other)
    foreign = {"ner": asdict(Target("ner", "ner", str(tmp_path / "a.conll")))}
    assert count(replace(plan, targets=foreign)) == count(plan)


# The near side: ways in processes, here in threads


class Pipe:
    """Lines on their way from one thread to another: bytes at our end, as those of a process are, and text at the way's."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue()

    def write(self, line: str | bytes) -> None:
        self._lines.put(line if isinstance(line, str) else line.decode())

    def flush(self) -> None:
        pass

    def readline(self) -> bytes:
        return self._lines.get().encode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines.get, "")


@contextmanager
def worker(plan: Plan, texts: int) -> Iterator[_Worker]:
    """A way in a thread, which takes no seconds to start."""
    process: Any = SimpleNamespace(stdin=Pipe(), stdout=Pipe())
    thread = threading.Thread(target=serve, args=(process.stdin, process.stdout))
    thread.start()
    try:
        found = _Worker(plan.backend, process, io.BytesIO())
        found.ask(json.dumps([asdict(plan), texts]))
        yield found
    finally:
        process.stdin.write("")
        thread.join()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ways in threads of this process, no bf16, and no export in int8."""
    monkeypatch.setattr(benchmarking, "_worker", worker)
    monkeypatch.setattr(benchmarking, "has_bf16", lambda device: False)
    monkeypatch.setattr(benchmarking, "suitable_precisions", lambda device: ["int8", "fp32"])

    def exporting(folder: Path, *, precision: str) -> None:
        raise BackendError("the head ner", f"cannot be exported in {precision}", "run it on PyTorch")

    monkeypatch.setattr(benchmarking, "export", exporting)


def test_a_way_that_fails_is_told_and_the_others_are_measured(here: None, exported: Path, conll_data: Path) -> None:
    found = benchmark(exported, [Target("ner", "ner", str(conll_data))], device="cpu", rounds=1, most=7)
    assert [one.way for one in found.ways] == ["torch", "onnx:fp32", TRANSFORMERS]
    assert found.failed == {
        "torch:bf16": NOT_MEASURED,
        "onnx:fp16": "is for GPUs, of another kind than this device",
        "onnx:int8": "cannot be exported in int8",
    }
    assert found.texts == 4  # different ones, of seven
    assert found.best in ("torch", "onnx:fp32")
    for one in found.ways:
        assert one.tokens_per_second / one.texts_per_second == pytest.approx(found.tokens / found.texts)
        assert 0 < one.p50 <= one.p95
        assert (one.metrics == {}) == (one.way == TRANSFORMERS)
    assert found.ways[0].metrics == {"ner": {"f1": pytest.approx(found.ways[1].metrics["ner"]["f1"])}}


def test_a_way_that_breaks_later_is_told_too(
    here: None, exported: Path, conll_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, run_ = iter(range(2)), OnnxRuntime.run

    def breaking(self: OnnxRuntime, *given: Any) -> Any:
        if next(calls, None) is None:
            raise RuntimeError("it breaks")
        return run_(self, *given)

    monkeypatch.setattr(OnnxRuntime, "run", breaking)
    found = benchmark(exported, [Target("ner", "ner", str(conll_data))], device="cpu", rounds=2, most=7)
    assert [one.way for one in found.ways] == ["torch", TRANSFORMERS]
    assert found.failed["onnx:fp32"] == "RuntimeError: it breaks"
    assert found.best == "torch"


@pytest.mark.parametrize("place", ["__init__", "run"])
def test_a_model_that_pytorch_cannot_run_is_an_error(
    here: None, exported: Path, conll_data: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(TorchRuntime, place, broken)
    told = r"cannot be run on PyTorch \((MemoryError|a text of \d+ tokens): .*no memory.*\); run 'nlptasks doctor'"
    with pytest.raises(BackendError, match=told):
        benchmark(exported, [Target("ner", "ner", str(conll_data))], device="cpu", rounds=1, most=3)


def test_a_model_with_labels_of_its_own_is_measured_on_the_sample_without_a_metric(here: None, both: Path) -> None:
    found = benchmark(both, heads=["mood"], device="cpu", rounds=1, most=7)
    assert found.ways[0].way == "torch"
    assert found.ways[0].metrics == {}
    assert found.tokens > 7 * 5


def test_what_is_not_exported_is_exported_into_a_copy(
    exported: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(benchmarking, "export", lambda folder, *, precision: made.append((folder, precision)))
    before = contents(exported)
    stored = ModelFolder.open(exported)
    assert benchmarking._exported(stored, "fp32", ["ner"], tmp_path) == stored.path
    assert made == []
    copy = tmp_path / "model"
    assert benchmarking._exported(stored, "int8", ["ner"], tmp_path) == copy
    assert benchmarking._exported(stored, "fp16", ["ner"], tmp_path) == copy
    assert made == [(copy, "int8"), (copy, "fp16")]
    assert contents(copy) == contents(trained)  # old exports are left behind
    assert contents(exported) == before


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("sys.exit(3)", r"its process ended with 3: no room"),
        ("os.kill(os.getpid(), 9)", r"its process was killed by SIGKILL: no room"),
    ],
)
def test_a_process_that_dies_is_told(
    plan: Plan, tmp_path: Path, end: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "dying"
    last = "print('no room\\n', file=sys.stderr, flush=True)"
    script.write_text(
        f"#!{sys.executable}\nimport os, sys\nsys.stdin.readline()\nprint('{{\"found\": null}}', flush=True)\n{last}\n{end}\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(benchmarking, "sys", SimpleNamespace(executable=str(script)))
    with benchmarking._worker(plan, 7) as dying:
        dying._process.wait(60)
        for question in ("throughput", "memory"):
            with pytest.raises(BackendError, match=f"torch: {told}"):
                dying.ask(question)


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
    assert "give HEAD=DATA or --input, not both" in done.stderr


# All of it


def test_the_command_measures_every_way_and_leaves_the_model_alone(
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
    assert found.keys() == {"texts", "tokens", "ways", "failed", "made", "unproved", "best"}
    assert found["texts"] == 4  # different ones, of nine
    assert found["tokens"] > 5 * 4
    measured = {one["way"]: one for one in found["ways"]}
    assert next(iter(measured)) == "torch"
    assert measured.keys() | found["failed"].keys() == {"torch", "torch:bf16", *ONNX, TRANSFORMERS}
    assert found["failed"].pop("torch:bf16", NOT_MEASURED) == NOT_MEASURED
    assert found["failed"] == {"onnx:fp16": "is for GPUs, of another kind than this device"}
    assert found["made"].keys() == {"onnx:int8"}
    for one in measured.values():
        assert one["texts_per_second"] > 0
        assert 0 < one["p50"] <= one["p95"]
        assert one["memory"] is None or one["memory"] > 100  # libraries and all
        assert list(one["metrics"]) == ([] if one["way"] == TRANSFORMERS else ["ner"])
    assert measured["onnx:fp32"]["metrics"]["ner"]["f1"] == pytest.approx(measured["torch"]["metrics"]["ner"]["f1"])
    assert found["best"] in measured.keys() - {TRANSFORMERS}
    assert contents(model) == before
    assert [path.name.partition("-")[0] for path in place.glob("[!.]*")] == ["nlptasks"]  # the locks
