"""Options of a search, and the tokens with a meaning of their own. Imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nlptasks.config import ABOVE_0, AT_LEAST_0, AT_LEAST_1, SEEDS, SHARE_ABOVE_0, Range, check_values, option
from nlptasks.errors import UsageError


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search. Names and meanings are those of ``generate`` in transformers."""

    max_new_tokens: int = option(
        128,
        "longest answer, in tokens of the target vocabulary, including the end token",
        within=AT_LEAST_1,
        at_run=True,
    )
    min_new_tokens: int = option(0, "shortest answer, in tokens, without the end token", within=AT_LEAST_0, at_run=True)
    num_beams: int = option(1, "number of beams; 1 is greedy search", within=AT_LEAST_1, at_run=True)
    length_penalty: float = option(
        1.0,
        "exponent of the length by which the score of a hypothesis is divided: larger values favour longer answers",
        within=Range(least=-10, most=10),
        at_run=True,
    )
    early_stopping: bool | str = option(
        False,
        "when beam search stops: true with num_beams answers, false when a better one is unlikely, never when none is possible",
        choices=("never",),
        at_run=True,
    )
    no_repeat_ngram_size: int = option(
        0, "n-grams of this size may not repeat; 0 disables this", within=AT_LEAST_0, at_run=True
    )
    repetition_penalty: float = option(
        1.0, "divides the score of tokens that were already generated; 1 disables this", within=ABOVE_0, at_run=True
    )
    do_sample: bool = option(False, "sample tokens by their probability instead of choosing the likeliest", at_run=True)
    temperature: float = option(
        1.0, "temperature of sampling: above 1 more varied, below 1 more predictable", within=ABOVE_0, at_run=True
    )
    top_k: int = option(50, "sample from this many of the likeliest tokens; 0 for all", within=AT_LEAST_0, at_run=True)
    top_p: float = option(
        1.0,
        "sample from the likeliest tokens that have this probability together, in 0..1",
        within=SHARE_ABOVE_0,
        at_run=True,
    )
    renormalize_logits: bool = option(
        False, "normalise the probabilities again after these options have changed them", at_run=True
    )
    seed: int = option(
        0, "seed of sampling; the samples of a text do not depend on the texts beside it", within=SEEDS, at_run=True
    )
    num_return_sequences: int = option(
        1, "number of answers, the best ones; more than 1 are returned as a list", within=AT_LEAST_1, at_run=True
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError("min_new_tokens", f"is {self.min_new_tokens}, above max_new_tokens", "lower it")
        if self.num_beams > 1 and self.do_sample:
            raise UsageError("do_sample", f"is set with {self.num_beams} beams", "use num_beams=1 to sample")
        if self.num_return_sequences > self.num_beams and not self.do_sample:
            problem = f"is {self.num_return_sequences} with {self.num_beams} beams"
            raise UsageError("num_return_sequences", problem, "use as many beams, or set do_sample")

    def within(self, longest: int) -> SearchOptions:
        """Return the options for answers of at most `longest` tokens."""
        fewest, most = min(self.min_new_tokens, longest), min(self.max_new_tokens, longest)
        return replace(self, min_new_tokens=fewest, max_new_tokens=most)


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens with a meaning of their own in a decoder's vocabulary.

    Attributes:
        prompt: tokens that every answer starts with, the decoder's start token first.
        end: tokens that end an answer.
        forced_first: token that must come first after a prompt of one token, if any.
        forced_last: token that must come last when there is no room for more, if any.
        never: tokens that are never generated.
    """

    prompt: tuple[int, ...]
    end: tuple[int, ...]
    forced_first: int | None = None
    forced_last: int | None = None
    never: tuple[int, ...] = ()
