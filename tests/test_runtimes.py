"""Both runtimes with forks, threads, Ctrl-C and little memory; bf16; how backends are named and what they import."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from answering import TEXTS, check_same, check_threads, numbers_of, opened, run
from runs import code_of, forked
from torch import nn

from nlptasks.errors import OutOfMemoryError, UsageError
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.runtimes import pytorch
from nlptasks.runtimes.base import ENCODE, Tensors
from nlptasks.runtimes.onnx import OnnxRuntime, thread_count
from nlptasks.runtimes.onnx_backend import OnnxBackend
from nlptasks.runtimes.providers import CUDA
from nlptasks.runtimes.pytorch import has_bf16, pack_linears
from nlptasks.runtimes.pytorch_backend import TorchBackend

BACKENDS = ["torch", "onnx:fp32"]
CPU = torch.device("cpu")

# R5: a fork after use

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_fork(work: Callable[[], object], log: Path) -> int:
    """Return the exit code of a forked child: 42 for a `UsageError`, which is logged. A child that hangs is killed."""

    def logged() -> None:
        signal.alarm(60)
        try:
            work()
        except UsageError as error:
            os.write(1, f"{error}\n".encode())
            sys.exit(42)

    return code_of(forked(logged, log))


@FORK
@pytest.mark.parametrize("backend", BACKENDS)
def test_use_in_a_child_forked_after_opening_is_an_error(exported: Path, tmp_path: Path, backend: str) -> None:
    pipe = opened(exported, backend, "ner")
    expected = pipe(TEXTS)
    for work in (lambda: pipe(TEXTS), lambda: pipe("Ada"), lambda: next(pipe.stream(TEXTS))):
        assert in_fork(work, tmp_path / "log") == 42
    message = (
        f"the model: was opened in process {os.getpid()} before this process was forked; "
        "open it in the process that uses it"
    )
    assert (tmp_path / "log").read_text().count(message) == 3
    assert pipe(TEXTS) == expected  # the parent can go on


@FORK
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_cannot_continue_in_a_child(exported: Path, tmp_path: Path, backend: str) -> None:
    stream = opened(exported, backend, "ner").stream(TEXTS * 9)
    next(stream)
    assert in_fork(lambda: list(stream), tmp_path / "log") == 42


# R6: many threads


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", ["exported", "both_exported"])
def test_each_thread_gets_its_own_results(model: str, backend: str, request: pytest.FixtureRequest) -> None:
    pipe = opened(request.getfixturevalue(model), backend)
    places = ["Rome", "Paris", "Berlin", "London"] * 4
    texts = [f"{'saw . ' * (4 * number)}Ada Smith left {place} ." for number, place in enumerate(places)]
    check_threads(pipe, texts, kinds=16)


# R10: Ctrl-C

ENDLESS = """
import itertools, signal, sys
from nlptasks.pipeline import pipeline

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for background processes
for backend in sys.argv[2:]:
    pipe = pipeline("ner", model=sys.argv[1], backend=backend, device="cpu")
    runtime, passes = pipe._engine.runtime, itertools.count()
    expected, run = pipe("Ada Smith saw London ."), runtime.run

    def counted(*given):
        if next(passes) == 5:
            print("running", flush=True)
        return run(*given)

    runtime.run = counted
    try:
        pipe(f"Ada Smith saw London {number} ." for number in itertools.count())
    except KeyboardInterrupt:
        print("stopped", pipe("Ada Smith saw London .") == expected, len(expected), flush=True)
"""


def test_the_pipeline_can_be_used_after_ctrl_c(exported: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, str(exported), *BACKENDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watch = threading.Timer(300, process.kill)  # a process that does not stop must not hang the tests
        watch.start()
        try:
            assert process.stdout is not None
            for _ in BACKENDS:
                assert process.stdout.readline() == "running\n"
                process.send_signal(signal.SIGINT)
                assert process.stdout.readline() == "stopped True 2\n"
            assert process.wait(60) == 0
        finally:
            watch.cancel()
            process.kill()


# R11: batches and threads do not change results

LABELS = """
import json, sys, torch
from nlptasks.pipeline import pipeline
from nlptasks.runtimes.onnx import thread_count

