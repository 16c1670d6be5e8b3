"""Search for the best text token by token: greedy search, beam search or sampling, over the graph `step` of any runtime.

The logits processors of transformers decide which tokens may follow, so that the tokens are those of its ``generate``.

Letters for shapes: G sources, K hypotheses of each, T tokens read at once, L tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as processors

from nlptasks.errors import UsageError
from nlptasks.generation.hypotheses import Hypothesis
from nlptasks.generation.options import SearchOptions, SpecialTokens
from nlptasks.types import Ints

_KEPT = 0.75
"""Finished sources are dropped once no more than this share is left: dropping copies the rest."""

_IMPOSSIBLE = -1e9
"""Log-probability of a hypothesis that must not be chosen."""


class Stepper(Protocol):
    """Runs the graph `step` for some sources, and keeps its cache."""

    def advance(self, tokens: Ints, rows: Ints) -> Tensor:
        """Return the logits [G,K,V] after tokens [G,K,T], each of which continues a row [G,K] of the last step's cache."""

    def keep(self, groups: Ints) -> None:
        """Drop all sources but these."""


TokenStreamer = Callable[[int, int], None]
"""Receives the index of a source and the next token of its first hypothesis, except the end token."""


def search(
    stepper: Stepper,
    *,
    sources: Sequence[Ints],
    special: SpecialTokens,
    options: SearchOptions,
    streamer: TokenStreamer | None = None,
    prompts: Ints | None = None,
) -> list[list[Hypothesis]]:
    """Return the best hypotheses of each source, the best first.

    Args:
        stepper: runs the decoder on these sources.
        sources: tokens of each source; together with the seed they decide its samples.
        special: tokens with a meaning of their own.
        options: options of the search.
        streamer: receives the tokens while they are generated.
        prompts: tokens that each answer continues [G,L]; None for the prompt in `special`. The stepper gets all of them first.

    Raises:
        UsageError: there is a streamer and several hypotheses; only the end decides which of them is the answer.
    """
    for name in ("num_beams", "num_return_sequences"):
        if streamer and getattr(options, name) > 1:
            raise UsageError(name, f"is {getattr(options, name)}, and the text is streamed", "use 1 to stream a text")
    start = (
        torch.tensor(special.prompt).repeat(len(sources), 1) if prompts is None else torch.from_numpy(prompts)
    )  # [G,L]
    if options.num_beams > 1:
        return _BeamSearch(stepper, start, special, options).run()
    choose = _Sampling(sources, options) if options.do_sample else _likeliest
    return _IndependentSearch(stepper, start, special, options, choose, streamer).run()


Choose = Callable[[Tensor, Ints], Tensor]
"""Returns the next tokens [G,K] for scores [G,K,V] and the index [G] of each source."""


def _likeliest(scores: Tensor, sources: Ints) -> Tensor:
    return scores.argmax(-1)


class _Sampling:
    """Samples tokens by their probability: a function of the seed, the source's tokens and the step alone."""

    def __init__(self, sources: Sequence[Ints], options: SearchOptions) -> None:
        self._generators = [np.random.default_rng([options.seed, *source.tolist()]) for source in sources]

    def __call__(self, scores: Tensor, sources: Ints) -> Tensor:
        shares = scores.double().softmax(-1).cumsum(-1)  # [G,K,V]
        draws = np.array([self._generators[source].random(scores.shape[1]) for source in sources])  # [G,K]
        limits = torch.from_numpy(draws).to(shares.device).unsqueeze(-1) * shares[..., -1:]
        return torch.searchsorted(shares, limits, right=True).squeeze(-1).clamp(max=scores.shape[-1] - 1)


