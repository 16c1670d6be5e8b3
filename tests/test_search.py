"""The search: the tokens and scores of transformers' ``generate``, for every decoder, and what ``generate`` does not promise."""

from __future__ import annotations

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
from nlptasks.generation.decoder import Decoder
from nlptasks.generation.search import Hypothesis, Marks, SearchOptions, search
from nlptasks.generation.step_graph import CachedStepper, StepGraph
from nlptasks.runtimes.base import Pass, Runtime
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import TorchRuntime

ENDS = (2, 5, 17, 33, 60, 80, 101, 140, 203)
"""Many tokens end a text, so that texts of random models do end."""

MOST = 12


class Steps:
    """Runs a decoder; remembers how many sources each step had, and how many tokens it read."""

    def __init__(self, decoder: Decoder, cross: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
        self.decoder, self.cross, self.mask = decoder, cross, mask
        self.past = decoder.empty_cache()
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
    """A random encoder-decoder of ours and of Hugging Face, with the same weights and sources."""

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

    def marks(self, **more: Any) -> Marks:
        return Marks(prompt=(self.start,), end=ENDS, **more)

    def steps(self, rows: list[int] | None = None) -> Steps:
        chosen = list(range(len(self.ids))) if rows is None else rows
        with torch.no_grad():
            encoder = self.theirs.get_encoder()
            states = encoder(input_ids=self.ids[chosen], attention_mask=self.mask[chosen]).last_hidden_state
            return Steps(self.decoder, self.decoder.cross(states, self.mask[chosen]), self.mask[chosen])

    def ours(self, options: SearchOptions, marks: Marks | None = None, **more: Any) -> list[list[Hypothesis]]:
        sources = [row.numpy() for row in self.ids]
        return search(self.steps(), sources=sources, marks=marks or self.marks(), options=options, **more)

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


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no run of two twice": {"no_repeat_ngram_size": 2},
    "repetition costs, and four at least": {"repetition_penalty": 1.3, "min_new_tokens": 4},
    "beams": {"num_beams": 4},
    "beams, probabilities that add up": {"num_beams": 4, "renormalize_logits": True, "repetition_penalty": 1.5},
    "beams, long ones": {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3},
    "beams, short ones": {"num_beams": 4, "length_penalty": -1.0},
    "beams, length free": {"num_beams": 2, "length_penalty": 0.0},
    "beams, first come": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 3},
    "beams, to the end": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5, "min_new_tokens": 3},
    "one token": {"max_new_tokens": 1},
    "one token, beams": {"max_new_tokens": 1, "num_beams": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("forced", [False, True])
def test_the_tokens_are_those_of_generate(writer: Writer, way: str, forced: bool) -> None:
    given = {"max_new_tokens": MOST, **WAYS[way]}
    marks = writer.marks(forced_first=7, forced_last=2) if forced else writer.marks()
    theirs = writer.generate(
        do_sample=False, forced_bos_token_id=marks.forced_first, forced_eos_token_id=marks.forced_last, **given
    )
    early = {"early_stopping": str(given["early_stopping"]).lower()} if "early_stopping" in given else {}
    options = SearchOptions(**{**given, **early})
    found = [one for hypotheses in writer.ours(options, marks) for one in hypotheses]
    for number, (one, row) in enumerate(zip(found, theirs.sequences[:, 1:].tolist(), strict=True)):
        end = next((place for place, token in enumerate(row) if token in ENDS), len(row))
        assert one.tokens == tuple(row[:end])
        if options.num_beams > 1:
            score = one.log_probability / (end + (end < len(row))) ** options.length_penalty
            assert score == pytest.approx(float(theirs.sequences_scores[number]), abs=1e-3, rel=1e-4)


@pytest.mark.parametrize("name", tiny.WRITERS)
def test_onnx_runtime_writes_the_same(name: str, tmp_path: Path) -> None:
    writer = Writer(name, layers=1, spread=1.0)
    path, graph = tmp_path / "step.onnx", "head.step"
    _, parity = export_graph(further(graph, StepGraph(writer.decoder)), path, PRECISIONS["fp32"])
    assert parity.max_difference <= 1e-4
    assert parity.agreement == 1
    cross = {name: OrtValue.ortvalue_from_numpy(tensor.numpy()) for name, tensor in writer.steps().cross.items()}
    runtimes: list[tuple[Runtime, Any]] = [
        (TorchRuntime({graph: StepGraph(writer.decoder)}, torch.device("cpu")), writer.steps().cross),
        (OnnxRuntime({graph: path}, device="cpu", precision="fp32"), cross),
    ]
    for way in ("greedy", "beams", "beams, long ones"):
        options, written = SearchOptions(max_new_tokens=MOST, **WAYS[way]), []
        for runtime, outputs in runtimes:
            passed = Pass("head", dict.fromkeys(range(len(writer.ids))), writer.mask.numpy(), outputs, runtime)
            stepper = CachedStepper(passed, np.arange(len(writer.ids)), writer.decoder)
            found = search(stepper, sources=list(writer.ids.numpy()), marks=writer.marks(), options=options)
            written.append([[one.tokens for one in own] for own in found])
        assert written[0] == written[1]


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
def test_sources_that_are_done_are_dropped(beams: int) -> None:
    writer = Writer("m2m100")
    options = SearchOptions(max_new_tokens=MOST, num_beams=beams)
    endless = writer.ours(options, Marks(prompt=(2,), end=()))
    never = {token for own in endless[:2] for one in own for token in one.tokens}
    marks = Marks(prompt=(2,), end=tuple(set(range(3, 300)) - never))  # two sources go on, as they did
    steps = writer.steps()
    whole = search(steps, sources=list(writer.ids.numpy()), marks=marks, options=options)
    assert steps.groups[0] == len(writer.ids)
    assert steps.groups[-1] < len(writer.ids)
    for row in range(len(writer.ids)):
        [alone] = search(writer.steps([row]), sources=[writer.ids[row].numpy()], marks=marks, options=options)
        assert [one.tokens for one in alone] == [one.tokens for one in whole[row]]


def test_a_prompt_of_several_tokens_is_read_at_once(bart: Writer) -> None:
    marks = Marks(prompt=(2, 9, 11), end=ENDS)
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
    found = search(steps, sources=list(bart.ids.numpy()), marks=marks, options=options)
    assert steps.lengths == [3] + [1] * (len(steps.lengths) - 1)
    for [one], row in zip(found, theirs[:, 3:].tolist(), strict=True):
        assert list(one.tokens) == row[: len(one.tokens)]
        assert one.ended == (row[len(one.tokens) :][:1] in [[end] for end in ENDS])


def test_samples_depend_on_seed_and_source_alone(bart: Writer) -> None:
    options = SearchOptions(max_new_tokens=MOST, do_sample=True, top_k=0, temperature=2.0, num_return_sequences=2)
    found = bart.ours(options)
    assert found == bart.ours(options)
    assert all(len(own) == 2 for own in found)
    assert len({one.tokens for own in found for one in own}) > len(found)
    assert found != bart.ours(SearchOptions(**{**vars(options), "seed": 1}))
    [alone] = search(bart.steps([4]), sources=[bart.ids[4].numpy()], marks=bart.marks(), options=options)
    assert [one.tokens for one in alone] == [one.tokens for one in found[4]]


def test_a_sample_of_one_token_is_the_likeliest(bart: Writer) -> None:
    greedy = bart.ours(SearchOptions(max_new_tokens=MOST))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6, "top_k": 0}, {"temperature": 1e-4}):
        options = SearchOptions(max_new_tokens=MOST, do_sample=True, **narrow)
        assert [[one.tokens for one in own] for own in bart.ours(options)] == [
            [one.tokens for one in own] for own in greedy
        ]


