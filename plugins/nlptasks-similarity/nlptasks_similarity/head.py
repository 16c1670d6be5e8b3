"""Similarity: an embedding of a text, and the cosine of the embeddings of two texts.

Rows are ``first`` and ``second``, with a ``score`` that says how similar they are. Without scores, the second text is the answer
to the first, and ``negative`` may hold a wrong answer. Each text is read alone, so that embeddings can be stored and compared
later. A long text is read in windows, whose vectors are averaged by their tokens, in training as in prediction.

Letters beside those of the library: E width of an embedding, T texts of an example.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nlptasks import (
    Array,
    BackboneInfo,
    Counts,
    DataError,
    Floats,
    Head,
    HuggingFaceFormat,
    Metrics,
    ModelInput,
    Outputs,
    Presenter,
    Range,
    Result,
    Row,
    Schema,
    SpacyWriter,
    UsageError,
    Window,
    check_values,
    checked,
    derived,
    each,
    option,
    quote,
    text_field,
)
from nlptasks_similarity.objectives import COSINE, RANKING, Objective, Pair
from nlptasks_similarity.rows import (
    UNIT_SCORES,
    SimilarityExample,
    check_within,
    gold_pair_of,
    pair_of,
    range_of,
)

_log = logging.getLogger("nlptasks")

_OUTPUT = "embedding"
_SHOWN = 4
"""Numbers of an embedding that are shown to people."""


@dataclass(frozen=True)
class Embedding(Result):
    """The position of a text among others: texts that mean the same are near each other.

    Attributes:
        values: numbers whose squares add up to 1 [E]; empty for a text without tokens.
    """

    values: tuple[float, ...]


@dataclass(frozen=True)
class Similarity(Result):
    """How similar two texts are.

    Attributes:
        score: the cosine of their embeddings, in -1..1; None if one of them has no tokens.
    """

    score: float | None
    embeddings: InitVar[Floats | None] = None

    def __post_init__(self, embeddings: Floats | None) -> None:
        vars(self)["_vectors"] = embeddings

    @property
    def vectors(self) -> Floats | None:
        """Both embeddings [2,E], for metrics that rank them; None if there are none. They are neither compared nor written."""
        vectors: Floats | None = vars(self)["_vectors"]
        return vectors


@dataclass(frozen=True)
class SimilarityConfig:
    """Options of a head, and what its training data decided."""

    pooling: str = option(
        "mean",
        "how the tokens of a text are pooled: their mean, cls (the first token), or max (the maximum of each dimension)",
        choices=("mean", "cls", "max"),
    )
    dimensions: int = option(
        0,
        "dimensions of an embedding, by a linear layer; 0 for those of the backbone, without a layer",
        within=Range(least=0),
    )
    loss: str = option(
        "auto",
        "cosine learns scores, contrastive learns which text belongs to which; auto: cosine if rows have scores",
        choices=("auto", "cosine", "contrastive"),
    )
    scale: float = option(20.0, "factor of the cosines in the contrastive loss", within=Range(above=0))
    scores: str | tuple[float, float] = option(
        "auto",
        "the lowest and the highest possible score; auto: 0 and 1, or -1 and 1, if all scores lie within, else those found",
        choices=("auto",),
    )
    ranking: bool = derived(False, "True if it learned which text belongs to which, without scores")
    lowest: float = derived(0.0, "the score for a cosine of 0, or of -1 if it is -1")
    highest: float = derived(1.0, "the score for a cosine of 1")

    def __post_init__(self) -> None:
        check_values(self)
        if not isinstance(self.scores, str) and not 0 < self.scores[1] - self.scores[0] < math.inf:
            raise UsageError(
                "scores", f"is {quote(self.scores)}", "set the lowest and the highest score, in this order"
            )

    def cosine(self, score: float) -> float:
        """Return the cosine for a score."""
        if (self.lowest, self.highest) in UNIT_SCORES:
            return score
        return (score - self.lowest) / (self.highest - self.lowest)


class SimilarityFormat(HuggingFaceFormat[SimilarityConfig]):
    """Encoders, whose hidden states are pooled."""

    def to_config(self, backbone: BackboneInfo, options: Mapping[str, Any]) -> SimilarityConfig:
        config = SimilarityConfig(**options)
        if config.dimensions:
            problem = f"is {config.dimensions}, for which a checkpoint has no layer"
            raise UsageError("dimensions", problem, "leave it out, or train the head")
        return replace(config, ranking=config.loss == "contrastive")

    def to_checkpoint(self, config: SimilarityConfig, backbone: BackboneInfo) -> tuple[dict[str, Any], list[str]]:
        raise UsageError("SimilarityHead", "cannot be written as a checkpoint", "export it to ONNX instead")


class SimilarityWriter(SpacyWriter[Embedding | Similarity]):
    """``doc._.embedding`` has the embedding of the first such head [E]; None for a text without tokens."""

    assigns = ("doc._.embedding",)

    def write(self, doc: Any, result: Embedding | Similarity, name: str) -> None:
        if isinstance(result, Embedding) and result.values and doc._.embedding is None:
            doc._.embedding = np.array(result.values, dtype=np.float32)


class SimilarityPresenter(Presenter[SimilarityExample, Embedding | Similarity]):
    """Shows the cosine of a pair, or the first numbers of an embedding."""

    def example_row(self) -> Mapping[str, str]:
        return {"first": "A text.", "second": "Another text."}

    def render(self, example: SimilarityExample, result: Embedding | Similarity) -> list[tuple[str, str]]:
        if isinstance(result, Similarity):
            score = "none" if result.score is None else f"{result.score:.2f}"
            return [(" / ".join(example.texts[:2]) + " ", ""), (f" {score}", "similarity")]
        numbers = " ".join(f"{value:+.3f}" for value in result.values[:_SHOWN])
        shown = f" {numbers} ... ({len(result.values)} numbers)" if result.values else " none"
        return [(example.texts[0] + " ", ""), (shown, "embedding")]


class SimilarityHead(Head[SimilarityConfig, SimilarityExample, Embedding | Similarity]):
    """Gives a text an embedding, and two texts a cosine."""

    Config = SimilarityConfig
    network = "nlptasks.networks.pooled_embedding:PooledEmbedding"
    schema = Schema(
        contract=2,
        fields=("text", "first", "second", "score", "negative"),
        gold=("score", "negative"),
        results=(Embedding, Similarity),
    )
    hugging_face: ClassVar = SimilarityFormat()
    spacy: ClassVar = SimilarityWriter()

    def __init__(self, config: SimilarityConfig, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone)
        self._objective: Objective = RANKING if config.ranking else COSINE

    @classmethod
    def configure(cls, rows: Sequence[Row], options: SimilarityConfig, backbone: BackboneInfo) -> SimilarityConfig:
        found = each(gold_pair_of, rows)
        scores = [example.score for example in found if example.score is not None]
        if scores and len(scores) < len(found):
            has = [example.score is not None for example in found]
            problem = f"has no score, but {rows[has.index(True)].where} has one"
            raise DataError(rows[has.index(False)].where, problem, "give all rows a score, or none")
        if options.loss == "cosine" and not scores:
            fix = 'name the column: `columns={"score": "NAME"}`, or use another loss'
            raise DataError(rows[0].where, "has no score, which the loss cosine learns from", fix)
        if options.loss == "contrastive" and scores:
            fix = "use the loss cosine, or rows of pairs that belong together, without a score"
            raise DataError(rows[0].where, "has a score, which the loss contrastive does not learn from", fix)
        if options.loss == "auto" and not scores:
            _log.warning(
                "the rows have no score, so the head learns which second text belongs to which first text; if they have one, "
                'name its column: `columns={"score": "NAME"}`, else confirm this: `options={"loss": "contrastive"}`'
            )
        lowest, highest = range_of(scores, options.scores, rows) if scores else (0.0, 1.0)
        return replace(options, ranking=not scores, lowest=lowest, highest=highest)

    def network_options(self) -> Mapping[str, Any]:
        return {
            "pooling": self.config.pooling,
            "dimensions": self.config.dimensions,
            "loss": self._objective.loss,
            "scale": self.config.scale,
        }

    def read(self, row: Row) -> SimilarityExample:
        if not {"first", "second"} & set(row.fields) and "text" in row.fields:
            return SimilarityExample((text_field(row),))
        example = pair_of(row)
        if example.score is None:
            return example
        if self.config.ranking:
            raise DataError(row.where, "has a score, unlike the training data", "leave it out")
        if self.config.scores != "auto":
            check_within(example.score, self.config.lowest, self.config.highest, row.where)
        return gold_pair_of(row)

    def gold(self, example: SimilarityExample) -> float | str | None:
        """Return the score; if the head learned without scores, the second text, which is the answer to the first."""
        if not self.config.ranking:
            return example.score
        return None if len(example.texts) == 1 or example.has_blank else example.texts[1]

    def inputs(self, example: SimilarityExample) -> list[ModelInput]:
        return [ModelInput((text,)) for text in example.texts]

    def targets(self, example: SimilarityExample, window: Window) -> dict[str, Array]:
        texts = np.array([len(example.texts) if window.opens else 0], dtype=np.int64)  # [1]
        cosine = None if example.score is None else self.config.cosine(example.score)
        return {"texts": texts, **self._objective.targets(example.texts, cosine)}

    def decode(
        self, example: SimilarityExample, windows: Sequence[Window], outputs: Sequence[Outputs]
    ) -> Embedding | Similarity:
        vectors = _vectors(example, windows, [output[_OUTPUT] for output in outputs])
        if len(example.texts) == 1:
            return Embedding(tuple(map(float, vectors[0])) if len(vectors) else ())
        if len(vectors) < len(example.texts):
            return Similarity(None)
        both = vectors[:2]  # [2,E]
        score = float(np.clip(both[0] @ both[1], -1, 1))  # rounding may leave the range
        return Similarity(score, both if self.config.ranking else None)

    def count(self, example: SimilarityExample, result: Embedding | Similarity) -> Counts:
        assert isinstance(result, Similarity)  # only pairs have a gold answer
        first, second, *_ = example.texts
        return self._objective.count(Pair((first, second), example.score, result.score, result.vectors))

    def metrics(self, counts: Counts) -> Metrics:
        return self._objective.metrics(counts)

    @property
    def presenter(self) -> SimilarityPresenter:
        return SimilarityPresenter()


def _vectors(example: SimilarityExample, windows: Sequence[Window], pooled: Sequence[Floats]) -> Floats:
    """Return the embeddings of the texts that have tokens, in order [T,E]; none if a text is blank."""
    sums: list[Floats] = []
    for window, vector in zip(windows, pooled, strict=True):
        if window.opens:
            sums.append(np.zeros_like(vector, dtype=np.float32))
        sums[-1] += len(window) * vector
    if example.has_blank or not sums:  # some tokenizers have a token for a blank text
        return np.zeros((0, 0), dtype=np.float32)
    raw = checked(np.stack(sums))  # [T,E]
    vectors: Floats = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)
    return vectors
