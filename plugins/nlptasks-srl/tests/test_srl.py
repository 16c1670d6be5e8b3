"""Semantic role labelling: the contract of heads, rows, clauses in windows, frames and metrics."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nlptasks_srl import Argument, Frame, SrlConfig, SrlHead, read_columns
from nlptasks_srl.marking import mark, sentences
from nlptasks_srl.scoring import argument_counts, srl_scores

from nlptasks import (
    ENCODER,
    FIRST,
    IGNORED,
    SPECIAL,
    BackboneInfo,
    DataError,
    HeadOutputs,
    LabelledSpan,
    Row,
    UsageError,
    Window,
    fit_temperature,
    join_words,
    merge,
    sample_folder,
    tag_set,
    words,
)
from nlptasks.testing import Conformance

ROLES = ["A0", "A1", "AM-TMP", "C-A1", "C-V", "V"]
CONFIG = SrlConfig(tags=tag_set(ROLES, "iob2"), forms=("gave", "left", "sang"))
CLASS = {tag: index for index, tag in enumerate(CONFIG.tags)}


class TestSrl(Conformance):
    task = "srl"


BACKBONE = BackboneInfo(
    "bert", None, ENCODER, width=8, max_tokens=64, positions=64, vocabulary_size=9, token_types=2, pad_id=0
)


def make_head(config: SrlConfig = CONFIG) -> SrlHead:
    return SrlHead(config, BACKBONE)


def configured(rows: list[Row], **options: Any) -> SrlConfig:
    return SrlHead.configure(rows, SrlConfig(**options), BACKBONE)


@pytest.fixture(scope="module")
def head() -> SrlHead:
    return make_head()


def row(**fields: Any) -> Row:
    return Row(fields, "data.jsonl:7")


def windows_of(text: str, room: int = 1000, step: int = 1000) -> list[Window]:
    """Return windows of at most `room` tokens: each token is half a word or a short word, between two special tokens."""
    pieces = [match.span() for match in re.finditer(r"\w{1,3}|[^\w\s]", text)]
    starts = [start for start in range(0, len(pieces), step) if not start or start + room - step < len(pieces)]
    found = []
    for start in starts:
        own = pieces[start : start + room]
        size = len(own) + 2
        found.append(
            Window(
                ids=np.arange(size),
                types=np.zeros(size, np.int64),
                parts=np.array([SPECIAL, *[FIRST] * len(own), SPECIAL]),
                offsets=np.array([(0, 0), *own, (0, 0)]),
                opens=start == 0,
                closes=start + room >= len(pieces),
                begin=start,
            )
        )
    return found


def outputs_of(windows: Iterable[Window], labels: Iterable[np.ndarray], sure: float = 30.0) -> list[dict[str, Any]]:
    """Return logits with which each token has its label, O if the label is ignored."""
    found = []
    for window, own in zip(windows, labels, strict=True):
        logits = np.zeros((len(window), len(CLASS)), np.float32)
        logits[np.arange(len(window)), np.maximum(own, 0)] = sure
        found.append({"logits": logits})
    return found


def oracle(
    head: SrlHead, example: Any, tags: Iterable[list[str]], *, room: int = 1000, step: int = 1000
) -> list[Frame]:
    """Return what is decoded if every word of each clause gets its tag."""
    all_windows, all_labels = [], []
    for clause, own in zip(example.clauses, tags, strict=True):
        windows = windows_of(clause.source, room, step)
        classes = np.array([CLASS[tag] for tag in own])
        gold = replace(example, clauses=(clause,), classes=classes)
        all_windows += windows
        all_labels += [head.targets(gold, window)["labels"] for window in windows]
    return head.decode(example, all_windows, outputs_of(all_windows, all_labels))


def plain(frames: Iterable[Frame]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(frame.predicate, [(one.role, one.text) for one in frame.arguments]) for frame in frames]


# Column files

CONLL_2005 = """\
Ada    NNP  (S(NP*)  -     (A0*)  *
gave   VBD  (VP*     give  (V*)   *
Bob    NNP  (NP*)    -     (A2*)  (A0*)
what   WP   *        -     (A1*   (A1*)
left   VBD  *        leave *)     (V*)
.      .    *))      -     *      *

He  PRP  *  -
sat VBD  *  -

