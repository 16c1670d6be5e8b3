"""The spaCy component ``nlptasks``, found by spaCy through the entry point ``spacy_factories``.

spaCy imports every registered factory whenever a pipeline is made, even a blank one, and an error there would break spaCy for
everybody: so this module imports nothing but spaCy, and all that can fail happens in `add_pipe`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spacy.language import Language
from spacy.tokens import Doc

if TYPE_CHECKING:
    from nlptasks.pipeline import Pipeline

_RESULTS = "nlptasks"
_DEFAULTS = {"model": None, "heads": None, "backend": "auto", "device": "auto"}


@Language.factory("nlptasks", default_config=_DEFAULTS, assigns=["doc.ents", "doc.spans", "doc._.nlptasks"])
def make_component(
    nlp: Language, name: str, model: str | None, heads: list[str] | None, backend: str, device: str
) -> Component:
    """Open a model for a pipeline.

    Raises:
        UsageError: no model, or no such head.
        ModelError: the folder is no model.
        BackendError: the device cannot be had.
    """
    from nlptasks.pipeline import pipeline

    if not Doc.has_extension(_RESULTS):
        Doc.set_extension(_RESULTS, getter=_results)
    return Component(pipeline(heads, model=model, backend=backend, device=device))


def _results(doc: Doc) -> dict[str, Any]:
    results: dict[str, Any] = doc.user_data.setdefault(_RESULTS, {})
    return results


class Component:
    """Runs heads on documents; ``doc._.nlptasks[HEAD]`` has their results, and each head writes what spaCy has a place for.

    Args:
        pipe: a pipeline that gives results by head.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe

    def __call__(self, doc: Doc) -> Doc:
        """The document, with what the heads found."""
        results: dict[str, Any] = self._pipe(doc.text)
        for name, result in results.items():
            _results(doc)[name] = result
            self._pipe.heads[name].annotate(doc, result, name)
        return doc