class _IndependentSearch:
    """Greedy search and sampling: hypotheses of a source do not compete with each other."""

    def __init__(
        self,
        stepper: Stepper,
        start: Tensor,
        special: SpecialTokens,
        options: SearchOptions,
        choose: Choose,
        streamer: TokenStreamer | None,
    ) -> None:
        self._stepper, self._special, self._options = stepper, special, options
        self._choose, self._streamer = choose, streamer
        count, self._prompt = start.shape
        self._process = _logits_processors(special, options, self._prompt)
        self._found: list[list[Hypothesis]] = [[] for _ in range(count)]
        beams = options.num_return_sequences
        self._sources = np.arange(count)  # indices of the sources that are left [G]
        self._history = start.unsqueeze(1).repeat(1, beams, 1)  # [G,K,L]
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
                self._finish(~left)
                kept = np.flatnonzero(left.numpy())
                self._stepper.keep(kept)
                self._sources, self._history = self._sources[kept], self._history[kept]
                self._logs, self._ended, tokens, rows = self._logs[kept], self._ended[kept], tokens[kept], rows[kept]
        self._finish(torch.ones(len(self._sources), dtype=torch.bool))
        return self._found

    def _extend(self, logits: Tensor) -> Tensor:
        """Add one token to each hypothesis and return it [G,K,1]."""
        groups, beams, size = logits.shape
        scores = self._process(self._history.view(groups * beams, -1), logits.reshape(-1, size)).view(logits.shape)
        chosen = self._choose(scores, self._sources).unsqueeze(-1)  # [G,K,1]
        logs = (logits.gather(-1, chosen) - logits.logsumexp(-1, keepdim=True)).squeeze(-1)  # [G,K]
        is_last = self._history.shape[-1] - self._prompt == self._options.max_new_tokens - 1
        if self._special.forced_last is None or not is_last:  # a forced end token says nothing about the answer
            self._logs += logs.masked_fill(self._ended, 0)
        open_before = ~self._ended
        self._ended |= torch.isin(chosen.squeeze(-1), torch.tensor(self._special.end))
        self._history = torch.cat([self._history, chosen], -1)
        if self._streamer:
            for group in torch.nonzero((open_before & ~self._ended)[:, 0]).flatten().tolist():
                self._streamer(int(self._sources[group]), int(chosen[group, 0]))
        return chosen

    def _finish(self, done: Tensor) -> None:
        """Record the hypotheses of the sources that are done [G]."""
        for group in np.flatnonzero(done.numpy()):
            own = zip(self._history[group].tolist(), self._logs[group].tolist(), strict=True)
            found = [_hypothesis(tokens[self._prompt :], log, self._special, self._options) for tokens, log in own]
            self._found[self._sources[group]] = sorted(found, key=lambda one: -one.log_probability)


