"""Coverage of architectures: which heads are exported to ONNX in which precisions, and how close the graphs stay to PyTorch.

    python tests/benchmarks/coverage.py
    python tests/benchmarks/coverage.py --only bert t5     # only these; the others keep their last results
    python tests/benchmarks/coverage.py --table            # writes the README's table from the last results

Each architecture is measured in its own process, on a tiny backbone with random weights and a head of every task that fits it,
trained together on rows of the tasks' samples. A head that is refused is named with the reason. The result also lists operators
that are not part of the standard, and engines that were skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import covering
import onnx
import tiny
from common import RESULTS, keep
from onnx import GraphProto

import nlptasks
from nlptasks.config import Target
from nlptasks.errors import NlptasksError
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.models.model import Model
from nlptasks.runtimes.base import ENCODE, head_in

README = Path(__file__).parents[2] / "README.md"
NAMES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "deberta": "DeBERTa-v2",
    "mpnet": "MPNet",
    "modernbert": "ModernBERT",
    "xlm-roberta": "XLM-RoBERTa",
    "bart": "BART",
    "marian": "Marian",
    "t5": "T5",
    "mbart": "mBART",
    "m2m100": "M2M100",
    "pegasus": "Pegasus",
}
"""Names of the architectures for people, in the order of the table."""

_BEGIN, _END = "<!-- coverage -->", "<!-- /coverage -->"
_COMMAND = "python tests/benchmarks/coverage.py"
_ROWS, _EPOCHS, _ASKED = 240, 8, 8
_BEAMS = 3
_STANDARD = ("", "ai.onnx")
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_TOLERANCE = 1e-4


class SkippedEngines(logging.Handler):
    """Collects the messages about engines whose graphs were not used."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("export of"):
            self.messages.append(record.getMessage())


def fitting(targets: Sequence[Target], backbone: Path, place: Path) -> tuple[list[Target], dict[str, str]]:
    """Return the heads that can be trained alone, and why the others cannot."""
    fit, refused = [], {}
    for target in targets:
        try:
            covering.train([target], backbone, place / target.name)
        except NlptasksError as error:
            refused[target.name] = str(error)
        else:
            fit.append(target)
    return fit, refused


def graphs_in(graph: GraphProto) -> Iterator[GraphProto]:
    """Return a graph and the graphs inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from graphs_in(inner)


def inside(folder: Path) -> dict[str, Any]:
    """Return the operators and heads of an export's graphs."""
    nodes, beyond, flow, heads = {}, set(), set(), set()
    for path in sorted(folder.glob("*.onnx")):
        graph = onnx.load(path, load_external_data=False).graph
        own = [node for part in graphs_in(graph) for node in part.node]
        nodes[path.stem] = len(own)
        beyond |= {f"{node.domain}.{node.op_type}" for node in own if node.domain not in _STANDARD}
        flow |= {node.op_type for node in own if node.domain in _STANDARD and node.op_type in _CONTROL_FLOW}
        heads |= {head_in(output.name) for output in graph.output} - {""}
    return {
        "heads": sorted(heads),
        "nodes": nodes,
        "beyond_the_standard": sorted(beyond),
        "control_flow": sorted(flow),
    }


def exported(model: Path, precision: str, expected: Mapping[int, Any]) -> dict[str, Any]:
    """Return how an export was made, its operators and its results; or why there is none."""
    noted, log = SkippedEngines(), logging.getLogger("nlptasks")
    log.setLevel(logging.INFO)
    log.addHandler(noted)
    started = time.monotonic()
    try:
        report = nlptasks.export(model, precision=precision)
    except NlptasksError as error:
        return {"refused": str(error), "passed_over": noted.messages}
    finally:
        log.removeHandler(noted)
    seconds = round(time.monotonic() - started, 1)
    return {
        "engine": report.engine,
        "opset": report.opset,
        "device": report.device,
        "max_difference": report.max_difference,
        "agreement": report.agreement,
        "seconds": seconds,
        "passed_over": noted.messages,
        **inside(model / "onnx" / precision),
        "results": {f"beams {beams}": answered(model, precision, beams, known) for beams, known in expected.items()},
    }


