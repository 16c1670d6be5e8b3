"""Similarity: an embedding of a text, and the cosine of the embeddings of two.

Rows are ``first`` and ``second``, with a ``score`` that says how alike they are, or without one: then the second text is what is
to be found for the first, and a ``negative`` may say what is not. Each text is read alone, so that embeddings can be kept and
compared later. A text that is too long is read in windows, whose vectors count by their tokens, in training as in prediction.

Letters beside those of the library: E width of an embedding, T texts of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from nlptasks import (
    BackboneInfo,
    DataError,
    Floats,
    Head,
    Ints,
    Outputs,
    Range,
    Row,
    Source,
    UsageError,
    Window,
    check_values,
    checked,
    decided,
    each,
    is_blank,
    parse_options,
    setting,
    text_field,
)
from nlptasks_similarity.learning import COSINE, RANKING, Objective, Texts
from nlptasks_similarity.rows import UNIT_SCORES, SimilarityExample, check_within, given_range, pair_of, range_of

_OUTPUT = "embedding"
_SHOWN = 4


@dataclass(frozen=True)
class Embedding:
    """Where a text stands among others: texts that mean the same are near each other.

    Attributes:
        values: numbers whose squares add up to 1 [E]; none for a text without tokens.
    """

    values: tuple[float, ...]


@dataclass(frozen=True)
class Similarity:
    """How alike two texts are.

    Attributes:
        score: the cosine of their embeddings, in -1..1; None if one of them has no tokens.
    """

    score: float | None


@dataclass(frozen=True, eq=False)
class _Ranked(Similarity):
    """A similarity that is to be measured against others, with what that takes; only gold rows have it.

    Attributes:
        vectors: the embeddings of both texts [2,E]; None if one of them has no tokens.
    """

    vectors: Floats | None


@dataclass(frozen=True)
class SimilarityConfig:
    """Options of a head, and what its training data decided."""

    pooling: str = setting(
        "mean",
        "what is made of the tokens of a text: their mean, cls (the first token alone), or max (the largest of each number)",
        choices=("mean", "cls", "max"),
    )
    dimensions: int = setting(
        0,
        "numbers in an embedding, by a linear layer of the head's own; 0 for as many as the backbone gives, without one",
        within=Range(least=0),
    )
    loss: str = setting(
        "auto",
        "cosine learns scores, contrastive which text belongs to which; auto: cosine if rows have scores",
        choices=("auto", "cosine", "contrastive"),
    )
    scale: float = setting(20.0, "what cosines are multiplied by in the contrastive loss", within=Range(above=0))
    scores: str = setting(
        "auto",
        "the lowest and the highest score that there can be, LOW,HIGH; auto: 0,1 or -1,1 if all lie within, else those found",
    )
    ranking: bool = decided(False, "whether it learned which text belongs to which, without scores")
    lowest: float = decided(0.0, "the score that stands for a cosine of 0, or of -1 if it is -1")
    highest: float = decided(1.0, "the score that stands for a cosine of 1")

    def __post_init__(self) -> None:
        check_values(self)
        given_range(self.scores)

    def cosine(self, score: float) -> float:
        """The cosine that a score stands for."""
        if (self.lowest, self.highest) in UNIT_SCORES:
            return score
        return (score - self.lowest) / (self.highest - self.lowest)


class SimilarityHead(Head):
    """Gives a text an embedding, and two texts a cosine."""

    contract = 1
    Config: ClassVar[type] = SimilarityConfig
    config: SimilarityConfig
    fields: ClassVar = ("text", "first", "second", "score", "negative")
    gold_fields: ClassVar = ("score", "negative")
    sample = "sample"
    results = (Embedding, Similarity)
    assigns = ("doc._.embedding",)
    main_metric = COSINE.main_metric
    lr_scale = 0.1
    hf_auto = "AutoModel"

    def __init__(self, config: SimilarityConfig, *, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone=backbone)
        self.outputs = {_OUTPUT: "BE" if config.dimensions else "BH"}
        self.projection: nn.Module = nn.Identity()
        if config.dimensions:
            layer = nn.Linear(backbone.width, config.dimensions, bias=False)
            nn.init.orthogonal_(layer.weight)  # angles begin as near to the backbone's as so few numbers allow
            self.projection = layer
        self._objective: Objective = RANKING if config.ranking else COSINE
        self.main_metric = self._objective.main_metric

    @classmethod
    def configure(cls, rows: Sequence[Row], given: Mapping[str, Any]) -> SimilarityConfig:
        options = cls._options(given)
        found = each(pair_of, rows)
        scores = [example.score for example in found if example.score is not None]
        if scores and len(scores) < len(found):
            has = [example.score is not None for example in found]
            problem = f"has no score, but {rows[has.index(True)].where} has one"
            raise DataError(rows[has.index(False)].where, problem, "give all rows a score, or none")
        if options.loss == "cosine" and not scores:
            fix = "name the column: --columns score=NAME, or take another loss"
            raise DataError(rows[0].where, "has no score, which the loss cosine learns from", fix)
        if options.loss == "contrastive" and scores:
            fix = "take the loss cosine, or rows of pairs that belong together, without a score"
            raise DataError(rows[0].where, "has a score, which the loss contrastive does not learn from", fix)
        lowest, highest = range_of(scores, options.scores, rows) if scores else (0.0, 1.0)
        return replace(options, ranking=not scores, lowest=lowest, highest=highest)

    @classmethod
    def _options(cls, given: Mapping[str, Any]) -> SimilarityConfig:
        return SimilarityConfig(**parse_options(SimilarityConfig, given, where="similarity"))

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    def read(self, row: Row) -> SimilarityExample:
        if not {"first", "second"} & set(row.fields) and "text" in row.fields:
            return SimilarityExample((text_field(row),))
        example = pair_of(row)
        if example.score is not None and self.config.ranking:
            raise DataError(row.where, "has a score, unlike the training data", "leave it out")
        if example.score is not None and self.config.scores != "auto":
            check_within(example.score, self.config.lowest, self.config.highest, row.where)
        return example

    def read_gold_row(self, row: Row) -> SimilarityExample:
        example: SimilarityExample = super().read_gold_row(row)
        for name, text in zip(("first", "second", "negative"), example.texts, strict=False):
            if is_blank(text):
                raise DataError(row.where, f"has an empty text as {name!r}", "remove the row")
        return replace(example, measured=True)

    def gold(self, example: SimilarityExample) -> float | str | None:
        """The score; without scores the second text is the answer to the first."""
        if self.config.ranking:
            return example.texts[1] if len(example.texts) > 1 else None
        return example.score

    def sources(self, example: SimilarityExample) -> list[Source]:
        return [Source(text) for text in example.texts]

    def features(self, example: SimilarityExample, window: Window) -> dict[str, Ints | Floats]:
        """``texts`` [1]: where a text begins, how many the example has, else 0; and what the objective needs."""
        texts = np.array([len(example.texts) if window.opens else 0], dtype=np.int64)
        target = None if example.score is None else self.config.cosine(example.score)
        return {"texts": texts, **self._objective.features(example.texts, target)}

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pooled = _POOLINGS[self.config.pooling](states, batch["mask"])  # [B,H]
        return {_OUTPUT: self.projection(pooled)}  # [B,E]

    def loss(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast(states.device.type, enabled=False):  # in half precision cosines would be too coarse
            windows = self.forward(states.float(), batch)[_OUTPUT]  # [B,E]
            given = {name: batch[name] for name in self._objective.given}
            texts = _texts_of(windows, batch["mask"], batch["texts"][:, 0], batch["example"], given)
            return self._objective.loss(texts, scale=self.config.scale)

    def warnings(self, examples: Sequence[SimilarityExample], windows: Sequence[Sequence[Window]]) -> list[str]:
        if not self.config.ranking or self.config.loss != "auto":
            return []
        learned = "the rows have no score, so it learns which second text belongs to which first"
        return [f"{learned}; if they have one, name it: --columns score=NAME, else say so: --set HEAD.loss=contrastive"]

    def decode(
        self, example: SimilarityExample, windows: Sequence[Window], outputs: Sequence[Outputs]
    ) -> Embedding | Similarity:
        vectors = _vectors(example, windows, [output[_OUTPUT] for output in outputs])
        if len(example.texts) == 1:
            return Embedding(tuple(map(float, vectors[0])) if len(vectors) else ())
        both = vectors[:2] if len(vectors) == len(example.texts) else None  # [2,E]
        score = None if both is None else float(np.clip(both[0] @ both[1], -1, 1))  # rounding may leave it
        return _Ranked(score, both) if example.measured and self.config.ranking else Similarity(score)

    def metrics(self, examples: Sequence[SimilarityExample], results: Sequence[Any]) -> dict[str, float]:
        return self._objective.metrics(examples, results)

    def example_row(self) -> dict[str, str]:
        return {"first": "A text.", "second": "Another text."}

    def show(self, example: SimilarityExample, result: Any) -> list[tuple[str, str]]:
        if isinstance(result, Similarity):
            score = "none" if result.score is None else f"{result.score:.2f}"
            return [(" / ".join(example.texts[:2]) + " ", ""), (f" {score}", "similarity")]
        numbers = " ".join(f"{value:+.3f}" for value in result.values[:_SHOWN])
        shown = f" {numbers} ... ({len(result.values)} numbers)" if result.values else " none"
        return [(example.texts[0] + " ", ""), (shown, "embedding")]

    def annotate(self, doc: Any, result: Any, name: str) -> None:
        """``doc._.embedding`` has the embedding of the first such head [E]; None for a text without tokens."""
        if result.values and doc._.embedding is None:
            doc._.embedding = np.array(result.values, dtype=np.float32)

    @property
    def borrowed(self) -> nn.Module | None:
        """Nothing: the states are all that a checkpoint has. Of an encoder-decoder those are the decoder's."""
        is_encoder = not self.backbone_info.config.is_encoder_decoder
        return nn.Identity() if is_encoder and not self.config.dimensions else None

    def like_hugging_face(
        self, states: Tensor, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"last_hidden_state": states}, {}

    @classmethod
    def from_hugging_face(cls, backbone: BackboneInfo, given: Mapping[str, Any]) -> SimilarityConfig:
        options = cls._options(given)
        if options.dimensions:
            problem = f"is {options.dimensions}, for which a checkpoint has no layer"
            raise UsageError("similarity.dimensions", problem, "leave it out, or train the head")
        return replace(options, ranking=options.loss == "contrastive")


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)  # [B,S,1]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)  # [B,H]


