"""``nlptasks plugin new`` writes a package that works unedited, and the head and the network of the guide work."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from torch import nn

import nlptasks
from nlptasks.backbones.info import ENCODER, BackboneInfo
from nlptasks.cli.main import main
from nlptasks.errors import UsageError
from nlptasks.heads.base import read_gold, sample_folder
from nlptasks.inference import serialization
from nlptasks.networks.base import Network
from nlptasks.registry import head_class, tasks
from nlptasks.scaffolding.plugin import Plugin
from nlptasks.testing.checks import check_all, make_head
from nlptasks.testing.commands import check_commands

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "plugins" / "README.md"
BACKBONE = BackboneInfo("tiny", None, ENCODER, 4, 64, 64, 9, 2, 0)
NAMES = ("level-2", "spam", "a", "how_hard", "a" + "b-1_" * 9 + "c2d")


def new(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plugin", "new", *map(str, arguments)])


def registered_as(plugin: Plugin, place: Path) -> None:
    """Write what an installer writes beside a package, from its pyproject.toml."""
    text = (place / "pyproject.toml").read_text()
    [name], [version] = (
        re.findall('^name = "(.*)"', text, re.MULTILINE),
        re.findall('^version = "(.*)"', text, re.MULTILINE),
    )
    [point] = re.findall(r'heads"]\n(.*)\n', text)
    info = place / f"{plugin.module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[nlptasks.heads]\n{point.replace(chr(34), '')}\n")
    importlib.invalidate_caches()  # the folder did not exist when it was added to the path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder for the package of a plugin, which is found there as if it were installed."""
    place = tmp_path / "package"
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", str(place))  # for other processes
    serialization._class_of.cache_clear()  # classes of an earlier test have the same names
    yield place
    for name in [name for name in sys.modules if name.startswith("nlptasks_")]:
        del sys.modules[name]


def blocks(kind: str) -> list[tuple[str, str]]:
    """Return the file and the contents of each code block of the guide that is marked with this word."""
    return re.findall(rf"<!-- {kind}: (\S+) -->\n```\w+\n(.*?)```\n", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def from_guide(place: Path) -> None:
    """Write the files of the guide into a generated package."""
    files: dict[str, str] = {}
    for name, block in blocks("file"):
        files[name] = files.get(name, "") + ("\n\n" if name in files else "") + block
    new_files = {name for name in files if not (place / name).is_file()}
    assert new_files == {"nlptasks_spam/network.py"}, "the guide replaces generated files, and adds a network"
    assert len(files) == 5
    for name, text in files.items():
        (place / name).write_text(text, encoding="utf-8")


def with_own_network(place: Path) -> None:
    """Change the lines of the head that name its network and its options, as the guide says."""
    [(name, block)] = blocks("change")
    text = (place / name).read_text(encoding="utf-8")
    for line in block.splitlines():
        start = line.partition('"')[0]
        old = [
            one for one in text.splitlines() if one.startswith(start) and ('"classes"' in one) == ('"classes"' in line)
        ]
        assert len(old) == 1
        text = text.replace(old[0], line)
    (place / name).write_text(text, encoding="utf-8")


def test_a_new_plugin_conforms_unedited(installed: Path, backbones: Path, tmp_path: Path) -> None:
    assert new("level-2", "-o", installed).exit_code == 0
    registered_as(Plugin("level-2"), installed)
    assert tasks()["level-2"].package == "nlptasks-level-2 0.1.0"
    check_all("level-2", backbones / "bert", tmp_path / "model")


def test_a_new_plugin_works_on_the_command_line(installed: Path, backbones: Path, tmp_path: Path) -> None:
    assert new("level", "-o", installed).exit_code == 0
    registered_as(Plugin("level"), installed)
    check_commands("level", backbones / "bert", tmp_path / "model")


def test_a_new_plugin_is_one_short_head_without_pytorch(installed: Path) -> None:
    assert new("level", "-o", installed).exit_code == 0
    files = [path.relative_to(installed).as_posix() for path in (installed / "nlptasks_level").rglob("*.py")]
    assert files == ["nlptasks_level/__init__.py"]
    assert len((installed / files[0]).read_text().splitlines()) <= 70
    code = "import sys, nlptasks_level; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_labels_of_other_columns_are_learned(installed: Path, tmp_path: Path) -> None:
    assert new("level", "-o", installed).exit_code == 0
    registered_as(Plugin("level"), installed)
    topics = tmp_path / "topics"
    topics.mkdir()
    for part in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (sample_folder(head_class("level")) / f"{part}.jsonl").open()]
        lines = [json.dumps({"text": row["text"], "topic": row["label"].upper()}) + "\n" for row in rows]
        (topics / f"{part}.jsonl").write_text("".join(lines))
    target = nlptasks.Target("level", "level", str(topics), columns={"label": "topic"})
    trained = nlptasks.train(target, output=tmp_path / "model").heads["level"]
    assert trained.metrics["test"]["accuracy"] > 0.6  # the most frequent label has 5 of 12 rows
    assert set(trained.metrics["test"]) > {"NOW.f1", "SOON.f1", "LATER.f1"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "A", "label": "much"}, "rows.jsonl:1: has the unknown label 'much'; correct it"),
        ({"text": "A", "label": 3}, "rows.jsonl:1: label is 3, expected a string"),
        ({"text": "A", "label": None}, "rows.jsonl:1: label is None, expected a string"),
        ({"text": ["A"], "label": "now"}, r"rows.jsonl:1: text is \['A'\], expected a string"),
        ({"text": "A"}, "rows.jsonl:1: has no gold answer among text"),
        ({"text": "A", "label": ""}, "rows.jsonl:1: has no gold answer among text, label"),
    ],
)
def test_wrong_rows_are_refused(fields: dict, message: str, installed: Path) -> None:
    assert new("level", "-o", installed).exit_code == 0
    registered_as(Plugin("level"), installed)
    cls = head_class("level")
    rows = [nlptasks.Row({"text": "A", "label": label}, "train.jsonl:1") for label in ("now", "later")]
    head = cls(cls.configure(rows, cls.Config(), BACKBONE), BACKBONE)
    assert head.network_options() == {"classes": 2}
    with pytest.raises(nlptasks.DataError, match=message):
        read_gold(head, [nlptasks.Row(fields, "rows.jsonl:1")])


