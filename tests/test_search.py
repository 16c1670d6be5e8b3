"""The search: tokens and scores of ``generate`` in transformers for every decoder, and guarantees that ``generate`` lacks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from onnxruntime import OrtValue

from nlptasks.errors import BackendError, UsageError
from nlptasks.exporting.exporter import export_graph
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.tracing import Engine, further
from nlptasks.generation.cache import empty_cache
from nlptasks.generation.decoder import Decoder
from nlptasks.generation.hypotheses import Hypothesis
from nlptasks.generation.options import SearchOptions, SpecialTokens
from nlptasks.generation.search import search
from nlptasks.generation.seq2seq_generator import CachedStepper
from nlptasks.generation.step_graph import StepGraph
from nlptasks.runtimes.base import EncodedBatch, Runtime
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import TorchRuntime

ENDS = (2, 5, 17, 33, 60, 80, 101, 140, 203)
"""Many tokens end a text, so that the texts of random models end."""

MOST = 12


class Steps:
    """Runs a decoder, and records how many sources each step had and how many tokens it read."""

    def __init__(self, decoder: Decoder, cross: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
        self.decoder, self.cross, self.mask = decoder, cross, mask
        self.past = {name: torch.from_numpy(empty) for name, empty in empty_cache(StepGraph(decoder).spec()).items()}
        self.groups: list[int] = []
        self.lengths: list[int] = []

    def advance(self, tokens: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        self.groups.append(len(tokens))
        self.lengths.append(tokens.shape[2])
        given = {"tokens": torch.from_numpy(tokens), "rows": torch.from_numpy(rows.reshape(-1)), "mask": self.mask}
        with torch.no_grad():
            found = self.decoder.step({**given, **self.cross, **self.past})
        self.past = {old: found[new] for old, new in zip(self.decoder.past, self.decoder.present, strict=True)}
        return found["logits"].reshape(*rows.shape, -1)

    def keep(self, groups: np.ndarray) -> None:
        rows = torch.from_numpy(groups)
        self.mask, self.cross = self.mask[rows], {name: value[rows] for name, value in self.cross.items()}


class Writer:
    """A random encoder-decoder, as ours and as Hugging Face's, with the same weights and sources."""

    def __init__(self, name: str, *, layers: int = 3, spread: float = 3.0) -> None:
        config = tiny.WRITERS[name]()
        config.decoder_layers = config.num_decoder_layers = layers  # the second is T5's name
        self.theirs = tiny.make_writer(config, spread=spread)
        self.decoder = Decoder(config).eval()
        self.decoder.model.load_state_dict(self.theirs.state_dict(), strict=False)
        draw = torch.Generator().manual_seed(3)
        self.ids = torch.randint(3, config.vocab_size, (6, 9), generator=draw)
        self.mask = torch.ones_like(self.ids)
        self.mask[1, 6:] = 0
        self.mask[3, 2:] = 0
        self.start = config.decoder_start_token_id

    def special(self, **more: Any) -> SpecialTokens:
        return SpecialTokens(prompt=(self.start,), end=ENDS, **more)

    def steps(self, rows: list[int] | None = None) -> Steps:
        chosen = list(range(len(self.ids))) if rows is None else rows
        with torch.no_grad():
            encoder = self.theirs.get_encoder()
            states = encoder(input_ids=self.ids[chosen], attention_mask=self.mask[chosen]).last_hidden_state
            return Steps(self.decoder, self.decoder.cross(states, self.mask[chosen]), self.mask[chosen])

    def ours(self, options: SearchOptions, special: SpecialTokens | None = None, **more: Any) -> list[list[Hypothesis]]:
        sources = [row.numpy() for row in self.ids]
        return search(self.steps(), sources=sources, special=special or self.special(), options=options, **more)

    def generate(self, **options: Any) -> Any:
        with torch.no_grad():
            return self.theirs.generate(
                input_ids=self.ids,
                attention_mask=self.mask,
                eos_token_id=list(ENDS),
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )


@pytest.fixture(scope="module", params=tiny.WRITERS)
def writer(request: pytest.FixtureRequest) -> Writer:
    return Writer(request.param)


