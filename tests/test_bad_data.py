"""Bad data files are refused with file and line; everything else is kept exactly as it is."""

from __future__ import annotations

import bz2
import csv
import io
import lzma
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlptasks.backbones.info import ENCODER, BackboneInfo
from nlptasks.data import datasets as data_module
from nlptasks.data.datasets import load_data
from nlptasks.data.encoding import MAX_LINE_BYTES
from nlptasks.data.readers import TABLES, TEXTS, read_conll, read_csv, read_file, read_jsonl, read_text, read_tsv
from nlptasks.errors import DataError, DataErrors, each
from nlptasks.heads.base import read_gold
from nlptasks.heads.ner import NerConfig, NerHead
from nlptasks.types import Row

MARK = b"\xef\xbb\xbf"
UTF16_LE, UTF16_BE = b"\xff\xfe", b"\xfe\xff"
UTF32_LE, UTF32_BE = b"\xff\xfe\0\0", b"\0\0\xfe\xff"


def written(place: Path, name: str, content: bytes | str) -> Path:
    path = place / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fields_of(reader: Callable[[Path], Any], path: Path) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in reader(path)]


def failure(function: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    return str(caught.value)


def read_all(reader: Callable[[Path], Any], path: Path) -> list[Row]:
    return list(reader(path))


# Files: missing, empty, in another encoding or format.


def test_the_error_for_a_missing_file_names_the_current_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path / "folder.csv"):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        message = failure(lambda path=path: list(read_file(path, TABLES, {})))
        assert message == f"{path}: is no file (looked in {Path.cwd()}); check the path"
    assert "is no file (looked in" in failure(load_data, tmp_path / "none.csv", TABLES, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, "train.csv", "a\nb\n")
    path.chmod(0)
    assert "cannot be read" in failure(load_data, path, TABLES, {})


@pytest.mark.parametrize("content", ["", "a,b\n", "\n\n\r\n", MARK])
def test_a_file_without_rows_has_no_examples(tmp_path: Path, content: bytes | str) -> None:
    assert "train.csv: has no examples" in failure(load_data, written(tmp_path, "train.csv", content), TABLES, {})


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        (read_csv, b"text,label\na,b\n\nc,d\n"),
        (read_jsonl, b'{"text": "a"}\n\n{"text": "b"}\n'),
        (read_conll, b"a\tO\n\nb\tO\n"),
        (read_text, b"a\nb\n"),
    ],
)
def test_a_byte_order_mark_changes_nothing(tmp_path: Path, reader: Callable, content: bytes) -> None:
    plain, marked = (read_all(reader, written(tmp_path, "a.txt", mark + content)) for mark in (b"", MARK))
    assert plain == marked


def test_a_byte_of_another_encoding_has_its_line_and_column(tmp_path: Path) -> None:
    for reader, content in ((read_csv, b"text\ncaf\xe9\n"), (read_tsv, b"text\ncaf\xe9\n"), (read_text, b"\ncaf\xe9")):
        message = failure(read_all, reader, written(tmp_path, "a.csv", content))
        assert "a.csv:2: byte 0xe9 at column 4 is not UTF-8; convert the file, for example: iconv -f LATIN1" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (UTF16_LE + "text\na\n".encode("utf-16-le"), "is UTF-16, expected text in UTF-8; convert it: iconv -f UTF-16"),
        (UTF16_BE + "text\na\n".encode("utf-16-be"), "is UTF-16, expected"),
        (UTF32_LE + "text\na\n".encode("utf-32-le"), "is UTF-32, expected"),
        (UTF32_BE + "text\na\n".encode("utf-32-be"), "is UTF-32, expected"),
        ("text\na\n".encode("utf-16-le"), "is UTF-16LE, expected text in UTF-8; convert it: iconv -f UTF-16LE"),
        ("text\na\n".encode("utf-16-be"), "is UTF-16BE"),
        ("text\na\n".encode("utf-32-le"), "is UTF-32LE"),
        ("text\na\n".encode("utf-32-be"), "is UTF-32BE"),
        (
            b"PK\x03\x04" + bytes(40),
            "is a zip archive or an Excel workbook, expected text in UTF-8; unpack it, or save",
        ),
        (b"\xd0\xcf\x11\xe0" + bytes(40), "is an old Excel workbook"),
        (b"PAR1\x15\x04\x15", "is Parquet, expected text in UTF-8; write its rows as JSON Lines"),
        (bz2.compress(b"text\na\n"), "is bzip2, expected text in UTF-8; unpack it with bunzip2"),
        (lzma.compress(b"text\na\n"), "is xz, expected"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is zstd, expected"),
    ],
)
def test_other_encodings_and_formats_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("a.csv", "a.other"):  # the format says more than an unknown suffix
        path = written(tmp_path, name, content)
        assert f"{path}: {message}" in failure(lambda path=path: list(read_file(path, TEXTS, {})))


