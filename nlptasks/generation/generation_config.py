"""What Hugging Face's checkpoints say for ``generate``, as options and marks of a head that writes, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from nlptasks.errors import ModelError, listing, quote
from nlptasks.generation.search import Marks, SearchOptions

_log = logging.getLogger("nlptasks")

_OPTIONS = tuple(item.name for item in fields(SearchOptions) if item.name != "seed")
_OF_BEAMS, _OF_SAMPLES = ("length_penalty", "early_stopping"), ("temperature", "top_k", "top_p")

_NOT_FOLLOWED: Mapping[str, Any] = {
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
"""What changes the tokens of ``generate`` and is not known here, with the value that changes nothing."""


def options_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a search that a checkpoint sets; what it sets beside them is warned of.

    Args:
        said: its ``generation_config.json``, or what older ones say in their ``config.json``; lengths count the decoder's start.
    """
    found = {name: said[name] for name in (*_OPTIONS, "prefix") if said.get(name) is not None}
    if "early_stopping" in found:
        found["early_stopping"] = str(found["early_stopping"]).lower()
    for name, length, least in (("max_new_tokens", "max_length", 1), ("min_new_tokens", "min_length", 0)):
        if name not in found and isinstance(said.get(length), int):
            found[name] = max(least, said[length] - 1)
    ignored = [name for name, neutral in _NOT_FOLLOWED.items() if said.get(name) not in (None, neutral)]
    if found.get("num_beams", 1) != 1 and found.pop("do_sample", False):
        ignored.append("do_sample with beams")
    ignored += ["bad_words_ids of several tokens"] * any(len(ids) > 1 for ids in _lists(said.get("bad_words_ids")))
    if ignored:
        _log.warning("what the checkpoint says for generate is followed, but for %s", listing(ignored))
    return found


def marks_of(config: Any, said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """How an encoder-decoder's targets begin and end, as `Marks` has it.

    Args:
        config: its Hugging Face config, which counts where nothing is said for ``generate``.
        said: what is said for ``generate``.
        where: its name, for messages.

    Raises:
        ModelError: neither says with which token it starts or ends, or what is said is no token of its.
    """

    def value(name: str) -> Any:
        return said.get(name) if said else getattr(config, name, None)

    def tokens(name: str, value: Any) -> tuple[int, ...]:
        return _tokens([] if value is None else value, name, config.vocab_size, where)

    start, end = (
        tokens(name, getattr(config, name, None) if value(name) is None else value(name))
        for name in ("decoder_start_token_id", "eos_token_id")
    )
    if not start or not end:
        raise ModelError(
            where,
            "does not say with which token its decoder starts or ends",
            "add decoder_start_token_id and eos_token_id to its config.json",
        )
    forced = {name: tokens(name, value(name))[:1] for name in ("forced_bos_token_id", "forced_eos_token_id")}
    single = [ids[0] for ids in _lists(value("bad_words_ids")) if len(ids) == 1]
    never = {"bad_words_ids": single, "suppress_tokens": value("suppress_tokens")}
    return {
        "prompt": start[:1],
        "end": end,
        "forced_first": next(iter(forced["forced_bos_token_id"]), None),
        "forced_last": next(iter(forced["forced_eos_token_id"]), None),
        "never": tuple(token for name, ids in never.items() for token in tokens(name, ids)),
    }


def end_of(config: Any, said: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The tokens that end what a decoder writes.

    Raises:
        ModelError: none is said, or what is said is no token of its.
    """
    value = said.get("eos_token_id")
    value = getattr(config, "eos_token_id", None) if value is None else value
    end = _tokens([] if value is None else value, "eos_token_id", config.vocab_size, where)
    if not end:
        raise ModelError(where, "does not say with which token a text ends", "add eos_token_id to its config.json")
    return end


def _lists(value: Any) -> list[list[Any]]:
    """The lists in a list."""
    return [one for one in value if isinstance(one, list)] if isinstance(value, list) else []


def _tokens(value: Any, name: str, size: int, where: str) -> tuple[int, ...]:
    """A token or a list of tokens, every one of which a vocabulary of this size has."""
    found = value if isinstance(value, list) else [value]
    for one in found:
        if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < size:
            raise ModelError(where, f"says {name}={quote(one)}, expected a token from 0 to {size - 1}", "correct it")
    return tuple(found)


def said_of(marks: Marks, options: SearchOptions, *, pad_id: int) -> dict[str, Any]:
    """What a checkpoint with these marks and options says for ``generate``; options without effect are left out."""
    values = asdict(options)
    unused = (_OF_BEAMS if options.num_beams == 1 else ()) + (() if options.do_sample else _OF_SAMPLES)
    said = {name: values[name] for name in _OPTIONS if name not in unused}
    if "early_stopping" in said:
        said["early_stopping"] = {"true": True, "false": False}.get(options.early_stopping, "never")
    said |= {"decoder_start_token_id": marks.prompt[0], "eos_token_id": list(marks.end), "pad_token_id": pad_id}
    said |= {"forced_bos_token_id": marks.forced_first, "forced_eos_token_id": marks.forced_last}
    if marks.never:
        said["bad_words_ids"] = [[token] for token in marks.never]
    return said
