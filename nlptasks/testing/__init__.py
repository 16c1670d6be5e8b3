"""The tests that every head must pass, whoever wrote it.

A plugin's whole test file is three lines:

    from nlptasks.testing import Conformance

    class TestMyTask(Conformance):
        task = "mytask"

pytest then checks, on tiny backbones made from a config, the sample data, shapes, gradients and a falling loss, that padding and
saving change nothing, that ONNX Runtime gives PyTorch's numbers, spaCy, and the command line. It needs the extra ``test``:
``pip install "nlptasks[test]"``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.register_assert_rewrite("nlptasks.testing.checks", "nlptasks.testing.commands")

from nlptasks.registry import head_class  # noqa: E402
from nlptasks.testing import checks, commands  # noqa: E402
from nlptasks.testing.backbones import TINY, make_tiny  # noqa: E402

__all__ = ["Conformance", "checks", "commands", "make_tiny"]


class Conformance:
    """Tests of one head; a subclass names its task.

    Attributes:
        task: the registered task.
        backbones: names of the tiny backbones of `TINY` that it is tried on; by default all of a kind that it stands on.
    """

    task: ClassVar[str]
    backbones: ClassVar[tuple[str, ...]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run the tests on each backbone, those of whole processes on the first."""
        kinds = head_class(self.task).backbones
        names = self.backbones or tuple(name for name, tiny in TINY.items() if tiny.kind in kinds)
        if not names:
            raise ValueError(f"there is no tiny backbone of the kinds {', '.join(kinds)}")
        if "subject" in metafunc.fixturenames:
            metafunc.parametrize("subject", names, indirect=True)
        if "backbone" in metafunc.fixturenames:
            metafunc.parametrize("backbone", names[:1], indirect=True)

    @pytest.fixture
    def backbone(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        """The folder of a tiny backbone."""
        make_tiny(request.param, tmp_path / "backbone")
        return tmp_path / "backbone"

    @pytest.fixture
    def subject(self, request: pytest.FixtureRequest, tmp_path: Path) -> checks.Subject:
        """A new head on a tiny backbone."""
        make_tiny(request.param, tmp_path / "backbone")
        return checks.make_subject(self.task, tmp_path / "backbone")

    def test_rows_become_examples_sources_and_features(self, subject: checks.Subject) -> None:
        checks.check_reading(subject)

    def test_outputs_are_as_declared_and_padding_changes_nothing(self, subject: checks.Subject) -> None:
        checks.check_outputs(subject)

    def test_the_loss_falls_and_all_weights_learn(self, subject: checks.Subject) -> None:
        checks.check_learning(subject)

    def test_a_saved_model_gives_the_same_results(self, subject: checks.Subject, tmp_path: Path) -> None:
        checks.check_saving(subject, tmp_path / "model")

    def test_onnx_runtime_gives_the_numbers_of_pytorch(self, subject: checks.Subject, tmp_path: Path) -> None:
        checks.check_export(subject, tmp_path / "model", checks.check_saving(subject, tmp_path / "model"))

    def test_spacy_documents_have_the_results(self, subject: checks.Subject, tmp_path: Path) -> None:
        subject.model().save(tmp_path / "model")
        checks.check_spacy(subject, tmp_path / "model")

    def test_the_commands_work(self, backbone: Path, tmp_path: Path) -> None:
        commands.check_commands(self.task, backbone, tmp_path / "model")
