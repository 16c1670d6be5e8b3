"""The command line: names, formats, exit codes, one line for each error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import transformers
from click.testing import CliRunner, Result

import nlptasks
from nlptasks.cli.common import as_options, metric_lines
from nlptasks.cli.main import main
from nlptasks.config import TrainSettings
from nlptasks.errors import TrainingError, UsageError


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No progress bars of transformers: the command's environment variable comes too late in this process."""
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


ANSWER = [("Ada Smith", "PER", 0, 9), ("London", "LOC", 14, 20)]


def entities(record: dict) -> list[tuple]:
    return [(e["text"], e["label"], e["start"], e["end"]) for e in record["results"]["ner"]]


def test_train_evaluate_export_predict_show(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    options = [
        "--epochs",
        12,
        "--lr",
        3e-3,
        "--batch-tokens",
        64,
        "--precision",
        "fp32",
        "--backbone",
        backbones / "bert",
    ]
    done = run("train", f"people:ner={conll_data}", "-o", model, "--set", "people.scheme=iob2", *options)
    assert done.exit_code == 0, done.output
    assert "people on dev:" in done.stdout
    assert "[Ada Smith PER] saw [London LOC] ." in done.stdout
    assert "epoch 1: dev f1" in done.stderr
    done = run("evaluate", model, f"people={conll_data}", "--split", "dev", "--json")
    [record] = lines(done.stdout)
    assert (record["head"], record["split"], record["main_metric"]) == ("people", "dev", "f1")
    assert record["metrics"]["f1"] == 1.0
    done = run("export", model)
    assert done.exit_code == 0, done.output
    assert "outputs differ from PyTorch's by" in done.stdout
    for backend in ("torch", "onnx", "onnx:fp32", "auto"):
        done = run("predict", model, "Ada Smith saw London .", "--json", "--backend", backend)
        [record] = lines(done.stdout)
        assert record["text"] == "Ada Smith saw London ."
        assert [(e["text"], e["label"]) for e in record["results"]["people"]] == [
            ("Ada Smith", "PER"),
            ("London", "LOC"),
        ]
    done = run("show", model)
    assert "people (task ner" in done.stdout
    assert ", dev f1 1.0000)" in done.stdout
    assert "LOC, PER" in done.stdout
    assert "onnx fp32: fresh" in done.stdout


def test_metrics_for_people() -> None:
    found = {"bleu": 37.4211, "chrf": 61.9, "f1": 0.83, "support": 12.0}
    assert metric_lines(found, "bleu") == ["    bleu 37.42  chrf 61.90  f1 0.8300  support 12"]


def test_evaluate_for_people(trained: Path, conll_data: Path) -> None:
    done = run("evaluate", trained, f"ner={conll_data}")
    assert done.exit_code == 0
    assert done.stdout.startswith("ner on dev:\n")
    assert "LOC" in done.stdout


def test_predict_reads_stdin_files_and_texts(trained: Path, tmp_path: Path) -> None:
    text = "Ada Smith saw London ."
    (tmp_path / "a.txt").write_text(f"{text}\r\n\n{text}\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text, "id": 7}) + "\n")
    (tmp_path / "a.csv").write_text(f"review\n{text}\n")
    assert [entities(record) for record in lines(run("predict", trained, text, "", "--json").stdout)] == [ANSWER, []]
    assert [entities(r) for r in lines(run("predict", trained, "--json", stdin=f"{text}\n\n{text}").stdout)] == [
        ANSWER,
        [],
        ANSWER,
    ]
    for name, more, count in (("a.txt", [], 3), ("a.jsonl", [], 1), ("a.csv", ["--columns", "text=review"], 1)):
        found = lines(run("predict", trained, "--input", tmp_path / name, "--json", *more).stdout)
        assert len(found) == count
        assert entities(found[0]) == ANSWER
    done = run("predict", trained, "--input", tmp_path / "a.txt", "--output", tmp_path / "out.jsonl")
    assert done.stdout == ""
    assert [entities(record) for record in lines((tmp_path / "out.jsonl").read_text())] == [ANSWER, [], ANSWER]


def test_predict_for_people_cannot_steer_the_terminal(trained: Path) -> None:
    assert run("predict", trained, "Ada Smith saw London .").stdout == "[Ada Smith PER] saw [London LOC] .\n"
    assert "\x1b" not in run("predict", trained, "evil \x1b[2J text").stdout


def test_bad_rows_stop_the_run_or_are_left_out(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Ada Smith saw London ."}\n{"txt": "x"}\n{"text": "b"\n{"text": "Bob"}\n')
    out = tmp_path / "out.jsonl"
    done = run("predict", trained, "--input", path, "--output", out)
    assert done.exit_code == 3
    assert f"{path}:2: has neither 'tokens' nor 'text'" in done.stderr
    assert not out.exists()
    assert [found.name for found in tmp_path.iterdir()] == ["a.jsonl"]
    done = run("predict", trained, "--input", path, "--json", "--skip-bad-rows")
    assert done.exit_code == 0
    assert [record["text"] for record in lines(done.stdout)] == ["Ada Smith saw London .", "Bob"]
    assert f"2 rows were left out; the first: {path}:2" in done.stderr


def test_odd_characters_and_special_files_are_written(trained: Path, tmp_path: Path) -> None:
    assert json.loads(run("predict", trained, "a\ud800b", "--json").stdout)["text"] == "a\ud800b"
    assert "\\ud800" in run("predict", trained, "a\ud800b").stdout
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert run("predict", trained, "Bob", "--output", tmp_path / "link.jsonl").exit_code == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert lines((tmp_path / "real.jsonl").read_text())[0]["text"] == "Bob"
    assert run("predict", trained, "Bob", "--output", tmp_path).exit_code == 3


def test_bad_bytes_on_stdin_can_be_left_out(trained: Path) -> None:
    done = run("predict", trained, "--json", "--skip-bad-rows", stdin=b"fine\ncaf\xe9\nalso\n")
    assert [record["text"] for record in lines(done.stdout)] == ["fine", "also"]
    assert "1 rows were left out; the first: stdin:2" in done.stderr


def test_tasks_and_doctor() -> None:
    assert "nlptasks.heads.ner:NerHead" in run("tasks").stdout
    assert "fields: tokens, tags, text, spans\n" in run("tasks", "ner").stdout
    assert "--set ner.scheme=auto" in run("tasks", "ner").stdout
    assert "(none, balanced, NAME:NUMBER,...)\n" in run("tasks", "ner").stdout
    for line in ("qa.no_answer=auto ", "(true, false, auto)\n"):
        assert line in run("tasks", "qa").stdout
    for line in ("sentiment.scale=auto ", "(auto, TEXT,TEXT,...)\n"):
        assert line in run("tasks", "sentiment").stdout
    for line in ("summarization.early_stopping=false ", "(true, false, never)\n"):
        assert line in run("tasks", "summarization").stdout
    done = run("doctor")
    assert done.exit_code == 0
    works = ("backend onnx: works", "backend torch: works", "task ner: works")
    for word in ("torch 2", "PyTorch: device", "provider CUDA", "embedded backbone minilm:", *works):
        assert word in done.stdout
    assert done.stdout.splitlines() == list(nlptasks.doctor())


def mistakes(trained: Path, conll_data: Path, backbones: Path, place: Path) -> list[tuple[list, int, str]]:
    """Return commands, their exit codes and parts of their messages."""
    (place / "latin.conll").write_bytes(b"Ada\tB-PER\ncaf\xe9\tO\n")
    (place / "empty.conll").write_bytes(b"")
    (place / "one.csv").write_text("a,b\n1,2\n3,4\n")
    (place / "used").mkdir()
    (place / "used" / "notes.txt").write_text("mine")
    broken = place / "broken"
    shutil.copytree(trained, broken)
    content = bytearray((broken / "heads/ner.safetensors").read_bytes())
    content[-1] ^= 1
    (broken / "heads/ner.safetensors").write_bytes(content)
    train = ["train", f"ner={conll_data}", "-o", place / "new", "--backbone", backbones / "bert"]
    return [
        (["train", "nerr", "-o", place / "new"], 2, "task 'nerr': is not registered; did you mean 'ner'?"),
        (["train", f"ner={conll_data}", "-o", place / "used"], 2, "another --output, or --overwrite to replace it, or --resume"),
        ([*train, "--set", "ner.skeme=io"], 2, "ner.skeme: is no option of this head; did you mean 'scheme'?"),
        ([*train, "--set", "scheme=io"], 2, "is not HEAD.OPTION=VALUE"),
        ([*train, "--set", "pos.scheme=io"], 2, "the head here is 'ner'"),
        ([*train, "--set", "ner.label_smoothing=x"], 2, "ner.label_smoothing: is 'x'; use a number of at least 0, below 1"),
        ([*train, "--set", "ner.class_weights=PER"], 2, "ner.class_weights: is 'PER'; use one of none, balanced, NAME:NUMBER"),
        ([*train, "--set", "ner.class_weights=PER:0"], 2, "ner.class_weights: has 0.0 for 'PER'; give a number above 0"),
        ([*train, "--set", "ner.class_weights=PRE:2"], 2, "ner.class_weights: has the unknown label 'PRE'; did you mean 'PER'?"),
        ([*train, "--columns", "tags"], 2, "expected FIELD=COLUMN"),
        ([*train, "--columns", "tags=9"], 3, "has no column '9' for 'tags'"),
        ([*train, "--epochs", "0"], 2, "--epochs: is 0; give a number of at least 1"),
        ([*train, "--epochs", "many"], 2, "'many' is not a valid integer"),
        ([*train, "--device", "cuda"], 6, "--device cuda: PyTorch finds no GPU"),
        ([*train, "--lr", "1e30", "--epochs", "5"], 5, "not finite"),
        ([*train[:-2], "--backbone", "https://x"], 4, "is neither a folder nor a hub name"),
        ([*train[:-2], "--backbone", trained], 4, f"is a model, not a backbone; give its backbone: {trained}"),
        (["train", f"ner={place}/none", "-o", place / "new"], 3, "is no file"),
        (["train", f"ner={place}/latin.conll", "-o", place / "new"], 3, "latin.conll:2: byte 0xe9 at column 4 is not UTF-8"),
        (["train", f"ner={place}/empty.conll", "-o", place / "new"], 3, "has no examples"),
        (["train", f"ner={place}/one.csv", "-o", place / "new"], 3, "has neither 'tokens' nor 'text', only a, b"),
        (["predict", place / "used", "x"], 4, "has no nlptasks.json, so it is no model"),
        (["predict", broken, "x"], 4, "heads/ner.safetensors: has sha256"),
        (["predict", trained, "x", "--backend", "onnx"], 4, "has no ONNX export in fp32"),
        (["predict", trained, "x", "--backend", "tensorrt"], 2, "backend 'tensorrt': is unknown"),
        (["predict", trained, "x", "--heads", "qa"], 2, "has no head 'qa'"),
        (["predict", trained, "--input", place / "none.txt"], 3, "is no file"),
        (["predict", trained, "x", "--input", place / "none.txt"], 2, "not both"),
        (["evaluate", trained, f"ner={conll_data}", "--split", "test"], 3, "has no part test, only train, dev"),
        (["evaluate", trained, f"qa={conll_data}"], 2, "has no head 'qa'"),
        (["evaluate", trained, f"ner={conll_data}", "--set", "ner.scheme=iob1"], 2, "is an option of training"),
        (["evaluate", trained, f"ner={conll_data}", "--set", "ner.skeme=io"], 2, "did you mean 'scheme'?"),
        (["predict", trained, "x", "--set", "ner.skeme=io"], 2, "ner.skeme: is no option of this head; did you mean 'scheme'?"),
        (["predict", trained, "x", "--set", "scheme=io"], 2, "write for example --set HEAD.OPTION=VALUE"),
        (["predict", trained, "x", "--set", "qa.top_k=2"], 2, "has no head 'qa'"),
        (["predict", place / "none", "x", "--set", "ner.scheme=io"], 4, "is no folder"),
        (["export", place / "used"], 4, "it is no model"),
        (["show", place / "none"], 4, "is no folder"),
        (["tasks", "sentimnt"], 2, "is not registered"),
        (["predict", trained, "x", "--device", "cuda", "--backend", "torch"], 6, "use --device cpu, or run"),
    ]  # fmt: skip


def test_mistakes_get_one_line_and_their_exit_code(
    trained: Path, conll_data: Path, backbones: Path, tmp_path: Path
) -> None:
    for arguments, code, message in mistakes(trained, conll_data, backbones, tmp_path):
        done = run(*arguments)
        assert done.exit_code == code, (arguments, done.output)
        [line] = [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]
        assert message in line
        assert "Traceback" not in done.output
        assert not (tmp_path / "new").exists()
    leftovers = list(tmp_path.rglob(".*"))
    assert leftovers == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune", "top:x"], "--tune: is 'top:x'; use all, head, or top:K"),
        (["--head-weights", "ner"], "--head-weights: is 'ner'; use NAME:NUMBER,..."),
        (["--head-weights", "ner:0"], "--head-weights: has 0.0 for 'ner'; give a number of at least 0.001"),
        (["--head-weights", "mood:1"], "--head-weights: names the unknown head 'mood'"),
        (["--head-lr", "0"], "--head-lr: is 0.0; give a number above 0"),
        (["--add-to", "other"], "--output: is "),
    ],
)
def test_errors_of_settings_name_the_options_of_the_command(
    arguments: list[str], message: str, conll_data: Path, tmp_path: Path
) -> None:
    done = run("train", f"ner={conll_data}", "-o", tmp_path / "new", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {message}")


def test_python_errors_name_arguments(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^head_lr: is 0"):
        TrainSettings(head_lr=0.0)
    with pytest.raises(UsageError, match=r"is not empty; use another `output`, or `overwrite=True` to replace it$"):
        nlptasks.import_checkpoint(tmp_path / "checkpoint", task="ner", output=trained)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("use `overwrite=True`, or another `output`", "use --overwrite, or another --output"),
        ('use a smaller `batch_tokens`, or `device="cpu"`', "use a smaller --batch-tokens, or --device cpu"),
        ('name it: `columns={"text": "NAME", "a": "1"}`', "name it: --columns text=NAME,a=1"),
        ('`options={"scheme": "iob1"}`', "--set HEAD.scheme=iob1"),
        ('`options={"scale": ("bad", "good")}`', "--set HEAD.scale=bad,good"),
        ('`options={"no_answer": True}`', "--set HEAD.no_answer=true"),
        ("`add_to='a b'` and `unknown=True`", "--add-to 'a b' and `unknown=True`"),
        ("the folder `seed=x y`", "the folder `seed=x y`"),
    ],
)
def test_arguments_in_messages_become_options(message: str, shown: str) -> None:
    command = main.get_command(click.Context(main), "train")
    assert command is not None
    assert as_options(message, command) == shown


def test_a_folder_with_the_name_of_an_option_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    (tmp_path / "output/notes.txt").touch()
    assert run("train", "ner", "-o", "output").stderr.startswith("error: output: is not empty; use another --output")


COMMANDS = {
    "import": "import_checkpoint",
    "to-hf": "to_hugging_face",
    "rename": "rename_head",
    "remove": "remove_head",
    "merge": "merge_models",
    "plugin": "new_plugin",
}
"""Public functions that have another name than their command."""


def test_every_command_has_a_public_function(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in main.list_commands(click.Context(main)):
        assert callable(getattr(nlptasks, COMMANDS.get(command, command)))
    found = nlptasks.show(trained)
    assert (found.layers, found.heads["ner"].task, found.heads["ner"].own_layers) == (2, "ner", 0)
    assert found.heads["ner"].labels == ("LOC", "PER")
    assert found.exports["fp32"] == "has no ONNX export in fp32 (available: none)"
    assert json.loads(json.dumps(found.to_dict()))["heads"]["ner"]["main_metric"] == "f1"
    monkeypatch.chdir(tmp_path)
    made = nlptasks.new_plugin("mine")
    assert (made.folder / made.head_file).is_file()


@pytest.mark.parametrize(
    "command",
    [
        ["train", "ner", "-o"],
        ["train", "ner", "--add-to"],
        ["import", "checkpoint", "--task", "ner", "-o"],
        ["merge", "one", "two", "-o"],
        ["to-hf", "model", "ner", "-o"],
        ["plugin", "new", "mine", "-o"],
    ],
)
def test_an_output_folder_that_is_not_utf8_is_refused_at_once(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*command, os.fsdecode(b"runs-\xff"))
    assert done.exit_code == 2
    assert "'runs-\\udcff' is not valid UTF-8; use another name" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_error_of_the_data_gets_a_line(conll_data: Path, backbones: Path, tmp_path: Path) -> None:
    train = ["train", f"ner={tmp_path}/train.jsonl", "-o", tmp_path / "new", "--backbone", backbones / "bert"]
    rows = ['{"text": "Ada", "spans": [[0, 3, "PER"]]}', '{"text": "Bo\\u001b[2J\\n", "spans": "[["}', '{"text": 5}']
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    done = run(*train)
    assert done.exit_code == 3
    assert [line.partition("train.jsonl:")[2][:2] for line in done.stderr.splitlines()] == ["2:", "3:"]
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    (tmp_path / "train.jsonl").write_text("\x1b[2J\n" * 99)
    done = run(*train)
    assert done.exit_code == 3
    error, stopped = done.stderr.splitlines()
    assert "train.jsonl:1, column 1 and 19 more: is not JSON" in error
    assert stopped == "stopped after 20 errors"


def test_notes_cannot_steer_the_terminal(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"\\u001b[2J": 1}\n')
    done = run("predict", trained, "--input", tmp_path / "a.jsonl", "--skip-bad-rows")
    assert "only \\x1b[2J; name the column" in done.stderr
    assert "\x1b" not in done.stderr


def test_debug_shows_the_traceback(conll_data: Path, backbones: Path, tmp_path: Path) -> None:
    options = ["--backbone", backbones / "bert", "--lr", "1e30", "--epochs", "5", "--debug"]
    done = run("train", f"ner={conll_data}", "-o", tmp_path / "m", *options)
    assert isinstance(done.exception, TrainingError)


def test_bytes_on_stdin_that_are_not_utf8(trained: Path) -> None:
    done = run("predict", trained, "--json", stdin=b"fine\ncaf\xe9\n")
    assert done.exit_code == 3
    assert "stdin:2: byte 0xe9 at column 4 is not UTF-8" in done.stderr


def test_help_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from nlptasks.cli.main import main\n"
        "for name in ('', 'train', 'evaluate', 'predict', 'export', 'benchmark', 'show', 'tasks', 'doctor'):\n"
        "    done = CliRunner().invoke(main, [*filter(None, [name]), '--help'])\n"
        "    assert done.exit_code == 0 and 'Usage' in done.output\n"
        "    assert name == '' or '--debug' in done.output\n"
        "heavy = {'torch', 'numpy', 'transformers', 'spacy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_error(trained: Path) -> None:
    command = f"{sys.executable} -m nlptasks predict {trained} --json --backend torch | head -n 1"
    text = "Ada Smith saw London .\n" * 20_000
    done = subprocess.run(["sh", "-c", command], input=text, capture_output=True, text=True, check=False)
    assert entities(lines(done.stdout)[0]) == ANSWER
    assert "Traceback" not in done.stderr