def test_texts_that_look_like_formats_are_texts(tmp_path: Path) -> None:
    for text in ("PAR1 is a gene", "BZh is short", "a\0b", "PK"):
        assert fields_of(read_text, written(tmp_path, "a.txt", text)) == [{"text": text}]


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "train.csv", "text\na\n")

    def slow(*arguments: Any, **options: Any) -> Any:
        yield from read_file(*arguments, **options)
        path.write_text("text\nb\n")

    before = load_data(path, TABLES, {}).files
    monkeypatch.setattr(data_module, "read_file", slow)
    assert "train.csv: changed while it was read; wait until" in failure(load_data, path, TABLES, {})
    monkeypatch.undo()
    assert load_data(path, TABLES, {}).files != before


# Values: kept as they are.


def test_values_are_kept_exactly(tmp_path: Path) -> None:
    values = [
        *("NA", "None", "null", "007", "1e5", "true", "", " a ", "a\0b", "\x1b[2Jred", "=1+1", "<b>", "\u202e"),
        *('"', 'say "x", y', "two\nlines", "two\r\nlines", "a\tb", "\u2028", "\x85", "\ufeff"),
    ]
    rows = "\r\n".join('"{}","{}"'.format(value.replace('"', '""'), "x") for value in values)
    found = fields_of(read_csv, written(tmp_path, "a.csv", f"text,label\r\n{rows}\r\n"))
    assert [row["text"] for row in found] == values
    assert {row["label"] for row in found} == {"x"}
    tabs = rows.replace('","x"', '"\t"x"')
    assert [row["text"] for row in fields_of(read_tsv, written(tmp_path, "a.tsv", f"text\tlabel\r\n{tabs}"))] == values


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"Hello" he said\tPOS\n', ['"Hello" he said']),  # a plain character in one field, so everywhere
        ('text\tlabel\n"Hello" he said\tPOS\n"so"\tPOS\n', ['"Hello" he said', '"so"']),
        ('text\tlabel\n"\tPUNCT\nso\tADV\n"\tPUNCT\n', ['"', "so", '"']),  # two tokens, not a field of three lines
        ('text\tlabel\n"so"\tPOS\na "b" c\tNEG\n', ["so", 'a "b" c']),
        ('text\tlabel\n"say ""so"""\tPOS\n', ['say "so"']),
        ('text\tlabel\n"two\nlines"\tPOS\n', ["two\nlines"]),
        ('text\tlabel\n"a\tb"\tPOS\n', ["a\tb"]),
        ('text\tlabel\n"\tPOS\n', ['"']),
        ('text\tlabel\n5" pipe\tPOS\n', ['5" pipe']),
    ],
)
def test_quotes_of_a_tsv_file_are_what_the_whole_file_says(tmp_path: Path, content: str, texts: list[str]) -> None:
    for ends in ("\n", "\r\n"):
        path = written(tmp_path, "a.tsv", content.replace("\n", ends))
        assert [row["text"] for row in fields_of(read_tsv, path)] == [text.replace("\n", ends) for text in texts]


def test_escapes_in_labels_stay_in_the_data() -> None:
    rows = [Row({"text": "Ada left", "spans": [[0, 3, "\x1b[2JPER"]]}, "a.jsonl:1")]
    assert configured(rows).tags == ("O", "B-\x1b[2JPER", "I-\x1b[2JPER")


# Records: ragged, broken, duplicate, too long, too deep.


