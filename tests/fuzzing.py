"""Fuzzer for untrusted files: the library must return or raise its own error, in limited time and memory.

    python tests/fuzzing.py MODEL SCRATCH SEED FIRST SECONDS

runs cases from number FIRST on and writes one JSON line before and one after each, so that a caller knows the case that hung or
crashed. A case depends only on its seed and number, so it can be repeated alone.
"""

from __future__ import annotations

import collections
import faulthandler
import hashlib
import json
import random
import resource
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASE_SECONDS = 5
_CASE_BYTES = 1 << 30
"""Limit for the growth of peak memory in one case."""

_ADDRESS_BYTES = 16 << 30
_NUMBERS = [0, -1, 1, 2**31, 2**63, 10**9, 10**30, -(10**18), 1e308, 0.5, float("nan"), float("inf")]
_NASTY: list[Any] = [
    *_NUMBERS, None, True, "", "x", "\x00", "\ufeff", "\ud800", "../x", "C:\\x", "NaN", "1e999", "B-", "I-X", "-", "O" * 5000,
    [], {}, [[]], {"": None}, ["O"] * 3000, {"auto_map": {}},
]  # fmt: skip
_TOKENS = [
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\t", b"\t\t", b'"', b'""', b",", b"\\", b"'",
    b"[", b"]", b"{", b"}", b":", b"null", b"NaN", b"1e999", b"-1", b"9" * 400, b"\\ud800", b"B-", b"I-", b"-DOCSTART-", b"#",
    b"\xc2\xa0", b"\xe2\x80\xa8", b"[" * 3000,
]  # fmt: skip

CSV = b'tokens,tags\n"Ada Smith saw London","B-PER I-PER O B-LOC"\n"[""Bob"", ""left""]","[""B-PER"", ""O""]"\n'
_SQUAD = {
    "question": "Who?",
    "answers": [{"text": "Ada", "answer_start": 0}],
    "id": "1",
    "is_impossible": False,
}
TEXTS = {
    "train.csv": CSV,
    "spans.csv": b'text,spans\n"Ada saw, Bob","[[0, 3, ""PER""], [9, 12, ""PER""]]"\nRome,"[]"\n',
    "train.tsv": b"Ada\tB-PER\nSmith\tI-PER\nsaw\tO\n\nRome\tB-LOC\n.\tO\n",
    "train.conll": b"-DOCSTART- -X- O O\n\n# id 1\nAda NNP B-NP B-PER\nSmith NNP I-NP I-PER\n\nRome NNP B-NP B-LOC\n",
    "train.txt": b"Ada B-PER\r\nsaw O\r\n\r\nRome B-LOC\r\n",
    "train.jsonl": b'{"tokens": ["Ada", "saw"], "tags": ["B-PER", "O"]}\n{"text": "Rome", "spans": [[0, 4, "LOC"]]}\n',
    "labels.jsonl": b'{"text": "Ada saw", "label": "good"}\n{"text": "Bob", "label": "bad"}\n',
    "numbers.csv": b'text,text_pair,label\n"Ada, Bob",x,0\nRome,y,1\n',
    "sets.jsonl": b'{"text": "Ada saw", "labels": ["a", "b"]}\n{"text": "Bob", "labels": []}\n',
    "stars.tsv": b"text\tlabel\nAda saw\t5 stars\nBob\t1 star\n",
    "squad.json": json.dumps({"data": [{"paragraphs": [{"context": "Ada saw", "qas": [_SQUAD]}]}]}, indent=1).encode(),
    "flat.jsonl": b'{"question": "Who?", "context": "Ada saw", "answers": {"text": ["Ada"], "answer_start": [0]}}\n',
    "flat.csv": b'question,context,answer,answer_start\nWho?,"Ada, Bob",Bob,5\nWhy?,Ada,,\n',
}
TASKS = {
    "labels.jsonl": "classification",
    "numbers.csv": "classification",
    "sets.jsonl": "classification",
    "stars.tsv": "sentiment",
    "squad.json": "qa",
    "flat.jsonl": "qa",
    "flat.csv": "qa",
}
"""The task of each file; NER for all others."""
_RESULTS = b"""[{"is": "nlptasks.heads.ner:Entity", "with": {"text": "Ada", "label": "PER", "start": 0, "end": 3, "score": 0.5}},
{"is": "nlptasks.heads.classification:Labels", "with": {"labels": {"is": "tuple", "with": ["a"]}, "scores": {"is": "dict",
"with": {"a": 0.5}}}}]"""
FILES = ("backbone/config.json", "backbone/tokenizer.json", "backbone/model.safetensors", "heads/ner.safetensors")
CHECKPOINT = tuple(f"checkpoint/{name}" for name in ("config.json", "tokenizer.json", "model.safetensors"))
MANIFEST = "nlptasks.json"


