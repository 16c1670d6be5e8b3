"""The CoNLL-2003 files as plain Python, for measurements that must not use the library's own reader."""

from __future__ import annotations

import gzip
from pathlib import Path

Sentence = tuple[list[str], list[str]]
"""Words and IOB2 tags."""


def read(folder: Path, part: str) -> list[Sentence]:
    """The sentences of a part: ``PART.tsv.gz`` with ``word<TAB>tag`` lines."""
    with gzip.open(folder / f"{part}.tsv.gz", "rt", encoding="utf-8") as file:
        blocks = [block.splitlines() for block in file.read().split("\n\n") if block.strip()]
    return [tuple(map(list, zip(*(line.split("\t") for line in block), strict=True))) for block in blocks]  # type: ignore[misc]


def write(path: Path, sentences: list[Sentence]) -> None:
    """Sentences as a file that the library reads."""
    text = "\n".join("".join(f"{word}\t{tag}\n" for word, tag in zip(*sentence, strict=True)) for sentence in sentences)
    path.write_text(text, encoding="utf-8")
