from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from nlptasks_similarity import Embedding, Similarity, SimilarityConfig, SimilarityExample, SimilarityHead
from nlptasks_similarity.head import _Ranked, _texts_of
from nlptasks_similarity.learning import COSINE, RANKING, Texts

import nlptasks
import nlptasks.pipeline
from nlptasks import DataError, Row, Source, TrainSettings, UsageError, Window
from nlptasks.pipeline import Pipeline
from nlptasks.testing import Conformance, checks, make_tiny
from nlptasks.testing.commands import run

LONG = " ".join(f"Sentence number {number} is about the harbour of a town." for number in range(90))


class TestSimilarity(Conformance):
    task = "similarity"


def rows_of(*fields: dict[str, Any]) -> list[Row]:
    return [Row(own, f"pairs.jsonl:{number}") for number, own in enumerate(fields, start=1)]


def scored(*scores: Any) -> list[Row]:
    return rows_of(*({"first": "a cat", "second": f"a dog {n}", "score": score} for n, score in enumerate(scores)))


def head_of(subject: checks.Subject, rows: list[Row], **options: Any) -> checks.Subject:
    """The subject with a head that is configured by other rows or options."""
    config = SimilarityHead.configure(rows, options)
    return replace(subject, head=SimilarityHead(config, backbone=subject.backbone.info), rows=rows)


@pytest.fixture
def subject(tmp_path: Path) -> checks.Subject:
    make_tiny("bert", tmp_path / "backbone")
    return checks.make_subject("similarity", tmp_path / "backbone")


@pytest.fixture(scope="module")
def minilm() -> Pipeline:
    return nlptasks.pipeline.pipeline("similarity", model="minilm")


# Embeddings


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Hugging Face's own model and tokenizer."""
    folder = tmp_path_factory.mktemp("minilm") / "model"
    run("import", "minilm", "--task", "similarity", "-o", folder)
    backbone = folder / "backbone"
    return transformers.AutoModel.from_pretrained(backbone), transformers.AutoTokenizer.from_pretrained(backbone)


def states_by_hand(by_hand: tuple[Any, Any], text: str) -> torch.Tensor:
    model, tokenizer = by_hand
    with torch.no_grad():
        states: torch.Tensor = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return states


@pytest.mark.parametrize("text", ["A cat sleeps.", "Préfet", "x", "The quick brown fox, 3.5 times: [SEP]"])
def test_an_embedding_is_the_normalised_mean_of_the_states(minilm: Pipeline, by_hand: Any, text: str) -> None:
    mean = states_by_hand(by_hand, text.replace("[SEP]", "[ SEP ]")).mean(0)
    expected = (mean / mean.norm()).numpy()
    np.testing.assert_allclose(minilm(text).values, expected, atol=1e-5, rtol=0)


def test_other_ways_of_pooling(by_hand: Any) -> None:
    states = states_by_hand(by_hand, "A cat sleeps.")
    for pooling, expected in (("cls", states[0]), ("max", states.amax(0))):
        options = {"similarity": {"pooling": pooling}}
        pipe = nlptasks.pipeline.pipeline("similarity", model="minilm", options=options)
        normal = (expected / expected.norm()).numpy()
        # A second, longer text makes padding.
        np.testing.assert_allclose(pipe(["A cat sleeps.", "A longer text " * 9])[0].values, normal, atol=1e-5, rtol=0)


def test_the_windows_of_a_long_text_count_by_their_tokens(minilm: Pipeline) -> None:
    engine, head = minilm.engine, minilm.heads["similarity"]
    example = SimilarityExample((LONG,))
    [reading] = engine.readings([{"similarity": example}])
    own = reading["similarity"]
    assert len(own.windows) > 1
    total = sum(len(window) * out["embedding"] for window, out in zip(own.windows, own.outputs, strict=True))
    expected = total / np.linalg.norm(total)
    np.testing.assert_allclose(head.decode(example, own.windows, own.outputs).values, expected, atol=1e-6, rtol=0)
    beside = minilm({"first": LONG, "second": LONG}).score
    assert beside == pytest.approx(1, abs=1e-6)
    apart = float(np.dot(minilm(LONG).values, minilm("A short text.").values))
    assert minilm({"first": LONG, "second": "A short text."}).score == pytest.approx(apart, abs=1e-6)
    assert minilm({"first": "A short text.", "second": LONG}).score == pytest.approx(apart, abs=1e-6)


