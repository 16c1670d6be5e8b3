"""DocBin files of spaCy as data for training, evaluation and prediction."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import spacy
from click.testing import CliRunner
from spacy.tokens import Doc, DocBin

from nlptasks.cli.main import main
from nlptasks.data.docbin import read_docbin
from nlptasks.data.readers import read_conll
from nlptasks.errors import DataError

NLP = spacy.blank("en")


def doc_of(text: str, *, ents: list[tuple[int, int, str]] | None = None, cats: dict[str, float] | None = None) -> Doc:
    """Return a document with gold annotations."""
    doc = NLP.make_doc(text)
    if ents is not None:
        doc.ents = [doc.char_span(start, end, label=label) for start, end, label in ents]
    doc.cats = cats or {}
    return doc


def rows(path: Path, *docs: Doc) -> list[dict[str, Any]]:
    """Write documents and return the fields that are read."""
    DocBin(docs=docs).to_disk(path)
    found = list(read_docbin(path))
    assert [row.where for row in found] == [f"{path}:{number}" for number in range(1, len(docs) + 1)]
    return [dict(row.fields) for row in found]


def test_entities_are_spans_of_the_unchanged_text(tmp_path: Path) -> None:
    text = "Ada  Smith saw\nRome\u00a0\U0001f600."
    found = rows(tmp_path / "a.spacy", doc_of(text, ents=[(0, 10, "PER"), (15, 19, "LOC")]), doc_of("none", ents=[]))
    assert found == [
        {"text": text, "spans": [[0, 10, "PER"], [15, 19, "LOC"]]},
        {"text": "none", "spans": []},
    ]


def test_documents_without_annotations_have_no_gold_answer(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.spacy", doc_of("Ada")) == [{"text": "Ada"}]


def test_categories_are_a_label_or_several(tmp_path: Path) -> None:
    one = [doc_of("a", cats={"x": 1.0, "y": 0.0}), doc_of("b", cats={"x": 0.0, "y": 1.0}), doc_of("c")]
    assert [row.get("label") for row in rows(tmp_path / "one.spacy", *one)] == ["x", "y", None]
    several = [*one, doc_of("d", cats={"x": 1.0, "y": 1.0}), doc_of("e", cats={"x": 0.0, "y": 0.0})]
    found = rows(tmp_path / "several.spacy", *several)
    assert [row.get("labels") for row in found] == [["x"], ["y"], None, ["x", "y"], []]
    assert not any("label" in row for row in found)


def test_partly_annotated_documents_are_refused(tmp_path: Path) -> None:
    doc = NLP.make_doc("Ada saw Bob")
    doc.set_ents([doc.char_span(0, 3, label="PER")], default="missing")
    with pytest.raises(DataError, match=r"a\.spacy:1: has tokens whose entity annotation is missing; annotate all"):
        rows(tmp_path / "a.spacy", doc)


@pytest.mark.parametrize("content", [b"", b"no DocBin", b"\x78\x9c\x03\x00\x00\x00\x00\x01"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.spacy"
    path.write_bytes(content)
    problem = r"a\.spacy: is not a DocBin of spaCy .*; write it with spaCy's DocBin.to_disk"
    with pytest.raises(DataError, match=problem) as caught:
        list(read_docbin(path))
    assert caught.value.exit_code == 3


def test_the_size_limit_is_for_the_unpacked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.spacy"
    content = DocBin(docs=[doc_of("Ada left")]).to_bytes()
    unpacked = len(zlib.decompress(content))
    path.write_bytes(content)
    monkeypatch.setattr("nlptasks.data.docbin.MAX_UNPACKED_BYTES", unpacked)
    assert [row.fields["text"] for row in read_docbin(path)] == ["Ada left"]
    monkeypatch.setattr("nlptasks.data.docbin.MAX_UNPACKED_BYTES", unpacked - 1)
    with pytest.raises(DataError, match=r"a\.spacy: unpacks to more than 0 MiB; split it into several files"):
        list(read_docbin(path))
    path.write_bytes(zlib.compress(bytes(2**24)))  # a bomb of 16 MiB in 16 KiB
    monkeypatch.setattr("nlptasks.data.docbin.MAX_UNPACKED_BYTES", 2**20)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.spacy: unpacks to more than 1 MiB"):
        list(read_docbin(path))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def run(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_training_evaluation_and_prediction_on_docbins(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
    docs = []
    for row in read_conll(conll_data / "train.conll"):
        words, tags = row.fields["tokens"], row.fields["tags"]
        mood = {"up": float("Ada" in words), "down": float("Ada" not in words)}
        doc = Doc(NLP.vocab, words=words, ents=tags)
        doc.cats = mood
        docs.append(doc)
    for part in ("train", "dev"):
        DocBin(docs=docs).to_disk(tmp_path / f"{part}.spacy")
    options = ["--backbone", backbones / "bert", "--epochs", 30, "--lr", "3e-3", "--batch-tokens", 128]
    run("train", f"ner={tmp_path}", f"classification={tmp_path}", "-o", tmp_path / "model", *options)
    measured = run("evaluate", tmp_path / "model", f"ner={tmp_path}", f"classification={tmp_path}", "--json")
    assert measured.count('"main_metric"') == 2
    assert float(measured.partition('"f1": ')[2].partition(",")[0]) > 0.5
    answered = run("predict", tmp_path / "model", "--input", tmp_path / "dev.spacy", "--json")
    assert len(answered.splitlines()) == len(docs)
