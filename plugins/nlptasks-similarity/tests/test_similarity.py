"""Similarity: the contract of heads, embeddings, rows, ranking and metrics."""

from __future__ import annotations

import logging
import math
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from nlptasks_similarity import Embedding, Similarity, SimilarityConfig, SimilarityExample, SimilarityHead

import nlptasks
import nlptasks.pipeline
from nlptasks import (
    ENCODER,
    BackboneInfo,
    DataError,
    Metrics,
    ModelInput,
    Row,
    TrainSettings,
    UsageError,
    Window,
    make_network,
    merge,
    read_gold,
)
from nlptasks.pipeline import Pipeline
from nlptasks.testing import Conformance, checks, make_tiny
from nlptasks.testing.commands import run

BACKBONE = BackboneInfo(
    "bert", None, ENCODER, width=2, max_tokens=64, positions=64, vocabulary_size=9, token_types=2, pad_id=0
)
LONG = " ".join(f"Sentence number {number} is about the harbour of a town." for number in range(90))


class TestSimilarity(Conformance):
    task = "similarity"


def rows_of(*fields: dict[str, Any]) -> list[Row]:
    return [Row(own, f"pairs.jsonl:{number}") for number, own in enumerate(fields, start=1)]


def scored(*scores: Any) -> list[Row]:
    return rows_of(*({"first": "a cat", "second": f"a dog {n}", "score": score} for n, score in enumerate(scores)))


def head_of(rows: list[Row], **options: Any) -> SimilarityHead:
    """Return a head that these rows and options configure."""
    return SimilarityHead(SimilarityHead.configure(rows, SimilarityConfig(**options), BACKBONE), BACKBONE)


def metrics_of(head: SimilarityHead, examples: list[SimilarityExample], results: list[Similarity]) -> Metrics:
    return head.metrics(merge(map(head.count, examples, results)))


@pytest.fixture
def tiny(tmp_path: Path) -> checks.HeadUnderTest:
    make_tiny("bert", tmp_path / "backbone")
    return checks.make_head("similarity", tmp_path / "backbone")


@pytest.fixture(scope="module")
def minilm() -> Pipeline:
    return nlptasks.pipeline.pipeline("similarity", model="minilm")


# Embeddings


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Return Hugging Face's model and tokenizer."""
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


def test_other_poolings(by_hand: Any) -> None:
    states = states_by_hand(by_hand, "A cat sleeps.")
    for pooling, expected in (("cls", states[0]), ("max", states.amax(0))):
        options = {"similarity": {"pooling": pooling}}
        pipe = nlptasks.pipeline.pipeline("similarity", model="minilm", options=options)
        normal = (expected / expected.norm()).numpy()
        # The second text is longer, so the first one is padded.
        np.testing.assert_allclose(pipe(["A cat sleeps.", "A longer text " * 9])[0].values, normal, atol=1e-5, rtol=0)


def test_the_windows_of_a_long_text_are_averaged_by_their_tokens(minilm: Pipeline) -> None:
    [found] = minilm._engine.outputs([{"similarity": SimilarityExample((LONG,))}])
    own = found["similarity"]
    assert len(own.windows) > 1
    total = sum(len(window) * out["embedding"] for window, out in zip(own.windows, own.outputs, strict=True))
    np.testing.assert_allclose(minilm(LONG).values, total / np.linalg.norm(total), atol=1e-6, rtol=0)


def test_a_long_text_has_the_same_embedding_alone_and_in_a_pair(minilm: Pipeline) -> None:
    beside = minilm({"first": LONG, "second": LONG}).score
    assert beside == pytest.approx(1, abs=1e-6)
    apart = float(np.dot(minilm(LONG).values, minilm("A short text.").values))
    assert minilm({"first": LONG, "second": "A short text."}).score == pytest.approx(apart, abs=1e-6)
    assert minilm({"first": "A short text.", "second": LONG}).score == pytest.approx(apart, abs=1e-6)


@pytest.mark.parametrize("empty", ["", "  ", "\u200b", "\u0301"])
def test_a_text_without_tokens_has_no_embedding_and_no_score(minilm: Pipeline, empty: str) -> None:
    assert minilm(empty) == Embedding(())
    assert minilm([{"first": empty, "second": "a"}, {"first": "a", "second": empty}]) == [Similarity(None)] * 2