def test_duplicate_columns_and_keys_are_named_with_both_places(tmp_path: Path) -> None:
    message = failure(read_all, read_csv, written(tmp_path, "a.csv", "text,label,text\na,b,c\n"))
    assert "a.csv:1: has the column 'text' twice, as number 1 and number 3; rename or drop one" in message
    message = failure(read_all, read_jsonl, written(tmp_path, "a.jsonl", '{"b": {"x": 1, "a": 1, "a": 2}}\n'))
    assert "a.jsonl:1: has the key 'a' twice, as number 2 and number 3" in message


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_csv, "text,label\na,b\nshort\n", ":3: has 1 fields, expected 2; quote fields that contain the separator"),
        (read_csv, "text,label\na,b,c\n", ":2: has 3 fields, expected 2"),
        (read_tsv, "text\tlabel\na\n", ":2: has 1 fields, expected 2"),
        (read_tsv, 'text\tlabel\n"a" b\tc\nshort\n', ":3: has 1 fields, expected 2"),
        (read_conll, "EU B-ORG\nrejects\n", ":2: has 1 columns, expected 2 as above"),
        (read_jsonl, '{"a": 1}\n{"a": \n{"a": 2}\n', ":2, column 7: is not JSON"),
        (read_jsonl, '{"a": 1}\n{"a": 1,}\n', ":2, column 9: is not JSON"),
        (
            read_jsonl,
            '[{"a": 1}, {"a": 2}]\n',
            ":1: is a JSON list, expected an object; write one JSON object per line",
        ),
        (read_jsonl, '{"a": Infinity}\n', ":1: has the number Infinity, which JSON does not have"),
        (read_jsonl, '{"a": -Infinity}\n', ":1: has the number -Infinity"),
        (read_jsonl, '{"a": "x\\ud83d"}\n', ":1: has \\ud83d, half of a surrogate pair; write the whole character"),
        (read_jsonl, '{"a": [{"\\uDC00": 1}]}\n', ":1: has \\udc00, half of a surrogate pair"),
        (read_jsonl, '{"a":' + "[" * 5000 + "]" * 5000 + "}\n", ":1: is not JSON (it is nested too deeply)"),
    ],
)
def test_broken_records_have_their_line(tmp_path: Path, reader: Callable, content: str, message: str) -> None:
    assert f"{tmp_path}/file{message}" in failure(read_all, reader, written(tmp_path, "file", content))


