"""Options from a file and from the command line are equivalent."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner

from nlptasks.cli.main import main
from nlptasks.models.folder import ModelFolder


def ran(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return result.stderr


def log_of(folder: Path) -> dict[str, object]:
    log = tiny.log_of(folder)
    return {key: log[key] for key in ("settings", "config", "data", "history", "metrics")}


def test_a_file_equals_the_options(backbones: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"words": ["Ada", "left"], "ner": ["B-PER", "O"], "tags": ["O", "O"]}\n' * 9)
    config = tmp_path / "run.toml"
    config.write_text(
        f'backbone = "{backbones / "bert"}"\nepochs = 1\nbatch-tokens = 32\nlr = 1e-3\nprecision = "fp32"\nseed = 3\n'
        '[columns]\ntokens = "words"\ntags = "tags"\n[heads.ner]\nscheme = "iob1"\nlabel_smoothing = 0.1\n'
    )
    data = f"ner={tmp_path / 'train.jsonl'}"
    words = [
        "--backbone",
        backbones / "bert",
        "--epochs",
        1,
        "--batch-tokens",
        32,
        "--lr",
        "1e-3",
        "--precision",
        "fp32",
    ]
    words += ["--columns", "tokens=words,tags=ner", "--set", "ner.scheme=iob2", "--set", "ner.label_smoothing=0.1"]
    ran("train", data, "-o", tmp_path / "one", *words, "--seed", 4)
    # The command line wins over the file, part by part.
    over = ["--seed", 4, "--columns", "tags=ner", "--set", "ner.scheme=iob2"]
    ran("train", data, "-o", tmp_path / "two", "--config", config, *over)
    assert log_of(tmp_path / "one") == log_of(tmp_path / "two")
    config.write_text(config.read_text().replace("[columns]", 'set = ["ner.class_weights=balanced"]\n[columns]'))
    ran("train", data, "-o", tmp_path / "three", "--config", config, *over)
    assert log_of(tmp_path / "three")["config"]["class_weights"] == "balanced"  # type: ignore[index]


@pytest.mark.parametrize(
    "table",
    [
        'class_weights = {bad = 2, good = 0.5}\nscale = ["bad", "ok", "good"]\nlabel_smoothing = 0.1\n',
        'class_weights = "bad:2,good:0.5"\nscale = "bad,ok,good"\nlabel_smoothing = "0.1"\n',
    ],
)
def test_values_of_a_file_are_typed(table: str, backbones: Path, tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "Ada {label}", "label": "{label}"}}\n' for label in ("bad", "ok", "good") * 4)
    (tmp_path / "train.jsonl").write_text(rows)
    weights = '"mood:2"' if '"bad:2' in table else "{mood = 2}"
    (tmp_path / "run.toml").write_text(f"epochs = 1\nhead-weights = {weights}\n[heads.mood]\n{table}")
    command = ["train", f"mood:sentiment={tmp_path / 'train.jsonl'}", "--backbone", backbones / "bert"]
    ran(*command, "-o", tmp_path / "model", "--config", tmp_path / "run.toml")
    words = ["--set", "mood.class_weights=bad:2,good:0.5", "--set", "mood.scale=bad,ok,good", "--set"]
    words += ["mood.label_smoothing=0.1", "--head-weights", "mood:2", "--epochs", 1]
    ran(*command, "-o", tmp_path / "same", *words)
    assert log_of(tmp_path / "model") == log_of(tmp_path / "same")
    config = ModelFolder.open(tmp_path / "model").heads()["mood"].config
    assert (config.scale, config.class_weights) == (("bad", "ok", "good"), {"bad": 2, "good": 0.5})
    assert (config.labels, config.weights) == (("bad", "ok", "good"), (2.0, 1.0, 0.5))
    assert tiny.log_of(tmp_path / "model")["settings"]["head_weights"] == {"mood": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 1\n", "epoch: is no option; did you mean 'epochs'?"),
        ('config = "x"\n', "config: is no option"),
        ("debug = true\n", "debug: is no option"),
        ("epochs = \n", "cannot be read (Invalid value (at line 1, column 10))"),
        ('epochs = "many"\n', "'many' is not a valid integer"),
        ("[heads]\nner = 1\n", "heads.ner: is 1; write [heads.ner]"),
        ('[heads.other]\nscheme = "io"\n', "the head here is 'ner'"),
        ("[heads.ner]\nscheme = 5\n", "ner.scheme: is 5; use one of auto,"),
        ("[heads.ner]\nlabel_smoothing = true\n", "ner.label_smoothing: is True; use a number"),
        (
            '[heads.ner]\nclass_weights = {PER = "2"}\n',
            "ner.class_weights: is {'PER': '2'}; use one of none, balanced, a dict",
        ),
        ("[heads.ner]\nclass_weights = {PER = [2]}\n", "heads.ner.class_weights: is nested too deeply"),
        ("head-weights = {ner = 0}\n", "--head-weights: has 0 for 'ner'; give a number of at least 0.001"),
        ("head-weights" + ".a" * 9999 + " = 1\n", "is nested too deeply"),
        ('precision = "fp8"\n', "'fp8' is not one of"),
        (b"\xff", "cannot be read"),
        ("lr = " + "[" * 9999, "is nested too deeply"),
        ("lr = " + "{a = " * 9999, "is nested too deeply"),
        ("heads.ner" + ".a" * 9999 + " = 1\n", "is nested too deeply"),
        ("columns" + ".a" * 9999 + " = 1\n", "is nested too deeply"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    result = CliRunner().invoke(main, ["train", "ner", "-o", str(tmp_path / "m"), "--config", str(path)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("content", ["[", "{a = "])
def test_a_deep_pyproject_is_refused(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.nlptasks]\nplugins = {content * 9999}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NLPTASKS_PLUGINS", raising=False)
    result = CliRunner().invoke(main, ["tasks"])
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: pyproject.toml: cannot be read")