@pytest.mark.parametrize("empty", ["", "  ", "\u200b", "\u0301"])
def test_a_text_without_tokens_has_no_embedding_and_no_score(minilm: Pipeline, empty: str) -> None:
    assert minilm(empty) == Embedding(())
    assert minilm([{"first": empty, "second": "a"}, {"first": "a", "second": empty}]) == [Similarity(None)] * 2


def test_windows_of_several_lengths_count_by_their_tokens(subject: checks.Subject) -> None:
    def window(tokens: int, *, opens: bool) -> Window:
        row = np.zeros(tokens, dtype=np.int64)
        return Window(row, row, row, np.zeros((tokens, 2), dtype=np.int64), opens=opens)

    windows = [window(2, opens=True), window(1, opens=False), window(5, opens=True)]
    outputs = [{"embedding": np.array(one, np.float32)} for one in ([3.0, 4.0], [0.0, 2.0], [0.0, 9.0])]
    pair = subject.head.decode(SimilarityExample(("long", "short")), windows, outputs)
    assert pair.score == pytest.approx(10 / math.hypot(6, 10))


def test_a_blank_text_has_no_embedding_where_it_has_tokens(tmp_path: Path) -> None:
    make_tiny("bart", tmp_path / "bart")
    own = checks.make_subject("similarity", tmp_path / "bart")
    assert own.tokenizer.windows([Source(" ")]) != [[]]
    own.model().save(tmp_path / "model")
    pipe = nlptasks.pipeline.pipeline("probe", model=tmp_path / "model")
    assert pipe([" ", {"first": "a", "second": " "}]) == [Embedding(()), Similarity(None)]


def test_untrained_it_tells_alike_from_unlike(minilm: Pipeline) -> None:
    alike = minilm({"first": "A man is playing the guitar.", "second": "Somebody plays an instrument."})
    unlike = minilm({"first": "A man is playing the guitar.", "second": "The contract ends in December."})
    assert -1 <= unlike.score < 0.2 < 0.5 < alike.score <= 1


def test_results_are_shown_to_people(minilm: Pipeline) -> None:
    head = minilm.heads["similarity"]
    pair, text = SimilarityExample(("one", "two")), SimilarityExample(("one",))
    assert head.show(pair, Similarity(0.5)) == [("one / two ", ""), (" 0.50", "similarity")]
    assert head.show(pair, Similarity(None))[1] == (" none", "similarity")
    assert head.show(text, Embedding((0.6, -0.8)))[1] == (" +0.600 -0.800 ... (2 numbers)", "embedding")
    assert head.show(text, Embedding(()))[1] == (" none", "embedding")


# A projection, and checkpoints


def test_a_projection_conforms(subject: checks.Subject, tmp_path: Path) -> None:
    own = head_of(subject, list(subject.rows), dimensions=6)
    assert own.head.outputs == {"embedding": "BE"}
    checks.check_outputs(own)
    checks.check_learning(own)
    results = checks.check_saving(own, tmp_path / "model")
    checks.check_export(own, tmp_path / "model", results)
    assert len(nlptasks.pipeline.pipeline("probe", model=tmp_path / "model")("a cat").values) == 6


def test_a_checkpoint_has_no_projection() -> None:
    with pytest.raises(UsageError, match=r"similarity\.dimensions: is 3, for which a checkpoint has no layer"):
        nlptasks.pipeline.pipeline("similarity", model="minilm", options={"similarity": {"dimensions": 3}})


def test_an_encoder_decoder_is_no_checkpoint_of_embeddings(tmp_path: Path) -> None:
    make_tiny("t5", tmp_path / "t5")
    with pytest.raises(nlptasks.ModelError, match="has the architecture t5"):
        nlptasks.pipeline.pipeline("similarity", model=tmp_path / "t5")


