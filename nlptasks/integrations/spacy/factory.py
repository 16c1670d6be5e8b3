"""The spaCy component ``nlptasks``, found by spaCy through the entry point ``spacy_factories``.

spaCy imports every registered factory when any pipeline is created, even a blank one, and an error in this module would break
spaCy for everybody. So it imports nothing but spaCy, and everything that can fail happens in `add_pipe`.
"""

import sys
from typing import TYPE_CHECKING, Any

from spacy.language import Language

if TYPE_CHECKING:
    from nlptasks.integrations.spacy.component import Component

_DEFAULTS: dict[str, Any] = {
    "model": None,
    "heads": None,
    "backend": "auto",
    "device": "auto",
    "ents": "keep",
    "batch_tokens": None,
    "options": {},
    "store": "copy",
}
_ASSIGNS = ["doc.ents", "doc.spans", "doc.cats", "doc._.nlptasks", "doc._.answer", "span._.score"]


@Language.factory("nlptasks", default_config=_DEFAULTS, assigns=_ASSIGNS)
def make_component(
    nlp: Language,
    name: str,
    model: str | None,
    heads: list[str] | None,
    backend: str,
    device: str,
    ents: str,
    batch_tokens: int | None,
    options: dict[str, dict[str, Any]],
    store: str,
) -> "Component":
    """Return a component that runs heads of a model; for the arguments see `nlptasks.integrations.spacy.settings.Settings`.

    Raises:
        UsageError: no model, an unknown head, or an invalid argument.
        ModelError: the folder is no model.
        BackendError: the device is not available.
    """
    from nlptasks.integrations.spacy.component import Component
    from nlptasks.integrations.spacy.settings import Settings

    settings = Settings(
        model=model,
        heads=tuple(heads) if heads is not None else None,
        backend=backend,
        device=device,
        ents=ents,
        batch_tokens=batch_tokens,
        options=options,
        store=store,
    )
    component = Component(name, settings)
    if not _is_built_from_config():
        component.open()
    return component


def _is_built_from_config() -> bool:
    """Return True if a whole pipeline is being built from a config, as by `spacy.load`.

    The config's model may no longer exist then and is not opened, because the pipeline's own copy is read next. `add_pipe`
    opens the model at once, so that a wrong path is reported. spaCy does not tell a factory which of the two calls it.
    """
    code = Language.from_config.__func__.__code__  # type: ignore[attr-defined]
    frame = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None