class _BeamSearch:
    """Beam search as in ``generate``.

    Twice as many continuations as beams are considered (more if there are several end tokens), so that enough continue when many
    end at once.
    """

    def __init__(self, stepper: Stepper, start: Tensor, special: SpecialTokens, options: SearchOptions) -> None:
        self._stepper, self._special, self._options = stepper, special, options
        count, self._prompt = start.shape
        self._process = _logits_processors(special, options, self._prompt)
        beams = options.num_beams
        self._sources = np.arange(count)  # indices of the sources that are left [G]
        self._history = start.unsqueeze(1).repeat(1, beams, 1)  # [G,K,L]
        self._logs = torch.full((count, beams), _IMPOSSIBLE)  # [G,K]
        self._logs[:, 0] = 0  # all start alike: only the first continues
        self._done: list[list[tuple[float, Hypothesis]]] = [[] for _ in range(count)]
        self._open = np.ones(count, dtype=bool)  # True if the answers of a source may still improve [G]

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
        """Continue the best hypotheses, and return the row [G,K] of the cache that each comes from."""
        groups, beams, size = logits.shape
        scores = self._process(self._history.view(groups * beams, -1), logits.log_softmax(-1).view(-1, size))
        scores = (scores.view(groups, beams, size) + self._logs.unsqueeze(-1)).view(groups, -1)  # [G,K*V]
        logs, places = scores.topk(max(2, 1 + len(self._special.end)) * beams)  # [G,2K]
        parents, tokens = places // size, places % size
        ends = torch.isin(tokens, torch.tensor(self._special.end))
        if length == self._options.max_new_tokens:
            ends = torch.ones_like(ends)
        for group, place in torch.nonzero(ends[:, :beams] & torch.from_numpy(self._open).unsqueeze(1)).tolist():
            history = [*self._history[group, parents[group, place]].tolist(), int(tokens[group, place])]
            self._record(group, history, float(logs[group, place]), length)
        self._logs, going = logs.masked_fill(ends, _IMPOSSIBLE).topk(beams)  # each [G,K]
        parents, tokens = parents.gather(1, going), tokens.gather(1, going)
        before = self._history.gather(1, parents.unsqueeze(-1).expand(-1, -1, self._history.shape[-1]))
        self._history = torch.cat([before, tokens.unsqueeze(-1)], -1)
        return parents + torch.arange(groups).unsqueeze(1) * beams

    def _record(self, group: int, history: list[int], log: float, length: int) -> None:
        """Keep an answer if it is among the best."""
        done = self._done[self._sources[group]]
        own = _hypothesis(history[self._prompt :], log, self._special, self._options)
        done.append((log / length**self._options.length_penalty, own))
        done.sort(key=lambda one: -one[0])
        del done[self._options.num_beams :]

    def _may_improve(self, group: int, length: int) -> bool:
        """Return True if an open hypothesis could be better than the worst answer that is kept."""
        done, options = self._done[self._sources[group]], self._options
        if len(done) < options.num_beams:
            return True
        if options.early_stopping is True:
            return False
        longest = options.early_stopping == "never" and options.length_penalty > 0
        reach = options.max_new_tokens if longest else length
        return bool(self._logs[group, 0] / reach**options.length_penalty > done[-1][0])


def _hypothesis(tokens: Sequence[int], log: float, special: SpecialTokens, options: SearchOptions) -> Hypothesis:
    """Return the tokens after the prompt up to the end token; an end token that was forced does not count as an end."""
    end = next((place for place, token in enumerate(tokens) if token in special.end), len(tokens))
    forced = special.forced_last is not None and end == options.max_new_tokens - 1
    return Hypothesis(tuple(tokens[:end]), log, end < len(tokens) and not forced)


def _logits_processors(
    special: SpecialTokens, options: SearchOptions, prompt: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what changes the scores [B,V] after tokens [B,L], in the order of ``generate``.

    Args:
        special: tokens with a meaning of their own.
        options: options of the search.
        prompt: number of tokens of the prompt.
    """
    end = list(special.end)
    found: list[Any] = []
    if options.repetition_penalty != 1:
        found.append(processors.RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)))
    if options.no_repeat_ngram_size:
        found.append(processors.NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    if special.never:
        found.append(processors.NoBadWordsLogitsProcessor([[token] for token in special.never], end))
    if options.min_new_tokens:
        found.append(processors.MinNewTokensLengthLogitsProcessor(prompt, options.min_new_tokens, end))
    if special.forced_first is not None:
        found.append(processors.ForcedBOSTokenLogitsProcessor(special.forced_first))
    if special.forced_last is not None:
        last = prompt + options.max_new_tokens
        found.append(processors.ForcedEOSTokenLogitsProcessor(last, special.forced_last))
    if options.do_sample:
        found += _warpers(options)
    if options.renormalize_logits:
        found.append(processors.LogitNormalization())
    whole = LogitsProcessorList(found)
    return lambda history, scores: whole(history, scores)


def _warpers(options: SearchOptions) -> list[Any]:
    """Return the processors that leave only the likelier tokens to sample from."""
    found: list[Any] = []
    if options.temperature != 1:
        found.append(processors.TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        found.append(processors.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        found.append(processors.TopPLogitsWarper(float(options.top_p)))
    return found
