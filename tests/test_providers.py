"""What ONNX Runtime can run on: the reason and the fix where CUDA cannot be had, on machines with and without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
from click.testing import CliRunner

from nlptasks.cli.main import main
from nlptasks.errors import BackendError
from nlptasks.runtimes import providers
from nlptasks.runtimes.onnx import open_session
from nlptasks.runtimes.providers import CPU, CUDA, cuda_problem, wanted_providers, wheels

LIBRARIES = ["libcublasLt.so.13", "libcudart.so.13", "libcudnn.so.9"]
INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def says(number: int) -> Callable[..., int]:
    """A function of CUDA that writes a version where it is told to."""

    def function(place: object) -> int:
        place._obj.value = number
        return 0

    return function


class Machine:
    """A machine that is made up: its wheel, its libraries, and how a session ends."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder = patch, folder
        self.providers = [CUDA, CPU]
        self.build = {"package_name": "onnxruntime-gpu", "cuda_version": "13.0"}
        self.libraries: dict[str, object] = {name: SimpleNamespace() for name in LIBRARIES}
        self.libraries[providers._DRIVER] = SimpleNamespace(cuDriverGetVersion=says(13000))
        self.provider_error = ""
        (folder / "provider.so").touch()
        patch.syspath_prepend(folder)
        own = SimpleNamespace(CDLL=self.load, byref=ctypes.byref, c_int=ctypes.c_int, c_size_t=ctypes.c_size_t)
        patch.setattr(providers, "ctypes", own)  # what others import meanwhile loads the real libraries
        patch.setattr(onnxruntime, "get_available_providers", lambda: self.providers)
        patch.setattr(
            onnxruntime, "_get_nvidia_dll_paths", lambda windows: [("lib", name) for name in LIBRARIES], raising=False
        )
        patch.setattr(providers, "_build_info", lambda: self.build)
        patch.setattr(providers, "_preload", lambda: None)  # it keeps what it did: others need the real one
        patch.setattr(providers, "_PROVIDER_LIBRARY", str(folder / "provider.so"))
        self.session_ends("")

    def load(self, name: str) -> object:
        if name == str(self.folder / "provider.so") and self.provider_error:
            raise OSError(self.provider_error)
        if name not in self.libraries and name != str(self.folder / "provider.so"):
            raise OSError(f"{name}: cannot open shared object file")
        return self.libraries.get(name)

    def lose(self, name: str) -> None:
        """Take a library away, and whatever needs it."""
        del self.libraries[name]
        self.provider_error = f"{name}: cannot open shared object file: No such file or directory"

    def session_ends(self, error: str | None) -> None:
        self.patch.setattr(providers, "_session_error", lambda provider: None if provider == CPU else error)

    def install(self, name: str, version: str, *, package: str, extras: tuple[str, ...] = ()) -> None:
        """Put the metadata of a wheel on the path, before all others."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        extra = "".join(f"Provides-Extra: {extra}\n" for extra in extras)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extra}")
        (info / "RECORD").write_text(f"{package}/__init__.py,,\n{info.name}/METADATA,,\n")
        (self.folder / package).mkdir(exist_ok=True)
        (self.folder / package / "__init__.py").touch()  # what is not there is not listed from Python 3.12 on


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    machine = Machine(monkeypatch, tmp_path)
    monkeypatch.setattr(providers, "distributions", lambda: distributions(path=[str(tmp_path)]))
    return machine


@pytest.fixture
def gpu_wheel(machine: Machine) -> Machine:
    machine.install("onnxruntime-gpu", "1.31.1", package="onnxruntime", extras=("cuda", "cudnn"))
    return machine


# R1: CUDA is asked for and cannot be had.


def test_no_driver_is_named(gpu_wheel: Machine) -> None:
    del gpu_wheel.libraries[providers._DRIVER]
    reason, fix = cuda_problem()
    assert reason == f"there is no NVIDIA driver: {providers._DRIVER} is missing"
    assert fix == "install the NVIDIA driver"


def test_an_old_driver_is_compared_with_the_wheel(gpu_wheel: Machine) -> None:
    gpu_wheel.libraries[providers._DRIVER] = SimpleNamespace(cuDriverGetVersion=says(12080))
    reason, fix = cuda_problem()
    assert "is built for CUDA 13.0, and the NVIDIA driver can do CUDA 12.8 at most" in reason
    assert fix.startswith("update the NVIDIA driver")
    gpu_wheel.build["cuda_version"] = "12.9"  # a minor version more is no matter
    assert "driver can do" not in cuda_problem()[0]


def test_a_missing_library_is_named(gpu_wheel: Machine) -> None:
    gpu_wheel.lose("libcublasLt.so.13")
    reason, fix = cuda_problem()
    assert reason.startswith("the CUDA provider does not load: libcublasLt.so.13: cannot open")
    assert fix == INSTALL


def test_a_loader_that_names_no_library_is_helped_out(gpu_wheel: Machine) -> None:
    gpu_wheel.lose("libcublasLt.so.13")
    gpu_wheel.provider_error = "Could not find module 'provider' (or one of its dependencies)"
    assert cuda_problem()[0].endswith("dependencies), missing are libcublasLt.so.13")


def test_what_is_no_library_of_nvidia_is_not_installed_with_pip(gpu_wheel: Machine) -> None:
    gpu_wheel.provider_error = "libstdc++.so.6: version `GLIBCXX_3.4.99' not found"
    reason, fix = cuda_problem()
    assert "GLIBCXX_3.4.99" in reason
    assert "pip" not in fix


@pytest.mark.parametrize(
    ("cuda", "packages"),
    [("12.8", ("nvidia-cublas-cu12", "nvidia-cudnn-cu12")), ("13.0", ("nvidia-cublas ", "-cudnn-cu13"))],
)
def test_a_wheel_without_extras_gets_its_packages_by_name(
    machine: Machine, cuda: str, packages: tuple[str, ...]
) -> None:
    machine.install("onnxruntime-gpu", "1.0", package="onnxruntime")
    machine.build["cuda_version"] = cuda
    machine.lose("libcudnn.so.9")
    assert all(package in cuda_problem()[1] for package in packages)


def test_a_provider_without_its_file_is_installed_anew(gpu_wheel: Machine) -> None:
    (gpu_wheel.folder / "provider.so").unlink()
    reason, fix = cuda_problem()
    assert reason.endswith("provider.so is missing")
    assert fix == "pip uninstall -y onnxruntime-gpu, then pip install onnxruntime-gpu"


def test_a_wheel_for_the_cpu_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install("onnxruntime", "1.31.1", package="onnxruntime")
    machine.providers, machine.build = [CPU], {"package_name": "onnxruntime"}
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    fix = "pip uninstall -y onnxruntime, then pip install onnxruntime-gpu"
    assert cuda_problem() == ("the wheel onnxruntime has no CUDA provider", fix)
    monkeypatch.setattr("platform.machine", lambda: "arm64")  # there is no wheel to install
    assert "pip" not in cuda_problem()[1]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("CUDA failure 100: no CUDA-capable device is detected", "a session fails: CUDA failure 100: no CUDA-capable"),
        ("", "no reason was found: driver and provider load"),
        (None, "no reason was found: a very small session does run on CUDA"),
    ],
)
def test_what_is_not_known_is_not_made_up(gpu_wheel: Machine, error: str | None, reason: str) -> None:
    gpu_wheel.session_ends(error)
    assert cuda_problem()[0].startswith(reason)


def test_the_error_of_a_session_has_reason_and_fix(gpu_wheel: Machine, tmp_path: Path) -> None:
    gpu_wheel.providers, gpu_wheel.build = [CPU], {"package_name": "onnxruntime"}
    path = tmp_path / "smallest.onnx"
    path.write_bytes(providers.smallest_graph())
    with pytest.raises(BackendError) as caught:
        open_session(path, "cuda")
    reason, fix = cuda_problem()
    assert reason in caught.value.problem
    assert fix in caught.value.fix
    assert "--device cpu" in caught.value.fix
    assert caught.value.exit_code == 6


def test_the_real_machine_is_asked_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    assert providers.winner() in wheels()
    providers._preload.cache_clear()
    assert providers.loads(CPU)
    assert not providers.loads("NoSuchProvider")
    reason, fix = cuda_problem()
    assert reason
    assert fix
    assert providers.loads_cuda() == ("does run on CUDA" in reason)
    providers.parts()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("device", "driver", "error", "expected"),
    [
        ("cpu", True, None, [CPU]),
        ("auto", False, None, [CPU]),
        ("auto", True, "no GPU", [CPU]),
        ("auto", True, None, [CUDA, CPU]),
        ("cuda", False, None, [CPU]),
        ("cuda", True, "no GPU", [CPU]),
        ("cuda", True, None, [CUDA, CPU]),
    ],
)
def test_providers_are_wanted_by_device(
    machine: Machine, device: str, driver: bool, error: str | None, expected: list[str]
) -> None:
    machine.session_ends(error)
    if not driver:
        del machine.libraries[providers._DRIVER]
    options = {CUDA: (CUDA, {"arena_extend_strategy": "kSameAsRequested"}), CPU: CPU}
    assert wanted_providers(device) == [options[name] for name in expected]


# R2: several wheels in one folder.


@pytest.fixture
def two_wheels(gpu_wheel: Machine) -> Machine:
    gpu_wheel.install("onnxruntime", "1.20.0", package="onnxruntime")
    gpu_wheel.install("onnxruntime-genai", "0.9.0", package="onnxruntime_genai")  # in a folder of its own
    gpu_wheel.providers, gpu_wheel.build = [CPU], {"package_name": "onnxruntime"}
    return gpu_wheel


FIX = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"


def test_two_wheels_are_found_with_the_fix(two_wheels: Machine) -> None:
    assert wheels() == {"onnxruntime": "1.20.0", "onnxruntime-gpu": "1.31.1"}
    reason, fix = cuda_problem()
    assert "onnxruntime 1.20.0 and onnxruntime-gpu 1.31.1 overwrite each other's files" in reason
    assert "those of onnxruntime are on disk" in reason
    assert fix == FIX
    assert FIX in doctor()


def test_the_fix_keeps_the_wheel_that_was_chosen(two_wheels: Machine) -> None:
    two_wheels.install("onnxruntime-directml", "1.20.0", package="onnxruntime")
    shutil.rmtree(two_wheels.folder / "onnxruntime_gpu-1.31.1.dist-info")
    _, fix = providers.wheel_conflict()
    assert fix == "pip uninstall -y onnxruntime onnxruntime-directml, then pip install onnxruntime-directml"
    assert cuda_problem()[0] == "the wheel onnxruntime has no CUDA provider"  # neither of these two would have it


def test_one_wheel_is_no_conflict(gpu_wheel: Machine) -> None:
    assert providers.wheel_conflict() is None
    assert "overwrite" not in doctor()


def test_the_winner_is_read_from_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(providers, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    monkeypatch.setattr(providers, "distributions", lambda: [])
    assert (providers.winner(), providers.wanted_cuda()) == ("", None)
    (tmp_path / "capi").mkdir()
    info = tmp_path / "capi" / "build_and_package_info.py"
    info.write_text("package_name = 'onnxruntime-gpu'\n__version__ = '1.31.1'\ncuda_version = \"13.0\"\n")
    assert (providers.winner(), providers.wanted_cuda()) == ("onnxruntime-gpu", "13.0")


# R3: required and found.


def doctor() -> str:
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_doctor_prints_required_and_found(gpu_wheel: Machine) -> None:
    gpu_wheel.libraries |= {
        providers._DRIVER: SimpleNamespace(cuDriverGetVersion=says(12080)),
        "libcudart.so.13": SimpleNamespace(cudaRuntimeGetVersion=says(13010)),
        "libcudnn.so.9": SimpleNamespace(cudnnGetVersion=type("Function", (), {"__call__": lambda self: 91002})()),
    }
    gpu_wheel.lose("libcublasLt.so.13")
    gpu_wheel.install("nvidia-cudnn-cu12", "9.8.0.87", package="nvidia_cudnn")
    gpu_wheel.install("nvidia-ml-py", "13.0", package="nvidia_ml_py")  # no part of CUDA
    printed = doctor()
    for line in (
        "ONNX Runtime: onnxruntime-gpu 1.31.1",
        f"  built with {CUDA}, {CPU}",
        "  provider CPU works",
        "  NVIDIA driver for CUDA: required 13, found 12.8",
        "  CUDA: required 13.0, found 13.1",
        "  cuDNN: required 9, found 9.10.2",
        f"  libraries that do not load: libcublasLt.so.13: {INSTALL}",
        "  installed: nvidia-cudnn-cu12 9.8.0.87",
    ):
        assert line in printed.splitlines()
    assert "provider CUDA does not work: the wheel onnxruntime-gpu is built for CUDA 13.0" in printed


def test_doctor_says_what_is_not_found(gpu_wheel: Machine) -> None:
    gpu_wheel.libraries.clear()
    printed = doctor()
    assert "  NVIDIA driver for CUDA: required 13, found none" in printed
    assert "  cuDNN: required 9, found none" in printed
    assert f"do not load: {', '.join(LIBRARIES)}: {INSTALL}" in printed


def test_doctor_is_content_where_cuda_works(gpu_wheel: Machine) -> None:
    gpu_wheel.session_ends(None)
    printed = doctor()
    assert "  provider CUDA works" in printed
    assert "do not load" not in printed


def test_doctor_asks_nothing_of_cuda_from_a_wheel_for_the_cpu(machine: Machine) -> None:
    machine.providers, machine.build = [CPU], {"package_name": "onnxruntime"}
    machine.install("onnxruntime", "1.31.1", package="onnxruntime")
    machine.session_ends("this build does not have it")
    printed = doctor()
    assert "provider CUDA does not work: the wheel onnxruntime has no CUDA provider" in printed
    assert "required" not in printed


def test_doctor_names_the_wheels_even_if_onnxruntime_does_not_import(
    two_wheels: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert FIX in doctor()
