"""Plugins: found without being imported, listed with their problems, named in errors, and harmless to others if broken."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import nlptasks
from nlptasks import registry
from nlptasks.cli.main import main
from nlptasks.config import TrainSettings, check_head_name
from nlptasks.errors import PluginError, UsageError
from nlptasks.pipeline import pipeline
from nlptasks.registry import BACKENDS, GROUP, PLUGINS, backends, head_class, registered, tasks

HEAD = '''
"""A head of another package: how long is a text, in tokens?"""
from dataclasses import dataclass

import numpy as np
import torch
from nlptasks import Counts, DataError, Head, Metrics, ModelInput, Network, Schema, option


@dataclass(frozen=True)
class Length:
    tokens: float


@dataclass(frozen=True)
class Config:
    scale: float = option(1.0, "divisor of lengths")


class LongHead(Head):
    Config = Config
    network = f"{__name__}:LongNetwork"
    schema = Schema(
        contract=2,
        fields=("text", "length"),
        gold=("length",),
        results=(Length,),
        sample="sample",
    )

    @classmethod
    def configure(cls, rows, options, backbone):
        return options

    def read(self, row):
        if "text" not in row.fields:
            raise DataError(row.where, "has no text", "add one")
        return row.fields

    def gold(self, example):
        return example.get("length")

    def inputs(self, example):
        return [ModelInput((example["text"],))]

    def targets(self, example, window):
        return {"length": np.array([int(example["length"])])}

    def decode(self, example, windows, outputs):
        return Length(round(float(sum(output["length"] for output in outputs)), 3))

    def count(self, example, result):
        return Counts({"near": int(abs(result.tokens - int(example["length"])) < 1), "all": 1})

    def metrics(self, counts):
        return Metrics({"share": counts.sums["near"] / counts.sums["all"]}, main="share")


class LongNetwork(Network):
    outputs = {"length": "B"}
    targets = {"length": "BC"}

    def __init__(self, backbone):
        super().__init__()
        self.layer = torch.nn.Linear(backbone.width, 1)

    def forward(self, states, batch):
        return {"length": self.layer(states[:, 0]).squeeze(-1)}

    def loss(self, outputs, batch):
        found = outputs["length"]
        return ((found - batch["length"][:, 0]) ** 2).sum(), torch.tensor(len(found))
'''

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package with one head, as metadata and a module, and remove it afterwards."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))
    modules: list[str] = []

    def installed(
        name: str,
        code: str = HEAD,
        *,
        task: str = "long",
        point: str | None = None,
        version: str = "1.2",
        group: str = GROUP,
    ) -> Path:
        module = name.replace("-", "_")
        modules.append(module)
        (place / module / "sample").mkdir(parents=True)
        (place / module / "__init__.py").write_text(textwrap.dedent(code))
        rows = [{"text": "a " * number, "length": number} for number in (1, 2, 3, 4)]
        for part in ("train", "dev"):
            lines = "".join(json.dumps(row) + "\n" for row in rows * 2)
            (place / module / "sample" / f"{part}.jsonl").write_text(lines)
        info = place / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{task} = {point or f'{module}:LongHead'}\n")
        return place / module

    yield installed
    for module in modules:
        for loaded in [name for name in sys.modules if name.partition(".")[0] == module]:
            del sys.modules[loaded]


@pytest.fixture
def tiny_settings(backbones: Path) -> TrainSettings:
    return TrainSettings(backbone=str(backbones / "bert"), epochs=1, precision="fp32", device="cpu")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def state_of(task: str, *options: str) -> str:
    """Return the lines of ``nlptasks tasks`` about a task."""
    done = run("tasks", *options)
    broken = options == ("--check",) and "broken: " in done.stdout
    assert done.exit_code == (7 if broken else 0), done.output
    return "\n".join(line for line in done.stdout.splitlines() if line.split()[0] == task)


def test_a_package_is_listed_and_not_imported(install: Install) -> None:
    install("long-head")
    line = state_of("long")
    assert line.split(maxsplit=4) == ["long", "long-head", "1.2", "long_head:LongHead", "installed"]
    assert "long_head" not in sys.modules
    assert state_of("long", "--check").endswith("works")
    assert "long_head" in sys.modules


# A package that does not load harms nobody else

BROKEN = {
    "import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "syntax": ("def (", "SyntaxError"),
    "exit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "attribute": ("pass", "AttributeError: module 'bad_head' has no attribute 'LongHead'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_package_that_does_not_load_is_named_and_harms_nobody(
    kind: str, install: Install, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = BROKEN[kind]
    install("bad-head", code)
    assert state_of("long").endswith("installed")
    assert run("predict", trained, "Ada saw London").exit_code == 0
    assert "bad_head" not in sys.modules
    line = state_of("long", "--check")
    assert "broken: does not load" in line
    assert message in line
    checked = run("tasks", "--check")
    assert checked.exit_code == 7
    assert checked.stderr == "error: --check: 1 of 7 tasks cannot be used (long); see the list for the reasons\n"
    assert state_of("ner", "--check").endswith("works")
    done = run("train", "long")
    assert done.exit_code == 7
    assert "error: task long (bad_head:LongHead of bad-head 1.2): does not load" in done.stderr
    assert "repair or uninstall bad-head" in done.stderr
    assert "task long (bad_head:LongHead of bad-head 1.2): does not load" in run("doctor").stdout


def test_a_package_that_takes_long_to_import_is_not_waited_for(install: Install, trained: Path) -> None:
    install("slow-head", "raise AssertionError('it was imported')  # instead of a long sleep")
    install("other-head", task="other")
    assert run("predict", trained, "Ada saw London").exit_code == 0
    assert run("tasks").exit_code == 0
    assert head_class("other").__name__ == "LongHead"


def test_documents_are_read_without_importing_packages(install: Install, trained: Path) -> None:
    spacy = pytest.importorskip("spacy")
    install("bad-head", "raise AssertionError('it was imported')")
    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(trained)})
    assert nlp("Ada Smith saw London")._.nlptasks["ner"]


def test_metadata_without_a_module_are_broken(install: Install) -> None:
    install("gone-head", point="gone_head.inner.heads:LongHead")
    assert "broken: has no module 'gone_head.inner.heads'; install gone-head again" in state_of("long")
    with pytest.raises(PluginError, match=r"does not load \(ModuleNotFoundError"):
        head_class("long")


@pytest.mark.parametrize("point", ["", "no module!", "..:x", ":", "a:b:c", "a" * 5000, "\x1b[2J:x"])
def test_metadata_that_are_nonsense_harm_nobody(point: str, install: Install) -> None:
    install("bad-head", point=point or " ")
    done = run("tasks", "--check")
    assert done.exit_code == 7, done.output
    assert done.stderr == "error: --check: 1 of 7 tasks cannot be used (long); see the list for the reasons\n"
    assert "\x1b" not in done.stdout
    assert head_class("ner").__name__ == "NerHead"


@pytest.mark.parametrize("content", [b"[other]\nno equals sign\n", b"\xff\xfe[", b"[nlptasks.heads]\nx\n"])
def test_metadata_that_cannot_be_read_harm_nobody(content: bytes, install: Install, trained: Path) -> None:
    install("good-head")
    package = install("bad-head", task="other")
    (package.parent / "bad_head-1.2.dist-info" / "entry_points.txt").write_bytes(content)
    assert run("predict", trained, "Ada saw London").exit_code == 0
    assert head_class("ner").__name__ == "NerHead"
    assert head_class("long").__name__ == "LongHead"
    assert run("tasks").exit_code == 0


# Clashes name both packages, and built-in heads are never replaced


def test_two_packages_with_one_task_are_both_named(install: Install) -> None:
    install("one-head")
    install("two-head", version="3.0")
    with pytest.raises(PluginError) as caught:
        head_class("long")
    assert "(one_head:LongHead of one-head 1.2): clashes with two_head:LongHead of two-head 3.0" in str(caught.value)
    assert "uninstall one of the two, or leave it out of NLPTASKS_PLUGINS" in str(caught.value)
    assert state_of("long").count("broken: clashes with") == 2
    assert run("train", "long").exit_code == 7
    assert head_class("ner").__name__ == "NerHead"
    assert not {"one_head", "two_head"} & sys.modules.keys()


def test_a_clash_is_solved_by_the_list_of_packages(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("one-head")
    install("two-head")
    monkeypatch.setenv(PLUGINS, "two_head")  # names are compared as pip does
    assert tasks()["long"].package == "two-head 1.2"
    assert head_class("long").__module__ == "two_head"


def test_a_built_in_head_is_never_replaced(install: Install) -> None:
    install("bad-head", task="ner")
    assert tasks()["ner"].is_own
    assert head_class("ner").__module__ == "nlptasks.heads.ner"
    lines = state_of("ner").splitlines()
    assert [line.split()[1] for line in lines] == ["bad-head", "nlptasks"]
    assert "broken: clashes with nlptasks.heads.ner:NerHead of nlptasks" in lines[0]
    assert "the task is the library's own" in lines[0]
    assert "bad_head" not in sys.modules


# Packages that are not enabled are not imported

IMPORTS = """
import sys
seen = []
sys.addaudithook(lambda event, given: seen.append(given[0].co_filename) if event == "exec" else None)
from click.testing import CliRunner
from nlptasks.cli.main import main
done = CliRunner().invoke(main, sys.argv[1:])
print(done.output)
print("imported" if any("long_head" in name for name in seen) else "not imported", done.exit_code)
"""


def audited(place: Path, cwd: Path, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(place)!r})\n{IMPORTS}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**_environment(), **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != PLUGINS}


def test_a_package_that_is_not_on_the_list_is_listed_and_never_imported(install: Install, tmp_path: Path) -> None:
    place = install("long-head").parent
    listed = audited(place, tmp_path, "tasks", "--check", **{PLUGINS: "nlptasks-srl, other"})
    assert "is not enabled; add long-head to NLPTASKS_PLUGINS, or to plugins in pyproject.toml" in listed
    assert listed.rstrip().endswith("not imported 0")
    used = audited(place, tmp_path, "train", "long", **{PLUGINS: ""})
    assert "(long_head:LongHead of long-head 1.2): is not enabled" in used
    assert used.rstrip().endswith("not imported 7")
    assert audited(place, tmp_path, "tasks", "--check", **{PLUGINS: "Long_Head"}).rstrip().endswith("\nimported 0")


def test_the_list_may_stand_in_pyproject(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("long-head")
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "pyproject.toml"
    settings.write_text("[tool.other]\nnonsense = yes\n")  # of another tool
    assert tasks()["long"].package == "long-head 1.2"
    settings.write_text("[tool.nlptasks]\nplugins = []\n")
    with pytest.raises(PluginError, match="is not enabled"):
        head_class("long")
    monkeypatch.setenv(PLUGINS, "long-head")  # overrides the file
    assert head_class("long")
    monkeypatch.delenv(PLUGINS)
    settings.write_text("[tool.nlptasks]\nplugins = 'long-head'\n")
    with pytest.raises(UsageError, match=r"pyproject.toml: has plugins='long-head'; write a list"):
        tasks()
    for spelled in (
        "[ tool.nlptasks ]\nplugins = []",
        "[tool.'nlptasks']\nplugins = []",
        "[tool]\nnlptasks.plugins = []",
    ):
        settings.write_text(spelled)
        assert "long" not in tasks()
    settings.write_text("# see [tool.nlptasks]\n[project]\ndescription = 'for [tool.nlptasks]'\n")
    assert "long" in tasks()
    settings.write_bytes("# caf\xe9\n".encode("latin-1"))
    assert "long" in tasks()
    settings.write_text("[tool.nlptasks]\nplugin = []\n")
    with pytest.raises(UsageError, match=r"has plugin in tool.nlptasks; use plugins"):
        tasks()
    settings.write_text("[tool.nlptasks]\nplugins = [\n")
    with pytest.raises(UsageError, match=r"pyproject.toml: cannot be read"):
        tasks()


# The contract


def changed(old: str, new: str) -> str:
    assert HEAD.count(old) == 1, old
    return HEAD.replace(old, new)


AT_REGISTRATION = {
    "no schema": (
        changed("    schema = Schema(", "    other = Schema("),
        "has no schema of its own, expected a Schema with a version; write schema = Schema(contract=2, fields=...)",
    ),
    "no Schema": (
        changed("    schema = Schema(", "    schema = dict("),
        "has the schema {'contract': 2, ",
    ),
    "a newer contract": (
        changed("contract=2", "contract=3"),
        f"was written for contract 3, and nlptasks {nlptasks.__version__} has contract 2; upgrade nlptasks",
    ),
    "an older contract": (changed("contract=2", "contract=1"), "was written for contract 1"),
    "the first contract": (
        changed("    schema = Schema(", "    contract = 1\n    other = Schema("),
        f"was written for contract 1, and nlptasks {nlptasks.__version__} has contract 2; upgrade the package",
    ),
    "a contract that is no number": (
        changed("contract=2", 'contract="2"'),
        "has the contract '2', expected a Schema with a version",
    ),
    "a schema of another class": (
        HEAD.replace("(Head):", "(Head):\n    schema = Schema(contract=2, fields=())\n\n\nclass Old(LongHead):", 1)
        .replace("class LongHead(Head)", "class Base(Head)")
        .replace("class Old(LongHead)", "class Other(Base)")
        + "\n\nclass LongHead(Other):\n    pass\n",
        "has no schema of its own",
    ),
    "a missing method": (changed("    def decode(", "    def decoded("), "lacks the methods decode"),
    "no fields": (
        changed('        fields=("text", "length"),\n', ""),
        "does not load (TypeError: Schema.__init__() missing 1 required positional argument: 'fields')",
    ),
    "no dataclass": (changed("    Config = Config\n", "    Config = dict\n"), "has no Config that is a dataclass"),
    "no config": (changed("    Config = Config\n", ""), "has no Config that is a dataclass"),
    "no network": (
        changed('    network = f"{__name__}:LongNetwork"\n', ""),
        "has the network None, expected module and class",
    ),
    "a network that is imported": (
        changed('    network = f"{__name__}:LongNetwork"\n', "    network = Network\n"),
        "has the network <class 'nlptasks.networks.base.Network'>, expected module and class",
    ),
    "no sample": (changed('sample="sample"', 'sample="samples"'), "has no sample data in samples"),
    "no sample at all": (changed('sample="sample"', "sample=None"), "has no sample data in None"),
    "no such backbones": (
        changed('sample="sample"', 'sample="sample", backbones=("encoders",)'),
        "runs on the backbones encoders; use some of encoder, encoder-decoder, decoder",
    ),
    "a class that raises": (
        changed("    Config = Config\n", "    Config = Config\n    __module__ = 5\n"),
        "does not load (AttributeError",
    ),
    "no comma": (
        changed('gold=("length",)', 'gold=("length")'),
        "has gold in its schema that are no tuples; write a comma after a single one",
    ),
    "no head": ("class LongHead: pass", "is no subclass of nlptasks.Head"),
}  # fmt: skip


@pytest.mark.parametrize("kind", AT_REGISTRATION)
def test_a_class_that_is_no_head_is_refused_by_name(kind: str, install: Install) -> None:
    code, message = AT_REGISTRATION[kind]
    install("bad-head", code)
    with pytest.raises(PluginError) as caught:
        head_class("long")
    assert f"task long (bad_head:LongHead of bad-head 1.2): {message}" in str(caught.value)
    assert f"broken: {message}" in state_of("long", "--check")


TARGET = 'np.array([int(example["length"])])'
RESULT = 'Length(round(float(sum(output["length"] for output in outputs)), 3))'
SCORES = "self.layer(states[:, 0]).squeeze(-1)"

CALIBRATION = """
    @property
    def calibration(self):
        return Scores()


