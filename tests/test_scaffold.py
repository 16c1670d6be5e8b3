"""``nlptasks plugin new``: what it writes works unedited and is clean; and what the page about plugins says is so."""

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

import nlptasks
from nlptasks.cli.main import main
from nlptasks.errors import UsageError
from nlptasks.registry import head_class, tasks
from nlptasks.scaffolding.plugin import Plugin
from nlptasks.testing.checks import check_all
from nlptasks.testing.commands import check_commands

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "plugins" / "README.md"
NAMES = ("level-2", "spam", "a", "how_hard", "a" + "b-1_" * 9 + "c2d")


def new(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plugin", "new", *map(str, arguments)])


def registered_as(plugin: Plugin, place: Path) -> None:
    """What an installer writes beside a package, from what its pyproject.toml says."""
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
    importlib.invalidate_caches()  # the folder was not there when it came into the path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the package of a plugin, which is found there as if it were installed."""
    place = tmp_path / "package"
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", str(place))  # for what runs in a process of its own
    yield place
    for name in [name for name in sys.modules if name.startswith("nlptasks_")]:
        del sys.modules[name]


def from_page(place: Path) -> None:
    """Do what the page says: its files, in the place of those that are there."""
    blocks = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    files: dict[str, str] = {}
    for name, block in blocks:
        files[name] = files.get(name, "") + block
    assert len(files) == 4
    for name, text in files.items():
        assert (place / name).is_file(), "the page replaces what was generated"
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


def test_the_score_is_learned_and_keeps_to_its_scale(installed: Path, tmp_path: Path) -> None:
    assert new("level", "-o", installed).exit_code == 0
    registered_as(Plugin("level"), installed)
    stars = tmp_path / "stars"
    stars.mkdir()
    for part in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (head_class("level").sample_folder() / f"{part}.jsonl").open()]
        lines = [json.dumps({"text": row["text"], "stars": 1 + 4 * row["score"]}) + "\n" for row in rows]
        (stars / f"{part}.jsonl").write_text("".join(lines))
    target = nlptasks.Target(
        "level", "level", str(stars), columns={"score": "stars"}, options={"lowest": 1, "highest": "5"}
    )
    trained = nlptasks.train(target, output=tmp_path / "model").heads["level"]
    assert trained.metrics["test"]["pearson"] > 0.6  # chance is 0, with a standard deviation of 0.3 among 12 rows
    assert trained.metrics["test"]["mae"] < 4 / 3


@pytest.mark.parametrize(
    ("options", "row", "message"),
    [
        ({}, {"text": "A", "score": "much"}, "score is 'much', expected a number from 0.0 to 1.0"),
        ({}, {"text": "A", "score": 3}, "score is 3, expected a number from 0.0 to 1.0"),
        ({}, {"text": "A", "score": float("nan")}, "score is nan, expected"),
        ({"highest": 5}, {"text": "A", "score": [1]}, r"score is \[1\], expected a number from 0.0 to 5"),
    ],
)
def test_wrong_scores_are_told(options: dict, row: dict, message: str, installed: Path) -> None:
    assert new("level", "-o", installed).exit_code == 0
    registered_as(Plugin("level"), installed)
    cls = head_class("level")
    head = cls(cls.configure([], options), backbone=type("Info", (), {"width": 4})())
    with pytest.raises(nlptasks.DataError, match=message):
        head.read(nlptasks.Row(row, "rows.jsonl:1"))


def test_a_scale_that_is_none_is_refused(installed: Path) -> None:
    assert new("level", "-o", installed).exit_code == 0
    registered_as(Plugin("level"), installed)
    with pytest.raises(UsageError, match=r"lowest: is 1\.0, and highest is 1\.0; give a lower one"):
        head_class("level").configure([], {"lowest": 1})


def test_what_is_told_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_is_written_is_clean(task: str, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Spam", "head name 'Spam': does not fit; take 1 to 40 of a-z, 0-9, _ and -, a letter first"),
        ("2spam", "head name '2spam': does not fit"),
        ("", "head name '': does not fit"),
        ("../spam", "head name '../spam': does not fit"),
        ("a" * 41, "does not fit"),
        ("spam-", "task 'spam-': ends with '-'; let it end as a package may: with a letter or a digit"),
        ("ner", f"task 'ner': is registered already, by nlptasks {nlptasks.__version__}; take another name\n"),
    ],
)
def test_names_that_do_not_fit_are_refused(name: str, message: str, tmp_path: Path) -> None:
    done = new(name, "-o", tmp_path / "package")
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "package").exists()


def test_a_task_or_a_module_of_another_package_is_refused(installed: Path, tmp_path: Path) -> None:
    assert new("how-hard", "-o", installed).exit_code == 0
    registered_as(Plugin("how-hard"), installed)
    done = new("how-hard", "-o", tmp_path / "other")
    expected = (
        "is registered already, by nlptasks-how-hard 0.1.0; take another name, or first pip uninstall nlptasks-how-hard"
    )
    assert (done.exit_code, expected in done.stderr) == (2, True), done.stderr
    done = new("how_hard", "-o", tmp_path / "other")
    expected = "needs the module nlptasks_how_hard, which is that of the task how-hard of nlptasks-how-hard 0.1.0"
    assert (done.exit_code, expected in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "other").exists()


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "package"
    place.mkdir()
    assert new("spam", "-o", place).exit_code == 0, "an empty folder is as good as none"
    before = (place / "README.md").read_text()
    (place / "README.md").write_text(before + "mine")
    done = new("spam", "-o", place)
    assert (done.exit_code, "is not empty; give another -o\n" in done.stderr) == (2, True), done.stderr
    assert (place / "README.md").read_text() == before + "mine"
    done = new("spam", "-o", place / "README.md")
    assert (done.exit_code, "is a file" in done.stderr) == (2, True), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = new("spam", "-o", ".")
    assert (done.exit_code, "give a folder inside it" in done.stderr) == (2, True), done.stderr


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


def test_the_pages_head_conforms(installed: Path, backbones: Path, tmp_path: Path) -> None:
    assert new("spam", "-o", installed).exit_code == 0
    from_page(installed)
    registered_as(Plugin("spam"), installed)
    assert head_class("spam").__module__ == "nlptasks_spam"
    check_all("spam", backbones / "bert", tmp_path / "model")


def test_the_page_names_everything_public() -> None:
    page = PAGE.read_text(encoding="utf-8").partition("## Public names\n")[2].partition("\n## ")[0]
    named = re.findall(r"^- `(\w+)`: ", page, re.MULTILINE)
    assert sorted(named) == sorted(nlptasks.__all__)


def test_pip_installs_what_is_written(tmp_path: Path, backbones: Path) -> None:
    pytest.importorskip("setuptools", "77", reason="pip may fetch no newer one here")
    assert new("how-hard", "-o", tmp_path / "package").exit_code == 0
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", tmp_path / "site", tmp_path / "package"], check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    options = ["--backbone", backbones / "bert", "--epochs", "1", "-o", tmp_path / "model", "--precision", "fp32"]
    command = [sys.executable, "-m", "nlptasks", "train", "how-hard", *options]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "how-hard on test:" in done.stdout) == (0, True), done.stderr


def test_every_template_goes_along_in_a_wheel(tmp_path: Path) -> None:
    """The patterns of the package's data, as setuptools reads them."""
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
