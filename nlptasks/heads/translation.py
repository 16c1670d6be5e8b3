"""Translation: a text in another language.

Rows are ``source`` and ``target``, or two files of parallel lines, ``train.source`` and ``train.target``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tokenizers

from nlptasks.backbones.info import BackboneInfo
from nlptasks.config import option
from nlptasks.data.readers import TABLES, pairs_of
from nlptasks.errors import UsageError, listing, quote
from nlptasks.generation.hypotheses import Generated, GeneratedText, best
from nlptasks.generation.options import SpecialTokens
from nlptasks.heads.base import Schema
from nlptasks.heads.seq2seq import GeneratedTextWriter, Seq2SeqConfig, Seq2SeqExample, Seq2SeqFormat, Seq2SeqHead
from nlptasks.metrics.base import Counts, Metrics
from nlptasks.metrics.generation import translation_counts, translation_scores
from nlptasks.text.windows import tokens_around

_PAIR = re.compile("translation_(.+)_to_(.+)")
_CODE = re.compile("[a-z]{2,3}_[A-Z][A-Za-z]+|__[a-z]{2,3}__")


@dataclass(frozen=True)
class TranslationConfig(Seq2SeqConfig):
    """Options of a translation head, and what its training data decided."""

    source_language: str = option("", "code of the source language, such as en")
    target_language: str = option("", "code of the target language, such as de; BLEU splits words by it")


class TranslationFormat(Seq2SeqFormat[TranslationConfig]):
    """Checkpoints that translate."""

    def task_settings(self, tasks: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Mapping[str, Any]:
        pairs = {match.groups(): said for name, said in tasks.items() if (match := _PAIR.fullmatch(name))}
        wanted = options.get("source_language", ""), options.get("target_language", "")
        if pairs and wanted not in pairs and "prefix" not in options:
            known = listing(" to ".join(pair) for pair in pairs)
            problem = f"are {quote(wanted[0])} and {quote(wanted[1])}"
            raise UsageError("source_language, target_language", problem, f"use one of {known}, or set a prefix")
        return pairs.get(wanted, {})

    def to_checkpoint(self, config: TranslationConfig, backbone: BackboneInfo) -> tuple[dict[str, Any], list[str]]:
        special, replaced = (config.special, ()) if config.decoder else _with_languages(config, backbone.vocabulary())
        entries, lost = super().to_checkpoint(replace(config, **vars(special)), backbone)
        if replaced:
            lost.append(f"the source language {quote(config.source_language)}: set src_lang of the tokenizer")
        return entries, lost


class TranslationWriter(GeneratedTextWriter):
    """``doc._.translation`` gets the best translation."""

    assigns = ("doc._.translation",)


class TranslationHead(Seq2SeqHead[TranslationConfig]):
    """Translates a text into another language."""

    Config = TranslationConfig
    schema = Schema(
        contract=2,
        fields=("source", "text", "target"),
        gold=("target",),
        results=(GeneratedText,),
        sample="samples/translation",
        formats={**TABLES, ".source": pairs_of("source", "target")},
    )
    hugging_face: ClassVar = TranslationFormat(TranslationConfig)
    spacy: ClassVar = TranslationWriter()
    source_field = "source"
    target_field = "target"

    def __init__(self, config: TranslationConfig, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone)
        self.special, self.replaced = _with_languages(config, self.vocabulary)

    def count(self, example: Seq2SeqExample, result: Generated) -> Counts:
        return translation_counts(example.targets, best(result).text)

    def metrics(self, counts: Counts) -> Metrics:
        scores, signature = translation_scores(counts, language=self.config.target_language)
        return Metrics(scores, main="bleu", scale=100.0, signature=signature)


def _with_languages(
    config: TranslationConfig, vocabulary: tokenizers.Tokenizer
) -> tuple[SpecialTokens, tuple[tuple[int, int], ...]]:
    """Return the special tokens for the languages, and the tokens around a source that the source language replaces.

    Raises:
        UsageError: the vocabulary has tokens for languages, and an option does not name one of them.
    """
    special, codes = config.special, _language_codes(vocabulary)
    if not codes:
        return special, ()
    source, target = (
        _code(getattr(config, option), codes, option) for option in ("source_language", "target_language")
    )
    if special.prompt[-1] in codes.values():  # the first mBART starts with the language, others force it
        special = replace(special, prompt=(*special.prompt[:-1], codes[target]), forced_first=None)
    else:
        special = replace(special, forced_first=codes[target])
    before, after = tokens_around(vocabulary)
    return special, tuple((token, codes[source]) for token in codes.values() if token in before + after)


def _language_codes(vocabulary: tokenizers.Tokenizer) -> dict[str, int]:
    """Return the language codes among the special tokens, such as ``de_DE``, ``deu_Latn`` or ``__de__``, and their ids."""
    added = vocabulary.get_added_tokens_decoder().items()
    return {token.content: number for number, token in added if token.special and _CODE.fullmatch(token.content)}


def _code(wanted: str, codes: Collection[str], option: str) -> str:
    """Return the code itself, or the only code of a language.

    Raises:
        UsageError: there is none, or several.
    """
    language = [code for code in codes if code == wanted or code.strip("_").partition("_")[0] == wanted]
    found = [wanted] if wanted in codes else language
    if len(found) != 1:
        problem = f"is {quote(wanted)}" if wanted else "is not given, and this backbone needs a language"
        raise UsageError(option, problem, f"use one of {listing(sorted(codes), limit=len(codes))}")
    return found[0]
