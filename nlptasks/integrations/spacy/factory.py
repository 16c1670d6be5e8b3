"""The spaCy component ``nlptasks``, found by spaCy through the entry point ``spacy_factories``.

spaCy imports every registered factory whenever a pipeline is made, even a blank one, and an error there would break spaCy for
everybody: so this module imports nothing but spaCy, and all that can fail happens in `add_pipe`.
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
    """A model's heads as a component; see `nlptasks.integrations.spacy.settings.Settings` for what each argument means.

    Raises:
        UsageError: no model, no such head, or an argument that cannot be.
        ModelError: the folder is no model.
        BackendError: the device cannot be had.
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
    """Whether a whole pipeline is being built from a config, as by `spacy.load`.

    The model that the config names may be gone by then, and need not be opened: the pipeline's folder or bytes, which are read
    next, hold their own. Who adds a component by hand is told at once if there is no such model. spaCy gives a factory no sign of
    which of the two it is called for.
    """
    code = Language.from_config.__func__.__code__  # type: ignore[attr-defined]
    frame = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None
