"""spaCy's DocBin files as data: entities and categories, for training, evaluation and prediction."""

from __future__ import annotations

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
    """A document with gold annotations."""
    doc = NLP.make_doc(text)
    if ents is not None:
        doc.ents = [doc.char_span(start, end, label=label) for start, end, label in ents]
    doc.cats = cats or {}
    return doc


def rows(path: Path, *docs: Doc) -> list[dict[str, Any]]:
    """What is read of these documents."""
    DocBin(docs=docs).to_disk(path)
    found = list(read_docbin(path))
    assert [row.where for row in found] == [f"{path}:{number}" for number in range(1, len(docs) + 1)]
    return [dict(row.fields) for row in found]


def test_entities_are_spans_of_the_very_text(tmp_path: Path) -> None:
    text = "Ada  Smith saw\nRome\u00a0\U0001f600."
    found = rows(tmp_path / "a.spacy", doc_of(text, ents=[(0, 10, "PER"), (15, 19, "LOC")]), doc_of("none", ents=[]))
    assert found == [
        {"text": text, "spans": [[0, 10, "PER"], [15, 19, "LOC"]]},
        {"text": "none", "spans": []},
    ]


def test_what_is_not_annotated_has_no_gold(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.spacy", doc_of("Ada")) == [{"text": "Ada"}]


def test_categories_are_a_label_or_several(tmp_path: Path) -> None:
    one = [doc_of("a", cats={"x": 1.0, "y": 0.0}), doc_of("b", cats={"x": 0.0, "y": 1.0}), doc_of("c")]
    assert [row.get("label") for row in rows(tmp_path / "one.spacy", *one)] == ["x", "y", None]
    several = [*one, doc_of("d", cats={"x": 1.0, "y": 1.0}), doc_of("e", cats={"x": 0.0, "y": 0.0})]
    found = rows(tmp_path / "several.spacy", *several)
    assert [row.get("labels") for row in found] == [["x"], ["y"], None, ["x", "y"], []]
    assert not any("label" in row for row in found)


def test_documents_of_which_not_all_is_known_are_refused(tmp_path: Path) -> None:
    doc = NLP.make_doc("Ada saw Bob")
    doc.set_ents([doc.char_span(0, 3, label="PER")], default="missing")
    with pytest.raises(DataError, match=r"a\.spacy:1: has tokens of which is not known .*; annotate all of it"):
        rows(tmp_path / "a.spacy", doc)


@pytest.mark.parametrize("content", [b"", b"no DocBin", b"\x78\x9c\x03\x00\x00\x00\x00\x01"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.spacy"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"a\.spacy: is no DocBin of spaCy .*; write it with spaCy's DocBin.to_disk"
    ) as caught:
        list(read_docbin(path))
    assert caught.value.exit_code == 3


def run(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_models_are_trained_measured_and_asked_with_docbins(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
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
