"""Metrics of texts that were written, by the libraries of the field: ROUGE by rouge-score, BLEU and chrF by sacrebleu.

The libraries are imported where they are used: who only predicts needs none of them.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from nlptasks.text.words import is_mostly_unspaced, split_unspaced

_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")  # noqa: RUF001


def rouge_scores(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """ROUGE F1 of summaries, words stemmed by Porter, as shares; in scripts without spaces every character is a word.

    Args:
        gold: the right summaries of each text; the one that fits best counts.
        predicted: the found summary.

    Returns:
        ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum`` (sentence by sentence), and ``support``, the number of texts.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    class Words(DefaultTokenizer):  # type: ignore[misc]
        """Its own words; it knows no other letters than a to z, so those with others are taken whole, Chinese ones singly."""

        def tokenize(self, text: str) -> list[str]:
            if is_mostly_unspaced(text):
                return split_unspaced(text.lower()).split()
            words: list[str] = []
            for word in _words(text.lower()):
                words += super().tokenize(word) if word.isascii() else [word]
            return words

    scorer = RougeScorer(_ROUGE, tokenizer=Words(use_stemmer=True))
    rows = [
        scorer.score_multi([_by_sentence(text) for text in own], _by_sentence(found))
        for own, found in zip(gold, predicted, strict=True)
    ]
    return {
        **{name: float(np.mean([row[name].fmeasure for row in rows])) for name in _ROUGE},
        "support": float(len(rows)),
    }


def _words(text: str) -> list[str]:
    """Runs of letters, digits and the marks that belong to them, such as the vowels of Hindi."""
    composed = unicodedata.normalize("NFC", text)
    found = "".join(char if char.isalnum() or _is_mark(char) else " " for char in composed).split()
    return [word for word in found if any(map(str.isalnum, word))]  # emoji have marks, too


def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M") or char in "\u200c\u200d"


def _by_sentence(text: str) -> str:
    """A sentence a line, which ROUGE-Lsum goes by."""
    return _SENTENCE_END.sub("\n", text)


def translation_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[str], *, language: str
) -> tuple[dict[str, float], str]:
    """BLEU (cased) and chrF of translations, on sacrebleu's scale of 0..100.

    Args:
        gold: the right translations of each text.
        predicted: the found one.
        language: code of the language they are in, which decides what a word is; for all but Chinese and Japanese their script
            does, too.

    Returns:
        ``bleu``, ``chrf`` and ``support``, the number of texts; and sacrebleu's signatures, which say how they were computed.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    most = max(map(len, gold))
    # None where a text has fewer references than others.
    references: list[Any] = [[own[number] if number < len(own) else None for own in gold] for number in range(most)]
    unspaced = is_mostly_unspaced("".join(own[0] for own in gold))
    bleu, chrf = BLEU(tokenize=_words_of(language, unspaced=unspaced)), CHRF()
    scores: dict[str, Any] = {
        name: metric.corpus_score(list(predicted), references) for name, metric in (("bleu", bleu), ("chrf", chrf))
    }
    signature = f"BLEU {bleu.get_signature()}, chrF {chrf.get_signature()}"
    return {**{name: float(score.score) for name, score in scores.items()}, "support": float(len(gold))}, signature


def _words_of(language: str, *, unspaced: bool) -> str:
    """Sacrebleu's tokenizer for a language; that for Japanese needs two packages more, without which characters are words."""
    main = re.split("[-_]", language.lower().strip("_"))[0]
    if main in ("ja", "jpn"):
        return "ja-mecab" if all(map(importlib.util.find_spec, ("MeCab", "ipadic"))) else "char"
    if main in ("zh", "zho", "cmn", "yue"):
        return "zh"
    return "char" if unspaced else "13a"