from nlptasks import Calibration


class Cost:
    def __init__(self, value=None):
        self.value = value

    def nll(self, temperature):
        return self.value


class Scores(Calibration):
    def likelihood(self, outputs):
        return Cost()

    def thresholds(self, outputs):
        return {'limit': 1}

    def confidences(self, example, result):
        return [(2.0, True)]
"""


def with_members(code: str) -> str:
    """Return the head with further members, and what they need after it."""
    return changed("\n\nclass LongNetwork", f"\n{code}\n\nclass LongNetwork")


def with_temperature(calibration: str) -> str:
    """Return the head with a calibration and the field that it sets."""
    field = '    scale: float = option(1.0, "divisor of lengths")\n'
    return with_members(calibration).replace(field, f"{field}    temperature: float = 1.0\n")


AT_VALIDATION = {
    "configure": (changed("return options", "return dict(scale=1)"), "configure returned {'scale': 1}, expected a Config"),
    "inputs": (
        changed('[ModelInput((example["text"],))]', 'example["text"]'),
        "inputs returned 'a ', expected a list of ModelInput",
    ),
    "targets": (changed(TARGET, "1 / 0"), "targets failed at "),
    "targets of a list": (changed(TARGET, '[int(example["length"])]'), "targets returned [1] as length, expected an array of"),
    "forward names": (
        changed('return {"length": self.layer', 'return {"size": self.layer'),
        "forward returned size, and `outputs` declares length",
    ),
    "forward shape": (
        changed(".squeeze(-1)}", "}"),
        "forward returned length of the shape [2, 1], and `outputs` declares B (B=2)",
    ),
    "forward type": (
        changed(f'return {{"length": {SCORES}}}', "return 3"),
        "forward returned int, expected a dict",
    ),
    "loss": (changed(", torch.tensor(len(found))", ""), "loss returned"),
    "main metric": (changed('{"share": ', '{"part": '), "without the main metric share"),
    "metrics": (
        changed('Metrics({"share": counts.sums["near"] / counts.sums["all"]}, main="share")', "counts.sums"),
        "metrics returned {'near': ",
    ),
    "counts": (changed('return Counts({', 'return ({'), "count returned {'near': "),
    "counts that are no numbers": (changed('"all": 1})', '"all": None})'), "count returned the sums {'all': None}"),
    "counts that do not merge": (
        changed('{"near": int(abs(result.tokens - int(example["length"])) < 1), "all": 1}', "rows=(int(example['length']),)")
        .replace('{"share": counts.sums["near"] / counts.sums["all"]}', '{"share": float(counts.rows[0])}'),
        "metrics returned share=",
    ),
    "a config that JSON has not": (
        changed("return options", "return Config({1})"),
        "configure failed (TypeError: Object of type set is not JSON serializable)",
    ),
    "a calibration without a temperature": (with_members(CALIBRATION), "calibration needs a field temperature in Config"),
    "a likelihood": (with_temperature(CALIBRATION), "calibration.likelihood returned None, expected a number of nats"),
    "thresholds": (
        with_temperature(CALIBRATION.replace("return Cost()", "return Cost(1.0)")),
        "calibration.thresholds failed",
    ),
    "confidences": (
        with_temperature(CALIBRATION.replace("return Cost()", "return Cost(1.0)").replace("{'limit': 1}", "{}")),
        "calibration.confidences returned (2.0, True), expected a score in 0..1",
    ),
    "a row to show": (
        with_members(
            "    @property\n    def presenter(self):\n        return Show()\n\n\n"
            "from nlptasks import Presenter\n\n\nclass Show(Presenter):\n    def example_row(self):\n        return 3\n"
        ),
        "presenter.example_row returned 3, expected the fields of a row",
    ),
    "gold": (changed('return example.get("length")', 'return [example.get("length")]'), "gold failed (TypeError: unhashable"),
    "a target with a reserved name": (
        changed('return {"length": np', 'return {"mask": np').replace('{"length": "BC"}', '{"mask": "BC"}'),
        "targets are declared as mask, which belongs to the library; rename it",
    ),
    "a target that is not declared": (
        changed('return {"length": np', 'return {"size": np'),
        "targets returned size, and the network declares length",
    ),
    "a target of another type": (
        changed(TARGET, 'np.array(["a"])'),
        "targets returned length as [1] of <U1, expected one axis of int64 or float32",
    ),
    "targets of different lengths": (
        changed(TARGET, 'np.arange(2 * int(example["length"]))'),
        "as the network declares BC",
    ),
    "targets that do not fit the window": (
        changed('targets = {"length": "BC"}', 'targets = {"length": "BS"}'),
        "returned 1 numbers as length for a window of 3 tokens, expected 3, as the network declares BS",
    ),
    "a sum without a gradient": (
        changed("return ((found", "return ((found.detach()"),
        "loss returned a sum without a gradient",
    ),
    "a loss that is not finite": (
        changed("return ((found", "return float('nan') * ((found"),
        "loss returned the sum nan, expected a finite number",
    ),
    "targets of two types": (
        changed(TARGET, 'np.array([example["length"]], dtype=np.float32 if example["length"] > 1 else np.int64)'),
        "targets returned length as int64 and as float32, expected one type",
    ),
    "metrics that are not finite": (
        changed('/ counts.sums["all"]}', "* float('nan')}"),
        "metrics returned {'share': nan}, expected finite numbers",
    ),
    "results that are not declared": (
        HEAD.replace("Length", "Size").replace("        results=(Size,),\n", ""),
        "which is not among the results of any head; name the class in the results of the head's schema",
    ),
    "results that are not plain": (
        changed(RESULT, "{1, 2}"),
        "returned {1, 2}, which holds set, expected dataclasses, lists",
    ),
    "a text without tokens": (
        changed(RESULT, 'Length(float(outputs[0]["length"]))'),
        "decode, of a text without tokens, failed at ",
    ),
    "a row without its gold answer": (
        changed("        return row.fields\n", "        return {**row.fields, 'length': row.fields['length']}\n"),
        "read (of a row without its gold answer) failed at ",
    ),
    "a backbone": (
        changed("        self.layer = ", "        self.backbone = torch.nn.Linear(2, 2)\n        self.layer = "),
        "__init__ keeps tensors named backbone.bias, backbone.weight; a network has no backbone",
    ),
    "the network has no layer": (
        changed("        self.layer = ", "        self.layers = "),
        "'LongNetwork' object has no attribute 'layer'",
    ),
    "the network's __init__ raises": (changed("        self.layer = ", "        self.layer = 1 / 0 * "), "(ZeroDivisionError"),
    "forward raises": (changed("        return {\"length\": self.layer", "        1 / 0\n        return {\"length\": self.layer"),
                       "forward failed at "),
    "decode raises": (
        changed("        return Length(", "        1 / 0\n        return Length("),
        "decode failed at ",
    ),
    "not a number": (changed(SCORES, f"{SCORES} * float('nan')"), "forward returned length with NaN"),
    "changes the states": (changed("self.layer(states[:, 0])", "self.layer(states.mul_(2)[:, 0])"), "changes the hidden states"),
    "changes the backbone": (
        changed('        found = outputs["length"]\n',
                "        import gc\n        from nlptasks.backbones.backbone import Backbone\n"
                "        for found in gc.get_objects():\n"
                "            if isinstance(found, Backbone):\n"
                "                next(found.parameters()).data.mul_(2)\n"
                '        found = outputs["length"]\n'),
        "changes the backbone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", AT_VALIDATION)
def test_a_head_is_validated_before_it_is_trained(
    kind: str, install: Install, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    code, message = AT_VALIDATION[kind]
    install("bad-head", code)
    with pytest.raises(PluginError) as caught:
        nlptasks.train("long", output=tmp_path / "model", settings=tiny_settings)
    assert caught.value.exit_code == 7
    assert caught.value.where == "task long (bad_head:LongHead of bad-head 1.2)"
    assert message in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_targets_may_be_fractions_and_results_numbers_of_numpy(
    install: Install, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    code = changed(TARGET, 'np.array([example["length"] / 8], dtype=np.float32)')
    code = code.replace(RESULT, "Length(np.float32(0.5))")
    code = code.replace("return ((found", "assert batch['length'].is_floating_point()\n        return ((found")
    install("good-head", code)
    nlptasks.train("long", output=tmp_path / "model", settings=tiny_settings)
    done = run("predict", tmp_path / "model", "a b", "--json")
    assert json.loads(done.stdout)["results"]["long"] == {"tokens": 0.5}


# A head that fails when it runs


def test_a_plugin_that_fails_later_is_named_with_its_version(
    install: Install, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    package = install("long-head")
    nlptasks.train("long", output=tmp_path / "model", settings=tiny_settings)
    assert run("predict", tmp_path / "model", "a b").exit_code == 0
    del sys.modules["long_head"]
    (package / "__init__.py").write_text(changed("        return Length(", "        1 / 0\n        return Length("))
    done = run("predict", tmp_path / "model", "a b")
    assert done.exit_code == 7
    assert (
        f"error: task long (long_head:LongHead of long-head 1.2): failed at {package / '__init__.py'}:" in done.stderr
    )
    assert "(ZeroDivisionError: division by zero)" in done.stderr
    assert isinstance(run("predict", tmp_path / "model", "a b", "--debug").exception, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):  # from Python it is their error, with their traceback
        pipeline("long", model=tmp_path / "model", backend="torch")("a b")


def test_an_error_of_the_library_is_not_blamed_on_plugins(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("long-head")
    assert head_class("long")
    with pytest.raises(UsageError) as caught:
        check_head_name("../x")
    assert registry.blamed(caught.value) is None


def test_of_two_packages_with_one_name_before_the_dot_the_right_one_is_blamed(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def fail():\n    1 / 0\n"
    install("acme-one", task="one", point="acme.one.heads:LongHead")
    install("acme-two", task="two", point="acme.two.heads:LongHead")
    for name in ("one", "two"):
        (tmp_path / "site/acme" / name).mkdir(parents=True)
        (tmp_path / "site/acme" / name / "heads.py").write_text(code)
    install("alias-head", task="tagging", point="nlptasks.heads.ner:NerHead")
    import importlib

    for name in ("two", "one"):
        with pytest.raises(ZeroDivisionError) as caught:
            importlib.import_module(f"acme.{name}.heads").fail()
        blamed = registry.blamed(caught.value)
        assert blamed is not None
        assert blamed.where == f"task {name} (acme.{name}.heads:LongHead of acme-{name} 1.2)"
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]
    with pytest.raises(UsageError) as ours:
        pipeline("ner")
    assert registry.blamed(ours.value) is None


def test_results_may_be_declared_in_another_package(
    install: Install, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    start, end = HEAD.index("@dataclass"), HEAD.index("@dataclass(frozen=True)\nclass Config")
    install("long-results", f"from dataclasses import dataclass\n\n\n{HEAD[start:end]}", task="unused")
    install("long-head", "from long_results import Length\n" + HEAD[:start] + HEAD[end:])
    nlptasks.train("long", output=tmp_path / "model", settings=tiny_settings)
    assert run("predict", tmp_path / "model", "a b").exit_code == 0


@pytest.fixture
def two_heads(install: Install, trained: Path, tiny_settings: TrainSettings, tmp_path: Path) -> Path:
    """A model with a built-in head and one of another package."""
    install("long-head")
    shutil.copytree(trained, tmp_path / "model")
    nlptasks.train("long", add_to=tmp_path / "model", settings=replace(tiny_settings, backbone=None, tune="head"))
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["gone", "broken"])
def test_a_model_with_a_head_that_is_not_available_is_shown_and_edited(
    kind: str, two_heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "site"
    if kind == "gone":
        shutil.rmtree(place / "long_head-1.2.dist-info")
    else:
        (place / "long_head/__init__.py").write_text("import no_such_module")
    del sys.modules["long_head"]
    problem = "needs for 'long' the head 'long' of the package 'long-head 1.2'" if kind == "gone" else "no_such_module"
    shown = run("show", two_heads)
    assert shown.exit_code == 0, shown.output
    assert "long: not available: " in shown.stdout
    assert problem in shown.stdout
    assert run("predict", two_heads, "Ada saw London", "--heads", "ner").exit_code == 0
    assert run("predict", two_heads, "Ada saw London").exit_code == (4 if kind == "gone" else 7)
    assert run("rename", two_heads, "ner", "names").exit_code == 0
    assert run("remove", two_heads, "long").exit_code == 0
    assert run("predict", two_heads, "Ada saw London").exit_code == 0


def test_a_head_that_another_package_reads_is_reported(two_heads: Path, install: Install, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "site/long_head-1.2.dist-info")
    install("other-long")
    done = run("predict", two_heads, "a b", "--heads", "long")
    assert "the head long was made by long-head 1.2, and is read by other-long 1.2" in done.stderr


# Names

NAMES = ["../x", "", "Ümlaut", "a" * 300, "A", "1a", "a b", "a.b", "-a", "a/b", "a\n"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_heads_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_head_name(name)


@pytest.mark.parametrize("name", [name for name in NAMES if name and "\n" not in name])
def test_names_of_tasks_that_do_not_fit_are_broken(name: str, install: Install) -> None:
    install("bad-head", task=name)
    [one] = [one for one in registered() if one.distribution == "bad-head"]
    assert "expected 1 to 40 of a-z, 0-9, _ and -, a letter first" in one.problem
    assert "bad_head" not in sys.modules


def test_a_head_whose_package_is_gone_is_told_with_the_package(
    install: Install, tiny_settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("long-head")
    nlptasks.train("long", output=tmp_path / "model", settings=tiny_settings)
    found = {GROUP: [], BACKENDS: registry.entry_points(group=BACKENDS)}
    monkeypatch.setattr(registry, "entry_points", lambda group: found[group])
    done = run("predict", tmp_path / "model", "a b")
    assert done.exit_code == 4
    assert "needs for 'long' the head 'long' of the package 'long-head 1.2'; pip install long-head" in done.stderr


# The public names


def test_public_names_are_there_and_plugins_use_no_others() -> None:
    for name in nlptasks.__all__:
        assert getattr(nlptasks, name) is not None
    allowed = {"nlptasks", "nlptasks.pipeline", "nlptasks.testing"}
    files = [*Path(__file__).parents[1].glob("plugins/*/*/*.py")]
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "nlptasks":
                is_test = path.parent.name == "tests" and node.module.startswith("nlptasks.testing.")
                assert node.module in allowed or is_test, f"{path}:{node.lineno}"
                if node.module == "nlptasks":
                    assert {alias.name for alias in node.names} <= {*nlptasks.__all__}, f"{path}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names if alias.name.partition(".")[0] == "nlptasks"} - allowed


# Heads of other packages are first-class heads


def test_a_module_alone_has_no_place_for_a_sample(install: Install) -> None:
    package = install("bad-head")
    shutil.move(package / "__init__.py", package.parent / "alone.py")
    shutil.rmtree(package)
    shutil.move(package.parent / "alone.py", package.parent / "bad_head.py")
    with pytest.raises(PluginError, match="has no sample data in sample; put them into the package"):
        head_class("long")


def test_a_copy_of_a_built_in_head_in_a_foreign_package_learns_and_answers_the_same(
    install: Install, backbones: Path, conll_data: Path, tmp_path: Path
) -> None:
    source = Path(nlptasks.__file__).parent
    package = install("foreign-ner", (source / "heads/ner.py").read_text(), task="foreign", point="foreign_ner:NerHead")
    (package / "samples").symlink_to(source / "samples")
    settings = TrainSettings(backbone=str(backbones / "bert"), epochs=3, lr=3e-3, precision="fp32", device="cpu")
    found = {}
    for task in ("ner", "foreign"):
        nlptasks.train(f"{task}={conll_data}", output=tmp_path / task, settings=settings)
        nlptasks.export(tmp_path / task)
        for backend in ("torch", "onnx"):
            entities = pipeline(task, model=tmp_path / task, backend=backend)("Ada Smith saw London and left Paris .")
            found[task, backend] = [vars(entity) for entity in entities]
    assert found["ner", "torch"] == found["foreign", "torch"] != []
    assert found["ner", "onnx"] == found["foreign", "onnx"]
    weights = [(tmp_path / task / "heads" / f"{task}.safetensors").read_bytes() for task in ("ner", "foreign")]
    assert weights[0] == weights[1]


def test_fifty_packages_are_listed_and_none_is_imported(install: Install, tmp_path: Path) -> None:
    for number in range(50):
        place = install(f"many-{number}", "raise AssertionError('it was imported')", task=f"many-{number}").parent
    listed = audited(place, tmp_path, "tasks")
    assert listed.count("installed") == 50 + 6
    assert listed.rstrip().endswith("not imported 0")


# Backends

BACKEND = """
from nlptasks.runtimes.base import Choice