# Rows


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            rows_of({"first": "a"}),
            r"pairs\.jsonl:1: has no 'second', only first; name the column: --columns second=NAME",
        ),
        (rows_of({"first": "a", "second": 5}), r"second is 5, expected a string"),
        (scored("high"), r"pairs\.jsonl:1: score is 'high', expected a number"),
        (scored(True), r"score is True, expected a number"),
        (scored([1]), r"score is \[1\], expected a number"),
        (scored("nan"), r"score is 'nan', expected a finite number"),
        (scored(math.inf), r"score is inf, expected a finite number"),
        (
            scored(0.1, None),
            r"pairs\.jsonl:2: has no score, but pairs\.jsonl:1 has one; give all rows a score, or none",
        ),
        (scored("", "0.5"), r"pairs\.jsonl:1: has no score, but pairs\.jsonl:2 has one"),
        (scored(3, 3), r"pairs\.jsonl:1: and all rows after it have the score 3; give other scores"),
        (rows_of({"first": "a", "second": "b", "score": 1, "negative": "c"}), "has a negative beside a score"),
        (rows_of({"first": "a", "second": "b", "negative": "b"}), "has 'b' as second and as negative"),
    ],
)
def test_bad_rows_say_what_is_wrong(rows: list[Row], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        SimilarityHead.configure(rows, {})


@pytest.mark.parametrize(
    ("rows", "options", "problem"),
    [
        (rows_of({"first": "a", "second": "b"}), {"loss": "cosine"}, "has no score, which the loss cosine learns from"),
        (scored(1, 0), {"loss": "contrastive"}, "has a score, which the loss contrastive does not learn from"),
        (scored(1, 6), {"scores": "1,5"}, r"pairs\.jsonl:2: score is 6, expected 1 to 5"),
    ],
)
def test_rows_that_an_option_does_not_fit(rows: list[Row], options: dict[str, str], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        SimilarityHead.configure(rows, options)


@pytest.mark.parametrize("scores", ["5,1", "1", "a,b", "1,2,3", "0,inf", "nan,1", ""])
def test_a_range_that_is_none(scores: str) -> None:
    with pytest.raises(UsageError, match=r"similarity\.scores: is .*; give the lowest and the highest score"):
        SimilarityHead.configure(scored(1, 0), {"scores": scores})


@pytest.mark.parametrize(
    ("scores", "option", "cosines"),
    [
        ((0.2, 0.9), "auto", (0.2, 0.9)),
        ((-0.5, 1), "auto", (-0.5, 1)),
        (("0", "2.5", "5"), "auto", (0, 0.5, 1)),
        ((2, 3), "1,5", (0.25, 0.5)),
        ((-3, 3), "auto", (0, 1)),
    ],
)
def test_scores_are_mapped_to_cosines(scores: tuple[Any, ...], option: str, cosines: tuple[float, ...]) -> None:
    config = SimilarityHead.configure(scored(*scores), {"scores": option})
    assert [config.cosine(float(score)) for score in scores] == pytest.approx(cosines)


def test_gold_rows_need_texts_and_a_score(subject: checks.Subject) -> None:
    for name, fields in (("first", {"first": " ", "second": "b"}), ("second", {"first": "a", "second": ""})):
        with pytest.raises(DataError, match=f"has an empty text as '{name}'; remove the row"):
            subject.head.read_gold(rows_of({**fields, "score": 1}))
    with pytest.raises(DataError, match="has no gold answer among first, second"):
        subject.head.read_gold(rows_of({"first": "a", "second": "b"}))
    with pytest.raises(DataError, match="has no gold answer among text"):
        subject.head.read_gold(rows_of({"text": "a"}))
    ranking = head_of(subject, rows_of({"first": "a", "second": "b"})).head
    with pytest.raises(DataError, match="has a score, unlike the training data; leave it out"):
        ranking.read_gold(scored(1))
    ranged = head_of(subject, scored(1, 5), scores="1,5").head
    with pytest.raises(DataError, match="score is 0, expected 1 to 5"):
        ranged.read_gold(scored(0))


def test_pairs_without_scores_are_told_of_unless_they_are_meant(subject: checks.Subject) -> None:
    rows = rows_of({"first": "a", "second": "b"})
    [warning] = head_of(subject, rows).head.warnings([], [])
    assert warning.startswith("the rows have no score, so it learns which second text belongs to which first")
    assert head_of(subject, rows, loss="contrastive").head.warnings([], []) == []
    assert subject.head.warnings([], []) == []


# Losses


def test_a_pair_that_lacks_the_tokens_of_a_text_is_not_learned_from() -> None:
    # The first example has two windows for its first text, the second lacks a text, the third is whole.
    windows = torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1], [1, 0], [1, 1]])
    counts, example = torch.tensor([2, 0, 2, 2, 2, 2]), torch.tensor([0, 0, 0, 1, 2, 2])
    found = _texts_of(windows, mask, counts, example, {"number": example})
    expected = torch.tensor([[6.0, 10.0], [1.0, 0.0], [0.0, 1.0], [6.0, 8.0]])
    torch.testing.assert_close(found.vectors, torch.nn.functional.normalize(expected))
    assert found.first.tolist() == [True, False, True, False]
    assert found.second.tolist() == [False, True, False, True]
    assert not found.negative.any()
    assert found.given["number"].tolist() == [0, 0, 2, 2]


