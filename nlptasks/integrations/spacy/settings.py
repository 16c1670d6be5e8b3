"""How the spaCy component runs: its part of a pipeline's config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spacy.tokens import Span
from spacy.util import filter_spans

from nlptasks.errors import UsageError, did_you_mean, quote


def _keep(before: Sequence[Span], found: Sequence[Span]) -> list[Span]:
    """Those that were there, and of ours those that overlap none of them."""
    taken = {token for span in before for token in range(span.start, span.end)}
    return [*before, *(span for span in found if taken.isdisjoint(range(span.start, span.end)))]


ENTS: Mapping[str, Callable[[Sequence[Span], Sequence[Span]], list[Span]]] = {
    "keep": _keep,
    "replace": lambda before, found: list(found),
    "merge": lambda before, found: filter_spans([*before, *found]),
}
"""What ``doc.ents`` becomes, of the entities that were there and those that the heads found."""

STORES = ("copy", "reference")
"""What a pipeline keeps of the model when it is written."""


@dataclass(frozen=True)
class Settings:
    """How a component runs: its part of a pipeline's config.

    Attributes:
        model: the model's folder, or a checkpoint of Hugging Face.
        heads: names of heads, or tasks of which the model has one; None for all.
        backend: as in `nlptasks.pipeline.pipeline`.
        device: ``auto``, ``cpu`` or ``cuda``.
        ents: what becomes of entities that were there before: ``keep`` them, and of ours those that overlap none; ``replace``
            them; ``merge`` both, the longest first.
        batch_tokens: tokens in a batch, padding included; None for what suits the device.
        options: options of heads that may be changed at run, by head and option.
        store: whether a pipeline that is written keeps a ``copy`` of the model, or a ``reference`` to its folder.

    Raises:
        UsageError: there is no model, or a value is none of these.
    """

    model: str | None
    heads: tuple[str, ...] | None = None
    backend: str = "auto"
    device: str = "auto"
    ents: str = "keep"
    batch_tokens: int | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    store: str = "copy"

    def __post_init__(self) -> None:
        if not self.model:
            example = 'nlp.add_pipe("nlptasks", config={"model": "runs/ner"})'
            raise UsageError("the component nlptasks", "no model was given", f"name the folder of one: {example}")
        for option, value, known in (("ents", self.ents, ENTS), ("store", self.store, STORES)):
            if value not in known:
                raise UsageError(f"{option} {quote(value)}", "is unknown", did_you_mean(value, known))
