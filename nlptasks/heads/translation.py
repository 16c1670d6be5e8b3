"""Translation: a text in another language.

Rows are ``source`` and ``target``, or two files of parallel lines, ``train.source`` and ``train.target``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tokenizers

from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.config import setting
from nlptasks.data.readers import TABLES, pairs_of
from nlptasks.errors import UsageError, listing, quote
from nlptasks.heads.seq2seq import GenerativeConfig, GenerativeHead, Writing, best
from nlptasks.metrics.generation import translation_scores
from nlptasks.text.windowing import tokens_around
from nlptasks.types import Reader

_PAIR = re.compile("translation_(.+)_to_(.+)")
_CODE = re.compile("[a-z]{2,3}_[A-Z][A-Za-z]+|__[a-z]{2,3}__")


@dataclass(frozen=True)
class TranslationConfig(GenerativeConfig):
    """Options of a translation head, and what its training data decided."""

    source_language: str = setting("", "code of the language it reads, such as en")
    target_language: str = setting("", "code of the language it writes, such as de; BLEU's words go by it")


class TranslationHead(GenerativeHead):
    """Writes a text in another language."""

    contract = 1
    Config = TranslationConfig
    config: TranslationConfig
    main_metric = "bleu"
    perfect = 100.0
    fields: ClassVar = ("source", "text", "target")
    gold_fields: ClassVar = ("target",)
    formats: ClassVar[Mapping[str, Reader]] = {**TABLES, ".source": pairs_of("source", "target")}
    source_field = "source"
    target_field = "target"
    sample = "samples/translation"
    assigns = ("doc._.translation",)

    def __init__(self, config: TranslationConfig, *, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone=backbone)
        self._signature = ""
        codes = _codes(self.vocabulary)
        if codes:
            source, target = (
                _code(getattr(config, option), codes, option) for option in ("source_language", "target_language")
            )
            if self.marks.prompt[-1] in codes.values():  # mBART's first kind begins with the language, others force it
                self.marks = replace(self.marks, prompt=(*self.marks.prompt[:-1], codes[target]), forced_first=None)
            else:
                self.marks = replace(self.marks, forced_first=codes[target])
            before, behind = tokens_around(self.vocabulary)
            self.special = tuple((token, codes[source]) for token in codes.values() if token in before + behind)

    @classmethod
    def _specific(cls, named: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Mapping[str, Any]:
        pairs = {match.groups(): said for name, said in named.items() if (match := _PAIR.fullmatch(name))}
        wanted = options.get("source_language", ""), options.get("target_language", "")
        if pairs and wanted not in pairs and "prefix" not in options:
            known = listing(" to ".join(pair) for pair in pairs)
            problem = f"are {quote(wanted[0])} and {quote(wanted[1])}"
            raise UsageError("source_language, target_language", problem, f"take one of {known}, or give a prefix")
        return pairs.get(wanted, {})

    def to_hugging_face(self) -> tuple[dict[str, Any], list[str]]:
        said, lost = super().to_hugging_face()
        if self.special:
            lost.append(f"the source language {quote(self.config.source_language)}: set src_lang of the tokenizer")
        return said, lost

    def metrics(self, examples: Sequence[Writing], results: Sequence[Any]) -> dict[str, float]:
        gold, found = [example.targets for example in examples], [best(result).text for result in results]
        scores, self._signature = translation_scores(gold, found, language=self.config.target_language)
        return scores

    def measured_by(self) -> str:
        return self._signature


def _codes(vocabulary: tokenizers.Tokenizer) -> dict[str, int]:
    """The codes of languages among a tokenizer's special tokens, such as ``de_DE``, ``deu_Latn`` or ``__de__``, and their ids."""
    added = vocabulary.get_added_tokens_decoder().items()
    return {token.content: number for number, token in added if token.special and _CODE.fullmatch(token.content)}


def _code(wanted: str, codes: Collection[str], option: str) -> str:
    """The code that is meant: as it stands, or by its language alone if that is enough.

    Raises:
        UsageError: there is none, or several.
    """
    language = [code for code in codes if code == wanted or code.strip("_").partition("_")[0] == wanted]
    found = [wanted] if wanted in codes else language
    if len(found) != 1:
        problem = f"is {quote(wanted)}" if wanted else "is not given, and this backbone wants a language"
        raise UsageError(option, problem, f"take one of {listing(sorted(codes), limit=len(codes))}")
    return found[0]
