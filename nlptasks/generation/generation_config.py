"""Settings of Hugging Face checkpoints for ``generate``, from and to options and special tokens. Imports no transformers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from nlptasks.backbones.info import BackboneInfo
from nlptasks.errors import ModelError, listing, quote
from nlptasks.generation.options import SearchOptions, SpecialTokens

_log = logging.getLogger("nlptasks")

_OPTIONS = tuple(item.name for item in fields(SearchOptions) if item.name != "seed")
_BEAM_OPTIONS, _SAMPLING_OPTIONS = ("length_penalty", "early_stopping"), ("temperature", "top_k", "top_p")

_UNSUPPORTED: Mapping[str, Any] = {
    "begin_suppress_tokens": [],
    "constraints": [],
    "diversity_penalty": 0,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": [],
    "guidance_scale": 1,
    "min_p": 0,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "sequence_bias": {},
    "stop_strings": [],
    "top_h": None,
    "typical_p": 1,
    "watermarking_config": None,
}
"""Settings that change the tokens of ``generate`` and are not supported here, with the value that has no effect."""


def search_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a search that a checkpoint sets, and its prefix. Other settings are warned about.

    Args:
        settings: content of its ``generation_config.json``, or for older checkpoints of ``config.json``; its lengths count the
            decoder's start token.
    """
    found = {name: settings[name] for name in (*_OPTIONS, "prefix") if settings.get(name) is not None}
    for name, length, least in (("max_new_tokens", "max_length", 1), ("min_new_tokens", "min_length", 0)):
        if name not in found and isinstance(settings.get(length), int):
            found[name] = max(least, settings[length] - 1)
    ignored = [name for name, neutral in _UNSUPPORTED.items() if settings.get(name) not in (None, neutral)]
    if found.get("num_beams", 1) != 1 and found.pop("do_sample", False):
        ignored.append("do_sample with beams")
    ignored += ["bad_words_ids of several tokens"] * any(len(ids) > 1 for ids in _lists(settings.get("bad_words_ids")))
    if ignored:
        _log.warning("the checkpoint's settings for generate are used, except %s", listing(ignored))
    return found


def special_tokens(backbone: BackboneInfo, settings: Mapping[str, Any], where: str) -> SpecialTokens:
    """Return the special tokens of an encoder-decoder.

    Args:
        backbone: its info; the config counts if there are no settings.
        settings: settings for ``generate``.
        where: name of the checkpoint, for messages.

    Raises:
        ModelError: there is no start or end token, or a setting is no token of the vocabulary.
    """

    def value(name: str) -> Any:
        return settings.get(name) if settings else backbone.config.get(name)

    def tokens(name: str, value: Any) -> tuple[int, ...]:
        return _tokens([] if value is None else value, name, backbone.vocabulary_size, where)

    start, end = (
        tokens(name, backbone.config.get(name) if value(name) is None else value(name))
        for name in ("decoder_start_token_id", "eos_token_id")
    )
    if not start or not end:
        raise ModelError(
            where,
            "does not name the token with which its decoder starts or ends",
            "add decoder_start_token_id and eos_token_id to its config.json",
        )
    forced = {name: tokens(name, value(name))[:1] for name in ("forced_bos_token_id", "forced_eos_token_id")}
    single = [ids[0] for ids in _lists(value("bad_words_ids")) if len(ids) == 1]
    never = {"bad_words_ids": single, "suppress_tokens": value("suppress_tokens")}
    return SpecialTokens(
        prompt=start[:1],
        end=end,
        forced_first=next(iter(forced["forced_bos_token_id"]), None),
        forced_last=next(iter(forced["forced_eos_token_id"]), None),
        never=tuple(token for name, ids in never.items() for token in tokens(name, ids)),
    )


def end_tokens(backbone: BackboneInfo) -> tuple[int, ...]:
    """Return the tokens that end a text of a decoder.

    Raises:
        ModelError: there is none, or one is no token of the vocabulary.
    """
    value = backbone.generation.get("eos_token_id")
    value = backbone.config.get("eos_token_id") if value is None else value
    end = _tokens([] if value is None else value, "eos_token_id", backbone.vocabulary_size, backbone.source)
    if not end:
        problem = "does not name the token with which a text ends"
        raise ModelError(backbone.source, problem, "add eos_token_id to its config.json")
    return end


def _lists(value: Any) -> list[list[Any]]:
    """Return the lists in a list."""
    return [one for one in value if isinstance(one, list)] if isinstance(value, list) else []


def _tokens(value: Any, name: str, size: int, where: str) -> tuple[int, ...]:
    """Return a token or a list of tokens as a tuple, checked against the size of the vocabulary."""
    found = value if isinstance(value, list) else [value]
    for one in found:
        if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < size:
            raise ModelError(where, f"has {name}={quote(one)}, expected a token from 0 to {size - 1}", "correct it")
    return tuple(found)


def generation_settings(special: SpecialTokens, options: SearchOptions, *, pad_id: int) -> dict[str, Any]:
    """Return the settings for ``generate`` of a checkpoint; options without effect are left out."""
    values = asdict(options)
    unused = (_BEAM_OPTIONS if options.num_beams == 1 else ()) + (() if options.do_sample else _SAMPLING_OPTIONS)
    settings = {name: values[name] for name in _OPTIONS if name not in unused}
    settings |= {"decoder_start_token_id": special.prompt[0], "eos_token_id": list(special.end), "pad_token_id": pad_id}
    settings |= {"forced_bos_token_id": special.forced_first, "forced_eos_token_id": special.forced_last}
    if special.never:
        settings["bad_words_ids"] = [[token] for token in special.never]
    return settings