def test_the_cosine_loss_is_the_squared_error() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    first = torch.tensor([True, False, True, False])
    targets = torch.tensor([[1.0], [1.0], [0.25], [0.25]])
    texts = Texts(vectors, first, ~first, torch.zeros(4, dtype=torch.bool), {"target": targets})
    total, count = COSINE.loss(texts, scale=20)
    assert total.item() == pytest.approx((0.6 - 1) ** 2 + 0.25**2)
    assert count.item() == 2


def ranking_loss(vectors: list[list[float]], parts: list[int], texts: list[tuple[str, ...]]) -> tuple[float, int]:
    part = torch.tensor(parts)
    owner = (part == 0).cumsum(0) - 1
    keys = torch.tensor(np.array([RANKING.features(own, None)["keys"] for own in texts]))[owner]
    given = Texts(torch.tensor(vectors), part == 0, part == 1, part == 2, {"keys": keys})
    total, count = RANKING.loss(given, scale=2.0)
    return total.item(), int(count)


def cross_entropy(right: float, *others: float) -> float:
    return math.log(sum(math.exp(one) for one in (right, *others))) - right


EAST, NORTH, BETWEEN = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]


def test_the_contrastive_loss_has_the_value_computed_by_hand() -> None:
    # cosines: first 0 with seconds 0.6, 0; first 1 with seconds 0.8, 1; the negative is EAST: 1 and 0
    vectors, parts = [EAST, BETWEEN, EAST, NORTH, NORTH], [0, 1, 2, 0, 1]
    there = cross_entropy(1.2, 0.0, 2.0) + cross_entropy(2.0, 1.6, 0.0)
    back = cross_entropy(1.2, 1.6) + cross_entropy(2.0, 0.0)
    total, count = ranking_loss(vectors, parts, [("a", "b", "c"), ("d", "e")])
    assert total == pytest.approx((there + back) / 2, abs=1e-5)
    assert count == 2


def test_what_is_right_by_another_row_is_no_wrong_answer() -> None:
    vectors, parts = [EAST, BETWEEN, NORTH, NORTH], [0, 1, 0, 1]
    assert ranking_loss(vectors, parts, [("a", "b"), ("c", " B ")])[0] == pytest.approx(0, abs=1e-6)  # one answer
    assert ranking_loss(vectors, parts, [("a", "b"), ("A", "c")])[0] == pytest.approx(0, abs=1e-6)  # one question
    third = [[*vectors, EAST, NORTH], [*parts, 0, 1]]
    # "a" has the answers b and c, by the first two rows; the third row's c is none of its wrong ones.
    total, _ = ranking_loss(*third, [("a", "b"), ("a", "c"), ("z", "c")])
    there = 0.0 + 0.0 + cross_entropy(0.0, 1.2)
    back = cross_entropy(1.2, 1.2) + 0.0 + 0.0
    assert total == pytest.approx((there + back) / 2, abs=1e-5)


def test_pairs_with_negatives_are_learned_and_ranked(tmp_path: Path) -> None:
    make_tiny("bert", tmp_path / "backbone")
    words = ["cat", "dog", "hen", "fox", "cow", "bee", "ant", "owl", "elk", "rat", "pig", "ape"]
    lines = "".join(f'{{"first": "{w}", "second": "the {w} {w}", "negative": "no {w} x"}}\n' for w in words)
    for part in ("train", "dev"):
        (tmp_path / f"{part}.jsonl").write_text(lines)
    target = nlptasks.Target("similarity", "pairs", str(tmp_path))
    settings = TrainSettings(backbone=str(tmp_path / "backbone"), epochs=15, lr=1e-3, precision="fp32", device="cpu")
    model = tmp_path / "model"
    result = nlptasks.train([target], output=model, settings=settings).heads["pairs"]
    assert result.main_metric == "mrr"
    assert result.metrics["dev"]["mrr"] > 0.9
    nlptasks.export(model)
    target = f"pairs={tmp_path / 'dev.jsonl'}"
    on_both = [nlptasks.evaluate(model, target, backend=name).metrics for name in ("torch", "onnx")]
    assert on_both[0] == on_both[1] == result.metrics["dev"]
    found = nlptasks.pipeline.pipeline("pairs", model=model)({"first": "cat", "second": "the dog dog", "negative": "x"})
    assert type(found) is Similarity