texts = json.load(sys.stdin)
found = {}
for backend in sys.argv[2:]:
    pipe = pipeline("ner", model=sys.argv[1], backend=backend, device="cpu")
    found[backend] = [[(one.label, one.start, one.end) for one in own] for own in pipe(texts)]
print(json.dumps({"threads": [torch.get_num_threads(), thread_count()], "found": found}))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_do_not_depend_on_the_batch(both_exported: Path, backend: str) -> None:
    pipe = opened(both_exported, backend)
    texts = [f"{text} {number}" for number in range(8) for text in TEXTS]
    check_same(pipe(texts), [pipe(text) for text in texts])


def test_results_do_not_depend_on_the_number_of_threads(exported: Path) -> None:
    def labels(threads: int) -> dict[str, Any]:
        command = [sys.executable, "-c", LABELS, str(exported), *BACKENDS]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, input=json.dumps(TEXTS), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer["threads"] == [min(threads, os.cpu_count() or 1)] * 2
        return answer["found"]

    one, two = labels(1), labels(2)
    assert one == two
    assert one["torch"] == one["onnx:fp32"]
    assert len(one["torch"][0]) == 2


# Too little memory


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_become_smaller_when_memory_is_short(
    both_exported: Path, backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = opened(both_exported, backend)
    texts = [f"{text} {number}" for number in range(8) for text in TEXTS]
    expected, run, heights = pipe(texts), pipe._engine.runtime.run, []

    def tight(graph: str, inputs: Tensors, heads: Any = None) -> Tensors:
        heights.append(len(inputs["ids"]))
        if heights[-1] > most:
            raise OutOfMemoryError(f"the graph {graph}", "is too much", "use less")
        return run(graph, inputs, heads)

    most = 4
    monkeypatch.setattr(pipe._engine.runtime, "run", tight)
    with caplog.at_level("WARNING", "nlptasks"):
        check_same(pipe(texts), expected)
    assert max(heights) > most
    failed = sum(height > most for height in heights)
    assert sum(" tokens from now on" in line for line in caplog.messages) == failed < 8
    heights.clear()
    check_same(pipe(texts), expected)
    assert max(heights) <= most  # the limit is remembered
    most = 0
    heights.clear()
    with pytest.raises(OutOfMemoryError, match=r"a text of \d+ tokens: .*is too much; use shorter texts"):
        pipe(texts)
    assert heights[-1] == 1
    assert len(heights) < 10  # the first text that does not fit stops everything


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_memory_error_of_python_is_handled_alike(
    exported: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = opened(exported, backend)
    expected, run = pipe(TEXTS * 3), pipe._engine.runtime.run

    def tight(graph: str, inputs: Tensors, heads: Any = None) -> Tensors:
        if len(inputs["ids"]) > 4:
            raise MemoryError
        return run(graph, inputs, heads)

    monkeypatch.setattr(pipe._engine.runtime, "run", tight)
    check_same(pipe(TEXTS * 3), expected)


class _Hungry(nn.Module):
    """Needs more memory than any machine has."""

    def forward(self, inputs: Tensors, heads: Any = None) -> Tensors:
        return {"own": torch.ones(1).expand(2**46).clone()}


def _hungry_graph(path: Path) -> OnnxRuntime:
    """Return a runtime of a graph that does the same."""
    values = [
        onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n"]),
        onnx.helper.make_tensor_value_info("own", onnx.TensorProto.FLOAT, None),
    ]
    node = onnx.helper.make_node("ConstantOfShape", ["ids"], ["own"])
    graph = onnx.helper.make_graph([node], "hungry", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    return OnnxRuntime({ENCODE: path}, device="cpu", precision="fp32")


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_little_memory_is_recognised_by_the_runtimes_messages(backend: str, tmp_path: Path) -> None:
    hungry = {
        "torch": lambda: pytorch.TorchRuntime({ENCODE: _Hungry()}, CPU),
        "onnx:fp32": lambda: _hungry_graph(tmp_path / "encode.onnx"),
    }
    with pytest.raises(OutOfMemoryError, match="the graph encode") as caught:
        hungry[backend]().run(ENCODE, {"ids": np.array([2**46])})
    assert caught.value.exit_code == 6


# R4: nodes on other devices


class _OnCuda:
    """A session of which CUDA runs most nodes."""

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return []

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="ner.logits")]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        placed = {CUDA: 29, "CPUExecutionProvider": 1}
        return [SimpleNamespace(ep_name=name, get_nodes=lambda n=number: [None] * n) for name, number in placed.items()]


def test_the_share_of_nodes_on_cuda_is_in_the_name(
    exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime: Any = opened(exported, "onnx:fp32")._engine.runtime
    assert runtime.shares == {"CPUExecutionProvider": 1}  # as ONNX Runtime itself says
    assert runtime.name == "ONNX Runtime fp32 on the CPU"
    monkeypatch.setattr("nlptasks.runtimes.onnx.open_session", lambda *_: _OnCuda())
    with caplog.at_level("INFO", "nlptasks"):
        runtime = opened(exported, "onnx:fp32")._engine.runtime
    assert runtime.shares == {CUDA: 29 / 30, "CPUExecutionProvider": 1 / 30}
    assert "ner runs on ONNX Runtime fp32 on CUDA (97% of the nodes)" in caplog.messages
    monkeypatch.delattr(_OnCuda, "get_provider_graph_assignment_info")  # as in older versions
    assert opened(exported, "onnx:fp32")._engine.runtime.name == "ONNX Runtime fp32 on CUDA"


# How sessions are made


def test_the_options_of_sessions(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, dict[str, Any]]] = []
    session = onnxruntime.InferenceSession

    def noting(content: Any, options: Any, **how: Any) -> Any:
        made.append((options, how))
        return session(content, options, **how)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noting)
    monkeypatch.setattr("nlptasks.runtimes.onnx.thread_count", lambda: 3)
    pipe = opened(exported, "onnx:fp32")
    assert pipe("Ada Smith left")
    [(options, how)] = made
    assert options.intra_op_num_threads == 3
    assert not options.enable_mem_pattern  # a plan would be kept for every shape
    assert how["disabled_optimizers"] == ["SkipLayerNormFusion", "BiasGeluFusion"]
    assert how["enable_fallback"] == 0