def answered(model: Path, precision: str, beams: int, expected: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the results of an export with PyTorch's, by head; with beams, only of heads that search."""
    found = covering.answers(model, f"onnx:{precision}", covering.sample_rows(covering.built_in(), _ASKED), beams=beams)
    return {
        name: asdict(one)
        for name, one in covering.likeness(expected, found).items()
        if beams == 1 or covering.has_beams(name)
    }


def measured(name: str, place: Path) -> dict[str, Any]:
    """Return the result of one architecture."""
    tiny.make(name, place / "backbone")
    few = covering.targets(covering.built_in(), place / "few", rows=12)
    fit, refused = fitting(few, place / "backbone", place / "alone")
    targets = covering.targets([target.name for target in fit], place / "data", rows=_ROWS)
    model = covering.train(targets, place / "backbone", place / "model", epochs=_EPOCHS)
    loaded = Model.load(model)
    networks = loaded.networks.items()
    rows = covering.sample_rows(covering.built_in(), _ASKED)
    expected = {beams: covering.answers(model, "torch", rows, beams=beams) for beams in (1, _BEAMS)}
    return {
        "model_type": loaded.backbone.info.architecture,
        "refused": refused,
        "hugging_face_layers": sorted(name for name, network in networks if network.hf_module is not None),
        "precisions": {precision: exported(model, precision, expected) for precision in PRECISIONS},
    }


def in_own_process(name: str) -> dict[str, Any]:
    """Return the result of one architecture from its own process, or how the process died."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"died": [done.returncode, *done.stderr.strip().splitlines()[-1:]]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def same_results(precision: Mapping[str, Any]) -> bool:
    """Return True if all results are PyTorch's, with numbers within the tolerance."""
    every = [one for heads in precision["results"].values() for one in heads.values()]
    return all(one["same"] == 1 and one["score"] <= _TOLERANCE for one in every)


def table(found: Mapping[str, Any]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| architecture | heads in one graph | nodes of `encode` | fp32: largest difference | results in fp32 "
        "| fp16: largest difference, best labels alike | int8: the same |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    measured = found["architectures"]
    return "\n".join([*lines, *(_line(name, measured[name]) for name in NAMES if name in measured)])


def _line(name: str, found: Mapping[str, Any]) -> str:
    if "died" in found:
        return f"| {NAMES[name]} | the process died | | | | | |"
    parts = found["precisions"]
    exact = parts["fp32"]
    if "refused" in exact:
        return f"| {NAMES[name]} | refused | | | | | |"
    heads = ", ".join(f"`{head}`" for head in exact["heads"]) if found["refused"] else "all six"
    results = "as on PyTorch" if same_results(exact) else "differ"
    reduced = [_reduced(parts[precision]) for precision in ("fp16", "int8")]
    nodes, difference = exact["nodes"][ENCODE], exact["max_difference"]
    return f"| {NAMES[name]} | {heads} | {nodes} | {difference:.0e} | {results} | {' | '.join(reduced)} |"


def _reduced(precision: Mapping[str, Any]) -> str:
    if "refused" in precision:
        return "refused"
    return f"{precision['max_difference']:.1g}, {precision['agreement']:.1%}"


def write_table(found: Mapping[str, Any]) -> None:
    """Write the table between its markers in the README."""
    before, _, rest = README.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    README.write_text(f"{before}{_BEGIN}\n{table(found)}\n{_END}{after}", encoding="utf-8")


def table_in_readme() -> str:
    """Return the table in the README."""
    return README.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0].strip()


def stored() -> dict[str, Any]:
    """Return the last results, empty if there are none."""
    path = RESULTS / "coverage.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"architectures": {}}


def main() -> None:
    """Measure one architecture after another; each result is written at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        write_table(stored())
    elif options.one:
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps(measured(options.one, Path(place))))
    else:
        for name in options.only:
            found = {**stored()["architectures"], name: in_own_process(name)}
            ordered = {known: found[known] for known in NAMES if known in found}
            with contextlib.redirect_stdout(io.StringIO()):  # it would print everything each time
                keep(
                    "coverage",
                    {"rows_learned": _ROWS, "rows_asked": _ASKED, "architectures": ordered},
                    command=_COMMAND,
                )
            print(json.dumps({name: found[name]}), flush=True)


if __name__ == "__main__":
    main()