def test_whole_surrogate_pairs_and_escaped_backslashes_are_text(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": "\\ud83d\\udc4d"}\n{"a": "\\\\ud83d"}\n')
    assert [row["a"] for row in fields_of(read_jsonl, path)] == ["\U0001f44d", "\\ud83d"]


def test_an_unclosed_quote_is_reported_where_it_opens(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,label\n" + '"open,b\n' + "c,d\n" * 10_000)
    assert "a.csv:2: the record that starts here is broken" in failure(read_all, read_csv, path)


@pytest.mark.parametrize("reader", [read_text, read_jsonl, read_csv, read_tsv, read_conll])
def test_a_line_without_end_is_refused_before_it_is_read_whole(tmp_path: Path, reader: Callable) -> None:
    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        file.write(b"\n")
        file.truncate(4 * MAX_LINE_BYTES)
    tracemalloc.start()
    message = failure(read_all, reader, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "a.txt:2: has more than 16 MiB in one line; check its line ends" in message
    assert peak < 2.5 * MAX_LINE_BYTES


def test_an_open_quote_does_not_take_the_memory(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'text\n"' + ("x" * 99 + "\n") * (MAX_LINE_BYTES // 100 + 1000))
    assert "a.csv:2: the record that starts here is broken (field larger than" in failure(read_all, read_csv, path)


PIECES = st.sampled_from(
    [
        b'"',
        b"\t",
        b",",
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"a",
        b"O",
        b"B-X",
        b"{",
        b"}",
        b'{"a":',
        b"1",
        b"[",
        b"\xff",
        b"\\ud800",
        b"\x1f\x8b",
    ]
)


@pytest.mark.parametrize("reader", [read_text, read_jsonl, read_csv, read_tsv, read_conll])
@given(pieces=st.lists(PIECES, max_size=30))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_rows_or_an_error_in_one_line(tmp_path: Path, reader: Callable, pieces: list[bytes]) -> None:
    path = written(tmp_path, "a.txt", b"".join(pieces))
    try:
        lines = [row.where for row in reader(path)]
    except DataError as error:
        lines = [str(error)]
    assert all(line.startswith(str(path)) and "\n" not in line for line in lines)


@given(values=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=5))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_survive_a_csv_file(tmp_path: Path, values: list[tuple[str, str]]) -> None:
    content = io.StringIO(newline="")
    csv.writer(content).writerows([("text", "label"), *values])
    found = fields_of(read_csv, written(tmp_path, "a.csv", content.getvalue()))
    assert [(row["text"], row["label"]) for row in found] == values


# Several errors at once.


def test_errors_of_all_files_are_raised_together(tmp_path: Path) -> None:
    written(tmp_path, "train.jsonl", '{"a": 1}\nbroken\n{"a": NaN}\n')
    written(tmp_path, "dev.csv", "a,a\n1,2\n")
    written(tmp_path, "test.csv", "a,b\n1\n2\n3\n")
    with pytest.raises(DataErrors) as caught:
        load_data(tmp_path, TABLES, {})
    assert [error.where.rpartition("/")[2] for error in caught.value.errors] == [
        *("train.jsonl:2, column 1", "train.jsonl:3", "dev.csv:1", "test.csv:2", "test.csv:3", "test.csv:4")
    ]
    assert len(caught.value.lines()) == 4  # the last three differ in nothing but the line
    assert caught.value.lines()[-1].startswith(f"{tmp_path}/test.csv:2 and 2 more: has 1 fields")
    assert not caught.value.stopped


def test_reading_stops_after_twenty_errors(tmp_path: Path) -> None:
    path = written(tmp_path, "train.jsonl", "".join(f'{{"a": {"x" * n}}}\n' for n in range(1, 90)))
    with pytest.raises(DataErrors) as caught:
        load_data(path, TABLES, {})
    assert len(caught.value.errors) == 20
    assert caught.value.stopped


def test_a_single_error_is_raised_as_it_is_and_several_can_be_pickled() -> None:
    def bad(number: int) -> int:
        if number > 1:
            raise DataError(f"f:{number}", "is\nwrong", "correct it")
        return number

    assert each(bad, [0, 1]) == [0, 1]
    with pytest.raises(DataError) as one:
        each(bad, [1, 2])
    assert type(one.value) is DataError
    assert one.value.lines() == ["f:2: is wrong; correct it"]
    with pytest.raises(DataErrors) as several:
        each(bad, [1, 2, 3])
    assert str(pickle.loads(pickle.dumps(several.value))) == "f:2 and 1 more: is wrong; correct it"
    assert several.value.exit_code == 3


# Columns of named entities.

ROWS = [Row({"tokens": "Ada saw London", "tags": "B-PER O B-LOC"}, "train.jsonl:1")]
BACKBONE = BackboneInfo("tiny", None, ENCODER, 32, 64, 64, 300, 2, 0)


def configured(rows: list[Row], **options: Any) -> NerConfig:
    return NerHead.configure(rows, NerConfig(**options), BACKBONE)


def head_of(config: NerConfig) -> NerHead:
    return NerHead(config, BACKBONE)


THUMB = "\U0001f44d Ada"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": ["a"]}, 'has no \'tags\', only tokens; name the column: `columns={"tags": "NAME"}`'),
        ({"text": "a"}, 'has no \'spans\', only text; name the column: `columns={"spans": "NAME"}`'),
        ({"txt": "a", "tags": "O"}, "has neither 'tokens' nor 'text', only txt, tags"),
        (
            {"tokens": ["a", "b"], "tags": ["O", 1]},
            "tags is ['O', 1], expected a list of non-empty strings; write names",
        ),
        ({"tokens": ["a"], "tags": [1.0]}, "write names, not numbers"),
        ({"tokens": ["a"], "tags": [True]}, "write names, not numbers"),
        ({"tokens": ["a"], "tags": [None]}, "expected a list of non-empty strings; correct the row"),
        ({"tokens": "a", "tags": "[1, 2]"}, "write names, not numbers"),
        ({"text": "Ada", "spans": '[{"a": 1, "a": 2}]'}, "spans has the key 'a' twice, as number 1 and number 2"),
        ({"text": "Ada", "spans": "[NaN]"}, "spans has the number NaN"),
        ({"text": "Ada", "spans": [[0, 3, 7]]}, "span [0, 3, 7] has the label 7, expected a name"),
        ({"text": "Ada", "spans": [[0, 3, ""]]}, "has the label '', expected a name"),
        ({"text": "Ada", "spans": [[0, 3, True]]}, "has the label True, expected a name"),
        ({"text": "Ada", "spans": [[3, 0, "PER"]]}, "span [3, 0, 'PER'] ends where it starts or before"),
        ({"text": "Ada", "spans": [[3, 3, "PER"]]}, "ends where it starts or before"),
        ({"text": "Ada", "spans": [[-1, 3, "PER"]]}, "is not within a text of 3 characters"),
        ({"text": "Ada", "spans": [[0, 4, "PER"]]}, "is not within a text of 3 characters; correct the row"),
        ({"text": "Ada", "spans": [[0.0, 3, "PER"]]}, "has no whole numbers as START and END"),
        ({"text": "Ada", "spans": [[False, 3, "PER"]]}, "has no whole numbers as START and END"),
        ({"text": "Ada", "spans": [["0", "3", "PER"]]}, "has no whole numbers as START and END"),
        ({"text": "Ada", "spans": [["0", "3"]]}, "is not [START, END, LABEL]"),
        ({"text": "Ada", "spans": [{"start": 0, "label": "PER"}]}, "has no whole numbers as START and END"),
        ({"text": "Ada", "spans": ["PER"]}, "is not [START, END, LABEL]"),
        ({"text": "Ada", "spans": [[0, 2, "PER"], [1, 3, "LOC"]]}, "spans (0, 2, 'PER') and (1, 3, 'LOC') overlap"),
        ({"text": "Ada Bo", "spans": [{"start": 4, "end": 6, "label": "PER", "text": "Ada"}]}, "marks 'Bo'; correct"),
        (
            {"text": THUMB + " left", "spans": [{"start": 3, "end": 6, "label": "PER", "text": "Ada"}]},
            "marks 'da '; the offsets look like UTF-16 code units; count code points",
        ),
        (
            {"text": THUMB + " left!", "spans": [{"start": 5, "end": 8, "label": "PER", "text": "Ada"}]},
            "marks ' le'; the offsets look like UTF-8 bytes; count code points",
        ),
        (
            {"text": THUMB, "spans": [[3, 6, "PER"]]},
            "is not within a text of 5 characters; the offsets look like UTF-16 code units",
        ),
        (
            {"text": THUMB, "spans": [[5, 8, "PER"]]},
            "is not within a text of 5 characters; the offsets look like UTF-8 bytes",
        ),
    ],
)
def test_wrong_columns_are_refused_before_training(fields: dict[str, Any], message: str) -> None:
    found = failure(configured, [*ROWS, Row(fields, "train.jsonl:2")])
    assert found.startswith("train.jsonl:2: ")
    assert message in found


def test_errors_of_several_rows_are_raised_together() -> None:
    rows = [*ROWS, Row({"tokens": "a b", "tags": [1]}, "f:2"), Row({"text": "a", "spans": 5}, "f:3")]
    with pytest.raises(DataErrors, match=r"(?s)f:2: tags is \[1\].*\nf:3: spans is 5"):
        configured(rows)


def test_empty_texts_are_rows_without_entities() -> None:
    rows = [*ROWS, Row({"text": "", "spans": []}, "f:2"), Row({"tokens": [], "tags": []}, "f:3")]
    assert configured(rows).tags == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.mark.parametrize(
    ("scheme", "tags", "message"),
    [
        ("iob2", "O I-PER O", "tag 'I-PER' after 'O', which is illegal in iob2"),
        ("iob2", "B-PER I-LOC O", "tag 'I-LOC' after 'B-PER', which is illegal in iob2"),
        ("iob1", "B-PER O O", "tag 'B-PER' at the start, which is illegal in iob1"),
        ("bioes", "B-PER O O", "tag 'O' after 'B-PER', which is illegal in bioes"),
        ("auto", "E-MAIL O PER", "tag 'E-MAIL' at the start, which is illegal in"),
    ],
)
def test_errors_about_tags_name_the_line_of_the_word(scheme: str, tags: str, message: str) -> None:
    row = Row({"tokens": ["a", "b", "c"], "tags": tags.split()}, "f.conll:10", (10, 11, 12))
    found = failure(lambda: read_gold(head_of(configured([row], scheme=scheme)), [row]))
    assert found.startswith(f"f.conll:{10 + tags.split().index(message.split(chr(39))[1])}: ")
    assert message in found


def test_labels_that_look_like_prefixes_are_labels_in_io() -> None:
    row = Row({"tokens": ["a", "b", "c", "d", "e"], "tags": ["E-MAIL", "E-MAIL", "O", "B2B", "I-PER"]}, "f.conll:1")
    head = head_of(configured([row], scheme="io"))
    assert head.presenter.labels == ("B2B", "E-MAIL", "PER")
    assert head.read(row).gold == [(0, 3, "E-MAIL"), (6, 7, "B2B"), (8, 9, "PER")]


def test_tags_of_another_scheme_are_refused_in_io() -> None:
    row = Row({"tokens": ["a", "b", "c"], "tags": ["B-PER", "PER", "O"]}, "f.conll:1")
    with pytest.raises(DataError, match="labels 'B-PER' and 'PER', so they are not in io; set the option scheme"):
        configured([row], scheme="io")


def test_unknown_labels_of_dev_are_reported_with_their_lines() -> None:
    head = head_of(configured(ROWS))
    rows = [Row({"text": "Ada", "spans": [[0, 3, label]]}, f"dev.jsonl:{n}") for n, label in enumerate(["PRE", "ORG"])]
    with pytest.raises(DataErrors) as caught:
        read_gold(head, rows)
    assert "dev.jsonl:0: label 'PRE' is not in the training data; did you mean 'PER'" in caught.value.lines()[0]
    assert "dev.jsonl:1: label 'ORG' is not in the training data; known are: LOC, PER" in caught.value.lines()[1]