def test_training_rows_without_labels_are_reported_together(installed: Path) -> None:
    assert new("level", "-o", installed).exit_code == 0
    registered_as(Plugin("level"), installed)
    cls = head_class("level")
    rows = [nlptasks.Row({"text": "A"}, f"train.jsonl:{line}") for line in (1, 2)]
    with pytest.raises(nlptasks.DataError, match=r"train\.jsonl:1 and 1 more: has no 'label', only text"):
        cls.configure(rows, cls.Config(), BACKBONE)


def test_the_output_names_the_files_and_the_next_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = new("how_hard")
    assert done.exit_code == 0
    shown = done.stdout.splitlines()
    assert shown[0] == "package: nlptasks-how_hard"
    assert [line.split()[-1] for line in shown if line.startswith("  ") and "head: begin" not in line][:-2] == [
        ".gitignore",
        "README.md",
        *(
            f"nlptasks_how_hard/{name}"
            for name in ("py.typed", "sample/dev.jsonl", "sample/test.jsonl", "sample/train.jsonl")
        ),
        "pyproject.toml",
        "tests/test_how_hard.py",
    ]
    assert shown[-3:] == [
        'next:  pip install -e "nlptasks-how_hard[test]"',
        "       nlptasks train how_hard",
        "       pytest nlptasks-how_hard",
    ]
    assert '       pytest "a b"' in new("x", "-o", "a b").stdout


@pytest.mark.parametrize("task", NAMES)
def test_a_new_plugin_is_formatted_and_passes_the_linter(task: str, tmp_path: Path) -> None:
    ruff = shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    place = tmp_path / "package"
    Plugin(task).write(place)
    for command in (["check"], ["format", "--check"]):
        options = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), "."]
        done = subprocess.run([ruff, *command, *options], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for path in place.rglob("*"):
        assert path.is_dir() or "$" not in path.read_text(), path


def test_mypy_accepts_a_new_plugin_and_the_guide(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    for place in (tmp_path / "spam", tmp_path / "guide"):
        Plugin("spam").write(place)
    from_guide(tmp_path / "guide")
    for place in (tmp_path / "spam", tmp_path / "guide"):
        options = ["--strict", "--follow-imports=silent", "--cache-dir", tmp_path / "cache"]
        command = [sys.executable, "-m", "mypy", *options, "nlptasks_spam"]
        environment = {**os.environ, "MYPYPATH": str(ROOT)}  # mypy does not see editable installs
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Spam", "head name 'Spam': is not valid; use 1 to 40 of a-z, 0-9, _ and -, a letter first"),
        ("2spam", "head name '2spam': is not valid"),
        ("", "head name '': is not valid"),
        ("../spam", "head name '../spam': is not valid"),
        ("a" * 41, "is not valid"),
        ("spam-", "task 'spam-': ends with '-'; end it with a letter or a digit, as packages do"),
        ("ner", f"task 'ner': is registered already, by nlptasks {nlptasks.__version__}; use another name\n"),
    ],
)
def test_names_that_cannot_be_used_are_refused(name: str, message: str, tmp_path: Path) -> None:
    done = new(name, "-o", tmp_path / "package")
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "package").exists()