# Mutations.


def flip(draw: random.Random, content: bytearray) -> None:
    for _ in range(draw.randint(1, 8)):
        content[place(draw, content)] ^= 1 << draw.randrange(8)


def truncate(draw: random.Random, content: bytearray) -> None:
    del content[place(draw, content) :]


def insert(draw: random.Random, content: bytearray) -> None:
    at = place(draw, content)
    content[at:at] = draw.randbytes(draw.randint(1, 20)) if draw.random() < 0.3 else draw.choice(_TOKENS)


def delete(draw: random.Random, content: bytearray) -> None:
    at = place(draw, content)
    del content[at : at + draw.randint(1, 30)]


def double(draw: random.Random, content: bytearray) -> None:
    start, at = place(draw, content), place(draw, content)
    content[at:at] = content[start : start + draw.randint(1, 200)] * draw.choice([1, 1, 2, 50])


def swap_lines(draw: random.Random, content: bytearray) -> None:
    lines = content.splitlines(keepends=True)
    one, two = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one], lines[two] = lines[two], lines[one]
    content[:] = b"".join(lines)


def overwrite_number(draw: random.Random, content: bytearray) -> None:
    digits = [at for at in range(min(len(content), 20_000)) if 48 <= content[at] <= 57]
    if digits:
        start = end = draw.choice(digits)
        while end < len(content) and 48 <= content[end] <= 57:
            end += 1
        content[start:end] = str(draw.choice(_NUMBERS)).encode()