def _first(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, 0]  # [B,H]


def _largest(states: Tensor, mask: Tensor) -> Tensor:
    padding = mask.unsqueeze(-1) == 0  # [B,S,1]
    return states.masked_fill(padding, torch.finfo(states.dtype).min).amax(1)  # [B,H]


_POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _first, "max": _largest}
"""From the states [B,S,H] and the mask [B,S] of windows to a vector for each [B,H]."""


def _texts_of(windows: Tensor, mask: Tensor, counts: Tensor, example: Tensor, given: Mapping[str, Tensor]) -> Texts:
    """The embeddings of the texts in a batch, by the part that they have in their examples.

    Args:
        windows: a vector for each window [B,E].
        mask: 1 for real tokens [B,S].
        counts: where a text begins, how many its example has, else 0 [B].
        example: number of the example of each window [B].
        given: further features of the examples, in each window [B,...].
    """
    opens = counts > 0  # [B]
    sums = windows.new_zeros(int(opens.sum()), windows.shape[1])  # [T,E]
    sums = sums.index_add(0, opens.cumsum(0) - 1, windows * mask.sum(1, keepdim=True))  # [T,E]
    vectors = nn.functional.normalize(sums)  # [T,E]
    owner = example[opens]  # [T]
    # A text may have no tokens, and then no window: its example cannot be learned from.
    whole = torch.bincount(owner)[owner] == counts[opens]  # [T]
    owner = owner[whole]
    new = torch.ones_like(owner, dtype=torch.bool)  # [T] the first texts of their examples
    new[1:] = owner[1:] != owner[:-1]
    after = new.roll(1)  # [T] the second ones
    own = {name: values[opens][whole] for name, values in given.items()}
    return Texts(vectors[whole], new, after, ~(new | after), own)


def _vectors(example: SimilarityExample, windows: Sequence[Window], pooled: Sequence[Floats]) -> Floats:
    """The embeddings of the texts that have tokens, in order [T,E]."""
    sums: list[Floats] = []
    for window, vector in zip(windows, pooled, strict=True):
        if window.opens:
            sums.append(np.zeros_like(vector, dtype=np.float32))
        sums[-1] += len(window) * vector
    if any(is_blank(text) for text in example.texts) or not sums:  # some tokenizers have a token for nothing
        return np.zeros((0, 0), dtype=np.float32)
    raw = checked(np.stack(sums))  # [T,E]
    vectors: Floats = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)
    return vectors
