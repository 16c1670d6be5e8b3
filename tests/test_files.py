"""Readers: equal rows from every spelling of a file, and one-line errors."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from nlptasks.data.readers import (
    TABLES,
    TEXTS,
    check_columns,
    part_of,
    read_conll,
    read_csv,
    read_file,
    read_json_file,
    read_jsonl,
    read_tsv,
    suffix_of,
)
from nlptasks.errors import DataError, UsageError
from nlptasks.types import Row

CONLL = "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\nBlackburn\tI-PER\n"


def rows(reader: object, path: Path, content: bytes | str) -> list[Row]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(reader(path))  # type: ignore[operator]


@pytest.mark.parametrize(
    "content",
    [
        CONLL,
        CONLL.replace("\t", " "),
        CONLL.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + CONLL.encode(),
        gzip.compress(CONLL.encode(), mtime=0),
        CONLL + "\n\n",
        "-DOCSTART- -X- O O\n\n" + CONLL,
        "# sent_id = 1\n" + CONLL,
        "# id 12\n" + CONLL,
        "#\thttp://example.org\n" + CONLL,
        "token\tner_tag\n" + CONLL,
        CONLL.replace("\n\n", "\n-DOCSTART-\n"),
        CONLL.removesuffix("\n"),
    ],
)
def test_conll_spellings_mean_the_same(tmp_path: Path, content: bytes | str) -> None:
    found = rows(read_conll, tmp_path / "train.conll", content)
    assert [(row.fields["tokens"], row.fields["tags"]) for row in found] == [
        (["EU", "rejects"], ["B-ORG", "O"]),
        (["Peter", "Blackburn"], ["B-PER", "I-PER"]),
    ]


def test_conll_with_many_columns_keeps_lines_and_columns(tmp_path: Path) -> None:
    found = rows(read_conll, tmp_path / "eng.testa", "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n. . O O\n")
    assert found[0].fields["2"] == ["NNP", "."]
    assert found[0].fields["tags"] == ["B-ORG", "O"]
    assert (found[0].line(0), found[0].line(1)) == (f"{tmp_path}/eng.testa:3", f"{tmp_path}/eng.testa:4")


def test_conll_tokens_may_contain_other_spaces_than_the_separator(tmp_path: Path) -> None:
    [found] = rows(read_conll, tmp_path / "a.conll", "1\u00a0000 O\n#\tO\n".replace("\t", " "))
    assert found.fields["tokens"] == ["1\u00a0000", "#"]


def test_conll_with_one_column_has_no_tags(tmp_path: Path) -> None:
    assert "tags" not in rows(read_conll, tmp_path / "a.conll", "EU\nrejects\n")[0].fields


def test_tokens_with_spaces_between_tabs(tmp_path: Path) -> None:
    assert rows(read_conll, tmp_path / "a.conll", "+49 123\tB-PHONE\n")[0].fields["tokens"] == ["+49 123"]


def test_values_of_a_table_stay_text(tmp_path: Path) -> None:
    values = ["NA", "None", "null", "007", "1e5", 'say "x", y', "two\nlines"]
    quoted = "\n".join('"{}",x'.format(value.replace('"', '""')) for value in values)
    found = rows(read_csv, tmp_path / "a.csv", f"text,label\n{quoted}\n")
    assert [row.fields["text"] for row in found] == values
    assert found[-1].where == f"{tmp_path}/a.csv:8"


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_conll, "EU B-ORG\nrejects\n", ":2: has 1 columns, expected 2"),
        (read_csv, "text,label\na,b\na,b,c\n", ":3: has 3 fields, expected 2"),
        (read_csv, "text,text\na,b\n", ":1: has the column 'text' twice"),
        (read_csv, 'text,label\na,b\n"open,b\nc,d\n', ":3: the record that starts here is broken"),
        (read_tsv, "text\tlabel\na\n", ":2: has 1 fields, expected 2"),
        (read_jsonl, '{"a": 1}\n{"a": 1,}\n', ":2, column 9: is not JSON"),
        (
            read_jsonl,
            '[{"a": 1}]\n',
            ":1: is a JSON list, expected an object; write one JSON object per line, not one array",
        ),
        (read_jsonl, '{"a": 1, "a": 2}\n', ":1: has the key 'a' twice"),
        (read_jsonl, '{"a": NaN}\n', ":1: has the number NaN"),
        (read_jsonl, '{"a":' + "[" * 100_000 + "\n", "nested too deeply"),
        (read_jsonl, b'{"a": 1}\n{"a": "caf\xe9"}\n', ":2: byte 0xe9 at column 11 is not UTF-8"),
        (read_jsonl, "x".encode("utf-16"), "is UTF-16, expected text in UTF-8"),
        (read_jsonl, b"PK\x03\x04zip", "is a zip archive or an Excel workbook"),
        (read_jsonl, gzip.compress(b"{}" * 99, mtime=0)[:20], "cannot be read"),
        (read_jsonl, gzip.compress(b"x" * 99, mtime=0)[:12] + b"\xff" * 30, "cannot be read"),
        (read_jsonl, '{"a": ' + "1" * 5000 + "}\n", "a number of too many digits"),
    ],
)
def test_errors_are_one_line_with_file_and_line(
    tmp_path: Path, reader: object, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        rows(reader, tmp_path / "file", content)
    assert message in str(caught.value)
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_bad_rows_can_be_collected(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\nbroken\n{"a": "\xe9"}\n{"a": 2}\n')
    errors: list[DataError] = []
    found = list(read_file(path, TABLES, {}, on_error=errors.append))
    assert [row.fields["a"] for row in found] == [1, 2]
    assert [error.where.rpartition(":")[2] for error in errors] == ["2, column 1", "3"]


def test_columns_are_renamed_or_missing_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("review,stars\nfine,5\n")
    assert next(iter(read_file(path, TABLES, {"text": "review"}))).fields["text"] == "fine"
    with pytest.raises(DataError, match="has no column 'reviews' for 'text'; did you mean 'review'"):
        list(read_file(path, TABLES, {"text": "reviews"}))


def test_columns_are_renamed_to_known_fields_only() -> None:
    check_columns({"text": "a"}, ["text", "tags"])
    with pytest.raises(UsageError, match="names 'tag', which is not a field here; did you mean 'tags'"):
        check_columns({"tag": "a"}, ["text", "tags"])


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_the_size_limit_of_a_json_file_is_for_the_whole_unpacked_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(lines: int) -> Path:
        content = b"[\n" + b" \n" * lines + b"1]"
        path = tmp_path / f"a{suffix}"
        path.write_bytes(gzip.compress(content, mtime=0) if suffix.endswith(".gz") else content)
        return path

    monkeypatch.setattr("nlptasks.data.readers.MAX_UNPACKED_BYTES", 2**20)
    assert read_json_file(written(2**19 - 2)) == [1]  # exactly 1 MiB
    with pytest.raises(DataError, match=rf"a{suffix}: has more than 1 MiB of JSON; write its rows as JSON Lines"):
        read_json_file(written(2**19 - 1))
    assert suffix == ".json" or (tmp_path / f"a{suffix}").stat().st_size < 2**14


def test_a_long_field_is_read_completely(tmp_path: Path) -> None:
    assert len(rows(read_csv, tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n")[0].fields["text"]) == 200_000


def test_missing_files_and_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        list(read_file(tmp_path / "none.csv", TABLES, {}))
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(DataError, match=r"unknown suffix; use one of \.csv"):
        list(read_file(tmp_path / "a.xlsx", TEXTS, {}))


@pytest.mark.parametrize(
    ("name", "part", "suffix"),
    [
        ("train.tsv.gz", "train", ".tsv"),
        ("eng.testa", "dev", ""),
        ("validation.jsonl", "dev", ".jsonl"),
        ("test_2017.jsonl", None, ".jsonl"),
        ("train", "train", ""),
        ("README.md", None, ".md"),
    ],
)
def test_parts_and_suffixes_by_file_name(name: str, part: str | None, suffix: str) -> None:
    assert (part_of(Path(name)), suffix_of(Path(name))) == (part, suffix)
