"""The examples run without errors, on a tiny backbone; their results on a real one are not tested."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from nlptasks.backbones import pretrained

_QUICK = ("ner", "spacy_pipeline")
EXAMPLES = [
    pytest.param(path, id=path.stem, marks=() if path.stem in _QUICK else pytest.mark.slow)
    for path in sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(
    example: Path,
    backbones: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pretrained, "embedded_folder", lambda: backbones / "bert")
    monkeypatch.setattr(pretrained, "_check_embedded", lambda path, found: None)
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "made")])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
    assert any((tmp_path / "made").iterdir())