# Metrics


def test_correlations_have_the_values_computed_by_hand() -> None:
    examples = [SimilarityExample(("a", "b"), score) for score in (0.0, 1.0, 2.0, 3.0, 4.0)]
    cosines = (0.1, 0.3, 0.2, 0.4, None)  # the last one is left out
    metrics = COSINE.metrics(examples, [Similarity(cosine) for cosine in cosines])
    assert metrics == pytest.approx({"spearman": 0.8, "pearson": 0.8})
    assert COSINE.metrics(examples, [Similarity(0.5)] * 5) == {"spearman": 0.0, "pearson": 0.0}
    assert COSINE.metrics(examples[:1], [Similarity(0.5)]) == {"spearman": 0.0, "pearson": 0.0}
    assert COSINE.metrics(examples[:1], [Similarity(None)]) == {"spearman": 0.0, "pearson": 0.0}


def ranked(*pairs: tuple[str, str, list[float], list[float]]) -> dict[str, float]:
    examples = [SimilarityExample((first, second), measured=True) for first, second, _, _ in pairs]
    results = [_Ranked(0.0, np.array([one, two], np.float32)) for _, _, one, two in pairs]
    return RANKING.metrics(examples, results)


def test_retrieval_has_the_values_computed_by_hand() -> None:
    metrics = ranked(
        ("a", "1", EAST, EAST),  # rank 1
        ("b", "2", EAST, BETWEEN),  # rank 2
        ("c", "3", EAST, NORTH),  # rank 3
        ("d", "4", NORTH, [-1.0, 0.0]),  # rank 4: -1 is at right angles, and so is 1, as near as it
    )
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert metrics == {"mrr": metrics["mrr"], "recall_at_1": 0.25, "recall_at_5": 1.0, "recall_at_10": 1.0}


def test_other_right_answers_and_equal_texts_do_not_count_against_an_answer() -> None:
    assert ranked(("a", "1", EAST, EAST), ("A", "2", EAST, BETWEEN), ("c", "1 ", NORTH, EAST))["mrr"] == pytest.approx(
        (1 + 1 + 1 / 2) / 3
    )


def test_embeddings_that_are_all_alike_find_nothing() -> None:
    metrics = ranked(*((str(n), f"{n}!", EAST, EAST) for n in range(20)))
    assert metrics == {"mrr": pytest.approx(1 / 20), "recall_at_1": 0.0, "recall_at_5": 0.0, "recall_at_10": 0.0}


def test_a_pair_without_embeddings_is_not_found() -> None:
    examples = [SimilarityExample((text, text.upper()), measured=True) for text in "ab"]
    some = [_Ranked(1.0, np.array([EAST, EAST], np.float32)), _Ranked(None, None)]
    assert RANKING.metrics(examples, some)["mrr"] == 0.5
    assert RANKING.metrics(examples, some[1:] * 2)["recall_at_10"] == 0.0


# spaCy and options


def test_documents_have_the_embedding(subject: checks.Subject, tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    subject.model().save(tmp_path / "model")
    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(tmp_path / "model")})
    doc = nlp("a cat")
    np.testing.assert_array_equal(doc._.embedding, np.array(doc._.nlptasks["probe"].values, np.float32))
    again = spacy.tokens.Doc(nlp.vocab).from_bytes(doc.to_bytes())
    np.testing.assert_array_equal(again._.embedding, doc._.embedding)
    assert nlp(" ")._.embedding is None


def test_options_out_of_range() -> None:
    for options in ({"pooling": "sum"}, {"dimensions": -1}, {"scale": 0}, {"loss": "triplet"}):
        with pytest.raises(UsageError, match=next(iter(options))):
            SimilarityConfig(**options)