def test_windows_are_averaged_by_their_tokens() -> None:
    def window(tokens: int, *, opens: bool) -> Window:
        row = np.zeros(tokens, dtype=np.int64)
        return Window(row, row, row, np.zeros((tokens, 2), dtype=np.int64), opens=opens)

    head = head_of(scored(0, 1))
    windows = [window(2, opens=True), window(1, opens=False), window(5, opens=True)]
    outputs = [{"embedding": np.array(one, np.float32)} for one in ([3.0, 4.0], [0.0, 2.0], [0.0, 9.0])]
    pair = head.decode(SimilarityExample(("long", "short")), windows, outputs)
    assert isinstance(pair, Similarity)
    assert pair.score == pytest.approx(10 / math.hypot(6, 10))
    text = head.decode(SimilarityExample(("long",)), windows[:2], outputs[:2])
    assert isinstance(text, Embedding)
    assert text.values == pytest.approx((6 / math.hypot(6, 10), 10 / math.hypot(6, 10)))


def test_a_blank_text_has_no_embedding_even_if_it_has_tokens(tmp_path: Path) -> None:
    make_tiny("bart", tmp_path / "bart")
    own = checks.make_head("similarity", tmp_path / "bart")
    assert own.tokenizer.windows([ModelInput((" ",))]) != [[]]
    own.model().save(tmp_path / "model")
    pipe = nlptasks.pipeline.pipeline("probe", model=tmp_path / "model")
    assert pipe([" ", {"first": "a", "second": " "}]) == [Embedding(()), Similarity(None)]


def test_without_training_similar_texts_have_a_higher_score(minilm: Pipeline) -> None:
    alike = minilm({"first": "A man is playing the guitar.", "second": "Somebody plays an instrument."})
    unlike = minilm({"first": "A man is playing the guitar.", "second": "The contract ends in December."})
    assert -1 <= unlike.score < 0.2 < 0.5 < alike.score <= 1


def test_results_are_shown_to_people() -> None:
    shown = head_of(scored(0, 1)).presenter.render
    pair, text = SimilarityExample(("one", "two")), SimilarityExample(("one",))
    assert shown(pair, Similarity(0.5)) == [("one / two ", ""), (" 0.50", "similarity")]
    assert shown(pair, Similarity(None))[1] == (" none", "similarity")
    assert shown(text, Embedding((0.6, -0.8)))[1] == (" +0.600 -0.800 ... (2 numbers)", "embedding")
    assert shown(text, Embedding(()))[1] == (" none", "embedding")


# A projection, and checkpoints