The   DT   *  -     (A1*
left  JJ   *  -     *
hand  NN   *  -     *)
sang  VBD  *  sing  (V*)
"""

CONLL_2012 = """\
#begin document (bn/abc/00/abc_0001); part 000
bn/abc/00/abc_0001  0  0  She    PRP  (TOP(S*  -      -   -  spk  *        (ARG0*)      *         (0)
bn/abc/00/abc_0001  0  1  was    VBD  *        be     01  1  spk  *        (ARGM-ADJ*   *         -
bn/abc/00/abc_0001  0  2  made   VBN  *        make   02  1  spk  *        *)           (V*)      -
bn/abc/00/abc_0001  0  3  happy  JJ   *))      happy  -   -  spk  (DATE*)  (V*)         (ARG1*)   -

#end document
"""


def written(path: Path, text: str, *, name: str = "train.conll") -> Path:
    (path / name).write_text(text, encoding="utf-8")
    return path / name


def read_all(path: Path) -> list[Row]:
    def refuse(error: DataError) -> None:
        raise error

    return list(read_columns(path, refuse))


def test_rows_of_conll_2005(tmp_path: Path) -> None:
    rows = read_all(written(tmp_path, CONLL_2005))
    first, hand = ["Ada", "gave", "Bob", "what", "left", "."], ["The", "left", "hand", "sang"]
    assert [dict(one.fields) for one in rows] == [
        {"tokens": first, "predicate": 1, "tags": ["B-A0", "B-V", "B-A2", "B-A1", "I-A1", "O"]},
        {"tokens": first, "predicate": 4, "tags": ["O", "O", "B-A0", "B-A1", "B-V", "O"]},
        {"tokens": hand, "predicate": 1, "tags": ["O"] * 4},
        {"tokens": hand, "predicate": 3, "tags": ["B-A1", "I-A1", "I-A1", "B-V"]},
    ]
    assert [one.where.rpartition(":")[2] for one in rows] == ["2", "5", "12", "14"]
    assert rows[-1].lines == (11, 12, 13, 14)


def test_rows_of_conll_2012_under_any_file_name(tmp_path: Path) -> None:
    rows = read_all(written(tmp_path, CONLL_2012, name="train.txt"))
    tokens = ["She", "was", "made", "happy"]
    assert [dict(one.fields) for one in rows] == [
        {"tokens": tokens, "predicate": 2, "tags": ["O", "O", "B-V", "B-ARG1"]},
        {"tokens": tokens, "predicate": 3, "tags": ["B-ARG0", "B-ARGM-ADJ", "I-ARGM-ADJ", "B-V"]},
    ]
    assert rows[0].where.endswith("train.txt:4")


def test_tabs_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    spaced = read_all(written(tmp_path, CONLL_2005))
    path = tmp_path / "other.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + re.sub(" +", "\t", CONLL_2005).replace("\n", "\r\n").encode())
    assert [one.fields for one in read_all(path)] == [one.fields for one in spaced]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a be (V*)\nb - (A0*\nc - *\n", 2, "column 3 opens A0, which is not closed in its sentence; close it"),
        ("a - (A0*)\nb be (V*)\nc - *)\n", 3, "column 3 closes a role, and none is open; remove the bracket"),
        ("a - (A0*))\nb be (V*)\n", 1, "column 3 closes a role, and none is open"),
        ("a - (A0*\nb be (V*)\nc - *)\n", 2, "column 3 opens V within A0, which is open since line 1; close"),
        ("a - (A0(A1*))\nb be (V*)\n", 1, "column 3 opens A1 within A0, which is open since line 1"),
        ("a - (A0*A0)\nb be (V*)\n", 1, "column 3 is '(A0*A0)', expected roles; write *, (ROLE*, *) or (ROLE*)"),
        ("a - A0\nb be (V*)\n", 1, "column 3 is 'A0', expected roles"),
        ("a - (A0*)\nb be (V*) *\n", 2, "has 4 columns, expected 3 as in the first line of its sentence; correct"),
        ("a see (A0*)\nb be (V*)\n", 1, "names 2 predicates in column 2 (see, be) and has 1 columns of roles; write"),
        ("a - (A0*) *\nb be (V*) *\n", 1, "names 1 predicates in column 2 (be) and has 2 columns of roles"),
        ("a - (A0*)\nb be *\n", 1, "column 3 has 0 times the role V, expected one predicate; write (V*) at"),
        ("a - (V*)\nb be (V*)\n", 2, "column 3 has 2 times the role V"),
        (
            "a - (V*)\nb be *\n",
            1,
            "column 3 has (V* here, but belongs to 'be' in line 2; write the columns in the order",
        ),
        ("a see *\nb - (V*)\n", 2, "column 3 has (V* here, but belongs to 'see' in line 1"),
        ("- (A0*)\nbe (V*)\n", 1, "has 1 columns before those of roles, expected words and predicates; put the words"),
        (CONLL_2012.replace("(V*)  ", "*     "), 2, "column 12 has 0 times the role V"),
    ],
)
def test_errors_in_a_column_file_name_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"train.conll:{line}: {message}")):
        read_all(written(tmp_path, text))


def test_an_error_goes_to_on_error_once_and_the_next_sentence_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_bytes(b"a - *)\nb be (V*)\n\n\xff\n\n" + CONLL_2005.encode())
    errors: list[DataError] = []
    assert len(list(read_columns(path, errors.append))) == 4
    assert [error.where.rpartition(":")[2] for error in errors] == ["1", "4"]
    assert "byte 0xff at column 1 is not UTF-8" in errors[1].problem


@st.composite
def role_spans(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, str]]]:
    """Draw the number of words of a sentence, and roles that do not overlap, one of them V."""
    count = draw(st.integers(1, 12))
    edges = sorted(draw(st.sets(st.integers(0, count), min_size=2)) if count > 1 else {0, 1})
    spans = list(itertools.pairwise(edges))
    own = draw(st.integers(0, len(spans) - 1))
    kept = [span for number, span in enumerate(spans) if number == own or draw(st.booleans())]
    role = st.sampled_from(["A0", "A1", "R-A0", "C-A1", "AM-TMP"])
    return count, [(*span, "V" if span == spans[own] else draw(role)) for span in kept]


@given(role_spans())
def test_roles_written_as_brackets_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, given: tuple[int, list[tuple[int, int, str]]]
) -> None:
    count, spans = given
    opening = {start: f"({role}" for start, _, role in spans}
    closing = {end - 1 for _, end, _ in spans}
    [predicate] = [start for start, _, role in spans if role == "V"]
    lines = [
        f"w{at} {'be' if at == predicate else '-'} {opening.get(at, '')}*{')' if at in closing else ''}"
        for at in range(count)
    ]
    [found] = read_all(written(tmp_path_factory.getbasetemp(), "\n".join(lines)))
    expected = ["O"] * count
    for start, end, role in spans:
        expected[start:end] = [f"B-{role}", *[f"I-{role}"] * (end - start - 1)]
    assert found.fields["tags"] == expected
    assert found.fields["predicate"] == predicate


# Rows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"words": ["a"]}, "has neither 'tokens' nor 'text', only words; name the column"),
        ({"tokens": ["a", "b"], "tags": ["O"], "predicate": 0}, "has 2 tokens and 1 tags"),
        ({"tokens": ["a"], "tags": ["B-V"]}, "has no 'predicate', only tokens, tags; write the index of its word"),
        ({"tokens": ["a"], "tags": ["B-V"], "predicate": None}, "has no 'predicate'"),
        ({"tokens": ["a"], "tags": ["B-V"], "predicate": 1}, "predicate has 1, and the row has 1 words"),
        ({"tokens": ["a"], "tags": ["B-V"], "predicate": -1}, "predicate has -1, and the row has 1 words"),
        ({"tokens": ["a"], "tags": ["B-V"], "predicate": True}, "predicate has True, expected a whole number"),
        ({"tokens": ["a"], "tags": ["B-V"], "predicate": "a"}, "predicate has 'a', expected a whole number"),
        ({"tokens": ["a"], "tags": ["B-V"], "predicates": [0]}, "has tags and 'predicates'; write a row for each"),
        ({"tokens": ["a", "b"], "tags": ["B-V", "O"], "predicate": 1}, "has B-V at 0, expected it at its predicate"),
        ({"tokens": ["a", "b"], "tags": ["B-A0", "O"], "predicate": 1}, "has no B-V, expected it at its predicate"),
        ({"tokens": ["a", "b"], "tags": ["B-V", "B-V"], "predicate": 1}, "has B-V at 0, 1, expected it"),
        ({"tokens": ["a", "b"], "tags": ["B-V", "I-A0"], "predicate": 0}, "tag 'I-A0' after 'B-V', which is illegal"),
        ({"tokens": ["a", "b"], "tags": ["B-V", "B-A3"], "predicate": 0}, "role 'A3' is not in the training data"),
        ({"tokens": ["a"], "predicates": [1]}, "predicates has 1, and the row has 1 words"),
        ({"text": "a", "predicates": 0}, "predicates is 0, expected a list of numbers"),
        ({"text": "a", "predicates": [0], "predicate": 0}, "has 'predicate' and 'predicates'; keep one"),
        ({"text": 5}, "text is 5, expected a string"),
    ],
)
def test_wrong_rows_are_refused(head: SrlHead, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"data.jsonl:7: {message}")):
        head.read(row(**fields))


def test_the_error_of_a_tag_names_its_own_line(head: SrlHead) -> None:
    fields = {"tokens": ["a", "b", "c"], "tags": ["B-V", "O", "B-X"], "predicate": 0}
    with pytest.raises(DataError, match=r"train\.conll:12: role 'X'"):
        head.read(Row(fields, "train.conll:10", (10, 11, 12)))


def test_rows_of_tables_hold_text(head: SrlHead) -> None:
    given = head.read(row(tokens=["Ada", "left"], tags=["B-A0", "B-V"], predicate=1))
    table = head.read(row(tokens="Ada left", tags="B-A0 B-V", predicate="1"))
    assert (given.gold, given.text) == (table.gold, table.text) == (((0, 1, "A0"), (1, 2, "V")), "Ada left")
    named = [head.read(row(tokens="Ada left", predicates=value)) for value in ("0 1", "[1, 0]", [1, 0, 1])]
    assert [[clause.at for clause in one.clauses] for one in named] == [[0, 1]] * 3


def test_words_are_read_instead_of_the_text_if_a_predicate_is_named(head: SrlHead) -> None:
    both = {"text": "Ada left.", "tokens": ["Ada", "left", "."]}
    assert head.read(row(**both)).text == "Ada left."
    assert head.read(row(**both, predicate=1)).text == "Ada left ."


def test_training_rows_decide_roles_forms_and_weights() -> None:
    rows = [
        row(tokens=["Ada", "Left", "it"], tags=["B-A0", "B-V", "B-A1"], predicate=1),
        row(tokens=["A", "very", "left", "hand"], tags=["O"] * 4, predicate=2),
        row(tokens=["Bob", "Ray", "sang"], tags=["B-A0", "I-A0", "B-V"], predicate=2),
    ]
    config = configured(rows, class_weights="balanced")
    assert config.forms == ("left", "sang")
    assert config.tags == ("O", "B-A0", "I-A0", "B-A1", "I-A1", "B-V", "I-V")
    # 10 words of 4 roles: O 4, A0 3, A1 1, V 2
    assert config.weights == pytest.approx([10 / 16, 10 / 12, 10 / 12, 10 / 4, 10 / 4, 10 / 8, 10 / 8])
    assert make_head(config).presenter.labels == ("A0", "A1")
    with pytest.raises(DataError, match=r"data\.jsonl: no row has a predicate; write B-V"):
        configured(rows[1:2])
    with pytest.raises(UsageError, match=r"^class_weights: has the unknown label 'A7'"):
        configured(rows, class_weights={"A7": 2})


@pytest.mark.parametrize("markers", ["", "[", "[ ] ]", "[ \u200b"])
def test_markers_are_two_words(markers: str) -> None:
    with pytest.raises(UsageError, match=r"markers: .*set two words"):
        SrlConfig(markers=markers)


def test_training_without_rejected_candidates_warns(caplog: pytest.LogCaptureFixture) -> None:
    right = row(tokens=["left"], tags=["B-V"], predicate=0)
    wrong = row(tokens=["left"], tags=["O"], predicate=0)
    with caplog.at_level(logging.WARNING, "nlptasks"):
        configured([right, wrong])
        assert not caplog.messages
        configured([right])
    [message] = caplog.messages
    assert message.startswith("no training row has a word that is no predicate (all tags O)")


# Clauses


@given(st.lists(st.text("ab.\u00e9\u65e5", min_size=1, max_size=3), min_size=1, max_size=8), st.data())
def test_a_marked_word_is_between_the_markers_and_all_words_keep_their_characters(
    given_words: list[str], data: st.DataObject
) -> None:
    text, places = join_words(given_words)
    at = data.draw(st.integers(0, len(given_words) - 1))
    marked, moved = mark(text, places, at, ("[", "]"))
    assert [marked[start:end] for start, end in moved] == given_words
    assert marked.replace(f"[ {given_words[at]} ]", given_words[at]) == text
    assert marked[: moved[at][0]].endswith("[ ")
    assert marked[moved[at][1] :].startswith(" ]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("One", ["One"]),
        ("Mr. Ray left. Ada sang! Who?", ["Mr. Ray left.", "Ada sang!", "Who?"]),
        ('"Go!" he said. "No." "Yes."', ['"Go!" he said.', '"No."', '"Yes."']),
        ("He left (at 5.) She sang...and slept", ["He left (at 5.)", "She sang...and slept"]),
        ("A title\n\nA line\nand more", ["A title", "A line\nand more"]),
        ("\u4ed6\u8d70\u3002\u6211\u5531\u3002", ["\u4ed6\u8d70\u3002", "\u6211\u5531\u3002"]),
    ],
)
def test_texts_are_split_into_sentences(text: str, expected: list[str]) -> None:
    places = words(text)
    assert [text[places[first][0] : places[last - 1][1]] for first, last in sentences(text, places)] == expected


def test_given_words_are_one_sentence_without_spaces_in_scripts_without_spaces(head: SrlHead) -> None:
    example = head.read(row(tokens=["\u4ed6", "\u8d70", ".", "Ok", "\u3002"], predicates=[1]))
    assert [one.texts for one in head.inputs(example)] == [("\u4ed6[ \u8d70 ] . Ok \u3002",)]
    assert example.text == "\u4ed6 \u8d70 . Ok \u3002"


LONG = [f"word{number}" for number in range(40)]


@pytest.mark.parametrize(
    ("at", "seen", "unseen"), [(0, [3, 18], [19, 30]), (17, [2, 7, 20, 30], [38]), (39, [36], [10, 28])]
)
def test_words_of_a_long_sentence_have_roles_in_windows_with_its_predicate(
    head: SrlHead, at: int, seen: list[int], unseen: list[int]
) -> None:
    tags = ["B-V" if word == at else "B-A0" if word in [*seen, *unseen] else "O" for word in range(len(LONG))]
    example = head.read(row(tokens=LONG, tags=tags, predicate=at))
    [clause] = example.clauses
    windows = windows_of(clause.source, room=40, step=30)  # of 82 tokens, two for each word
    assert [(window.opens, window.closes) for window in windows] == [(True, False), (False, False), (False, True)]
    for room, step, expected in ((1000, 1000, sorted([*seen, *unseen])), (40, 30, seen)):
        found = oracle(head, example, [tags], room=room, step=step)
        assert plain(found) == [(LONG[at], [("A0", LONG[word]) for word in expected])]
    for window in windows:
        labels = head.targets(example, window)["labels"]
        shown, tokens = clause.shows(window)
        assert [CLASS[tags[word]] for word in shown] == labels[tokens].tolist()
        assert (labels != IGNORED).sum() == len(shown)
        assert at in shown or not len(shown)


def test_a_word_is_read_in_the_window_where_it_is_farthest_from_a_cut(head: SrlHead) -> None:
    tags = ["B-V" if word == 17 else "O" for word in range(len(LONG))]
    example = head.read(row(tokens=LONG, tags=tags, predicate=17))
    windows = windows_of(example.clauses[0].source, room=40, step=30)[:2]  # words 0 to 18, and 15 to 33
    labels = [head.targets(example, window)["labels"] for window in windows]
    for window, own, role in zip(windows, labels, ("A0", "A1"), strict=True):
        shown, tokens = example.clauses[0].shows(window)
        own[tokens[(shown == 15) | (shown == 18)]] = CLASS[f"B-{role}"]
    found = head.decode(example, windows, outputs_of(windows, labels))
    assert plain(found) == [(LONG[17], [("A0", LONG[15]), ("A1", LONG[18])])]


# Results


def test_frames_have_the_offsets_of_the_text(head: SrlHead) -> None:
    text = "Ada  gave it up.\n\nThen Bob left, she sang\u2014twice!"
    example = head.read(row(text=text))
    assert [text for one in head.inputs(example) for text in one.texts] == [
        "Ada  [ gave ] it up.",
        "Then Bob [ left ], she sang\u2014twice!",
        "Then Bob left, she [ sang ]\u2014twice!",
    ]
    tags = [
        ["B-A0", "B-V", "B-A1", "B-C-V", "O"],
        ["B-AM-TMP", "B-A0", "B-V", "O", "O", "O", "O", "O", "O"],
        ["B-AM-TMP", "O", "O", "O", "B-A0", "B-V", "I-V", "I-V", "O"],
    ]
    found = oracle(head, example, tags)
    assert plain(found) == [
        ("gave", [("A0", "Ada"), ("A1", "it"), ("C-V", "up")]),
        ("left", [("AM-TMP", "Then"), ("A0", "Bob")]),
        ("sang\u2014twice", [("AM-TMP", "Then"), ("A0", "she")]),
    ]
    for one in [*found, *(argument for frame in found for argument in frame.arguments)]:
        assert text[one.start : one.end] == (one.predicate if isinstance(one, Frame) else one.text)
        assert one.score == pytest.approx(1.0)
    assert head.presenter.render(example, found[:2]) == [
        ("", ""),
        ("Ada", "A0"),
        ("  ", ""),
        ("gave", "V"),
        (" ", ""),
        ("it", "A1"),
        (" ", ""),
        ("up", "C-V"),
        (".", ""),
        (" | ", ""),
        ("", ""),
        ("Then", "AM-TMP"),
        (" ", ""),
        ("Bob", "A0"),
        (" ", ""),
        ("left", "V"),
        (", she sang\u2014twice!", ""),
    ]


def test_words_that_were_no_predicate_in_training_are_found_only_if_named(head: SrlHead) -> None:
    assert head.read(row(text="Ada wept and LEFT.")).clauses[0].at == 3
    assert head.inputs(head.read(row(text="Ada wept."))) == []
    assert head.decode(head.read(row(text="Ada wept.")), [], []) == []
    named = head.read(row(text="Ada wept.", predicates=[1]))
    assert plain(oracle(head, named, [["B-A0", "B-V", "O"]])) == [("wept", [("A0", "Ada")])]


def with_chance(head: SrlHead, example: Any, chance: float) -> list[Frame]:
    """Return what is decoded of ``Ada left`` if its predicate has this probability, and O has the rest."""
    [window] = windows_of(example.clauses[0].source)
    logits = np.full((len(window), len(CLASS)), -40.0, np.float32)
    logits[:, CLASS["O"]] = np.log(1 - chance)
    logits[:, CLASS["B-V"]] = np.log(chance)
    logits[1] = -40.0
    logits[1, [CLASS["B-V"], CLASS["B-A0"]]] = np.log([0.7, 0.3])  # no other word begins V, whatever its score
    return head.decode(example, [window], [{"logits": logits}])


def test_candidates_are_accepted_by_the_threshold_and_named_predicates_always_have_a_frame(head: SrlHead) -> None:
    found, named = (
        head.read(row(**fields)) for fields in ({"text": "Ada left"}, {"text": "Ada left", "predicates": [1]})
    )
    assert with_chance(head, found, 0.49) == []
    [frame] = with_chance(head, found, 0.51)
    assert frame == Frame("left", 4, 8, pytest.approx(0.51), (Argument("Ada", "A0", 0, 3, pytest.approx(0.3)),))
    [frame] = with_chance(head, named, 0.01)
    assert (frame.score, plain([frame])) == (pytest.approx(0.01), [("left", [("A0", "Ada")])])
    strict = make_head(replace(CONFIG, threshold=0.9))
    assert with_chance(strict, found, 0.51) == []


def test_a_fitted_temperature_lowers_the_scores_of_a_head_that_is_often_wrong(head: SrlHead) -> None:
    example = head.read(row(tokens=["Ada", "left"], tags=["B-A0", "B-V"], predicate=1))
    windows = windows_of(example.clauses[0].source)
    labels = [head.targets(example, window)["labels"] for window in windows]
    wrong = [np.where(own == CLASS["B-A0"], CLASS["B-A1"], own) for own in labels]
    read = [HeadOutputs(example, windows, outputs_of(windows, own, sure=8.0)) for own in [labels, wrong] * 30]
    likelihood = head.calibration.likelihood(read)
    assert likelihood.logits.shape == (2 * len(read), len(CLASS))
    temperature = fit_temperature(likelihood)
    assert temperature > 1.5
    warm = make_head(replace(CONFIG, temperature=temperature))
    [cold], [frame] = (one.decode(example, windows, read[0].outputs) for one in (head, warm))
    assert frame.arguments[0].score < cold.arguments[0].score
    assert head.calibration.confidences(example, [cold]) == [(cold.score, True), (cold.arguments[0].score, True)]


def test_spacy_documents_have_the_frames_as_plain_data() -> None:
    doc = SimpleNamespace(_=SimpleNamespace(frames=None))
    frame = Frame("left", 4, 8, 0.5, (Argument("Ada", "A0", 0, 3, 0.25),))
    SrlHead.spacy.write(doc, [frame], "srl")
    argument = {"text": "Ada", "role": "A0", "start": 0, "end": 3, "score": 0.25}
    assert doc._.frames == [{"predicate": "left", "start": 4, "end": 8, "score": 0.5, "arguments": [argument]}]
    assert json.loads(json.dumps(doc._.frames)) == doc._.frames
    SrlHead.spacy.write(doc, [], "another")
    assert doc._.frames[0]["arguments"] == [asdict(frame.arguments[0])]


# Metrics


def answer(text: str, predicate: str, arguments: dict[str, str], score: float = 1.0) -> list[Frame]:
    found = [Argument(own, role, text.index(own), text.index(own) + len(own), 1.0) for own, role in arguments.items()]
    start = text.index(predicate)
    return [Frame(predicate, start, start + len(predicate), score, tuple(sorted(found, key=lambda one: one.start)))]


def metrics_of(head: SrlHead, examples: Sequence[Any], results: Sequence[list[Frame]]) -> dict[str, float]:
    metrics = head.metrics(merge(map(head.count, examples, results)))
    assert (metrics.main, metrics.scale) == ("f1", 1.0)
    return dict(metrics.values)


def test_metrics_count_arguments_but_not_the_predicate(head: SrlHead) -> None:
    one = row(tokens="Ada gave it up today", tags="B-A0 B-V B-A1 B-C-V B-AM-TMP", predicate=1)
    two = row(tokens="the old man sang songs", tags="B-A0 I-A0 I-A0 B-V B-A1", predicate=3)
    none = row(tokens="the left hand", tags="O O O", predicate=1)
    taken = row(tokens="Ray left today", tags="O O O", predicate=1)
    examples = [head.read(given) for given in (one, two, none, taken)]
    results = [
        answer("Ada gave it up today", "gave", {"Ada": "A0", "it": "AM-TMP"}),  # 1 right, 1 wrong role, 1 missed
        answer("the old man sang songs", "sang", {"old man": "A0", "songs": "A1"}, score=0.4),  # 1 wrong edge, 1 right
        answer("the left hand", "left", {"hand": "A1"}, score=0.1),
        answer("Ray left today", "left", {"Ray": "A0"}, score=0.8),
    ]
    scores = metrics_of(head, examples[:2], results[:2])
    assert {name: scores[name] for name in ("precision", "recall", "f1", "support")} == pytest.approx(
        {"precision": 2 / 4, "recall": 2 / 5, "f1": 4 / 9, "support": 5}
    )
    assert scores["A0.f1"] == scores["A0.precision"] == 1 / 2
    assert (scores["A1.precision"], scores["A1.recall"], scores["A1.support"]) == (1, 1 / 2, 2)
    assert scores["AM-TMP.f1"] == 0
    assert not {"V.f1", "C-V.f1", "predicate_f1"} & set(scores)
    with_others = metrics_of(head, examples, results)  # of 2 predicates 1 is found, and 1 word is wrongly taken for one
    assert {name: with_others[name] for name in scores} == scores
    assert with_others["predicate_f1"] == with_others["predicate_precision"] == with_others["predicate_recall"] == 0.5


def test_metrics_of_rows_without_any_predicate(head: SrlHead) -> None:
    example = head.read(row(tokens="the left hand", tags="O O O", predicate=1))
    scores = metrics_of(head, [example], [answer("the left hand", "left", {}, score=0.8)])
    assert scores == dict.fromkeys(
        ("precision", "recall", "f1", "support", "predicate_f1", "predicate_precision", "predicate_recall"), 0.0
    )


def test_an_interrupted_argument_is_right_only_as_a_whole(head: SrlHead) -> None:
    text = "that Ada said was it"
    example = head.read(row(tokens=text, tags="B-A1 B-A0 B-V B-C-A1 I-C-A1", predicate=2))
    right = {"that": "A1", "Ada": "A0", "was it": "C-A1"}
    assert metrics_of(head, [example], [answer(text, "said", right)])["A1.support"] == 1
    assert metrics_of(head, [example], [answer(text, "said", right)])["f1"] == 1
    for wrong in ({"that": "A1"}, {"was it": "A1"}, {"that": "A1", "was": "C-A1"}, {"that": "A1", "was it": "A1"}):
        scores = metrics_of(head, [example], [answer(text, "said", wrong)])
        assert (scores["A1.f1"], scores["recall"]) == (0, 0)


def sentence_of(draw: st.DrawFn) -> list[LabelledSpan]:
    """Draw spans of words that do not overlap, with roles that continue others, themselves, or nothing."""
    roles = st.sampled_from(["A0", "A1", "C-A0", "C-A1", "R-A0", "C-R-A0", "V", "C-V", "C-C-A0"])
    edges = sorted(draw(st.sets(st.integers(0, 12), max_size=9)))
    return [(start, end, draw(roles)) for start, end in itertools.pairwise(edges) if draw(st.booleans())]


@st.composite
def answered(draw: st.DrawFn) -> tuple[list[LabelledSpan], list[LabelledSpan]]:
    """Draw gold spans, and predicted ones that share some of them."""
    gold, other = sentence_of(draw), sentence_of(draw)
    cut = draw(st.integers(0, 12))
    return gold, [span for span in gold if span[1] <= cut] + [span for span in other if span[0] >= cut]


def official_counts(gold: list[LabelledSpan], predicted: list[LabelledSpan]) -> dict[str, Counter[str]]:
    """Count right, missed and excess arguments by role: a transcript of the rules of ``srl-eval.pl``.

    From left to right, a phrase ``C-X`` is appended to the last argument X; if there is none, it becomes an argument X. Two
    arguments agree if role, first and last word agree and both are single phrases, or both have the same phrases.
    """

    def arguments(phrases: list[LabelledSpan]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for start, end, role in sorted(phrases):
            kind = role[2:] if role[:2] == "C-" else role
            latest = [one for one in found if one["type"] == kind]
            if role[:2] == "C-" and latest:
                latest[-1]["phrases"].append((start, end))
            else:
                found.append({"type": kind, "phrases": [(start, end)]})
        return found

    def agree(one: dict[str, Any], two: dict[str, Any]) -> bool:
        edges = [(own["phrases"][0][0], own["phrases"][-1][1]) for own in (one, two)]
        single = [len(own["phrases"]) == 1 for own in (one, two)]
        return (
            one["type"] == two["type"]
            and edges[0] == edges[1]
            and single[0] == single[1]
            and all(phrase in two["phrases"] for phrase in one["phrases"])
            and all(phrase in one["phrases"] for phrase in two["phrases"])
        )

    right, found = arguments(gold), arguments(predicted)
    ok, missed, excess = Counter[str](), Counter[str](), Counter[str]()
    for one in found:
        (ok if any(agree(one, two) for two in right) else excess)[one["type"]] += 1
    for one in right:
        missed[one["type"]] += not any(agree(one, two) for two in found)
    for counts in (ok, missed, excess):
        del counts["V"]
    return {"ok": ok, "missed": missed, "excess": excess}


@given(answered())
def test_arguments_are_counted_as_the_official_scorer_counts_them(
    case: tuple[list[LabelledSpan], list[LabelledSpan]],
) -> None:
    gold, predicted = case
    scores = srl_scores(argument_counts(gold, predicted))
    official = official_counts(gold, predicted)
    ok, missed, excess = (official[name].total() for name in ("ok", "missed", "excess"))
    precision, recall = ok / max(1, ok + excess), ok / max(1, ok + missed)
    assert scores["support"] == ok + missed
    assert scores["precision"] == pytest.approx(precision)
    assert scores["recall"] == pytest.approx(recall)
    assert scores["f1"] == pytest.approx(2 * precision * recall / (precision + recall) if ok else 0)
    for role in {*official["ok"], *official["missed"], *official["excess"]}:
        own, lost = official["ok"][role], official["missed"][role]
        if own + lost + official["excess"][role]:
            assert scores[f"{role}.support"] == own + lost
            assert scores[f"{role}.recall"] == pytest.approx(own / max(1, own + lost))
            assert scores[f"{role}.precision"] == pytest.approx(own / max(1, own + official["excess"][role]))


def test_the_sample_is_an_honest_test() -> None:
    parts = {part: read_all(sample_folder(SrlHead) / f"{part}.conll") for part in ("train", "dev", "test")}
    texts = {part: {" ".join(one.fields["tokens"]) for one in rows} for part, rows in parts.items()}
    assert {part: len(own) for part, own in texts.items()} == {"train": 84, "dev": 21, "test": 22}
    assert not texts["train"] & (texts["dev"] | texts["test"])
    assert not texts["dev"] & texts["test"]
    for rows in parts.values():
        negatives = [one for one in rows if set(one.fields["tags"]) == {"O"}]
        assert len(negatives) >= 5
        for one in rows:  # the words are those that are found in a text
            text, places = join_words(one.fields["tokens"])
            assert words(text) == places