def test_tokens_are_drawn_as_often_as_they_are_likely(bart: Writer) -> None:
    count = 4000
    options = SearchOptions(max_new_tokens=1, do_sample=True, top_k=4, num_return_sequences=count)
    marks = Marks(prompt=(2,), end=())
    [found] = search(bart.steps([0]), sources=[bart.ids[0].numpy()], marks=marks, options=options)
    logits = bart.steps([0]).advance(np.array([[[2]]]), np.array([[0]]))[0, 0]
    likely = logits.topk(4)
    drawn = np.array([one.tokens[0] for one in found])
    shares = [float((drawn == token).mean()) for token in likely.indices.tolist()]
    assert shares == pytest.approx(likely.values.softmax(-1).tolist(), abs=0.03)


def test_tokens_are_heard_as_they_are_written(bart: Writer) -> None:
    heard: dict[int, list[int]] = {}
    found = bart.ours(
        SearchOptions(max_new_tokens=MOST), listener=lambda source, token: heard.setdefault(source, []).append(token)
    )
    assert {source: tuple(tokens) for source, tokens in heard.items()} == {
        source: own[0].tokens for source, own in enumerate(found) if own[0].tokens
    }


def test_beams_are_not_heard(bart: Writer) -> None:
    with pytest.raises(UsageError, match="num_beams: is 2, with a listener"):
        bart.ours(SearchOptions(num_beams=2), listener=lambda source, token: None)


def test_a_text_without_end_is_bounded_and_says_so(bart: Writer) -> None:
    for beams in (1, 3):
        found = bart.ours(SearchOptions(max_new_tokens=5, num_beams=beams), Marks(prompt=(2,), end=()))
        assert all(len(own[0].tokens) == 5 and not own[0].ended for own in found)
        assert all(0 < own[0].mean_probability < 1 for own in found)
        forced = bart.ours(
            SearchOptions(max_new_tokens=5, min_new_tokens=5, num_beams=beams), bart.marks(forced_last=2)
        )
        assert all(len(own[0].tokens) == 4 and not own[0].ended for own in forced)  # an end for lack of room is none


class Even:
    """Finds every token of three equally likely."""

    def advance(self, tokens: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        return torch.zeros(*rows.shape, 3)

    def keep(self, groups: np.ndarray) -> None:
        pass


def test_an_end_that_is_forced_is_not_in_the_score() -> None:
    marks = Marks(prompt=(0,), end=(1,), forced_last=1, never=(1,))
    [[one]] = search(Even(), sources=[np.array([5])], marks=marks, options=SearchOptions(max_new_tokens=4))
    assert (len(one.tokens), one.ended) == (3, False)
    assert one.mean_probability == pytest.approx(1 / 3)


def test_what_has_ended_does_not_go_on() -> None:
    marks = Marks(prompt=(0,), end=(1,), forced_first=1)
    options = SearchOptions(max_new_tokens=4, num_beams=2, num_return_sequences=2)
    [[one, other]] = search(Even(), sources=[np.array([5])], marks=marks, options=options)
    assert (one.tokens, one.log_probability) == ((), 0)
    assert other.log_probability < -1e8


def test_whole_numbers_will_do() -> None:
    options = SearchOptions(max_new_tokens=2, do_sample=True, temperature=2, top_p=1, repetition_penalty=2)
    assert search(Even(), sources=[np.array([5])], marks=Marks(prompt=(0,), end=()), options=options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 0}, "num_beams: is 0"),
        ({"num_beams": "4"}, "num_beams: is '4'"),
        ({"do_sample": 1}, "do_sample: is 1"),
        ({"early_stopping": "maybe"}, "early_stopping: is 'maybe'"),
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
def test_what_cannot_be_searched_for_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchOptions(**given)