class Mine:
    name = "mine"
    precisions = ("fp32",)
    priority = 5
    needs_export = False

    def choose(self, source, device):
        return Choice(None, ["is only used if it is named"])

    def open(self, source, precision, device):
        from nlptasks.registry import make_backend

        runtime = make_backend("torch").open(source, precision, "cpu")
        runtime.name = f"mine {precision}"
        return runtime
"""


def test_a_backend_of_another_package_is_used_like_the_librarys_own(install: Install, trained: Path) -> None:
    install("my-backend", BACKEND, task="mine", point="my_backend:Mine", group=BACKENDS)
    assert {"mine", "onnx", "torch"} == set(backends())
    assert "my_backend" not in sys.modules
    assert pipeline("ner", model=trained, backend="torch").backend.startswith("PyTorch")
    assert "my_backend" not in sys.modules
    assert pipeline("ner", model=trained, backend="mine").backend == "mine fp32"
    assert pipeline("ner", model=trained).backend.startswith("PyTorch")
    with pytest.raises(UsageError, match=r"backend 'mime': is unknown; did you mean 'mine'"):
        pipeline("ner", model=trained, backend="mime")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module", r"does not load \(ModuleNotFoundError"),
        ("class Mine:\n    def __init__(self): 1 / 0", r"does not load \(ZeroDivisionError"),
        ("class Mine:\n    priority = 5", "lacks .*precisions"),
        ("Mine = 5", "is no class"),
    ],
)
def test_a_broken_backend_is_named_when_it_is_used_and_harms_nobody_else(
    code: str, message: str, install: Install, trained: Path
) -> None:
    install("bad-backend", code, task="mine", point="bad_backend:Mine", group=BACKENDS)
    assert pipeline("ner", model=trained).backend.startswith("PyTorch")
    assert pipeline("ner", model=trained, backend="torch").backend.startswith("PyTorch")
    with pytest.raises(UsageError, match="backend 'mime': is unknown"):
        pipeline("ner", model=trained, backend="mime")
    where = r"backend mine \(bad_backend:Mine of bad-backend 1.2\): "
    with pytest.raises(PluginError, match=where + message):
        pipeline("ner", model=trained, backend="mine")


def test_a_backend_that_fails_is_named(install: Install, trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = {"task": "mine", "group": BACKENDS}
    install("bad-choice", BACKEND.replace("return Choice", "1 / 0; return Choice"), point="bad_choice:Mine", **backend)
    assert pipeline("ner", model=trained).backend.startswith("PyTorch")
    assert "backend mine (bad_choice:Mine of bad-choice 1.2): failed (ZeroDivisionError" in caplog.text
    install(
        "bad-open",
        BACKEND.replace("runtime =", "1 / 0; runtime ="),
        point="bad_open:Mine",
        task="yours",
        group=BACKENDS,
    )
    done = run("predict", trained, "x", "--backend", "yours")
    assert done.exit_code == 7
    assert "error: backend yours (bad_open:Mine of bad-open 1.2): failed at " in done.stderr


def test_a_backend_that_is_not_enabled_is_not_imported(
    install: Install, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("my-backend", BACKEND, task="mine", point="my_backend:Mine", group=BACKENDS)
    monkeypatch.setenv(PLUGINS, "other")
    assert pipeline("ner", model=trained).backend.startswith("PyTorch")
    with pytest.raises(PluginError, match="is not enabled; add my-backend to NLPTASKS_PLUGINS"):
        pipeline("ner", model=trained, backend="mine")
    assert "my_backend" not in sys.modules


def test_a_backend_of_the_library_is_never_replaced(install: Install, trained: Path) -> None:
    install("bad-backend", BACKEND, task="torch", point="bad_backend:Mine", group=BACKENDS)
    assert pipeline("ner", model=trained, backend="torch").backend.startswith("PyTorch")
    assert "bad_backend" not in sys.modules


def test_the_list_of_packages_may_have_spaces(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("long-head")
    monkeypatch.setenv(PLUGINS, "other, long-head ,")
    assert tasks()["long"].package == "long-head 1.2"


def test_the_line_that_failed_is_blamed_and_not_its_callers(install: Install) -> None:
    code = HEAD + "\n\ndef outer():\n    inner()\n\n\ndef inner():\n    1 / 0\n"
    package = install("long-head", code)
    import importlib

    with pytest.raises(ZeroDivisionError) as caught:
        importlib.import_module("long_head").outer()
    blamed = registry.blamed(caught.value)
    assert blamed is not None
    line = (package / "__init__.py").read_text().splitlines().index("    1 / 0") + 1
    assert f"failed at {package / '__init__.py'}:{line} (ZeroDivisionError" in str(blamed)


def test_a_backend_that_is_not_enabled_is_not_mentioned_unasked(
    install: Install, trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install("my-backend", BACKEND, task="mine", point="my_backend:Mine", group=BACKENDS)
    monkeypatch.setenv(PLUGINS, "other")
    assert set(backends()) == {"onnx", "torch"}
    with caplog.at_level("WARNING", "nlptasks"):
        assert pipeline("ner", model=trained).backend.startswith("PyTorch")
    assert not any("mine" in line for line in caplog.messages)