def test_a_task_or_a_module_of_another_package_is_refused(installed: Path, tmp_path: Path) -> None:
    assert new("how-hard", "-o", installed).exit_code == 0
    registered_as(Plugin("how-hard"), installed)
    done = new("how-hard", "-o", tmp_path / "other")
    expected = (
        "is registered already, by nlptasks-how-hard 0.1.0; use another name, or first pip uninstall nlptasks-how-hard"
    )
    assert (done.exit_code, expected in done.stderr) == (2, True), done.stderr
    done = new("how_hard", "-o", tmp_path / "other")
    expected = "needs the module nlptasks_how_hard, which belongs to the task how-hard of nlptasks-how-hard 0.1.0"
    assert (done.exit_code, expected in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "other").exists()


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "package"
    place.mkdir()
    assert new("spam", "-o", place).exit_code == 0, "an empty folder may be used"
    before = (place / "README.md").read_text()
    (place / "README.md").write_text(before + "mine")
    done = new("spam", "-o", place)
    assert (done.exit_code, "is not empty; use another folder\n" in done.stderr) == (2, True), done.stderr
    assert (place / "README.md").read_text() == before + "mine"
    done = new("spam", "-o", place / "README.md")
    assert (done.exit_code, "is a file" in done.stderr) == (2, True), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = new("spam", "-o", ".")
    assert (done.exit_code, "folder inside it" in done.stderr) == (2, True), done.stderr


def test_a_package_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(UsageError, match="cannot be written"):
        Plugin("spam").write(tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def test_help_is_quick() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from nlptasks.cli.main import main\n"
        "for words in (['plugin', '--help'], ['plugin', 'new', '--help'], ['plugin', 'new', 'ner']):\n"
        "    CliRunner().invoke(main, words)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'spacy'} & set(sys.modules)\n"
        "assert 'nlptasks.scaffolding.plugin' in sys.modules and not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_head_of_the_guide_conforms(installed: Path, backbones: Path, tmp_path: Path) -> None:
    assert new("spam", "-o", installed).exit_code == 0
    from_guide(installed)
    registered_as(Plugin("spam"), installed)
    assert head_class("spam").__module__ == "nlptasks_spam"
    assert "nlptasks_spam.network" not in sys.modules
    check_all("spam", backbones / "bert", tmp_path / "model")


def test_the_network_of_the_guide_conforms(installed: Path, backbones: Path, tmp_path: Path) -> None:
    assert new("spam", "-o", installed).exit_code == 0
    from_guide(installed)
    with_own_network(installed)
    registered_as(Plugin("spam"), installed)
    head = make_head("spam", backbones / "bert")
    assert type(head.network).__module__ == "nlptasks_spam.network"
    check_all("spam", backbones / "bert", tmp_path / "model")


def test_the_guide_names_everything_public() -> None:
    section = GUIDE.read_text(encoding="utf-8").partition("## Public names\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    named = [name for line in rows for name in re.findall(r"`(\w+)`", line)]
    assert sorted(named) == sorted({*nlptasks.__all__})


def test_the_tables_of_the_guide_name_the_members_of_the_contract() -> None:
    page = GUIDE.read_text(encoding="utf-8")
    sections = {
        "## The contract of a head\n": {*public(nlptasks.Head), *public(nlptasks.Schema)} - {"config"},
        "## The contract of a network\n": {name for name in public(Network) if name not in public(nn.Module)},
    }
    for title, members in sections.items():
        section = page.partition(title)[2].partition("\n## ")[0]
        first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
        named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
        assert members <= named, members - named


def public(cls: type) -> set[str]:
    """Return the names of a class's members, with those that are only annotated."""
    annotated = {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}
    return {name for name in {*dir(cls), *annotated} if not name.startswith("_")}


def test_pip_installs_a_new_plugin(tmp_path: Path, backbones: Path) -> None:
    pytest.importorskip("setuptools", "77", reason="pip may fetch no newer one here")
    assert new("how-hard", "-o", tmp_path / "package").exit_code == 0
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", tmp_path / "site", tmp_path / "package"], check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    options = ["--backbone", backbones / "bert", "--epochs", "1", "-o", tmp_path / "model", "--precision", "fp32"]
    command = [sys.executable, "-m", "nlptasks", "train", "how-hard", *options]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "how-hard on test:" in done.stdout) == (0, True), done.stderr


def test_a_wheel_contains_every_template(tmp_path: Path) -> None:
    """The patterns of the package data are read as setuptools reads them."""
    setuptools = pytest.importorskip("setuptools")
    found = setuptools.Distribution({"packages": ["nlptasks"], "package_dir": {"nlptasks": str(ROOT / "nlptasks")}})
    [patterns] = re.findall(r"^nlptasks = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    found.package_data = {"nlptasks": json.loads(patterns)}
    command = found.get_command_obj("build_py")
    command.ensure_finalized()
    command.manifest_files = {}
    taken = {Path(path) for path in command.find_data_files("nlptasks", str(ROOT / "nlptasks"))}
    templates = {path for path in (ROOT / "nlptasks" / "templates").rglob("*") if path.is_file()}
    assert len(templates) == 9
    assert templates <= taken