def test_all_sessions_run_on_the_cpu_if_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class OnCpu(_OnCuda):
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    def opens(path: Path, device: str, heads: Any) -> Any:
        asked.append((path.name, device))
        return _OnCuda() if device == "auto" and path.name == "one" else OnCpu()

    monkeypatch.setattr("nlptasks.runtimes.onnx.open_session", opens)
    files = {name: tmp_path / name for name in ("one", "two")}
    runtime = OnnxRuntime(files, device="auto", precision="fp32")
    assert runtime.device == "cpu"
    assert asked == [("one", "auto"), ("two", "auto"), ("one", "cpu"), ("two", "cpu")]


# Threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity of processes")
@pytest.mark.parametrize(
    "environment", [{}, {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "1,2"},
                    {"OMP_NUM_THREADS": "x"}, {"MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}], ids=str
)  # fmt: skip
@pytest.mark.parametrize("cpus", [1, 2])
def test_onnx_runtime_uses_as_many_threads_as_pytorch(environment: dict[str, str], cpus: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))[:cpus]
    if environment.get("OMP_NUM_THREADS") == "2" and len(allowed) == 1:
        pytest.skip("PyTorch would use more threads than there are CPUs")
    code = (
        f"import os; os.sched_setaffinity(0, {allowed}); import torch; from nlptasks.runtimes.onnx import thread_count"
    )
    others = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(torch.get_num_threads(), thread_count())"],
        env=others | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = done.stdout.split()
    assert ours == theirs


def test_physical_cores_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / str(cpu)).write_text(siblings)
    monkeypatch.setattr("nlptasks.runtimes.onnx._CORES", str(tmp_path / "{}"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert thread_count() == 3  # of the last one nothing is known


# R9: memory

GROWTH = """
import random, sys
from pathlib import Path
from nlptasks.pipeline import pipeline

def resident():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024

draw = random.Random(0)
def texts(count):
    for number in range(count):
        yield " ".join(draw.choice(["Ada", "saw", "Rome", str(number)]) for _ in range(draw.randint(1, 60)))

pipe = pipeline(model=sys.argv[1], backend=sys.argv[2], device="cpu")
for _ in pipe.stream(texts(3000)):
    pass
before = resident()
for _ in pipe.stream(texts(10000)):
    pass
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not report resident memory")
def test_memory_does_not_grow_with_many_lengths(exported: Path) -> None:
    command = [sys.executable, "-c", GROWTH, str(exported), "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20  # MiB


# bf16, and names of backends

BF16 = pytest.mark.skipif(not has_bf16(CPU), reason="this CPU does not support bf16")


@BF16
def test_bf16_gives_nearly_the_same_results(both: Path) -> None:
    one, two = opened(both, "torch"), opened(both, "torch:bf16")
    assert (one.backend, two.backend) == ("PyTorch on the CPU", "PyTorch bf16 on the CPU")
    before, after = one(TEXTS), two(TEXTS)
    check_same(before, after, tolerance=0.05)
    assert numbers_of(before) != pytest.approx(numbers_of(after), abs=1e-5)  # it is not fp32


@BF16
def test_packed_layers_multiply_in_bf16() -> None:
    module = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 3, bias=False)).eval()
    x = torch.randn(2, 5, 24)
    expected = module(x)
    pack_linears(module, dtype=torch.bfloat16)
    assert not any(type(layer) is nn.Linear for layer in module)
    with torch.inference_mode():
        found = module(x)
        turned = module(x.transpose(0, 1)).transpose(0, 1)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.03)
    assert not torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(found, turned)  # not contiguous


def test_only_fp32_layers_are_packed() -> None:
    module = nn.Sequential(nn.Linear(24, 40).double(), nn.Linear(40, 3).to(torch.bfloat16))
    pack_linears(module, few_rows=True)
    assert [type(layer) for layer in module] == [nn.Linear, nn.Linear]


def test_bf16_without_hardware_support_is_refused(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch, "has_bf16", lambda device: False)
    done = run("predict", exported, "Ada", "--backend", "torch:bf16", "--device", "cpu")
    assert done.exit_code == 6
    assert done.stderr == "error: --backend torch:bf16: bf16 is not supported by this CPU; use --backend torch\n"
    assert opened(exported, "torch:fp32", "ner").backend == "PyTorch on the CPU"


@pytest.mark.parametrize(
    ("backend", "suggestion"),
    [
        ("torch:bf61", "did you mean 'torch:bf16'?"),
        ("onnx:int4", "did you mean 'onnx:int8'?"),
        ("Torch", "did you mean 'torch'?"),
        ("x", "known are: auto, onnx, torch"),
        ("", "known are: auto"),
    ],
)
def test_an_unknown_backend_is_refused_with_a_suggestion(exported: Path, backend: str, suggestion: str) -> None:
    with pytest.raises(UsageError) as caught:
        opened(exported, backend, "ner")
    assert str(caught.value).startswith(f"backend {backend!r}: is unknown; {suggestion}")


def test_backends_name_the_precisions_that_exist() -> None:
    assert list(OnnxBackend.precisions) == list(PRECISIONS)
    assert list(TorchBackend.precisions) == list(pytorch._TYPES)


# What is imported

IMPORTS = """
import sys
from nlptasks.exporting.sources import class_of
from nlptasks.pipeline import pipeline

assert class_of(sys.argv[1], "ner").__name__ == "NerHead"
pipe = pipeline("ner", model=sys.argv[1], backend=sys.argv[2], device="cpu")
assert pipe("Ada Smith saw London .")
print(*(name for name in ("torch", "transformers", "onnx") if name in sys.modules))
"""


@pytest.mark.parametrize("backend", ["onnx", "onnx:fp32", "auto"])
def test_an_export_is_run_without_pytorch_and_without_onnx(exported: Path, backend: str) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS, str(exported), backend], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_only_pruning_imports_onnx(both_exported: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS, str(both_exported), "onnx"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["onnx"]
