"""Settings of the spaCy component in a pipeline's config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spacy.tokens import Span
from spacy.util import filter_spans

from nlptasks.errors import UsageError, did_you_mean, quote


def _keep(before: Sequence[Span], found: Sequence[Span]) -> list[Span]:
    """Return the earlier entities, and the new ones that do not overlap them."""
    taken = {token for span in before for token in range(span.start, span.end)}
    return [*before, *(span for span in found if taken.isdisjoint(range(span.start, span.end)))]


ENTS: Mapping[str, Callable[[Sequence[Span], Sequence[Span]], list[Span]]] = {
    "keep": _keep,
    "replace": lambda before, found: list(found),
    "merge": lambda before, found: filter_spans([*before, *found]),
}
"""Ways to merge earlier entities and those of the heads into ``doc.ents``."""

STORES = ("copy", "reference")
"""Ways to save the model with a pipeline."""


@dataclass(frozen=True)
class Settings:
    """Settings of a component.

    Attributes:
        model: the model's folder, or a Hugging Face checkpoint.
        heads: names of heads, or tasks of which the model has one head; None for all.
        backend: as for `nlptasks.pipeline.pipeline`.
        device: ``auto``, ``cpu`` or ``cuda``.
        ents: how earlier entities are treated: ``keep`` them and add those that do not overlap, ``replace`` them, or ``merge``
            both, the longest first.
        batch_tokens: tokens in a batch with padding; None for the default of the device.
        options: options of heads that may change at run time, by head and option.
        store: ``copy`` to save the model with the pipeline, ``reference`` to save only the path of its folder.

    Raises:
        UsageError: there is no model, or a value is unknown.
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
