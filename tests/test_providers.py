"""Providers of ONNX Runtime: the reason and the fix if CUDA does not work, on machines with and without a GPU."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from nlptasks.errors import BackendError
from nlptasks.runtimes import onnx as onnx_runtime
from nlptasks.runtimes import providers
from nlptasks.runtimes.onnx import open_session
from nlptasks.runtimes.providers import CPU, CUDA, cuda_problem, providers_for, usable_device, wheel_conflict, wheels

MISSING = "Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file"


class Machine:
    """A simulated machine."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder = patch, folder
        self.driver = True
        self.providers = [CUDA, CPU]
        self.preloading = ""
        self.session: Callable[[], list[str]] = lambda: [CUDA, CPU]
        patch.setattr(providers, "ctypes", SimpleNamespace(CDLL=self._load))
        patch.setattr(onnxruntime, "get_available_providers", lambda: self.providers)
        patch.setattr(onnxruntime, "preload_dlls", lambda: print(self.preloading), raising=False)
        patch.setattr(onnxruntime, "InferenceSession", self._session)
        patch.setattr(providers, "distributions", lambda: distributions(path=[str(folder)]))
        patch.setattr(providers, "_preload", providers._preload.__wrapped__)  # the real result stays cached for others
        self.install("onnxruntime-gpu", "1.31.1", package="onnxruntime")

    def _load(self, name: str) -> None:
        if not self.driver:
            raise OSError(f"{name}: cannot open shared object file")

    def _session(self, content: bytes, options: Any, **given: Any) -> Any:
        found = self.session()
        return SimpleNamespace(get_providers=lambda: found)

    def install(self, name: str, version: str, *, package: str) -> None:
        """Write the metadata of a package."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{package}/__init__.py,,\n{info.name}/METADATA,,\n")
        (self.folder / package).mkdir(exist_ok=True)
        (self.folder / package / "__init__.py").touch()  # from Python 3.12 on, missing files are not listed


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def failing(message: str) -> Callable[[], list[str]]:
    def session() -> list[str]:
        raise RuntimeError(message)

    return session


# R1: CUDA is asked for and does not work


def test_cuda_that_works_has_no_problem(machine: Machine) -> None:
    assert cuda_problem() is None
    assert [usable_device(device) for device in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


def no_driver(machine: Machine) -> None:
    machine.driver = False


def cpu_wheel(machine: Machine) -> None:
    machine.providers = [CPU]


def missing_library(machine: Machine) -> None:
    machine.preloading, machine.session = f"{MISSING}\nPlease follow the docs", lambda: [CPU]


def silent_fallback(machine: Machine) -> None:
    machine.session = lambda: [CPU]


def no_device(machine: Machine) -> None:
    machine.session = failing("CUDA failure 100: no CUDA-capable device is detected\nand more")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (no_driver, f"there is no NVIDIA driver ({providers._DRIVER} is missing)"),
        (cpu_wheel, "the installed package has no CUDA provider (installed: onnxruntime-gpu)"),
        (missing_library, MISSING),
        (silent_fallback, "its CUDA provider does not load"),
        (no_device, "RuntimeError: CUDA failure 100: no CUDA-capable device is detected"),
    ],
)
def test_the_problem_is_what_onnx_runtime_reports(
    machine: Machine, change: Callable[[Machine], None], problem: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(machine)
    assert cuda_problem() == problem
    assert usable_device("auto") == usable_device("cuda") == "cpu"
    with pytest.raises(BackendError) as caught:
        open_session(tmp_path / "encode.onnx", "cuda")
    assert caught.value.exit_code == 6
    assert problem in caught.value.problem
    assert caught.value.fix == (
        "install NVIDIA's driver and: pip install 'onnxruntime-gpu[cuda,cudnn]'; or use `device=\"cpu\"`"
    )
    assert capfd.readouterr() == ("", "")


def test_a_session_that_falls_back_to_the_cpu_is_an_error(machine: Machine, tmp_path: Path) -> None:
    found = iter([[CUDA, CPU], [CPU]])  # the problem comes up when the graph itself is opened
    machine.session = lambda: next(found, [CUDA, CPU])
    with pytest.raises(BackendError, match=r"does not run on CUDA .it falls back to the CPU"):
        open_session(tmp_path / "encode.onnx", "cuda")


def test_a_session_that_may_fall_back_does(machine: Machine, tmp_path: Path) -> None:
    found = iter([[CUDA, CPU], [CPU]])
    machine.session = lambda: next(found)
    assert open_session(tmp_path / "encode.onnx", "auto").get_providers() == [CPU]


def test_the_real_machine_is_asked_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    providers._preload.cache_clear()
    assert (cuda_problem() is None) == (usable_device("auto") == "cuda")
    assert len(wheels()) == 1
    assert wheel_conflict() is None
    assert capfd.readouterr() == ("", "")


def test_a_library_that_is_really_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if CUDA not in onnxruntime.get_available_providers() or cuda_problem() is None:
        pytest.skip("this build has no CUDA, or CUDA works")
    try:
        ctypes.CDLL("libcublasLt.so.13")
    except OSError:
        pass
    else:
        pytest.skip("the libraries are installed")
    monkeypatch.setattr(providers, "ctypes", SimpleNamespace(CDLL=lambda name: None))  # as if there were a driver
    providers._preload.cache_clear()
    problem = cuda_problem()
    assert problem is not None
    assert ".so" in problem
    assert capfd.readouterr() == ("", "")


def test_the_options_of_cuda() -> None:
    assert providers_for("cpu") == [CPU]
    assert providers_for("cuda") == [(CUDA, {"arena_extend_strategy": "kSameAsRequested"}), CPU]


def test_the_smallest_graph_is_a_graph() -> None:
    onnx.checker.check_model(onnx.load_from_string(providers.SMALLEST_GRAPH))
    session = onnx_runtime._session(providers.SMALLEST_GRAPH, Path(), "cpu")
    assert session.run(None, {"x": np.ones(1, dtype=np.float32)})[0] == 1


# R2: several packages in one folder


def test_two_packages_overwrite_each_other(machine: Machine) -> None:
    machine.install("onnxruntime", "1.20.0", package="onnxruntime")
    machine.install("onnxruntime-genai", "0.9.0", package="onnxruntime_genai")  # in a folder of its own
    assert wheels() == {"onnxruntime": "1.20.0", "onnxruntime-gpu": "1.31.1"}
    assert wheel_conflict() == (
        "onnxruntime and onnxruntime-gpu overwrite each other's files; "
        "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
    )


def test_the_fix_keeps_the_package_that_was_chosen(machine: Machine) -> None:
    machine.install("onnxruntime", "1.20.0", package="onnxruntime")
    machine.install("onnxruntime-directml", "1.20.0", package="onnxruntime")
    shutil.rmtree(machine.folder / "onnxruntime_gpu-1.31.1.dist-info")
    problem = wheel_conflict()
    assert problem is not None
    assert problem.endswith("then pip install onnxruntime-directml")