@pytest.fixture(scope="module")
def bart() -> Writer:
    return Writer("bart")


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no bigram twice": {"no_repeat_ngram_size": 2},
    "repetition penalty, at least four tokens": {"repetition_penalty": 1.3, "min_new_tokens": 4},
    "beams": {"num_beams": 4},
    "beams, renormalised": {"num_beams": 4, "renormalize_logits": True, "repetition_penalty": 1.5},
    "beams, long answers": {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3},
    "beams, short answers": {"num_beams": 4, "length_penalty": -1.0},
    "beams, any length": {"num_beams": 2, "length_penalty": 0.0},
    "beams, stop early": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 3},
    "beams, never stop early": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5, "min_new_tokens": 3},
    "one token": {"max_new_tokens": 1},
    "one token, beams": {"max_new_tokens": 1, "num_beams": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("forced", [False, True])
def test_tokens_equal_generate(writer: Writer, name: str, forced: bool) -> None:
    given = {"max_new_tokens": MOST, **OPTIONS[name]}
    special = writer.special(forced_first=7, forced_last=2) if forced else writer.special()
    theirs = writer.generate(
        do_sample=False, forced_bos_token_id=special.forced_first, forced_eos_token_id=special.forced_last, **given
    )
    options = SearchOptions(**given)
    found = [one for hypotheses in writer.ours(options, special) for one in hypotheses]
    for number, (one, row) in enumerate(zip(found, theirs.sequences[:, 1:].tolist(), strict=True)):
        end = next((place for place, token in enumerate(row) if token in ENDS), len(row))
        assert one.tokens == tuple(row[:end])
        if options.num_beams > 1:
            score = one.log_probability / (end + (end < len(row))) ** options.length_penalty
            assert score == pytest.approx(float(theirs.sequences_scores[number]), abs=1e-3, rel=1e-4)


@pytest.mark.parametrize("name", tiny.WRITERS)
def test_onnx_runtime_generates_the_same(name: str, tmp_path: Path) -> None:
    writer = Writer(name, layers=1, spread=1.0)
    path, graph, step = tmp_path / "step.onnx", "head.step", StepGraph(writer.decoder)
    _, parity = export_graph(further(graph, step), path, PRECISIONS["fp32"])
    assert parity.max_difference <= 1e-4
    assert parity.agreement == 1
    cross = {name: OrtValue.ortvalue_from_numpy(tensor.numpy()) for name, tensor in writer.steps().cross.items()}
    runtimes: list[tuple[Runtime, Any]] = [
        (TorchRuntime({graph: step}, torch.device("cpu")), writer.steps().cross),
        (OnnxRuntime({graph: path}, device="cpu", precision="fp32", specs={graph: step.spec()}), cross),
    ]
    for one in ("greedy", "beams", "beams, long answers"):
        options, generated = SearchOptions(max_new_tokens=MOST, **OPTIONS[one]), []
        for runtime, outputs in runtimes:
            batch = EncodedBatch("head", dict.fromkeys(range(len(writer.ids))), writer.mask.numpy(), outputs, runtime)
            stepper = CachedStepper(batch, np.arange(len(writer.ids)), runtime.spec(graph))
            found = search(stepper, sources=list(writer.ids.numpy()), special=writer.special(), options=options)
            generated.append([[one.tokens for one in own] for own in found])
        assert generated[0] == generated[1]


def test_every_exporter_is_tried(bart: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(why: str) -> Any:
        def write(*given: Any) -> None:
            raise ValueError(why)

        return write

    tried = (Engine("one", refuse("no")), Engine("two", refuse("never"), "eager"))
    monkeypatch.setattr("nlptasks.exporting.exporter.engines", lambda fusions: tried)
    graph = further("head.step", StepGraph(bart.decoder))
    with pytest.raises(
        BackendError,
        match=r"the graph head.step: cannot be exported in fp32 \(one: ValueError: no; two: ValueError: never\)",
    ):
        export_graph(graph, tmp_path / "step.onnx", PRECISIONS["fp32"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("beams", [1, 3])
def test_finished_sources_are_dropped(beams: int) -> None:
    writer = Writer("m2m100")
    options = SearchOptions(max_new_tokens=MOST, num_beams=beams)
    endless = writer.ours(options, SpecialTokens(prompt=(2,), end=()))
    never = {token for own in endless[:2] for one in own for token in one.tokens}
    special = SpecialTokens(prompt=(2,), end=tuple(set(range(3, 300)) - never))  # two sources continue as before
    steps = writer.steps()
    whole = search(steps, sources=list(writer.ids.numpy()), special=special, options=options)
    assert steps.groups[0] == len(writer.ids)
    assert steps.groups[-1] < len(writer.ids)
    for row in range(len(writer.ids)):
        [alone] = search(writer.steps([row]), sources=[writer.ids[row].numpy()], special=special, options=options)
        assert [one.tokens for one in alone] == [one.tokens for one in whole[row]]


def test_a_prompt_of_several_tokens_is_read_at_once(bart: Writer) -> None:
    special = SpecialTokens(prompt=(2, 9, 11), end=ENDS)
    with torch.no_grad():
        prompt = torch.tensor([[2, 9, 11]] * len(bart.ids))
        theirs = bart.theirs.generate(
            input_ids=bart.ids,
            attention_mask=bart.mask,
            decoder_input_ids=prompt,
            eos_token_id=list(ENDS),
            max_new_tokens=MOST,
            forced_eos_token_id=None,
        )
    steps = bart.steps()
    options = SearchOptions(max_new_tokens=MOST)
    found = search(steps, sources=list(bart.ids.numpy()), special=special, options=options)
    assert steps.lengths == [3] + [1] * (len(steps.lengths) - 1)
    for [one], row in zip(found, theirs[:, 3:].tolist(), strict=True):
        assert list(one.tokens) == row[: len(one.tokens)]
        assert one.ended == (row[len(one.tokens) :][:1] in [[end] for end in ENDS])


def test_samples_depend_only_on_seed_and_source(bart: Writer) -> None:
    options = SearchOptions(max_new_tokens=MOST, do_sample=True, top_k=0, temperature=2.0, num_return_sequences=2)
    found = bart.ours(options)
    assert found == bart.ours(options)
    assert all(len(own) == 2 for own in found)
    assert len({one.tokens for own in found for one in own}) > len(found)
    assert found != bart.ours(SearchOptions(**{**vars(options), "seed": 1}))
    [alone] = search(bart.steps([4]), sources=[bart.ids[4].numpy()], special=bart.special(), options=options)
    assert [one.tokens for one in alone] == [one.tokens for one in found[4]]


def test_sampling_from_one_token_is_greedy(bart: Writer) -> None:
    greedy = bart.ours(SearchOptions(max_new_tokens=MOST))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6, "top_k": 0}, {"temperature": 1e-4}):
        options = SearchOptions(max_new_tokens=MOST, do_sample=True, **narrow)
        assert [[one.tokens for one in own] for own in bart.ours(options)] == [
            [one.tokens for one in own] for own in greedy
        ]


def test_tokens_are_sampled_by_their_probability(bart: Writer) -> None:
    count = 4000
    options = SearchOptions(max_new_tokens=1, do_sample=True, top_k=4, num_return_sequences=count)
    special = SpecialTokens(prompt=(2,), end=())
    [found] = search(bart.steps([0]), sources=[bart.ids[0].numpy()], special=special, options=options)
    logits = bart.steps([0]).advance(np.array([[[2]]]), np.array([[0]]))[0, 0]
    likely = logits.topk(4)
    drawn = np.array([one.tokens[0] for one in found])
    shares = [float((drawn == token).mean()) for token in likely.indices.tolist()]
    assert shares == pytest.approx(likely.values.softmax(-1).tolist(), abs=0.03)


def test_tokens_are_streamed(bart: Writer) -> None:
    streamed: dict[int, list[int]] = {}
    found = bart.ours(
        SearchOptions(max_new_tokens=MOST), streamer=lambda source, token: streamed.setdefault(source, []).append(token)
    )
    assert {source: tuple(tokens) for source, tokens in streamed.items()} == {
        source: own[0].tokens for source, own in enumerate(found) if own[0].tokens
    }


def test_beams_cannot_be_streamed(bart: Writer) -> None:
    with pytest.raises(UsageError, match="num_beams: is 2, and the text is streamed"):
        bart.ours(SearchOptions(num_beams=2), streamer=lambda source, token: None)


def test_a_text_without_end_is_bounded_and_not_ended(bart: Writer) -> None:
    for beams in (1, 3):
        found = bart.ours(SearchOptions(max_new_tokens=5, num_beams=beams), SpecialTokens(prompt=(2,), end=()))
        assert all(len(own[0].tokens) == 5 and not own[0].ended for own in found)
        assert all(0 < own[0].mean_probability < 1 for own in found)
        forced = bart.ours(
            SearchOptions(max_new_tokens=5, min_new_tokens=5, num_beams=beams), bart.special(forced_last=2)
        )
        assert all(
            len(own[0].tokens) == 4 and not own[0].ended for own in forced
        )  # an end for lack of room does not count


class Even:
    """Gives three tokens equal scores."""

    def advance(self, tokens: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        return torch.zeros(*rows.shape, 3)

    def keep(self, groups: np.ndarray) -> None:
        pass


def test_a_forced_end_does_not_count_in_the_score() -> None:
    special = SpecialTokens(prompt=(0,), end=(1,), forced_last=1, never=(1,))
    [[one]] = search(Even(), sources=[np.array([5])], special=special, options=SearchOptions(max_new_tokens=4))
    assert (len(one.tokens), one.ended) == (3, False)
    assert one.mean_probability == pytest.approx(1 / 3)


def test_an_ended_hypothesis_does_not_continue() -> None:
    special = SpecialTokens(prompt=(0,), end=(1,), forced_first=1)
    options = SearchOptions(max_new_tokens=4, num_beams=2, num_return_sequences=2)
    [[one, other]] = search(Even(), sources=[np.array([5])], special=special, options=options)
    assert (one.tokens, one.log_probability) == ((), 0)
    assert other.log_probability < -1e8


def test_integers_are_allowed_for_floats() -> None:
    options = SearchOptions(max_new_tokens=2, do_sample=True, temperature=2, top_p=1, repetition_penalty=2)
    assert search(Even(), sources=[np.array([5])], special=SpecialTokens(prompt=(0,), end=()), options=options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 0}, "num_beams: is 0"),
        ({"num_beams": "4"}, "num_beams: is '4'"),
        ({"do_sample": 1}, "do_sample: is 1"),
        ({"early_stopping": "maybe"}, "early_stopping: is 'maybe'; use one of True, False, never"),
        ({"top_p": 1.5}, "top_p: is 1.5"),
        ({"seed": -1}, "seed: is -1"),
        ({"length_penalty": float("nan")}, "length_penalty: is nan"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens: is 9, above max_new_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens: is 0"),
        ({"temperature": 0.0}, "temperature: is 0.0"),
        ({"top_p": float("nan")}, "top_p: is nan"),
        ({"num_beams": 2, "do_sample": True}, "do_sample: is set with 2 beams"),
        ({"num_return_sequences": 2}, "num_return_sequences: is 2 with 1 beams"),
        ({"length_penalty": 1000.0}, "length_penalty: is 1000.0; give a number of at least -10, at most 10"),
    ],
)
def test_impossible_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchOptions(**given)


class LongerIsBetter:
    """Two short answers end early; a longer one is less likely at first, but certain from then on, and wins by the penalty.

    Tokens: 0 start, 1 end, 2 and 4 the words of the short answers, 3 the word of the longer one, which has six.
    """

    def __init__(self) -> None:
        self.length = 0

    def advance(self, tokens: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        self.length += 1
        following = {0: {2: 0.735, 3: 0.165}, 2: {1: 0.5, 4: 0.5}, 4: {1: 1.0}, 3: {1 if self.length > 6 else 3: 1.0}}
        logits = torch.full((*rows.shape, 5), -30.0)
        for place in np.ndindex(*rows.shape):
            for token, share in following.get(int(tokens[place][-1]), {1: 1.0}).items():
                logits[place][token] = math.log(share)
        return logits

    def keep(self, groups: np.ndarray) -> None:
        pass


@pytest.mark.parametrize(("early_stopping", "words"), [("never", (3,) * 6), (False, (2, 4))])
def test_beams_that_never_stop_early_find_a_longer_answer(early_stopping: bool | str, words: tuple[int, ...]) -> None:
    special = SpecialTokens(prompt=(0,), end=(1,))
    options = SearchOptions(max_new_tokens=10, num_beams=2, early_stopping=early_stopping)
    [[best]] = search(LongerIsBetter(), sources=[np.array([5])], special=special, options=options)
    assert best.tokens == words


class ManyEnds:
    """Four end tokens are likelier than the only word, which is certain to end next. Tokens: 0 start, 1 to 4 ends, 5 the word."""

    def advance(self, tokens: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        logits = torch.full((*rows.shape, 6), -10_000.0)
        for place in np.ndindex(*rows.shape):
            shares = {0: [0.24, 0.23, 0.22, 0.21, 0.1]}.get(int(tokens[place][-1]), [1.0])
            logits[place][1 : 1 + len(shares)] = torch.tensor(shares).log()
        return logits

    def keep(self, groups: np.ndarray) -> None:
        pass


def test_a_word_is_followed_even_if_every_end_token_is_likelier() -> None:
    special = SpecialTokens(prompt=(0,), end=(1, 2, 3, 4))
    options = SearchOptions(max_new_tokens=10, num_beams=2, early_stopping="never", length_penalty=3.0)
    [[best]] = search(ManyEnds(), sources=[np.array([5])], special=special, options=options)
    assert (best.tokens, best.ended) == ((5,), True)
    assert best.log_probability == pytest.approx(math.log(0.1), abs=1e-4)


def test_sampled_answers_are_in_order_of_their_probability(bart: Writer) -> None:
    options = SearchOptions(max_new_tokens=3, do_sample=True, top_k=0, temperature=2.0, num_return_sequences=5)
    for own in bart.ours(options):
        found = [one.log_probability for one in own]
        assert found == sorted(found, reverse=True)
        assert len(set(found)) > 1


@pytest.mark.parametrize(("tokens", "ended", "count"), [((4, 5), False, 2), ((4, 5), True, 3), ((), True, 1)])
def test_the_end_token_counts_in_the_score_of_an_ended_text(tokens: tuple[int, ...], ended: bool, count: int) -> None:
    assert Hypothesis(tokens, math.log(0.25**count), ended).mean_probability == pytest.approx(0.25)
