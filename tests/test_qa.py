"""The question answering head: SQuAD formats, offsets, windows, no answer, several answers, SQuAD metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlptasks.backbones.info import BackboneInfo
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.data.datasets import load_data
from nlptasks.data.readers import read_csv
from nlptasks.errors import BackendError, DataError, DataErrors, ModelError
from nlptasks.heads.answer_spans import AnswerSpans
from nlptasks.heads.base import read_gold
from nlptasks.heads.qa import Answer, QaConfig, QaExample, QaHead, read_squad
from nlptasks.inference.batching import collate_instances, make_instances
from nlptasks.metrics.base import merge
from nlptasks.metrics.calibration import calibration_error, fit_temperature
from nlptasks.metrics.labelling import answer_counts, answer_scores
from nlptasks.networks.base import make_network
from nlptasks.networks.span_extractor import SpanExtractor
from nlptasks.text.windows import Tokenizer
from nlptasks.types import FIRST, IGNORED, SECOND, SPECIAL, HeadOutputs, Row, Window

CONTEXT = "Ada Smith saw London and left Paris, Rome or Berlin."


def row(**fields: Any) -> Row:
    return Row({"question": "Who?", "context": CONTEXT, **fields}, "data.jsonl:7")


def answers(*texts: str, context: str = CONTEXT) -> dict[str, list[Any]]:
    return {"text": list(texts), "answer_start": [context.index(text) for text in texts]}


@pytest.fixture(scope="module")
def info(backbones: Path) -> BackboneInfo:
    return load_backbone(str(backbones / "bert")).info


@pytest.fixture(scope="module")
def head(info: BackboneInfo) -> QaHead:
    return QaHead(QaConfig(), info)


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def tokenizer(request: pytest.FixtureRequest, backbones: Path) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_file(f"{backbones}/{request.param}/tokenizer.json")
    return Tokenizer(backend, max_tokens=48)


def certain(head: QaHead, example: Any, window: Window) -> dict[str, np.ndarray]:
    """Return outputs that agree with the targets at every token."""
    targets = head.targets(example, window)
    return {f"{name}_logits": np.where(targets[name] == 1, 9.0, 0.0).astype(np.float32) for name in ("start", "end")}


def oracle(head: QaHead, tokenizer: Tokenizer, example: Any) -> Any:
    [windows] = tokenizer.windows(head.inputs(example))
    return head.decode(example, windows, [certain(head, example, window) for window in windows])


def zeros(windows: Sequence[Window]) -> list[dict[str, np.ndarray]]:
    """Return outputs of zeros for each window."""
    return [{name: np.zeros(len(window), np.float32) for name in SpanExtractor.outputs} for window in windows]


# Rows.


@pytest.mark.parametrize(
    ("fields", "spans"),
    [
        ({"answers": {"text": ["London"], "answer_start": [14]}}, ((14, 20),)),
        ({"answers": [{"text": "London", "answer_start": 14}, {"text": "Ada", "answer_start": 0}]}, ((14, 20), (0, 3))),
        ({"answers": '{"text": ["London"], "answer_start": [14]}'}, ((14, 20),)),
        ({"answers": '[{"text": "London", "answer_start": 14}]'}, ((14, 20),)),
        ({"answer": "London", "answer_start": 14}, ((14, 20),)),
        ({"answer": "London", "answer_start": "14"}, ((14, 20),)),
        ({"answer": "London"}, ((14, 20),)),
        ({"answer": "London", "answer_start": ""}, ((14, 20),)),
        ({"answer": "London", "answer_start": "-1"}, ((14, 20),)),
        ({"answers": [{"text": "London", "answer_start": 14}] * 3}, ((14, 20),)),
        ({"answers": {"text": [], "answer_start": []}}, ()),
        ({"answers": [], "is_impossible": True}, ()),
        ({"answer": ""}, ()),
        ({"is_impossible": True}, ()),
        ({"is_impossible": "true"}, ()),
        ({}, None),
    ],
)
def test_answers_are_read_in_every_format(head: QaHead, fields: dict[str, Any], spans: Any) -> None:
    assert head.read(row(**fields)).gold == spans


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": "London", "answer_start": 15}, r"'London' is not at 15, but at 14 \(off by -1\)"),
        ({"answer": "London", "answer_start": 11}, r"'London' is not at 11, but at 14 \(off by \+3\)"),
        ({"answer": "London", "answer_start": -3}, r"but at 14 \(off by \+17\)"),
        ({"answer": "Oslo", "answer_start": 3}, "'Oslo' is not in the context"),
        ({"answer": "Oslo"}, "'Oslo' occurs 0 times in the context"),
        ({"answer": "a"}, "'a' occurs 4 times in the context; add its answer_start"),
        ({"answer": "London", "answer_start": 14.0}, "answer_start is 14.0, expected a whole number"),
        ({"answer": "London", "answer_start": "x"}, "answer_start is 'x', expected a whole number"),
        ({"answer": "London", "answer_start": "1" * 5000}, "answer_start is '111"),
        ({"answer": 5, "answer_start": 1}, "has the answer 5, expected text"),
        ({"answer": " ", "answer_start": 3}, "has the answer ' ', expected text"),
        ({"answers": "London"}, "answers is not JSON"),
        ({"answers": {"text": ["a", "b"], "answer_start": [1]}}, "expected texts and their starts"),
        ({"answers": [["London", 14]]}, "expected texts and their starts"),
        ({"question": "  "}, "has an empty question"),
        ({"question": None}, "question is None, expected a string"),
        ({"context": "", "answer": "x"}, "'x' occurs 0 times"),
    ],
)
def test_wrong_answers_are_refused_with_the_reason(head: QaHead, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"data.jsonl:7: .*{message}"):
        head.read(row(**fields))


def test_offsets_in_other_units_are_recognized(head: QaHead) -> None:
    context = "\U0001f9d4 café: Ada"
    for start, unit in ((9, "UTF-16 code units"), (12, "UTF-8 bytes")):
        with pytest.raises(DataError, match=f"looks like {unit}; count code points"):
            head.read(row(context=context, answer="Ada", answer_start=start))
    assert head.read(row(context=context, answer="Ada", answer_start=8)).answers == ["Ada"]


def test_rows_without_question_or_context(head: QaHead) -> None:
    for name in ("question", "context"):
        fields = {key: value for key, value in row().fields.items() if key != name}
        with pytest.raises(DataError, match=f"has no '{name}'"):
            head.read(Row(fields, "data.jsonl:7"))
    with pytest.raises(DataError, match="has an empty context; remove the row"):
        read_gold(head, [row(context=" ", answers=[])])
    with pytest.raises(DataError, match="has no gold answer"):
        read_gold(head, [row()])


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Ada",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [{"text": "Ada Smith", "answer_start": 0}]},
                        {
                            "id": "2",
                            "question": "Why?",
                            "answers": [],
                            "is_impossible": True,
                            "plausible_answers": [{"text": "London", "answer_start": 14}],
                        },
                    ],
                }
            ],
        }
    ],
}


def test_squad_files_are_read(tmp_path: Path, head: QaHead, info: BackboneInfo) -> None:
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        (tmp_path / name).write_text(json.dumps(SQUAD))
    data = load_data(tmp_path, QaHead.schema.formats, {})
    assert set(data.parts) == {"train", "dev"}
    examples = read_gold(head, data.parts["train"])
    assert [(one.question, one.answers) for one in examples] == [("Who?", ["Ada Smith"]), ("Why?", [])]
    assert data.parts["train"][1].where == f"{tmp_path}/train-v2.0.json: data[0].paragraphs[0].qas[1]"
    assert QaHead.configure(data.parts["train"], QaConfig(), info).unanswerable
    assert not QaHead.configure(data.parts["train"][:1], QaConfig(), info).unanswerable


def test_an_array_of_flat_rows_is_read(tmp_path: Path, head: QaHead) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"question": "Who?", "context": CONTEXT, "answer": "London"}]))
    assert [head.read(own).answers for own in read_squad(path)] == [["London"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("5", "has 5 as data, expected a list"),
        ("{}", "has None as data"),
        ('{"data": [5]}', r"data\[0\]: has None as paragraphs"),
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', r"data\[0\].paragraphs\[0\]: has None as qas"),
        ('{"data": [{"paragraphs": [{"qas": [{"question": "a", "id": "1", "id": "2"}]}]}]}', "has the key 'id' twice"),
    ],
)
def test_broken_squad_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "train.json", QaHead.schema.formats, {})


def test_csv_is_read(tmp_path: Path, head: QaHead) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'question,context,answer,answer_start\nWho?,"{CONTEXT}",London,14\nWhy?,"{CONTEXT}",,\n')
    assert [head.read(own).answers for own in read_csv(path)] == [["London"], []]


def test_errors_of_several_rows_are_reported_together(info: BackboneInfo) -> None:
    rows = [row(answer="London", answer_start=13), row(answer="Oslo"), row(answer="London")]
    with pytest.raises(DataErrors) as caught:
        QaHead.configure(rows, QaConfig(), info)
    assert len(caught.value.errors) == 2


def test_training_rows_without_any_answer_are_refused(info: BackboneInfo) -> None:
    with pytest.raises(DataError, match=r"data.jsonl: no row has an answer; add answers, or check `columns`"):
        QaHead.configure([row(answers=[]), row(is_impossible=True)], QaConfig(), info)


# Targets and offsets.


@pytest.mark.parametrize("answer", ["Ada Smith", "London", "Berlin", "saw London and left", "Paris, Rome"])
@pytest.mark.parametrize("before", [0, 1, 7, 40, 200])
def test_an_answer_is_found_at_any_position(head: QaHead, tokenizer: Tokenizer, answer: str, before: int) -> None:
    context = "b " * before + CONTEXT + " a" * (200 - before)
    example = head.read(row(context=context, answers=answers(answer, context=context)))
    found = oracle(head, tokenizer, example)
    assert (found.text, context[found.start : found.end]) == (answer, answer)
    assert found.start == context.index(answer)


TEXTS = st.text(st.sampled_from("ab cé́日本語\U0001f9d4\U0001f3fd‍\U0001f469ﬁ\r\n\t\u0410."), min_size=1, max_size=60)


@given(TEXTS, st.data())
@settings(max_examples=300, deadline=None)
def test_answers_are_spans_of_the_context(head: QaHead, tokenizer: Tokenizer, context: str, data: Any) -> None:
    example = head.read(Row({"question": "Who?", "context": context}, "x:1"))
    [windows] = tokenizer.windows(head.inputs(example))
    draw = np.random.default_rng(data.draw(st.integers(0, 9)))
    outputs = [
        {name: draw.normal(size=len(window)).astype(np.float32) for name in ("start_logits", "end_logits")}
        for window in windows
    ]
    found = head.decode(example, windows, outputs)
    assert context[found.start : found.end] == found.text
    assert found.score is None or 0 <= found.score <= 1


def test_a_window_without_the_whole_answer_has_no_answer(head: QaHead, tokenizer: Tokenizer) -> None:
    context = CONTEXT + " a" * 300
    example = head.read(row(context=context, answer="London"))
    [instance] = make_instances(head, tokenizer, [example], SpanExtractor.targets)
    starts = [own["start"].argmax() for own in instance.targets]
    first = int(np.flatnonzero(instance.windows[0].parts == SPECIAL)[0])
    assert starts[0] != first
    assert set(starts[3:]) == {first}
    for own, window in zip(instance.targets, instance.windows, strict=True):
        assert (own["start"] == 1).sum() == (own["end"] == 1).sum() == 1
        assert (own["start"][window.parts == FIRST] == IGNORED).all()  # the question is no answer


@pytest.mark.parametrize(
    ("answer", "opens", "closes", "whole"),
    [
        ((4, 7), False, False, True),  # from the first to the last token of the window
        ((5, 6), False, False, True),
        ((3, 6), False, False, False),
        ((5, 8), False, False, False),
        ((3, 6), True, False, True),
        ((5, 8), False, True, True),
        ((3, 8), True, False, False),
    ],
)
def test_an_answer_is_learned_in_windows_that_have_all_of_it(
    head: QaHead, answer: tuple[int, int], opens: bool, closes: bool, whole: bool
) -> None:
    parts = np.array([SPECIAL, SECOND, SECOND, SECOND])
    offsets = np.array([(0, 0), (4, 5), (5, 6), (6, 7)])
    ids = np.zeros(4, dtype=np.int64)
    window = Window(ids, ids, parts, offsets, opens=opens, closes=closes)
    targets = head.targets(QaExample("Who?", "abcdefghij", (answer,)), window)
    found = (targets["start"].argmax(), targets["end"].argmax())
    assert found == ((max(1, answer[0] - 3), min(3, answer[1] - 4)) if whole else (0, 0))


def test_the_loss_is_cross_entropy_over_possible_tokens(head: QaHead, info: BackboneInfo, tokenizer: Tokenizer) -> None:
    network = make_network(head.network, info, head.network_options()).eval()
    examples = [head.read(row(answer="London")), head.read(row(answers=[]))]
    instances = make_instances(head, tokenizer, examples, network.targets)
    batch = {name: torch.from_numpy(array) for name, array in collate_instances(instances, info).items()}
    states = torch.randn(*batch["ids"].shape, info.width)
    outputs = network.training_outputs(states, batch)
    assert set(outputs) == set(network.outputs)
    total, count = network.loss(outputs, batch)
    by_hand = 0.0
    for index in range(len(batch["ids"])):
        for name in ("start", "end"):
            possible = batch[name][index] != IGNORED
            scores = outputs[f"{name}_logits"][index][possible].double()
            gold = (batch[name][index][possible] == 1).nonzero().item()
            by_hand -= torch.log_softmax(scores, 0)[gold].item()
    assert total.item() == pytest.approx(by_hand, rel=1e-5)
    assert count.item() == 2 * len(batch["ids"])
    assert total.shape == count.shape == ()


# Answers.


def outputs_of(head: QaHead, start: list[float], end: list[float], **fields: Any) -> HeadOutputs[QaExample]:
    """Return outputs for a context of one-letter words, token by token; the first token stands for no answer."""
    context = " ".join("abcdefgh"[: len(start) - 1])
    n = len(start)
    offsets = np.array([(0, 0)] + [(2 * index, 2 * index + 1) for index in range(n - 1)], dtype=np.int64)
    parts = np.array([-1] + [1] * (n - 1))
    ids = np.zeros(n, dtype=np.int64)
    example = head.read(Row({"question": "Who?", "context": context, **fields}, "x:1"))
    outputs = {"start_logits": np.array(start, np.float32), "end_logits": np.array(end, np.float32)}
    return HeadOutputs(example, [Window(ids, ids, parts, offsets)], [outputs])


def result(head: QaHead, one: HeadOutputs[QaExample]) -> Any:
    return head.decode(one.example, one.windows, one.outputs)


def test_scores_are_probabilities_over_all_answers(info: BackboneInfo) -> None:
    one = QaHead(QaConfig(top_k=20), info)
    found = result(one, outputs_of(one, [0, 1, 2, 0], [0, 0, 1, 3]))
    # spans: aa 1, ab 2, ac 4, bb 3, bc 5, cc 3
    total = sum(np.exp([1, 2, 4, 3, 5, 3]))
    assert (found[0].text, found[0].score) == ("b c", pytest.approx(np.exp(5) / total))
    assert [answer.text for answer in found] == ["b c", "a"]
    assert found[1].score == pytest.approx(np.exp(1) / total)


def test_no_answer_is_a_result_if_it_is_allowed(info: BackboneInfo) -> None:
    either = QaHead(QaConfig(unanswerable=True), info)
    never = QaHead(QaConfig(unanswerable=True, no_answer=False), info)
    always = QaHead(QaConfig(no_answer=True), info)
    weak = ([3.0, 1.0, 0.0], [3.0, 1.0, 0.0])
    for head in (either, always):
        found = result(head, outputs_of(head, *weak))
        assert (found.text, found.start, found.end) == ("", 0, 0)
        assert found.score == pytest.approx(1 / (1 + sum(np.exp(np.array([2, 1, 0]) - 6.0))))
    assert result(never, outputs_of(never, *weak)).text == "a"
    strong = ([0.0, 3.0, 0.0], [0.0, 3.0, 0.0])
    assert result(either, outputs_of(either, *strong)).text == "a"
    careful = QaHead(QaConfig(unanswerable=True, null_threshold=-7.0), info)
    assert result(careful, outputs_of(careful, *strong)).text == ""


def test_several_answers_do_not_overlap_and_no_answer_is_one_of_them(info: BackboneInfo) -> None:
    head = QaHead(QaConfig(top_k=4, unanswerable=True), info)
    found = result(head, outputs_of(head, [0, 3, -9, -1], [0, 3, -9, -1]))
    assert [answer.text for answer in found] == ["a", "", "c", "b"]
    assert [(answer.start, answer.end) for answer in found] == [(0, 1), (0, 0), (4, 5), (2, 3)]
    assert [answer.score for answer in found] == sorted((answer.score for answer in found), reverse=True)
    assert result(QaHead(QaConfig(top_k=9), info), outputs_of(head, [0, 1], [0, 1])) == [Answer("a", 0, 1, 1.0)]


@pytest.mark.parametrize("context", ["", "   ", "\n\t", "\u200b", "a   b", " a \u200b b "])
def test_no_answer_begins_or_ends_with_an_invisible_token(head: QaHead, tokenizer: Tokenizer, context: str) -> None:
    example = head.read(row(context=context))
    [windows] = tokenizer.windows(head.inputs(example))
    for seed in range(20):
        draw = np.random.default_rng(seed)
        outputs = [
            {name: draw.normal(size=len(one)).astype(np.float32) for name in SpanExtractor.outputs} for one in windows
        ]
        found = head.decode(example, windows, outputs)
        if "a" in context:
            assert found.text in ("a", "b", context.strip())
        else:
            assert found == Answer("", 0, 0, None)


def test_a_gold_answer_that_no_window_has_does_not_change_the_temperature(head: QaHead, tokenizer: Tokenizer) -> None:
    context = "b " * 100 + "a " * 28 + "b " * 100
    example = head.read(row(context=context, answer="a " * 27 + "a"))
    [windows] = tokenizer.windows(head.inputs(example))
    outputs = zeros(windows)
    likelihood = head.calibration.likelihood([HeadOutputs(example, windows, outputs)])
    assert fit_temperature(likelihood) == pytest.approx(1, abs=1e-3)


def test_rows_without_tokens_give_no_threshold(info: BackboneInfo) -> None:
    head = QaHead(QaConfig(unanswerable=True), info)
    example = QaExample("Who?", "", ())
    empty = replace(outputs_of(head, [0.0], [0.0]), example=example)
    assert head.calibration.thresholds([empty]) == {}
    found = head.calibration.thresholds([empty, outputs_of(head, [0, 5], [0, 5], answer="a", answer_start=0)])
    assert np.isfinite(found["null_threshold"])
    assert QaHead(QaConfig(), info).calibration.thresholds(iter([empty])) == {}


def test_the_longest_answer_may_exceed_the_context(info: BackboneInfo) -> None:
    head = QaHead(QaConfig(max_answer_tokens=10**9), info)
    assert result(head, outputs_of(head, [0, 9, 0, 0], [0, 0, 0, 9])).text == "a b c"


def test_answers_are_not_longer_than_allowed(info: BackboneInfo) -> None:
    outputs = ([0, 9, 0, 0, 0], [0, 0, 0, 1, 9])
    long, short = QaHead(QaConfig(), info), QaHead(QaConfig(max_answer_tokens=2), info)
    assert result(long, outputs_of(long, *outputs)).text == "a b c d"
    assert len(result(short, outputs_of(short, *outputs)).text.split()) <= 2


def test_a_context_without_tokens_has_no_answer_and_no_score(head: QaHead, tokenizer: Tokenizer) -> None:
    example = head.read(row(context=""))
    [windows] = tokenizer.windows(head.inputs(example))
    outputs = zeros(windows)
    assert head.decode(example, windows, outputs) == Answer("", 0, 0, None)
    assert head.decode(example, [], []) == Answer("", 0, 0, None)


def test_logits_that_are_not_finite_are_refused(head: QaHead) -> None:
    with pytest.raises(BackendError, match="not finite"):
        result(head, outputs_of(head, [0, float("nan")], [0, 1]))


def test_the_threshold_is_the_best_one(info: BackboneInfo) -> None:
    head = QaHead(QaConfig(unanswerable=True), info)
    outputs = []
    for strength, impossible in ((5, False), (4, False), (3, True), (2, False), (1, True), (0.5, True)):
        fields = {"is_impossible": True} if impossible else {"answer": "a", "answer_start": 0}
        outputs.append(outputs_of(head, [2, strength, -9], [2, strength, -9], **fields))
    before = [result(head, one).text for one in outputs]
    assert before == ["a", "a", "a", "a", "", ""]
    fitted = QaHead(replace(head.config, **head.calibration.thresholds(outputs)), info)
    found = [result(fitted, one).text for one in outputs]
    examples = [one.example for one in outputs]

    def f1(answers: list[str]) -> float:
        results = [Answer(text, 0, len(text), None) for text in answers]
        metrics = head.metrics(merge(map(head.count, examples, results)))
        assert metrics.main == "f1"
        return metrics.score

    assert f1(found) == max(f1(["a"] * kept + [""] * (6 - kept)) for kept in range(7))


def test_the_temperature_fits_the_share_of_right_answers(info: BackboneInfo) -> None:
    head = QaHead(QaConfig(), info)
    draw = np.random.default_rng(0)
    outputs = []
    for _ in range(300):
        gold = int(draw.integers(0, 4))
        predicted = gold if draw.random() < 0.6 else int(draw.integers(0, 4))
        logits = [0.0] + [8.0 if index == predicted else 0.0 for index in range(4)]
        outputs.append(outputs_of(head, logits, logits, answer="abcd"[gold], answer_start=2 * gold))

    def error(one: QaHead) -> float:
        return calibration_error(
            [score for own in outputs for score in one.calibration.confidences(own.example, result(one, own))]
        )

    temperature = fit_temperature(head.calibration.likelihood(outputs))
    assert temperature > 1.5
    assert error(QaHead(replace(head.config, temperature=temperature), info)) < error(head) / 2


def test_a_span_has_its_score_from_the_window_where_it_is_farthest_from_an_edge() -> None:
    """Two windows share tokens. For spans of different lengths, the distance of their last token decides."""
    context = "a b c d e f g h"

    def window(first: int, after: int) -> Window:
        offsets = [(0, 0), *((2 * index, 2 * index + 1) for index in range(first, after))]
        parts = np.array([SPECIAL] + [SECOND] * (after - first))
        ids = np.zeros(len(parts), dtype=np.int64)
        return Window(ids, ids, parts, np.array(offsets), opens=first == 0, closes=after == 8, begin=first)

    def outputs(tokens: int, score: float) -> dict[str, np.ndarray]:
        return {name: np.array([0.0] + [score] * tokens, np.float32) for name in SpanExtractor.outputs}

    windows = [window(0, 6), window(2, 8)]
    spans = AnswerSpans.merged(context, windows, [outputs(6, 1.0), outputs(6, 2.0)], longest=6)
    for first in range(8):
        for last in range(first, min(8, first + 6)):
            # Distance to the nearer cut of each window that has the whole span.
            distances = {1.0: 5 - last, 2.0: first - 2}
            having = {score: far for score, far in distances.items() if far >= 0}
            expected = 2 * max(having, key=lambda score: (having[score], score == 1.0)) if having else -np.inf
            assert spans.logits[first, last - first] == expected, (first, last)


# Metrics: expected values computed by hand with SQuAD's official evaluate-v2.0.py.


def scores_of(gold: Sequence[Sequence[str]], found: Sequence[str], contexts: Sequence[str]) -> dict[str, float]:
    return answer_scores(merge(map(answer_counts, gold, found, contexts)))


@pytest.mark.parametrize(
    ("gold", "found", "match", "f1"),
    [
        (["the Eiffel Tower"], "Eiffel tower!", 1, 1),
        (["Ada"], "Bob", 0, 0),
        (["Ada Smith"], "Ada", 0, 2 / 3),
        (["a b b"], "b b c", 0, 2 * 1.0 * (2 / 3) / (1.0 + 2 / 3)),
        (["Ada", "Ada Smith"], "Ada Smith", 1, 1),
        (["in 1996", "1996"], "by 1996", 0, 2 / 3),
        ([], "", 1, 1),
        ([], "Ada", 0, 0),
        (["Ada"], "", 0, 0),
        (["U.S."], "us", 1, 1),
        (["U.S.A."], "USA", 1, 1),  # punctuation is removed before articles
        (["twenty-five"], "twentyfive", 1, 1),
    ],
)
def test_scores_are_those_of_squad(gold: list[str], found: str, match: float, f1: float) -> None:
    scores = scores_of([gold], [found], ["some English context"])
    assert (scores["exact_match"], scores["f1"]) == (match, pytest.approx(f1))


def test_chinese_is_compared_by_character() -> None:
    context = "北京是中国的首都。"
    scores = scores_of([["北京"]], ["北京市"], [context])
    assert scores["f1"] == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert scores_of([["北京"]], ["“北京”。"], [context])["exact_match"] == 1
    assert scores_of([["北京"]], ["北京市"], ["Beijing (北京市) in English"])["f1"] == 0  # as in SQuAD


def test_counts_of_answers_may_be_merged_in_parts() -> None:
    cases = [(["a1"], "a1 b", "x"), ([], "b1", "x"), (["b c d"], "c", "x"), ([], "", "x"), (["a1"], "", "x")] * 3
    counts = [answer_counts(*case) for case in cases]
    whole, parts = answer_scores(merge(counts)), answer_scores(merge([merge(counts[:4]), merge(counts[4:])]))
    assert parts == pytest.approx(whole, abs=1e-12)
    each = [answer_scores(one)["f1"] for one in counts]
    assert whole["f1"] == pytest.approx(np.mean(each), abs=1e-12)


def test_questions_without_answer_are_scored_apart() -> None:
    scores = scores_of([["a1"], [], []], ["a1", "", "b1"], ["x"] * 3)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert (scores["answerable.f1"], scores["unanswerable.f1"], scores["unanswerable.support"]) == (1, 0.5, 2)
    assert "answerable.f1" not in scores_of([["a1"]], ["a1"], ["x"])


def test_a_tokenizer_without_special_tokens_is_refused(head: QaHead, tokenizer: Tokenizer) -> None:
    example = head.read(row(context="a b", answer="a"))
    [[window]] = tokenizer.windows(head.inputs(example))
    bare = replace(window, parts=np.where(window.parts == SPECIAL, FIRST, window.parts))
    with pytest.raises(ModelError, match="puts no special token around a question and its context"):
        head.targets(example, bare)
