"""The NER head: row formats, labels of words, entities with exact offsets, windows, scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from nlptasks.backbones.info import BackboneInfo
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.errors import BackendError, DataError
from nlptasks.heads.base import read_gold
from nlptasks.heads.ner import Entity, NerConfig, NerExample, NerHead
from nlptasks.inference.batching import make_instances
from nlptasks.metrics.base import Metrics, merge
from nlptasks.metrics.calibration import SoftmaxLikelihood
from nlptasks.metrics.labelling import span_counts, span_scores
from nlptasks.networks.base import make_network
from nlptasks.text.tags import LabelledSpan, tag_set, tags_of
from nlptasks.text.windows import Tokenizer
from nlptasks.types import HeadOutputs, Row, Window

CONFIG = NerConfig(scheme="iob2", tags=tag_set(["LOC", "PER"], "iob2"))


def row(**fields: Any) -> Row:
    return Row(fields, "data.jsonl:7")


@pytest.fixture(scope="module")
def info(backbones: Path) -> BackboneInfo:
    return load_backbone(str(backbones / "bert")).info


@pytest.fixture(scope="module")
def head(info: BackboneInfo) -> NerHead:
    return NerHead(CONFIG, info)


def configured(info: BackboneInfo, rows: Sequence[Row], **options: Any) -> NerConfig:
    return NerHead.configure(rows, NerConfig(**options), info)


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def tokenizer(request: pytest.FixtureRequest, backbones: Path) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_file(f"{backbones}/{request.param}/tokenizer.json")
    return Tokenizer(backend, max_tokens=32)


def oracle(head: NerHead, tokenizer: Tokenizer, example: Any) -> list[Entity]:
    """Decode outputs that agree with the targets at every token."""
    [windows] = tokenizer.windows(head.inputs(example))
    return head.decode(example, windows, [certain(head, example, window) for window in windows])


def certain(head: NerHead, example: Any, window: Window) -> dict[str, np.ndarray]:
    labels = head.targets(example, window)["labels"]
    logits = np.zeros((len(window), len(head.config.tags)), dtype=np.float32)
    logits[np.arange(len(window)), np.maximum(labels, 0)] = 9.0
    return {"logits": logits}


def plain(entities: Sequence[Entity]) -> list[tuple[str, str, int, int]]:
    return [(entity.text, entity.label, entity.start, entity.end) for entity in entities]


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": ["Ada", "Smith", "saw", "London", "."], "tags": ["B-PER", "I-PER", "O", "B-LOC", "O"]},
        {"tokens": "Ada Smith saw London .", "tags": "B-PER I-PER O B-LOC O"},
        {"tokens": '["Ada", "Smith", "saw", "London", "."]', "tags": '["B-PER", "I-PER", "O", "B-LOC", "O"]'},
        {"text": "Ada Smith saw London .", "spans": [[0, 9, "PER"], [14, 20, "LOC"]]},
        {"text": "Ada Smith saw London .", "spans": '[[14, 20, "LOC"], [0, 9, "PER"]]'},
        {
            "text": "Ada Smith saw London .",
            "spans": [
                {"start": 0, "end": 9, "label": "PER", "text": "Ada Smith"},
                {"start": 14, "end": 20, "label": "LOC"},
            ],
        },
    ],
)
def test_all_row_formats_have_the_same_meaning(head: NerHead, tokenizer: Tokenizer, fields: dict) -> None:
    example = head.read(row(**fields))
    assert example.text == "Ada Smith saw London ."
    assert plain(oracle(head, tokenizer, example)) == [("Ada Smith", "PER", 0, 9), ("London", "LOC", 14, 20)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"words": ["a"]}, "has neither 'tokens' nor 'text', only words; name the column"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "has 2 tokens and 1 tags"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "expected a list of non-empty strings"),
        ({"tokens": '["broken', "tags": "O"}, "not JSON"),
        ({"tokens": ["a"], "tags": [3]}, "write names, not numbers"),
        ({"tokens": ["a"], "tags": ["B-ORG"]}, "label 'ORG' is not in the training data; known are: LOC, PER"),
        ({"tokens": ["a"], "tags": ["B-PERS"]}, "did you mean 'PER'"),
        ({"tokens": ["a", "b"], "tags": ["O", "I-PER"]}, "tag 'I-PER' after 'O', which is illegal in iob2"),
        (
            {"tokens": "['Ada', 'saw']", "tags": "['O', 'O']"},
            "tokens is not JSON (Expecting value): \"['Ada', 'saw']\"; write a JSON list, with double quotes",
        ),
        ({"text": None, "spans": []}, "text is None, expected a string"),
        ({"text": 5}, "text is 5, expected a string"),
        ({"text": "a b", "spans": [[0, 1, "PER"], [0, 3, "LOC"]]}, "overlap"),
        ({"text": "a b", "spans": [[2, 9, "PER"]]}, "is not within a text of 3 characters; correct the row"),
        ({"text": "a b", "spans": [[1, 1, "PER"]]}, "ends where it starts or before"),
        ({"text": "a b", "spans": [[1, 2, "PER"]]}, "marks nothing but white space"),
        ({"text": "a b", "spans": [[0.0, 1, "PER"]]}, "has no whole numbers as START and END"),
        ({"text": "a b", "spans": [[0, 1]]}, "is not [START, END, LABEL]"),
        ({"text": "a b", "spans": {"a": 1}}, "expected a list"),
        ({"text": "👍 Ada", "spans": [{"start": 3, "end": 5, "label": "PER", "text": "Ada"}]}, "marks 'da'; correct"),
    ],
)
def test_wrong_rows_are_refused_with_their_line(head: NerHead, fields: dict, message: str) -> None:
    with pytest.raises(DataError) as caught:
        head.read(row(**fields))
    assert caught.value.where == "data.jsonl:7"
    assert message in str(caught.value)


def test_a_row_with_text_and_words_is_read_as_text_unless_its_words_are_tagged(head: NerHead) -> None:
    assert head.read(row(text="Ada left.", tokens=["Ada", "left", "."])).text == "Ada left."
    assert head.read(row(text="Ada left.", tokens=["Ada", "left", "."], tags="O O O")).text == "Ada left ."


def test_rows_without_gold_are_refused_for_training(head: NerHead) -> None:
    for fields in ({"text": "Ada"}, {"tokens": ["Ada"], "ner_tags": ["O"]}):
        with pytest.raises(DataError, match=r"data\.jsonl:7: has no gold answer among .*`columns="):
            read_gold(head, [row(**fields)])


def test_a_cell_that_begins_with_a_bracket_is_text(head: NerHead) -> None:
    assert head.read(row(tokens="[ Ada ]", tags="O B-PER O")).text == "[ Ada ]"


def test_a_wrong_tag_is_named_with_its_own_line(head: NerHead) -> None:
    fields = {"tokens": ["a", "b", "c"], "tags": ["O", "O", "B-XYZ"]}
    with pytest.raises(DataError, match=r"train\.conll:12: label 'XYZ'"):
        head.read(Row(fields, "train.conll:10", (10, 11, 12)))


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["I-PER I-PER B-PER"], "iob1"),
        (["B-PER E-PER S-PER"], "bioes"),
        (["PER PER O"], "io"),
        (["I-PER I-PER O"], "iob1"),  # the same spans, and a B in another row is no error
        (["B-PER I-PER B-PER"], "iob2"),
    ],
)
def test_the_scheme_of_the_data_is_detected(info: BackboneInfo, tags: list[str], scheme: str) -> None:
    config = configured(info, [row(tokens="a b c", tags=own) for own in tags])
    assert config.scheme == scheme
    assert config.tags == ("O", "B-PER", "I-PER")


def test_tags_without_a_scheme_are_refused_until_one_is_declared(info: BackboneInfo) -> None:
    rows = [row(tokens="a b", tags="B-PER O"), Row({"tokens": "a b c", "tags": "O I-PER B-PER"}, "f:20", (20, 21, 22))]
    with pytest.raises(DataError, match=r"f:21: tag 'I-PER' after 'O'.*declare the scheme: `options="):
        configured(info, rows)
    assert configured(info, rows[1:], scheme="iob1").scheme == "iob1"


def test_labels_keep_their_spelling(info: BackboneInfo) -> None:
    config = configured(info, [row(tokens="a b c", tags="B-PHONE-NUMBER I-PHONE-NUMBER B-per")])
    assert config.tags == ("O", "B-PHONE-NUMBER", "I-PHONE-NUMBER", "B-per", "I-per")


def test_data_without_any_entity_are_refused(info: BackboneInfo) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl: no row contains an entity; annotate some, or check `columns`"):
        configured(info, [row(tokens="a b", tags="O O")])


def test_a_warning_names_entities_inside_words(info: BackboneInfo, caplog: pytest.LogCaptureFixture) -> None:
    configured(info, [row(text="The Londoners left.", spans=[[4, 10, "LOC"]])])
    assert "1 of 1 entities begin or end inside a word" in caplog.text
    assert "'London' (data.jsonl:7)" in caplog.text


@pytest.mark.parametrize("at", range(0, 120, 5))
def test_an_entity_is_found_in_any_window(head: NerHead, tokenizer: Tokenizer, at: int) -> None:
    tokens = ["b"] * at + ["Ada", "Smith"] + ["b"] * (118 - at)
    tags = ["O"] * at + ["B-PER", "I-PER"] + ["O"] * (118 - at)
    found = oracle(head, tokenizer, head.read(row(tokens=tokens, tags=tags)))
    assert plain(found) == [("Ada Smith", "PER", 2 * at, 2 * at + 9)]


def test_a_word_is_read_in_the_window_where_it_is_farthest_from_an_edge(head: NerHead, backbones: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(f"{backbones}/bert/tokenizer.json")
    example = head.read(row(text="b " * 60))
    windows = Tokenizer(backend, max_tokens=32).windows(head.inputs(example))[0]
    assert len(windows) > 1
    person = head.config.tags.index("B-PER")
    outputs = []
    for window in windows:  # each window has a person at every token that is near one of its cuts
        logits = np.zeros((len(window), len(head.config.tags)), dtype=np.float32)
        logits[:, 0] = 1.0
        if not window.opens:
            logits[:4, person] = 9.0
        if not window.closes:
            logits[-4:, person] = 9.0
        outputs.append({"logits": logits})
    assert head.decode(example, windows, outputs) == []


@given(
    pieces=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "Ada",
                    "Straße",
                    "日本",
                    "👨‍👩‍👧",
                    "U.S.",
                    "(x)",
                    "cafe\u0301",
                    "½",
                    "ﬁ",
                    "\u200bz",
                    "🇩🇪",
                    "אבג",
                    "a\ud800",
                ]
            ),
            st.sampled_from([" ", "  ", "\r\n", "\t", "\u00a0"]),
        ),
        min_size=1,
        max_size=20,
    ),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_entities_have_exact_offsets_in_any_text(head: NerHead, tokenizer: Tokenizer, pieces: list, data: Any) -> None:
    text = "".join(word + space for word, space in pieces)
    example = head.read(row(text=text))
    outputs = []
    windows = tokenizer.windows(head.inputs(example))[0]
    draw = np.random.default_rng(data.draw(st.integers(0, 1000)))
    for window in windows:
        outputs.append({"logits": draw.normal(size=(len(window), 5)).astype(np.float32)})
    end = 0
    for entity in head.decode(example, windows, outputs):
        assert text[entity.start : entity.end] == entity.text
        assert end <= entity.start < entity.end
        assert entity.text.strip() == entity.text
        assert 0 < entity.score <= 1
        end = entity.end


def test_the_score_is_that_of_the_least_certain_word(head: NerHead, backbones: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(f"{backbones}/bert/tokenizer.json")
    example = head.read(row(text="a b"))
    [windows] = Tokenizer(backend, max_tokens=32).windows(head.inputs(example))
    logits = np.zeros((4, 5), dtype=np.float32)
    logits[1, head.config.tags.index("B-PER")] = 5.0
    logits[2, head.config.tags.index("I-PER")] = 2.0
    [entity] = head.decode(example, windows, [{"logits": logits}])
    assert entity.score == pytest.approx(np.exp(2) / (np.exp(2) + 4))


def test_a_text_without_tokens_has_no_entities(head: NerHead, tokenizer: Tokenizer) -> None:
    for text in ("", " ", "\n\t"):
        assert oracle(head, tokenizer, head.read(row(text=text))) == []


def test_logits_that_are_not_finite_are_refused(head: NerHead, tokenizer: Tokenizer) -> None:
    example = head.read(row(text="Ada"))
    windows = tokenizer.windows(head.inputs(example))[0]
    bad = [{"logits": np.full((len(window), 5), np.nan, dtype=np.float32)} for window in windows]
    with pytest.raises(BackendError, match="not finite"):
        head.decode(example, windows, bad)


def metrics_of(head: NerHead, examples: Sequence[NerExample], results: Sequence[list[Entity]]) -> Metrics:
    return head.metrics(merge(map(head.count, examples, results)))


def test_metrics_by_hand(head: NerHead) -> None:
    gold = [[[0, 9, "PER"], [14, 20, "LOC"]], [[0, 3, "PER"]]]
    examples = [
        head.read(row(text=text, spans=own))
        for text, own in zip(["Ada Smith saw London", "Bob Smith left"], gold, strict=True)
    ]
    results = [
        [Entity("Ada Smith", "PER", 0, 9, 1.0), Entity("London", "PER", 14, 20, 1.0)],
        [Entity("Bob Smith", "PER", 0, 9, 1.0)],
    ]
    metrics = metrics_of(head, examples, results)
    found = metrics.values
    assert (found["precision"], found["recall"]) == pytest.approx((1 / 3, 1 / 3))
    assert (found["PER.support"], found["LOC.support"], found["LOC.f1"]) == (2, 1, 0)
    perfect = [[Entity("", label, start, end, 1.0) for start, end, label in own] for own in gold]
    assert metrics_of(head, examples, perfect).score == metrics.scale == 1.0
    assert metrics_of(head, examples, [[], []]).score == 0.0
    assert metrics.main == "f1"


@pytest.mark.parametrize("labels", [("A",), ("A", "B-C", "I-A")])
def test_metrics_are_those_of_seqeval_in_strict_mode(labels: tuple[str, ...]) -> None:
    draw = np.random.default_rng(0)

    def random_spans() -> list[LabelledSpan]:
        edges = np.flatnonzero(draw.random(21) < 0.5).tolist()
        pairs = [pair for pair in itertools.pairwise(edges) if draw.random() < 0.6]
        return [(start, end, labels[draw.integers(len(labels))]) for start, end in pairs]

    sentences = [random_spans() for _ in range(60)]
    gold, found = sentences, [[span for span in own if draw.random() < 0.6] or random_spans() for own in sentences]
    # seqeval reads tags, and strips dashes off labels, so the labels are numbers.
    tags = [
        [tags_of([(start, end, str(labels.index(label))) for start, end, label in own], 20, "iob2") for own in one]
        for one in (gold, found)
    ]
    report = classification_report(*tags, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    names = {"f1": "f1-score", "precision": "precision", "recall": "recall", "support": "support"}
    wanted = {ours: report["micro avg"][theirs] for ours, theirs in names.items()}
    for index, label in enumerate(labels):
        wanted |= {f"{label}.{ours}": report[str(index)][theirs] for ours, theirs in names.items()}
    assert span_scores(merge(map(span_counts, gold, found))) == pytest.approx(wanted, abs=1e-12)


def test_data_without_entities_have_scores() -> None:
    assert span_scores(merge([span_counts([], [])])) == {"f1": 0, "precision": 0, "recall": 0, "support": 0}


def test_an_entity_inside_a_word_is_not_the_word(head: NerHead) -> None:
    example = head.read(row(text="Londoners", spans=[[0, 6, "LOC"]]))
    assert metrics_of(head, [example], [[Entity("Londoners", "LOC", 0, 9, 1.0)]]).score == 0.0
    assert metrics_of(head, [example], [[Entity("London", "LOC", 0, 6, 1.0)]]).score == 1.0


def test_the_text_is_shown_whole_with_its_entities(head: NerHead) -> None:
    example = head.read(row(text="Ada saw London.", spans=[[0, 3, "PER"], [8, 14, "LOC"]]))
    entities = [Entity("Ada", "PER", 0, 3, 1.0), Entity("London", "LOC", 8, 14, 1.0)]
    shown = head.presenter.render(example, entities)
    assert shown == [("", ""), ("Ada", "PER"), (" saw ", ""), ("London", "LOC"), (".", "")]
    assert head.presenter.labels == ("LOC", "PER")
    assert head.presenter.gold_labels(example) == ["PER", "LOC"]


def test_the_likelihood_is_that_of_the_gold_tags_of_words(head: NerHead, tokenizer: Tokenizer) -> None:
    example = head.read(row(tokens="Ada Smith saw London", tags="B-PER I-PER O B-LOC"))
    [windows] = tokenizer.windows(head.inputs(example))
    outputs = [certain(head, example, window) for window in windows]
    likelihood = head.calibration.likelihood([HeadOutputs(example, windows, outputs)])
    assert isinstance(likelihood, SoftmaxLikelihood)
    assert [head.config.tags[index] for index in likelihood.gold] == ["B-PER", "I-PER", "O", "B-LOC"]
    assert (likelihood.logits.argmax(axis=1) == likelihood.gold).all()
    assert head.calibration.likelihood([]).nll(1.0) == 0


def test_confidences_are_scores_with_their_correctness(head: NerHead) -> None:
    example = head.read(row(text="Ada saw London.", spans=[[0, 3, "PER"]]))
    found = [Entity("Ada", "PER", 0, 3, 0.9), Entity("London", "LOC", 8, 14, 0.6)]
    assert head.calibration.confidences(example, found) == [(0.9, True), (0.6, False)]


def test_loss_is_a_sum_with_its_count(head: NerHead, info: BackboneInfo) -> None:
    network = make_network(head.network, info, head.network_options()).eval()
    states = torch.zeros(1, 4, info.width)
    batch = {"mask": torch.ones(1, 4, dtype=torch.long), "labels": torch.tensor([[-100, 0, 1, -100]])}
    total, count = network.loss(network.training_outputs(states, batch), batch)
    assert count.item() == 2
    assert total.item() == pytest.approx(2 * np.log(5), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Ada London", [[0, 3, "PER"], [4, 10, "LOC"]]),  # one word directly after the other
        ("Ada's", [[3, 5, "LOC"]]),  # a word that starts where the last one ends
        ("Ada's", [[0, 3, "PER"], [3, 5, "LOC"]]),
    ],
)
def test_entities_that_touch_are_learned_as_they_are(
    head: NerHead, tokenizer: Tokenizer, text: str, spans: list[list[Any]]
) -> None:
    found = oracle(head, tokenizer, head.read(row(text=text, spans=spans)))
    assert plain(found) == [(text[start:end], label, start, end) for start, end, label in spans]


def test_training_examples_keep_their_number_if_others_have_no_token(head: NerHead, tokenizer: Tokenizer) -> None:
    examples = [head.read(row(text=text, spans=[])) for text in ("", "Ada", "", "Bob")]
    found = make_instances(head, tokenizer, examples, {"labels": "BS"})
    assert [instance.index for instance in found] == [1, 3]
