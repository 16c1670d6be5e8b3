"""The test kit: tests that every head must pass, including those of other packages.

The whole test file of a plugin is three lines:

    from nlptasks.testing import Conformance

    class TestMyTask(Conformance):
        task = "mytask"

On tiny backbones and the sample data, pytest then checks shapes, gradients, a falling loss, counts and metrics, that padding and
saving change nothing, that ONNX Runtime gives PyTorch's outputs, spaCy, and the command line. Install it with
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
        backbones: names of the backbones in `TINY` to test on; empty for all kinds that the head runs on.
    """

    task: ClassVar[str]
    backbones: ClassVar[tuple[str, ...]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run the tests on each backbone, and those of whole commands on the first."""
        kinds = head_class(self.task).schema.backbones
        names = self.backbones or tuple(name for name, tiny in TINY.items() if tiny.kind in kinds)
        if not names:
            raise ValueError(f"there is no tiny backbone of the kinds {', '.join(kinds)}")
        if "head" in metafunc.fixturenames:
            metafunc.parametrize("head", names, indirect=True)
        if "backbone" in metafunc.fixturenames:
            metafunc.parametrize("backbone", names[:1], indirect=True)

    @pytest.fixture
    def backbone(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        """The folder of a tiny backbone."""
        make_tiny(request.param, tmp_path / "backbone")
        return tmp_path / "backbone"

    @pytest.fixture
    def head(self, request: pytest.FixtureRequest, tmp_path: Path) -> checks.HeadUnderTest:
        """A new head on a tiny backbone."""
        make_tiny(request.param, tmp_path / "backbone")
        return checks.make_head(self.task, tmp_path / "backbone")

    def test_rows_become_examples_inputs_and_targets(self, head: checks.HeadUnderTest) -> None:
        checks.check_reading(head)

    def test_outputs_are_as_declared_and_padding_changes_nothing(self, head: checks.HeadUnderTest) -> None:
        checks.check_outputs(head)

    def test_counts_merge_and_metrics_are_finite(self, head: checks.HeadUnderTest) -> None:
        checks.check_counting(head)

    def test_the_loss_falls_and_all_weights_learn(self, head: checks.HeadUnderTest) -> None:
        checks.check_learning(head)

    def test_a_saved_model_gives_the_same_results(self, head: checks.HeadUnderTest, tmp_path: Path) -> None:
        checks.check_saving(head, tmp_path / "model")

    def test_onnx_runtime_gives_the_outputs_of_pytorch(self, head: checks.HeadUnderTest, tmp_path: Path) -> None:
        checks.check_export(head, tmp_path / "model", checks.check_saving(head, tmp_path / "model"))

    def test_spacy_documents_have_the_results(self, head: checks.HeadUnderTest, tmp_path: Path) -> None:
        head.model().save(tmp_path / "model")
        checks.check_spacy(head, tmp_path / "model")

    def test_the_commands_work(self, backbone: Path, tmp_path: Path) -> None:
        commands.check_commands(self.task, backbone, tmp_path / "model")
