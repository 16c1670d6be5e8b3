"""Searching for the best text token by token: greedy, beams or samples, over the graph `step`, the same for every runtime.

What may follow is decided by transformers' own logits processors, so that the tokens are those of its ``generate``.

Letters for shapes: G sources, K hypotheses of each, T tokens read at once, L tokens written so far, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as processors

from nlptasks.config import ABOVE_0, AT_LEAST_0, AT_LEAST_1, SEEDS, SHARE_ABOVE_0, Range, check_values, setting
from nlptasks.errors import UsageError
from nlptasks.types import Ints

_KEPT = 0.75
"""Sources that are done are dropped as soon as no more than this share is left: dropping copies what is left."""

_NEVER_SEEN = -1e9


@dataclass(frozen=True)
class SearchOptions:
    """How a text is searched for. Names and meanings are those of transformers' ``generate``."""

    max_new_tokens: int = setting(
        128, "longest answer, in tokens of the target's vocabulary, its end included", within=AT_LEAST_1, at_run=True
    )
    min_new_tokens: int = setting(0, "shortest answer, in tokens, its end left out", within=AT_LEAST_0, at_run=True)
    num_beams: int = setting(1, "hypotheses that are followed at a time; 1 is greedy", within=AT_LEAST_1, at_run=True)
    length_penalty: float = setting(
        1.0,
        "a hypothesis's score is divided by its length to this power: more makes longer answers",
        within=Range(least=-10, most=10),
        at_run=True,
    )
    early_stopping: str = setting(
        "false",
        "when beams end: true as soon as there are num_beams answers, false when no better one is likely, never when none can be",
        choices=("true", "false", "never"),
        at_run=True,
    )
    no_repeat_ngram_size: int = setting(
        0, "no run of so many tokens stands twice; 0 for any", within=AT_LEAST_0, at_run=True
    )
    repetition_penalty: float = setting(
        1.0, "a token's score is divided by this once it has been written", within=ABOVE_0, at_run=True
    )
    do_sample: bool = setting(False, "whether tokens are drawn by their probability", at_run=True)
    temperature: float = setting(1.0, "above 1 draws more freely, below 1 more cautiously", within=ABOVE_0, at_run=True)
    top_k: int = setting(50, "tokens to draw from, the most likely ones; 0 for all", within=AT_LEAST_0, at_run=True)
    top_p: float = setting(
        1.0, "probability that the tokens to draw from have together, in 0..1", within=SHARE_ABOVE_0, at_run=True
    )
    renormalize_logits: bool = setting(
        False, "whether what these options leave of the probabilities is made to add up to 1 again", at_run=True
    )
    seed: int = setting(
        0, "of the draws; a text's own draws do not depend on the texts beside it", within=SEEDS, at_run=True
    )
    num_return_sequences: int = setting(
        1, "answers to give, the best ones; above 1 as a list", within=AT_LEAST_1, at_run=True
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError("min_new_tokens", f"is {self.min_new_tokens}, above max_new_tokens", "lower it")
        if self.num_beams > 1 and self.do_sample:
            raise UsageError("do_sample", f"is set with {self.num_beams} beams", "take num_beams=1 to sample")
        if self.num_return_sequences > self.num_beams and not self.do_sample:
            problem = f"is {self.num_return_sequences} with {self.num_beams} beams"
            raise UsageError("num_return_sequences", problem, "take as many beams, or do_sample=true")


@dataclass(frozen=True)
class Marks:
    """The tokens that have a meaning of their own in a decoder's vocabulary.

    Attributes:
        prompt: the tokens that every answer begins with, the decoder's start first.
        end: the tokens that end an answer.
        forced_first: the token that must come first, if any, behind a prompt of one token.
        forced_last: the token that comes last where there is no room for more, if any.
        never: tokens that are never written.
    """

    prompt: tuple[int, ...]
    end: tuple[int, ...]
    forced_first: int | None = None
    forced_last: int | None = None
    never: tuple[int, ...] = ()


class Hypothesis(NamedTuple):
    """An answer to one source.

    Attributes:
        tokens: its tokens, without the prompt and the end.
        log_probability: of these tokens, and of the end if it came to one by itself; for beams after what the options make of it.
        ended: whether it came to its end by itself, not for lack of room.
    """

    tokens: tuple[int, ...]
    log_probability: float
    ended: bool

    @property
    def mean_probability(self) -> float:
        """The geometric mean of its tokens' probabilities, in 0..1."""
        return math.exp(self.log_probability / max(1, len(self.tokens) + int(self.ended)))


class Stepper(Protocol):
    """Runs the graph `step` for some sources, and keeps its cache."""

    def advance(self, tokens: Ints, rows: Ints) -> Tensor:
        """Logits [G,K,V] behind tokens [G,K,T], each continuing a row [G,K] of the cache of the step before."""

    def keep(self, groups: Ints) -> None:
        """Go on with some of the sources only."""


Listener = Callable[[int, int], None]
"""Hears every token of the first hypothesis as it is written, but for its end: number of the source, and token."""


def search(
    stepper: Stepper,
    *,
    sources: Sequence[Ints],
    marks: Marks,
    options: SearchOptions,
    listener: Listener | None = None,
    prompts: Ints | None = None,
) -> list[list[Hypothesis]]:
    """The best hypotheses for each source, the best first.

    Args:
        stepper: runs the decoder on these sources.
        sources: the tokens of each source: what a sample is drawn by, beside the seed.
        marks: tokens with a meaning of their own.
        options: how to search.
        listener: hears the tokens as they are written.
        prompts: what each answer goes on from [G,L]; None for the prompt of `marks`. The stepper is given all of it first.

    Raises:
        UsageError: there is a listener, and several hypotheses: which of them is the answer shows in the end only.
    """
    for name in ("num_beams", "num_return_sequences"):
        if listener and getattr(options, name) > 1:
            problem = f"is {getattr(options, name)}, with a listener"
            raise UsageError(name, problem, "take 1 to hear texts as they are written")
    begun = (
        torch.tensor(marks.prompt).repeat(len(sources), 1) if prompts is None else torch.from_numpy(prompts)
    )  # [G,L]
    if options.num_beams > 1:
        return _Beams(stepper, begun, marks, options).run()
    choose = _Draws(sources, options) if options.do_sample else _likeliest
    return _Independent(stepper, begun, marks, options, choose, listener).run()


Choose = Callable[[Tensor, Ints], Tensor]
"""The next tokens [G,K] by scores [G,K,V] and the number [G] of each source."""


def _likeliest(scores: Tensor, sources: Ints) -> Tensor:
    return scores.argmax(-1)


class _Draws:
    """Draws tokens by their probability: a function of the seed, the source's tokens and the step alone."""

    def __init__(self, sources: Sequence[Ints], options: SearchOptions) -> None:
        self._generators = [np.random.default_rng([options.seed, *source.tolist()]) for source in sources]

    def __call__(self, scores: Tensor, sources: Ints) -> Tensor:
        shares = scores.double().softmax(-1).cumsum(-1)  # [G,K,V]
        draws = np.array([self._generators[source].random(scores.shape[1]) for source in sources])  # [G,K]
        limits = torch.from_numpy(draws).to(shares.device).unsqueeze(-1) * shares[..., -1:]
        return torch.searchsorted(shares, limits, right=True).squeeze(-1).clamp(max=scores.shape[-1] - 1)


class _Independent:
    """Follows one hypothesis of each source, or several that do not know of each other."""

    def __init__(
        self,
        stepper: Stepper,
        begun: Tensor,
        marks: Marks,
        options: SearchOptions,
        choose: Choose,
        listener: Listener | None,
    ) -> None:
        self._stepper, self._marks, self._options = stepper, marks, options
        self._choose, self._listener = choose, listener
        count, self._begin = begun.shape
        self._rules = _rules(marks, options, self._begin)
        self._found: list[list[Hypothesis]] = [[] for _ in range(count)]
        beams = options.num_return_sequences
        self._sources = np.arange(count)  # number of each source that is left [G]
        self._history = begun.unsqueeze(1).repeat(1, beams, 1)  # [G,K,L]
        self._logs = torch.zeros(count, beams)  # [G,K]
        self._ended = torch.zeros(count, beams, dtype=torch.bool)  # [G,K]

    def run(self) -> list[list[Hypothesis]]:
        tokens, rows = self._history, torch.zeros_like(self._logs, dtype=torch.int64)
        for _ in range(self._options.max_new_tokens):
            tokens = self._extend(self._stepper.advance(tokens.numpy(), rows.numpy()))
            rows = torch.arange(tokens.numel()).view(tokens.shape[:2])
            left = ~self._ended.all(1)
            if not left.any():
                break
            if left.sum() <= _KEPT * len(left):
                self._close(~left)
                kept = np.flatnonzero(left.numpy())
                self._stepper.keep(kept)
                self._sources, self._history = self._sources[kept], self._history[kept]
                self._logs, self._ended, tokens, rows = self._logs[kept], self._ended[kept], tokens[kept], rows[kept]
        self._close(torch.ones(len(self._sources), dtype=torch.bool))
        return self._found

    def _extend(self, logits: Tensor) -> Tensor:
        """Write one token more behind each hypothesis: [G,K,1]."""
        groups, beams, size = logits.shape
        scores = self._rules(self._history.view(groups * beams, -1), logits.reshape(-1, size)).view(logits.shape)
        chosen = self._choose(scores, self._sources).unsqueeze(-1)  # [G,K,1]
        certain = (logits.gather(-1, chosen) - logits.logsumexp(-1, keepdim=True)).squeeze(-1)  # [G,K]
        is_last = self._history.shape[-1] - self._begin == self._options.max_new_tokens - 1
        if self._marks.forced_last is None or not is_last:  # an end that is forced says nothing of the answer
            self._logs += certain.masked_fill(self._ended, 0)
        open_before = ~self._ended
        self._ended |= torch.isin(chosen.squeeze(-1), torch.tensor(self._marks.end))
        self._history = torch.cat([self._history, chosen], -1)
        if self._listener:
            for group in torch.nonzero((open_before & ~self._ended)[:, 0]).flatten().tolist():
                self._listener(int(self._sources[group]), int(chosen[group, 0]))
        return chosen

    def _close(self, done: Tensor) -> None:
        """Note the hypotheses of the sources that are done [G]."""
        for group in np.flatnonzero(done.numpy()):
            own = zip(self._history[group].tolist(), self._logs[group].tolist(), strict=True)
            found = [_hypothesis(tokens[self._begin :], log, self._marks, self._options) for tokens, log in own]
            self._found[self._sources[group]] = sorted(found, key=lambda one: -one.log_probability)


class _Beams:
    """Follows the likeliest hypotheses of each source, as ``generate`` does with ``num_beams``.

    Twice as many continuations as there are beams are looked at, so that enough go on if many end at once.
    """

    def __init__(self, stepper: Stepper, begun: Tensor, marks: Marks, options: SearchOptions) -> None:
        self._stepper, self._marks, self._options = stepper, marks, options
        count, self._begin = begun.shape
        self._rules = _rules(marks, options, self._begin)
        beams = options.num_beams
        self._sources = np.arange(count)  # number of each source that is left [G]
        self._history = begun.unsqueeze(1).repeat(1, beams, 1)  # [G,K,L]
        self._logs = torch.full((count, beams), _NEVER_SEEN)  # [G,K]
        self._logs[:, 0] = 0  # all begin alike: only the first goes on
        self._done: list[list[tuple[float, Hypothesis]]] = [[] for _ in range(count)]
        self._open = np.ones(count, dtype=bool)  # whether a source's answers may still get better [G]

    def run(self) -> list[list[Hypothesis]]:
        tokens, rows = self._history, torch.zeros_like(self._logs, dtype=torch.int64)
        for length in range(1, self._options.max_new_tokens + 1):
            rows = self._extend(self._stepper.advance(tokens.numpy(), rows.numpy()), length)
            tokens = self._history[..., -1:]
            self._open &= [self._may_improve(group, length) for group in range(len(self._sources))]
            if not self._open.any():
                break
            if self._open.sum() <= _KEPT * len(self._open):
                kept = np.flatnonzero(self._open)
                self._stepper.keep(kept)
                self._sources, self._history, self._logs = self._sources[kept], self._history[kept], self._logs[kept]
                self._open, tokens, rows = self._open[kept], tokens[kept], rows[kept]
        answers = self._options.num_return_sequences
        return [[hypothesis for _, hypothesis in done[:answers]] for done in self._done]

    def _extend(self, logits: Tensor, length: int) -> Tensor:
        """Go on with the best continuations: the row [G,K] of the cache that each comes from."""
        groups, beams, size = logits.shape
        scores = self._rules(self._history.view(groups * beams, -1), logits.log_softmax(-1).view(-1, size))
        scores = (scores.view(groups, beams, size) + self._logs.unsqueeze(-1)).view(groups, -1)  # [G,K*V]
        logs, places = scores.topk(max(2, 1 + len(self._marks.end)) * beams)  # [G,2K]
        parents, tokens = places // size, places % size
        ends = torch.isin(tokens, torch.tensor(self._marks.end))
        if length == self._options.max_new_tokens:
            ends = torch.ones_like(ends)
        for group, place in torch.nonzero(ends[:, :beams] & torch.from_numpy(self._open).unsqueeze(1)).tolist():
            history = [*self._history[group, parents[group, place]].tolist(), int(tokens[group, place])]
            self._note(group, history, float(logs[group, place]), length)
        self._logs, going = logs.masked_fill(ends, _NEVER_SEEN).topk(beams)  # each [G,K]
        parents, tokens = parents.gather(1, going), tokens.gather(1, going)
        before = self._history.gather(1, parents.unsqueeze(-1).expand(-1, -1, self._history.shape[-1]))
        self._history = torch.cat([before, tokens.unsqueeze(-1)], -1)
        return parents + torch.arange(groups).unsqueeze(1) * beams

    def _note(self, group: int, history: list[int], log: float, length: int) -> None:
        """Keep an answer if it is among the best."""
        done = self._done[self._sources[group]]
        own = _hypothesis(history[self._begin :], log, self._marks, self._options)
        done.append((log / length**self._options.length_penalty, own))
        done.sort(key=lambda one: -one[0])
        del done[self._options.num_beams :]

    def _may_improve(self, group: int, length: int) -> bool:
        """Whether a hypothesis that is still open could be better than the worst answer that is kept."""
        done, options = self._done[self._sources[group]], self._options
        if len(done) < options.num_beams:
            return True
        if options.early_stopping == "true":
            return False
        longest = options.early_stopping == "never" and options.length_penalty > 0
        reach = options.max_new_tokens if longest else length
        return bool(self._logs[group, 0] / reach**options.length_penalty > done[-1][0])


def _hypothesis(tokens: Sequence[int], log: float, marks: Marks, options: SearchOptions) -> Hypothesis:
    """What stands behind the prompt, up to the end; an end that was forced for lack of room is none."""
    end = next((place for place, token in enumerate(tokens) if token in marks.end), len(tokens))
    forced = marks.forced_last is not None and end == options.max_new_tokens - 1
    return Hypothesis(tuple(tokens[:end]), log, end < len(tokens) and not forced)


def _rules(marks: Marks, options: SearchOptions, prompt: int) -> Callable[[Tensor, Tensor], Tensor]:
    """What changes the scores [B,V] behind tokens [B,L], so many of them the prompt's, in the order of ``generate``."""
    end = list(marks.end)
    found: list[Any] = []
    if options.repetition_penalty != 1:
        found.append(processors.RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)))
    if options.no_repeat_ngram_size:
        found.append(processors.NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    if marks.never:
        found.append(processors.NoBadWordsLogitsProcessor([[token] for token in marks.never], end))
    if options.min_new_tokens:
        found.append(processors.MinNewTokensLengthLogitsProcessor(prompt, options.min_new_tokens, end))
    if marks.forced_first is not None:
        found.append(processors.ForcedBOSTokenLogitsProcessor(marks.forced_first))
    if marks.forced_last is not None:
        last = prompt + options.max_new_tokens
        found.append(processors.ForcedEOSTokenLogitsProcessor(last, marks.forced_last))
    if options.do_sample:
        found += _warpers(options)
    if options.renormalize_logits:
        found.append(processors.LogitNormalization())
    rules = LogitsProcessorList(found)
    return lambda history, scores: rules(history, scores)


def _warpers(options: SearchOptions) -> list[Any]:
    """What leaves the likelier tokens to be drawn from."""
    found: list[Any] = []
    if options.temperature != 1:
        found.append(processors.TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        found.append(processors.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        found.append(processors.TopPLogitsWarper(float(options.top_p)))
    return found
