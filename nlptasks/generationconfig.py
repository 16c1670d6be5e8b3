"""What Hugging Face's checkpoints say for ``generate``, as options and marks of a head that writes, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from nlptasks.errors import ModelError, listing
from nlptasks.search import Marks, SearchOptions

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
    ignored += ["bad_words_ids of several tokens"] * any(len(ids) > 1 for ids in said.get("bad_words_ids") or ())
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
        ModelError: neither says with which token it starts or ends.
    """

    def found(name: str) -> Any:
        return said.get(name) if said else getattr(config, name, None)

    start, end = (
        getattr(config, name, None) if found(name) is None else found(name)
        for name in ("decoder_start_token_id", "eos_token_id")
    )
    if start is None or end is None:
        raise ModelError(
            where,
            "does not say with which token its decoder starts or ends",
            "add decoder_start_token_id and eos_token_id to its config.json",
        )
    never = [ids[0] for ids in found("bad_words_ids") or () if len(ids) == 1] + list(found("suppress_tokens") or ())
    return {
        "prompt": (start,),
        "end": tuple(end) if isinstance(end, list) else (end,),
        "forced_first": found("forced_bos_token_id"),
        "forced_last": found("forced_eos_token_id"),
        "never": tuple(never),
    }


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
