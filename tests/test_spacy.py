"""The spaCy component: found by name, harmless when spaCy starts, entities on tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import spacy
from spacy.tokens import Doc

from nlptasks.errors import UsageError

TEXT = "Ada Smith saw London ."


def test_entities_stand_on_tokens_with_their_exact_results_beside(trained: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(trained)})
    doc = nlp(TEXT)
    assert [(ent.text, ent.label_) for ent in doc.ents] == [("Ada Smith", "PER"), ("London", "LOC")]
    assert [span.text for span in doc.spans["ner"]] == ["Ada Smith", "London"]
    assert [entity.text for entity in doc._.nlptasks["ner"]] == ["Ada Smith", "London"]
    assert len(nlp("")) == 0


def test_an_earlier_entity_wins_and_tokens_are_widened(trained: Path) -> None:
    nlp = spacy.blank("en")
    component = nlp.add_pipe("nlptasks", config={"model": str(trained)})
    doc = Doc(nlp.vocab, words=["AdaSmith", "saw", "London", "."])
    doc.ents = [doc.char_span(13, 19, label="EARLIER")]
    doc = component(doc)
    assert doc.spans["ner"]
    assert all(span.text in ("AdaSmith", "saw", "London", ".") for span in doc.spans["ner"])
    assert [ent.label_ for ent in doc.ents if ent.text == "London"] == ["EARLIER"]


def test_no_model_is_said_when_the_component_is_added() -> None:
    with pytest.raises(UsageError, match="no model was given"):
        spacy.blank("en").add_pipe("nlptasks")


def test_spacy_starts_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import spacy; spacy.blank('en'); spacy.registry.factories.get('nlptasks')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