def change_value(draw: random.Random, content: bytearray) -> None:
    """Change, remove or add one value of a JSON text."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return flip(draw, content)
    nodes: list[Any] = [values] if isinstance(values, dict | list) and values else []
    for node in nodes:  # the list grows during the loop
        inner = node.values() if isinstance(node, dict) else node
        nodes += [value for value in list(inner)[:400] if isinstance(value, dict | list) and value]
    if not nodes:
        return None
    node = draw.choice(nodes[: draw.choice([1, 5, 10_000])])
    key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
    action = draw.random()
    if action < 0.15:
        del node[key]
    elif action < 0.25 and isinstance(node, dict):
        node[draw.choice(["", "x", "return_dict", "is_decoder", "num_labels", "torch_dtype", "to_dict"])] = draw.choice(
            _NASTY
        )
    else:
        node[key] = draw.choice(_NASTY)
    content[:] = json.dumps(values, indent=1).encode()
    return None


def place(draw: random.Random, content: bytearray) -> int:
    """Return a random position, half of the time near the beginning, where headers are."""
    size = max(1, len(content))
    return draw.randrange(min(size, 3000)) if draw.random() < 0.5 else draw.randrange(size)


MUTATIONS = (flip, truncate, insert, delete, double, swap_lines, overwrite_number)


def mutated(draw: random.Random, content: bytes, *, is_json: bool) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 3])):
        if changed:
            (change_value if is_json and draw.random() < 0.6 else draw.choice(MUTATIONS))(draw, changed)
    return bytes(changed)


# Targets: functions that read a mutated file.


def read_rows(draw: random.Random, name: str, model: Path, scratch: Path) -> None:
    """Read a data file as training does."""
    from nlptasks.data.datasets import load_data
    from nlptasks.heads.base import read_gold
    from nlptasks.models.folder import ModelFolder
    from nlptasks.registry import head_class

    path = scratch / name
    path.write_bytes(mutated(draw, TEXTS[name], is_json=name.endswith(".json")))
    cls = head_class(TASKS.get(name, "ner"))
    rows = load_data(path, cls.schema.formats, {}).parts["train"]
    info = ModelFolder.open(model).backbone_info()
    read_gold(cls(cls.configure(rows, cls.Config(), info), info), rows)


def read_documents(draw: random.Random, name: str, model: Path, scratch: Path) -> None:
    """Read a DocBin that was changed before or after its compression."""
    import spacy
    from spacy.tokens import DocBin

    from nlptasks.data.docbin import read_docbin

    doc = spacy.blank("en").make_doc("Ada saw Bob in Rome")
    doc.ents, doc.cats = [doc.char_span(0, 3, label="PER")], {"x": 1.0, "y": 0.0}
    content = DocBin(docs=[doc, doc]).to_bytes()
    if draw.random() < 0.8:
        content = zlib.compress(mutated(draw, zlib.decompress(content), is_json=False))
    else:
        content = mutated(draw, content, is_json=False)
    (scratch / name).write_bytes(content)
    list(read_docbin(scratch / name))


def read_results(draw: random.Random, name: str, model: Path, scratch: Path) -> None:
    """Deserialize changed results, as from a spaCy document."""
    from nlptasks.inference.serialization import from_plain

    try:
        content = json.loads(mutated(draw, _RESULTS, is_json=True))
    except (ValueError, RecursionError):  # msgpack returns no such values
        return
    from_plain(content)


def read_checkpoint(draw: random.Random, name: str, model: Path, scratch: Path) -> None:
    """Run a changed Hugging Face checkpoint."""
    from nlptasks.models.huggingface import to_hugging_face
    from nlptasks.pipeline import pipeline

    folder = scratch / "checkpoint"
    to_hugging_face(model, "ner", output=folder)
    path = folder / Path(name).name
    path.write_bytes(mutated(draw, path.read_bytes(), is_json=name.endswith(".json")))
    pipeline("ner", model=folder, backend="torch")("Ada Smith saw London. " + "saw " * 200)


def predict(draw: random.Random, name: str, model: Path, scratch: Path) -> None:
    """Run a model with a changed file whose sha256 is correct."""
    from nlptasks.pipeline import pipeline
    from nlptasks.storage.atomic import sealed, sha256, unsealed

    folder = scratch / "model"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("onnx"))
    content = mutated(draw, (folder / name).read_bytes(), is_json=name.endswith(".json"))
    if name == MANIFEST:
        content = resealed(content) if draw.random() < 0.8 else content
        (folder / MANIFEST).write_bytes(content)
    else:
        (folder / name).write_bytes(content)
        manifest = unsealed((folder / MANIFEST).read_bytes())
        manifest["files"][name] = sha256(folder / name)
        (folder / MANIFEST).write_bytes(sealed(manifest))
    pipeline("ner", model=folder, backend="torch")("Ada Smith saw London. " + "saw " * 200)


def resealed(content: bytes) -> bytes:
    """Return a manifest with the sha256 of its changed content."""
    start = content.find(b'"sha256": "') + 11
    blank = content[:start] + b"0" * 64 + content[start + 64 :]
    return content[:start] + hashlib.sha256(blank).hexdigest().encode() + content[start + 64 :]


Target = Callable[[random.Random, str, Path, Path], None]
TARGETS: list[tuple[str, Target]] = [
    *((name, read_rows) for name in TEXTS),
    *((name, predict) for name in (*FILES, MANIFEST, *FILES[:2])),
    *((name, read_checkpoint) for name in CHECKPOINT),
    ("docs.spacy", read_documents),
    ("results", read_results),
]


def run_case(seed: int, number: int, model: Path, scratch: Path) -> str:
    """Run one case. Return ``fine``, ``refused``, or the failure."""
    from nlptasks.errors import NlptasksError

    name, target = TARGETS[number % len(TARGETS)]
    place = scratch / str(number)
    place.mkdir()
    try:
        target(random.Random(f"{seed} {number}"), name, model, place)
    except NlptasksError as error:
        broken = [line for line in error.lines() if "\n" in line]
        return f"a message has several lines: {broken[0]}" if broken else "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return "fine"


def main(model: Path, scratch: Path, seed: int, first: int, seconds: float) -> None:
    """Run cases for a number of seconds."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
    for warming in (6, len(TARGETS) - 2, len(TARGETS) - 1):
        run_case(seed, warming, model, scratch)  # imports the libraries
    ends, number = time.monotonic() + seconds, first
    while time.monotonic() < ends:
        print(json.dumps({"number": number}), flush=True)
        faulthandler.dump_traceback_later(2 * CASE_SECONDS, exit=True)
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        outcome = run_case(seed, number, model, scratch)
        after, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - started
        faulthandler.cancel_dump_traceback_later()
        grown = (after.ru_maxrss - before.ru_maxrss) * 1024
        if after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime > CASE_SECONDS:
            outcome = f"took {took:.1f} s, then: {outcome}"
        if grown > _CASE_BYTES:
            outcome = f"took {grown >> 20} MiB, then: {outcome}"
        print(
            json.dumps({"number": number, "target": TARGETS[number % len(TARGETS)][0], "outcome": outcome}), flush=True
        )
        number += 1


def summary(lines: list[str]) -> tuple[dict[str, dict[str, int]], list[str], int]:
    """Return the counts of outcomes by target, the failures, and the number of the unfinished case (or -1)."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wrong, open_case = [], -1
    for line in map(json.loads, (line for line in lines if line.startswith("{"))):  # the tokenizer prints other lines
        open_case = line["number"] if "outcome" not in line else -1
        if "outcome" in line:
            good = line["outcome"] in ("fine", "refused")
            counts[line["target"]][line["outcome"] if good else "wrong"] += 1
            wrong += [] if good else [f"case {line['number']} ({line['target']}): {line['outcome']}"]
    return {name: dict(count) for name, count in counts.items()}, wrong, open_case


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