def test_a_projection_conforms(tiny: checks.HeadUnderTest, tmp_path: Path) -> None:
    head = SimilarityHead(replace(tiny.head.config, dimensions=6), tiny.backbone.info)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make_network(head.network, tiny.backbone.info, head.network_options())
    own = replace(tiny, head=head, network=network)
    assert network.outputs == {"embedding": "BE"}
    results = checks.check_without_export(own, tmp_path / "model")
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
            r'pairs\.jsonl:1: has no \'second\', only first; name the column: `columns={"second": "NAME"}`',
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
        (scored(3, 3), r"pairs\.jsonl: all rows have the score 3; add other scores"),
        (rows_of({"first": "a", "second": "b", "score": 1, "negative": "c"}), "has a negative beside a score"),
        (rows_of({"first": "a", "second": "b", "negative": "b"}), "has 'b' as second and as negative"),
        (rows_of({"first": "a", "second": "\u200b"}), r"pairs\.jsonl:1: has an empty text as 'second'; remove the row"),
        (rows_of({"first": "a", "second": "b", "negative": " "}), "has an empty text as 'negative'"),
    ],
)
def test_wrong_rows_are_refused(rows: list[Row], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        head_of(rows)


@pytest.mark.parametrize(
    ("rows", "options", "problem"),
    [
        (rows_of({"first": "a", "second": "b"}), {"loss": "cosine"}, "has no score, which the loss cosine learns from"),
        (scored(1, 0), {"loss": "contrastive"}, "has a score, which the loss contrastive does not learn from"),
        (scored(1, 6), {"scores": (1, 5)}, r"pairs\.jsonl:2: score is 6, expected 1 to 5"),
    ],
)
def test_rows_that_do_not_fit_an_option_are_refused(rows: list[Row], options: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        head_of(rows, **options)


@pytest.mark.parametrize(
    "scores", [(5, 1), (1,), ("a", "b"), (1, 2, 3), (0, float("inf")), (float("nan"), 1), (), "1,5"]
)
def test_wrong_ranges_are_refused(scores: Any) -> None:
    with pytest.raises(
        UsageError, match=r"^scores: .*; (set the lowest|use one of auto, a tuple of 2 numbers|give a number)"
    ):
        SimilarityConfig(scores=scores)


@pytest.mark.parametrize(
    ("scores", "option", "cosines"),
    [
        ((0.2, 0.9), "auto", (0.2, 0.9)),
        ((-0.5, 1), "auto", (-0.5, 1)),
        (("0", "2.5", "5"), "auto", (0, 0.5, 1)),
        ((2, 3), (1, 5), (0.25, 0.5)),
        ((-3, 3), "auto", (0, 1)),
    ],
)
def test_scores_are_mapped_to_cosines(scores: tuple[Any, ...], option: Any, cosines: tuple[float, ...]) -> None:
    config = head_of(scored(*scores), scores=option).config
    assert [config.cosine(float(score)) for score in scores] == pytest.approx(cosines)


def test_gold_rows_need_texts_and_a_score() -> None:
    head = head_of(scored(0, 1))
    for name, fields in (("first", {"first": " ", "second": "b"}), ("second", {"first": "a", "second": ""})):
        with pytest.raises(DataError, match=f"has an empty text as '{name}'; remove the row"):
            read_gold(head, rows_of({**fields, "score": 1}))
        assert head.gold(head.read(rows_of(fields)[0])) is None
    with pytest.raises(DataError, match="has no gold answer among first, second"):
        read_gold(head, rows_of({"first": "a", "second": "b"}))
    with pytest.raises(DataError, match="has no gold answer among text"):
        read_gold(head, rows_of({"text": "a"}))
    ranged = head_of(scored(1, 5), scores=(1, 5))
    with pytest.raises(DataError, match="score is 0, expected 1 to 5"):
        read_gold(ranged, scored(0))


def test_gold_rows_of_a_ranking_need_texts_and_no_score() -> None:
    ranking = head_of(rows_of({"first": "a", "second": "b"}))
    with pytest.raises(DataError, match="has a score, unlike the training data; leave it out"):
        read_gold(ranking, scored(1))
    for fields in ({"first": " ", "second": "b"}, {"first": "a", "second": "\u200b"}, {"text": "a"}):
        with pytest.raises(DataError, match="has no gold answer among"):
            read_gold(ranking, rows_of(fields))
    [example] = read_gold(ranking, rows_of({"first": "a", "second": "b", "negative": "c"}))
    assert ranking.gold(example) == "b"


def test_pairs_without_scores_warn_unless_an_option_asks_for_them(caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of({"first": "a", "second": "b"})
    with caplog.at_level(logging.WARNING, "nlptasks"):
        head_of(rows, loss="contrastive")
        head_of(scored(0, 1))
        assert not caplog.messages
        head_of(rows)
    [message] = caplog.messages
    assert message.startswith(
        "the rows have no score, so the head learns which second text belongs to which first text"
    )


# Training


def test_targets_say_where_texts_begin_and_what_they_are() -> None:
    window = Window(*[np.zeros(2, dtype=np.int64)] * 3, np.zeros((2, 2), dtype=np.int64))
    scored_head = head_of(scored(1, 5), scores=(1, 5))
    found = scored_head.targets(SimilarityExample(("a", "b"), 2.0), window)
    assert {name: (values.tolist(), values.dtype) for name, values in found.items()} == {
        "texts": ([2], np.int64),
        "cosine": ([0.25], np.float32),
    }
    assert scored_head.targets(SimilarityExample(("a", "b"), 2.0), replace(window, opens=False))["texts"].tolist() == [
        0
    ]
    ranking = head_of(rows_of({"first": "a", "second": "b"}), loss="contrastive")
    three, two = (ranking.targets(SimilarityExample(texts), window) for texts in (("a", "B", "c"), ("d", " b  ")))
    assert (three["texts"].tolist(), two["texts"].tolist()) == ([3], [2])
    assert three["keys"].dtype == np.int64
    assert three["keys"][1] == two["keys"][1], "texts that differ only in case and white space are equal"
    assert two["keys"][2] == 0
    assert len({*three["keys"].tolist(), *two["keys"].tolist()}) == 5


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
    head = head_of(scored(0, 4))
    examples = [SimilarityExample(("a", "b"), score) for score in (0.0, 1.0, 2.0, 3.0, 4.0)]
    cosines = (0.1, 0.3, 0.2, 0.4, None)  # the last pair is left out
    metrics = metrics_of(head, examples, [Similarity(cosine) for cosine in cosines])
    assert metrics.values == pytest.approx({"spearman": 0.8, "pearson": 0.8})
    assert (metrics.main, metrics.scale) == ("spearman", 1.0)
    nothing = {"spearman": 0.0, "pearson": 0.0}
    assert metrics_of(head, examples, [Similarity(0.5)] * 5).values == nothing
    assert metrics_of(head, examples[:1], [Similarity(0.5)]).values == nothing
    assert metrics_of(head, examples[:1], [Similarity(None)]).values == nothing


EAST, NORTH, BETWEEN = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]


@pytest.fixture
def ranking() -> SimilarityHead:
    return head_of(rows_of({"first": "a", "second": "b"}), loss="contrastive")


def ranked(head: SimilarityHead, *pairs: tuple[str, str, list[float], list[float]]) -> dict[str, float]:
    """Return the metrics of pairs with these embeddings, as they are decoded."""
    examples = [SimilarityExample((first, second)) for first, second, _, _ in pairs]
    row = np.zeros(1, dtype=np.int64)
    window = Window(row, row, row, np.zeros((1, 2), dtype=np.int64))
    results = [
        head.decode(example, [window] * 2, [{"embedding": np.array(vector, np.float32)} for vector in own])
        for example, (_, _, *own) in zip(examples, pairs, strict=True)
    ]
    metrics = metrics_of(head, examples, results)  # type: ignore[arg-type]
    assert metrics.main == "mrr"
    return dict(metrics.values)


def test_retrieval_has_the_values_computed_by_hand(ranking: SimilarityHead) -> None:
    metrics = ranked(
        ranking,
        ("a", "1", EAST, EAST),  # rank 1
        ("b", "2", EAST, BETWEEN),  # rank 2
        ("c", "3", EAST, NORTH),  # rank 3
        ("d", "4", NORTH, [-1.0, 0.0]),  # rank 4: as far as text 1, which ranks before it
    )
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert metrics == {"mrr": metrics["mrr"], "recall_at_1": 0.25, "recall_at_5": 1.0, "recall_at_10": 1.0}


def test_other_right_answers_and_equal_texts_do_not_lower_a_rank(ranking: SimilarityHead) -> None:
    pairs = (("a", "1", EAST, EAST), ("A", "2", EAST, BETWEEN), ("c", "1 ", NORTH, EAST))
    assert ranked(ranking, *pairs)["mrr"] == pytest.approx((1 + 1 + 1 / 2) / 3)


def test_equal_embeddings_find_nothing(ranking: SimilarityHead) -> None:
    metrics = ranked(ranking, *((str(n), f"{n}!", EAST, EAST) for n in range(20)))
    assert metrics == {"mrr": pytest.approx(1 / 20), "recall_at_1": 0.0, "recall_at_5": 0.0, "recall_at_10": 0.0}


def test_a_pair_without_embeddings_is_not_found(ranking: SimilarityHead) -> None:
    examples = [SimilarityExample((text, text.upper())) for text in "ab"]
    some = [Similarity(1.0, np.array([EAST, EAST], np.float32)), Similarity(None)]
    assert metrics_of(ranking, examples, some).values["mrr"] == 0.5
    assert metrics_of(ranking, examples, some[1:] * 2).values["recall_at_10"] == 0.0


def test_embeddings_are_not_part_of_a_similarity() -> None:
    found = Similarity(1.0, np.array([EAST, EAST], np.float32))
    assert found == Similarity(1.0)
    assert hash(found) == hash(Similarity(1.0))
    assert repr(found) == "Similarity(score=1.0)"
    assert asdict(found) == {"score": 1.0}
    again = pickle.loads(pickle.dumps(found))
    assert (again, again.vectors.tolist()) == (found, [EAST, EAST])
    assert (replace(found, score=0.5), replace(found).vectors) == (Similarity(0.5), None)


# spaCy and options


def test_spacy_documents_have_the_embedding(tiny: checks.HeadUnderTest, tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    tiny.model().save(tmp_path / "model")
    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(tmp_path / "model")})
    doc = nlp("a cat")
    np.testing.assert_array_equal(doc._.embedding, np.array(doc._.nlptasks["probe"].values, np.float32))
    again = spacy.tokens.Doc(nlp.vocab).from_bytes(doc.to_bytes())
    np.testing.assert_array_equal(again._.embedding, doc._.embedding)
    assert nlp(" ")._.embedding is None


def test_options_out_of_range_are_refused() -> None:
    for options in ({"pooling": "sum"}, {"dimensions": -1}, {"scale": 0}, {"loss": "triplet"}):
        with pytest.raises(UsageError, match=next(iter(options))):
            SimilarityConfig(**options)
