"""Metrics of generated texts: ROUGE by rouge-score, BLEU and chrF by sacrebleu.

The libraries are imported where they are used, so that prediction needs none of them.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from nlptasks.metrics.base import Counts
from nlptasks.text.words import is_mostly_unspaced, split_unspaced

_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SUPPORT = "support"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")  # noqa: RUF001


def rouge_counts(gold: Sequence[str], predicted: str) -> Counts:
    """Compute ROUGE F1 of one text with Porter stemming; in scripts without spaces every character is a word.

    Args:
        gold: the gold texts; the one that fits best counts.
        predicted: the generated text.
    """
    scores = _rouge_scorer().score_multi([_by_sentence(text) for text in gold], _by_sentence(predicted))
    return Counts({**{name: float(scores[name].fmeasure) for name in _ROUGE}, _SUPPORT: 1.0})


def rouge_scores(counts: Counts) -> dict[str, float]:
    """Return the mean of ROUGE F1 over texts, in 0..1.

    Args:
        counts: merged `rouge_counts`.

    Returns:
        ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum`` (sentence by sentence), and ``support``, the number of texts.
    """
    support = counts.sums[_SUPPORT]
    return {**{name: counts.sums[name] / support for name in _ROUGE}, _SUPPORT: support}


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    class Words(DefaultTokenizer):  # type: ignore[misc]
        """The words of rouge-score, which knows the letters a to z only: other words are kept whole, or split by character."""

        def tokenize(self, text: str) -> list[str]:
            if is_mostly_unspaced(text):
                return split_unspaced(text.lower()).split()
            words: list[str] = []
            for word in _words(text.lower()):
                words += super().tokenize(word) if word.isascii() else [word]
            return words

    return RougeScorer(_ROUGE, tokenizer=Words(use_stemmer=True))


def _words(text: str) -> list[str]:
    """Return runs of letters, digits and the marks that belong to them, such as the vowels of Hindi."""
    composed = unicodedata.normalize("NFC", text)
    found = "".join(char if char.isalnum() or _is_mark(char) else " " for char in composed).split()
    return [word for word in found if any(map(str.isalnum, word))]  # emoji have marks, too


def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M") or char in "\u200c\u200d"


def _by_sentence(text: str) -> str:
    """Return the text with one sentence a line, as ROUGE-Lsum expects it."""
    return _SENTENCE_END.sub("\n", text)


def translation_counts(gold: Sequence[str], predicted: str) -> Counts:
    """Keep one translation with its gold translations: BLEU and chrF are computed over a whole corpus."""
    return Counts(rows=((predicted, tuple(gold)),))


def translation_scores(counts: Counts, *, language: str) -> tuple[dict[str, float], str]:
    """Compute BLEU (cased) and chrF of translations, in 0..100.

    Args:
        counts: merged `translation_counts`.
        language: code of the target language, which decides how words are split; so does the script, except for Chinese and
            Japanese.

    Returns:
        ``bleu``, ``chrf`` and ``support``, the number of texts; and the signatures of sacrebleu.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    predicted, gold = ([row[column] for row in counts.rows] for column in (0, 1))
    most = max(map(len, gold))
    # None where a text has fewer references than others.
    references: list[Any] = [[own[number] if number < len(own) else None for own in gold] for number in range(most)]
    unspaced = is_mostly_unspaced("".join(own[0] for own in gold))
    bleu, chrf = BLEU(tokenize=_sacrebleu_tokenizer(language, unspaced=unspaced)), CHRF()
    scores: dict[str, Any] = {
        name: metric.corpus_score(predicted, references) for name, metric in (("bleu", bleu), ("chrf", chrf))
    }
    signature = f"BLEU {bleu.get_signature()}, chrF {chrf.get_signature()}"
    return {**{name: float(score.score) for name, score in scores.items()}, _SUPPORT: float(len(gold))}, signature


def _sacrebleu_tokenizer(language: str, *, unspaced: bool) -> str:
    """Return sacrebleu's tokenizer for a language. That for Japanese needs two more packages; without them it is ``char``."""
    main = re.split("[-_]", language.lower().strip("_"))[0]
    if main in ("ja", "jpn"):
        return "ja-mecab" if all(map(importlib.util.find_spec, ("MeCab", "ipadic"))) else "char"
    if main in ("zh", "zho", "cmn", "yue"):
        return "zh"
    return "char" if unspaced else "13a"
