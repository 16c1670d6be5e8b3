"""The spaCy component: one pass for all heads, spaCy's own annotations, files, bytes and processes."""

from __future__ import annotations

import copy as copylib
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import covering
import pytest
import spacy
from spacy import displacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.util import load_model_from_config

import nlptasks
from nlptasks.errors import ModelError, UsageError
from nlptasks.heads.ner import Entity, NerHead
from nlptasks.heads.qa import Answer
from nlptasks.heads.seq2seq import GeneratedText
from nlptasks.integrations.spacy.component import Component
from nlptasks.models.folder import ModelFolder
from nlptasks.pipeline import pipeline

TEXT = "Ada Smith saw London ."
TEXTS = [TEXT, "", "Bob left Paris .", "saw", "Cleo Smith left Rome and Berlin . " * 30, "Dan saw Berlin and Rome ."]


def blank(model: Path, language: str = "en", **config: Any) -> Language:
    """Return a blank pipeline with the component."""
    nlp = spacy.blank(language)
    nlp.add_pipe("nlptasks", config={"model": str(model), **config})
    return nlp


def component_of(nlp: Language) -> Component:
    found = nlp.get_pipe("nlptasks")
    assert isinstance(found, Component)
    return found


def written(doc: Doc) -> dict[str, Any]:
    """Return everything that the component writes, as plain values."""
    return {
        "results": doc._.nlptasks,
        "ents": [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents],
        "cats": doc.cats,
        "spans": {name: [(span.text, span.label_, span._.score) for span in own] for name, own in doc.spans.items()},
    }


def answering(component: Component, monkeypatch: pytest.MonkeyPatch, decode: Callable[[Any], Any]) -> None:
    """Let the head `ner` of a component return the result of a function of its example."""
    monkeypatch.setattr(component.heads["ner"], "decode", lambda example, *_: decode(example))


@pytest.fixture(scope="module")
def six(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a head of every task, hardly trained."""
    place = tmp_path_factory.mktemp("six")
    return covering.train(
        covering.targets(covering.built_in(), place / "data", rows=12), backbones / "bert", place / "model"
    )


# Annotations


def test_results_are_those_of_the_pipeline(both: Path) -> None:
    nlp, pipe = blank(both), pipeline(model=both)
    expected = pipe(TEXTS)
    assert [nlp(text)._.nlptasks for text in TEXTS] == [pipe(text) for text in TEXTS]
    assert [doc._.nlptasks for doc in nlp.pipe(TEXTS)] == expected
    [entity, _] = expected[0]["ner"]
    doc = nlp(TEXT)
    assert [(ent.text, ent.label_) for ent in doc.ents] == [("Ada Smith", "PER"), ("London", "LOC")]
    assert [span.text for span in doc.spans["ner"]] == ["Ada Smith", "London"]
    assert doc.ents[0]._.score == pytest.approx(entity.score)
    part = doc[3:].as_doc(copy_user_data=True)  # spaCy moves the scores with their spans
    assert [(ent.text, ent._.score) for ent in part.ents] == [("London", doc.ents[1]._.score)]
    assert doc[3:5]._.score is None
    assert nlp.pipe_labels["nlptasks"] == ["LOC", "PER", "negative", "positive"]


@pytest.mark.parametrize("heads", [["mood"], ["topic", "mood"], None])
def test_categories_have_the_heads_name_where_several_classify(both: Path, heads: list[str] | None) -> None:
    doc = blank(both, heads=heads)("Ada smiled")
    names = heads or ["mood", "topic"]
    for name in names:
        for label, score in doc._.nlptasks[name].scores.items():
            assert doc.cats[label if len(names) == 1 else f"{name}.{label}"] == score
    assert len(doc.cats) == 2 * len(names)


def test_an_empty_document_has_nothing(six: Path) -> None:
    doc = blank(six)("")
    assert len(doc.ents) == len(doc.cats) == len(doc.spans["ner"]) == 0
    assert doc._.summary == ""


def test_every_head_writes_to_its_place(six: Path) -> None:
    nlp = blank(six)
    text = "The old bridge was formed of living fig roots, said Ada Smith in Rome."
    doc = nlp(text)
    results = pipeline(model=six)(text)
    assert doc._.nlptasks == results
    assert doc._.summary == results["summarization"].text
    assert doc._.translation == results["translation"].text
    question = "Of what was the bridge formed?"
    [asked] = pipeline(["qa"], model=six)([{"question": question, "context": text}])
    assert doc._.answer(question) == component_of(nlp).answer(doc, question) == asked["qa"]
    assert isinstance(asked["qa"], Answer)
    with pytest.raises(UsageError, match="is not read by ner of nlptasks"):
        doc._.answer(question, head="ner")


def test_questions_are_answered_where_only_this_head_is_opened(six: Path) -> None:
    nlp = blank(six, heads=["qa"])
    doc = nlp("Rome is old.")
    assert doc._.nlptasks == {}
    assert isinstance(doc._.answer("What is old?"), Answer)
    with pytest.raises(UsageError, match="the question: is empty"):
        doc._.answer(" ")


def test_a_model_without_such_a_head_answers_no_question(both: Path) -> None:
    nlp = blank(both)
    doc = nlp(TEXT)
    with pytest.raises(UsageError, match=r"'Who\?': is not read by any head of nlptasks \(heads: ner, mood, topic\)"):
        doc._.answer("Who?")


def test_two_components_in_one_pipeline(six: Path, both: Path) -> None:
    nlp = blank(six, heads=["qa"])
    nlp.add_pipe("nlptasks", name="more", config={"model": str(both), "heads": ["mood"]})
    doc = nlp(TEXT)
    assert set(doc._.nlptasks) == {"mood"}
    assert isinstance(doc._.answer("Who?"), Answer)
    assert isinstance(doc._.answer("Who?", head="qa"), Answer)


def test_a_warning_names_results_that_are_overwritten(
    trained: Path, both: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nlp = blank(trained)
    nlp.add_pipe("nlptasks", name="more", config={"model": str(both), "heads": ["ner", "mood"]})
    with caplog.at_level("WARNING", "nlptasks"):
        list(nlp.pipe(TEXTS))
    warning = "more overwrites what another component wrote for ner; give heads different names (nlptasks rename)"
    assert sum(line.startswith(warning) for line in caplog.messages) == 1
    nlp = blank(both, heads=["mood"])
    nlp.add_pipe("nlptasks", name="more", config={"model": str(both), "heads": ["topic"]})
    caplog.clear()
    with caplog.at_level("WARNING", "nlptasks"):
        list(nlp.pipe(TEXTS))
    warning = "more overwrites what another component wrote for negative, positive; "
    assert sum(line.startswith(warning) for line in caplog.messages) == 1
    again = blank(both)
    caplog.clear()
    with caplog.at_level("WARNING", "nlptasks"):
        doc = again(again(TEXT))  # the same component again
        del nlp
        gc.collect()
    assert len(doc.ents) == 2
    assert caplog.messages == []


def test_a_copy_of_a_pipeline_answers_when_the_first_is_gone(six: Path) -> None:
    nlp = blank(six, heads=["qa"])
    copy = pickle.loads(pickle.dumps(component_of(nlp)))
    doc = copy(nlp.make_doc("Rome is old."))
    del nlp
    gc.collect()
    doc = copy(doc)
    assert isinstance(doc._.answer("What is old?"), Answer)


def test_a_warning_names_heads_that_read_no_documents(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": "Ada saw", "text_pair": other, "label": label} for other, label in (("Rome", "y"), ("a", "n"))]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    model = shutil.copytree(trained, tmp_path / "model")
    settings = nlptasks.TrainSettings(epochs=1, tune="head", precision="fp32")
    nlptasks.train(f"pair:classification={tmp_path / 'pairs.jsonl'}", add_to=model, settings=settings)
    with caplog.at_level("WARNING", "nlptasks"):
        nlp = blank(model)
    assert any(line.startswith("pair cannot read documents (has no 'text_pair'") for line in caplog.messages)
    assert set(nlp(TEXT)._.nlptasks) == {"ner"}


def test_a_head_without_a_writer_only_has_results(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NerHead, "spacy", None)
    doc = blank(trained)(TEXT)
    assert [entity.text for entity in doc._.nlptasks["ner"]] == ["Ada Smith", "London"]
    assert len(doc.ents) == len(doc.spans) == 0


def test_a_copied_component_gives_the_same_results(both: Path) -> None:
    nlp = blank(both)
    copy = copylib.deepcopy(component_of(nlp))
    assert written(copy(nlp.make_doc(TEXT))) == written(nlp(TEXT))


def test_earlier_values_are_overwritten(six: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = blank(six, heads=["summarization"])
    monkeypatch.setattr(component_of(nlp).heads["summarization"], "decode", lambda *_: GeneratedText("new", 0.5, False))
    doc = nlp.make_doc(TEXT)
    doc._.summary = "old"
    assert nlp(doc)._.summary == "new"


def test_spacys_own_scores(both: Path) -> None:
    nlp = blank(both)
    examples = []
    for text in ("Ada Smith saw London .", "Bob left Paris ."):
        doc = nlp(text)
        reference = Doc(nlp.vocab, words=[token.text for token in doc])
        reference.ents = [Span(reference, ent.start, ent.end, label=ent.label_) for ent in doc.ents]
        reference.cats = {label: float(score >= 0.5) for label, score in doc.cats.items()}
        examples.append(Example(nlp.make_doc(text), reference))
    scores = nlp.evaluate(examples)
    assert scores["ents_f"] == 1
    assert scores["cats_micro_f"] == 1
    examples[0].reference.ents = []
    assert nlp.evaluate(examples)["ents_p"] < 1
    bare = [Example(nlp.make_doc(TEXT), nlp.make_doc(TEXT))]
    assert nlp.evaluate(bare).get("ents_f") is None


def test_options_of_heads_are_used(six: Path) -> None:
    nlp = blank(six, heads=["qa"], options={"qa": {"top_k": 2, "no_answer": False}})
    doc = nlp("Rome is old and big.")
    assert len(doc._.answer("What is old?")) == 2
    with pytest.raises(UsageError, match="qa"):
        blank(six, heads=["qa"], options={"qa": {"top": 2}})


# S3: offsets and tokens


@pytest.mark.parametrize(
    ("text", "words", "entity", "widened"),
    [
        ("AdaSmith left", None, (0, 3), "AdaSmith"),
        ("Ada\r\nSmith left", None, (0, 10), "Ada\r\nSmith"),
        ("\U0001f469\u200d\U0001f680Ada left", None, (3, 6), "Ada"),
        ("\U0001f469\u200d\U0001f680-Ada left", None, (4, 7), "-Ada"),
        ("cafe\u0301 Ada", None, (0, 4), "cafe\u0301"),
        ("a b", ["a", "b"], (2, 3), "b"),
        ("don't", ["do", "n't"], (1, 4), "don't"),
        ("in\xa0Rome", None, (3, 7), "Rome"),
        ("Ada's.", ["Ada", "'s", "."], (0, 3), "Ada"),
    ],
)
def test_entities_are_widened_to_tokens_and_counted(
    trained: Path, text: str, words: list[str] | None, entity: tuple[int, int], widened: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    nlp = blank(trained)
    spaces = [text.find(" ") >= 0] * len(words) if words and " " in text else [False] * len(words or [])
    doc: Doc | str = Doc(nlp.vocab, words=words, spaces=spaces) if words else text
    start, end = entity
    exact = Entity(text[start:end], "PER", start, end, 0.5)
    answering(component_of(nlp), monkeypatch, lambda example: [exact])
    with caplog.at_level("WARNING", "nlptasks"):
        doc = nlp(doc)
    [span] = doc.spans["ner"]
    assert span.text == widened
    assert span in doc.ents
    assert doc._.nlptasks["ner"] == [exact]
    assert span._.score == 0.5
    is_widened = (span.start_char, span.end_char) != entity
    assert component_of(nlp).widened == is_widened
    assert sum("widened to whole tokens" in line for line in caplog.messages) == is_widened
    nlp(nlp.make_doc(text) if not words else Doc(nlp.vocab, words=words, spaces=spaces))
    assert component_of(nlp).widened == 2 * is_widened
    assert sum("widened to whole tokens" in line for line in caplog.messages) == is_widened  # warned once


def test_entities_that_are_widened_to_one_token_are_all_kept(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = blank(trained)
    two = [Entity("Ada", "PER", 0, 3, 0.5), Entity("Rome", "LOC", 3, 7, 0.4)]
    answering(component_of(nlp), monkeypatch, lambda example: two)
    doc = nlp("AdaRome saw")
    assert [(span.text, span.label_) for span in doc.spans["ner"]] == [("AdaRome", "PER"), ("AdaRome", "LOC")]
    assert doc._.nlptasks["ner"] == two
    assert doc.ents[0]._.score == 0.5  # of the first
    assert [ent.label_ for ent in doc.ents] == ["PER"]
    assert component_of(nlp).widened == 2


# S4: entities that were there before

EARLIER = [(0, 1, "FIRST"), (2, 4, "WIDE"), (4, 5, "DOT")]
POLICIES = {
    "keep": ["FIRST", "WIDE", "DOT"],
    "replace": ["PER", "LOC"],
    "merge": ["PER", "WIDE", "DOT"],
}


@pytest.mark.parametrize("policy", POLICIES)
def test_earlier_entities_are_kept_replaced_or_merged(trained: Path, policy: str) -> None:
    nlp = blank(trained, ents=policy)
    doc = nlp.make_doc(TEXT)
    doc.ents = [Span(doc, start, end, label=label, span_id=f"id {label}") for start, end, label in EARLIER]
    doc = nlp(doc)
    ids = {label: f"id {label}" for _, _, label in EARLIER}
    assert [ent.ent_id_ for ent in doc.ents] == [ids.get(label, "") for label in POLICIES[policy]]
    assert [ent.label_ for ent in doc.ents] == POLICIES[policy]
    assert [span.label_ for span in doc.spans["ner"]] == ["PER", "LOC"]  # for every policy


def test_heads_without_entities_leave_those_of_others_alone(both: Path) -> None:
    nlp = blank(both, heads=["mood"], ents="replace")
    doc = nlp.make_doc(TEXT)
    doc.ents, doc.cats = [Span(doc, 0, 1, label="FIRST")], {"old": 1.0}
    doc = nlp(doc)
    assert [ent.label_ for ent in doc.ents] == ["FIRST"]
    assert set(doc.cats) == {"old", "negative", "positive"}


# S2: errors are reported when the component is added


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({}, UsageError, r'no model was given; name the folder of one: nlp.add_pipe\("nlptasks", config={"model"'),
        ({"model": "runs/nowhere"}, ModelError, "is no folder, so it is no model"),
        ({"heads": ["nerr"]}, UsageError, "has no head 'nerr'; did you mean 'ner'"),
        ({"heads": "ner"}, ValueError, "heads"),
        ({"batch_tokens": "many"}, ValueError, "batch_tokens"),
        ({"ents": "merged"}, UsageError, "ents 'merged': is unknown; did you mean 'merge'"),
        ({"store": "link"}, UsageError, "store 'link': is unknown"),
        ({"backend": "onxx"}, UsageError, "did you mean 'onnx'"),
        ({"batch_tokens": 0}, UsageError, "batch_tokens 0: expected 1 or more"),
    ],
)
def test_wrong_config(trained: Path, config: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = {"model": str(trained)} if config and "model" not in config else {}
    with pytest.raises(kind, match=message):
        spacy.blank("en").add_pipe("nlptasks", config=given | config)


def test_backend_and_batch_size_are_used(exported: Path) -> None:
    texts = TEXTS * 3
    expected = [written(doc) for doc in blank(exported, backend="torch").pipe(texts)]
    nlp = blank(exported, backend="onnx", batch_tokens=64)
    found = [written(doc) for doc in nlp.pipe(texts, batch_size=4)]
    assert component_of(nlp).heads.keys() == {"ner"}
    assert [one["ents"] for one in found] == [one["ents"] for one in expected]


def test_extensions_of_other_packages_are_kept(six: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import sys, spacy; from spacy.tokens import Doc, Span\n"
        "Doc.set_extension('answer', default=1); Span.set_extension('score', getter=lambda span: 2)\n"
        "nlp = spacy.blank('en'); nlp.add_pipe('nlptasks', config={'model': sys.argv[1], 'heads': ['ner']})\n"
        "doc = nlp('Ada saw Rome.'); print(doc._.answer, doc[:1]._.score)\n"
        "Doc.set_extension('summary', default='theirs')\n"
        "try: nlp.add_pipe('nlptasks', name='two', config={'model': sys.argv[1], 'heads': ['summarization']})\n"
        "except ValueError: raise\n"
        "except Exception as error: print(error)"
    )
    done = script(code, six)
    assert done.stdout.splitlines() == [
        "1 2",
        "doc._.summary: is an extension of another package; remove it: Doc.remove_extension('summary'), or leave out the head",
    ]
    assert "doc._.answer is an extension of another package and is kept" in done.stderr


# S1, S10: missing packages


def script(code: str, *arguments: object, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """Run code in a new process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("missing", "model", "expected"),
    [
        ("torch", "trained", "only now\n2\n"),
        ("transformers", "trained", "only now\n2\n"),
        ("onnxruntime", "trained", "2\n"),
        ("torch", "exported", "2\n"),
        ("transformers", "exported", "2\n"),
    ],
)
def test_spacy_starts_even_if_a_package_is_broken(
    missing: str, model: str, expected: str, request: pytest.FixtureRequest
) -> None:
    code = (
        "import sys; sys.modules[sys.argv[1]] = None; import spacy; nlp = spacy.blank('en')\n"
        "try: nlp.add_pipe('nlptasks', config={'model': sys.argv[2]})\n"
        "except ImportError as error: print('only now')\n"
        "print(len(nlp('Ada saw')))"
    )
    assert script(code, missing, request.getfixturevalue(model)).stdout == expected


def test_spacy_starts_without_heavy_imports() -> None:
    code = (
        "import sys, spacy; spacy.blank('en'); spacy.registry.factories.get('nlptasks')\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'onnxruntime', 'onnx'}))\n"
        "print(sorted(name for name in sys.modules if name.startswith('nlptasks')))"
    )
    heavy, own = script(code).stdout.splitlines()
    assert "transformers" not in heavy
    assert "onnx" not in heavy
    packages = ["nlptasks", "nlptasks.integrations", "nlptasks.integrations.spacy"]
    assert own == str([*packages, "nlptasks.integrations.spacy.factory", "nlptasks.version"])


def test_everything_but_the_component_works_without_spacy(trained: Path) -> None:
    code = (
        "import sys; sys.modules['spacy'] = None\n"
        "import nlptasks, nlptasks.cli.main, nlptasks.pipeline\n"
        "print(nlptasks.pipeline.pipeline('ner', model=sys.argv[1])('Ada Smith saw London .')[0].text)"
    )
    assert script(code, trained).stdout == "Ada Smith\n"


# S5, S8: streams


def test_a_bad_document_goes_to_the_error_handler_alone(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = blank(trained)
    component = component_of(nlp)
    decode = component.heads["ner"].decode

    def failing(example: Any, *rest: Any) -> Any:
        if "Bob" in example.text:
            raise ValueError("bad")
        return decode(example, *rest)

    monkeypatch.setattr(component.heads["ner"], "decode", failing)
    with pytest.raises(ValueError, match="bad"):
        list(nlp.pipe(TEXTS))
    handled: list[tuple[str, list[str]]] = []
    nlp.set_error_handler(lambda name, proc, docs, error: handled.append((name, [doc.text for doc in docs])))
    expected = [text for text in TEXTS if "Bob" not in text]
    assert [doc.text for doc in nlp.pipe(TEXTS)] == expected
    assert handled == [("nlptasks", [TEXTS[2]])]
    pairs = list(nlp.pipe(zip(TEXTS, range(9), strict=False), as_tuples=True))
    assert [(doc.text, number) for doc, number in pairs] == [
        (text, n) for n, text in enumerate(TEXTS) if "Bob" not in text
    ]


def test_a_result_that_cannot_be_written_is_handled_alone(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = blank(trained)
    answering(component_of(nlp), monkeypatch, lambda example: {1, 2} if example.text == "saw" else [])
    with pytest.raises(UsageError, match="a result: holds set, expected dataclasses, lists"):
        nlp("saw")
    nlp.set_error_handler(lambda *_: None)
    assert [doc.text for doc in nlp.pipe(TEXTS)] == [text for text in TEXTS if text != "saw"]


def test_a_document_that_cannot_be_annotated_does_not_change(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = blank(trained, ents="replace")
    answering(component_of(nlp), monkeypatch, lambda example: [Entity("a", "A", 10**6, 10**6 + 1, 0.5)])
    doc = nlp.make_doc(TEXT)
    doc.ents, doc.cats = [Span(doc, 0, 1, label="FIRST")], {"old": 1.0}
    with pytest.raises(ValueError, match="E855"):
        component_of(nlp)(doc)
    assert [ent.label_ for ent in doc.ents] == ["FIRST"]
    assert doc.cats == {"old": 1.0}


def test_a_model_that_is_gone_is_no_documents_fault(trained: Path, tmp_path: Path) -> None:
    own = moved(trained, tmp_path)
    nlp = load_model_from_config(blank(own).config)
    shutil.rmtree(own)
    nlp.set_error_handler(lambda *_: None)
    with pytest.raises(ModelError, match="is no folder"):
        list(nlp.pipe(TEXTS))


def test_streams_are_lazy_and_in_order(trained: Path) -> None:
    nlp = blank(trained)
    taken = []

    def endless() -> Any:
        while True:
            taken.append(len(taken))
            yield f"Ada Smith left Rome {len(taken)}"

    stream = nlp.pipe(endless(), batch_size=8)
    assert [next(stream).text for _ in range(3)] == [f"Ada Smith left Rome {n}" for n in (1, 2, 3)]
    assert len(taken) <= 9


def test_given_tokens_and_long_documents_and_switched_off(trained: Path) -> None:
    nlp = blank(trained)
    given = Doc(nlp.vocab, words=["Ada", "Smith", "saw", "London"], spaces=[True, True, True, False])
    assert [ent.text for ent in nlp(given).ents] == ["Ada Smith", "London"]
    long = "Ada Smith saw London . " * 300  # many windows
    expected = pipeline("ner", model=trained)(long)
    assert len(expected) > 100
    assert [(ent.start_char, ent.end_char, ent.label_) for ent in nlp(long).ents] == [
        (entity.start, entity.end, entity.label) for entity in expected
    ]
    with nlp.select_pipes(disable="nlptasks"):
        assert not nlp(TEXT).ents
    assert nlp(TEXT).ents
    assert nlp.analyze_pipes()["summary"]["nlptasks"]["assigns"]


@pytest.mark.slow
def test_every_language_of_spacy(trained: Path) -> None:
    component = component_of(blank(trained))
    codes = [path.name for path in Path(spacy.__path__[0], "lang").iterdir() if (path / "__init__.py").exists()]
    tried = 0
    for code in sorted(set(codes) - {"ja", "ko", "th", "vi"}):  # these need a package each
        nlp = spacy.blank(code)
        assert [ent.text for ent in component(nlp.make_doc(TEXT)).ents] == ["Ada Smith", "London"], code
        tried += 1
    assert tried > 60


@pytest.mark.parametrize("language", ["en", "zh"])
def test_results_are_those_of_the_command_line(trained: Path, tmp_path: Path, language: str) -> None:
    texts = ["Ada Smith 在 London。", "我在巴黎看见 Ada Smith", "北京", TEXT]
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    code = "import sys; from nlptasks.cli.main import main; main(sys.argv[1:])"
    lines = script(code, "predict", trained, "--input", tmp_path / "texts.txt", "--json").stdout.splitlines()
    expected = [[Entity(**one) for one in json.loads(line)["results"]["ner"]] for line in lines]
    nlp = blank(trained, language)
    assert [doc._.nlptasks["ner"] for doc in nlp.pipe(texts)] == expected
    nlp.to_disk(tmp_path / "kept")
    assert [doc._.nlptasks["ner"] for doc in spacy.load(tmp_path / "kept").pipe(texts)] == expected


# S9: memory


def test_a_memory_zone_leaves_no_strings_and_no_documents(trained: Path) -> None:
    nlp = blank(trained)
    list(nlp.pipe([TEXT]))
    before = len(nlp.vocab.strings)
    with nlp.memory_zone():
        for number in range(100):
            doc = nlp(" ".join(f"t{number}x{own}" for own in range(1000)))
            assert len(doc) == 1000
        last = weakref.ref(doc)
        del doc
    gc.collect()
    assert len(nlp.vocab.strings) == before
    assert last() is None


# S7: to disk, to bytes, to other processes


@pytest.mark.parametrize("store", ["copy", "reference"])
@pytest.mark.parametrize("target", ["disk", "bytes", "pickle"])
def test_pipelines_are_saved_to_disk_bytes_and_pickles(
    both_exported: Path, tmp_path: Path, store: str, target: str
) -> None:
    nlp = blank(both_exported, store=store, heads=["mood", "ner"])
    expected = [written(doc) for doc in nlp.pipe(TEXTS)]
    if target == "disk":
        nlp.to_disk(tmp_path / "kept")
        nlp.to_disk(tmp_path / "kept")  # over itself
        again = spacy.load(tmp_path / "kept")
        again.to_disk(tmp_path / "kept")  # over what it is running from
        again = spacy.load(tmp_path / "kept")
    elif target == "bytes":
        again = load_model_from_config(nlp.config).from_bytes(nlp.to_bytes())
        again = load_model_from_config(again.config).from_bytes(again.to_bytes())
    else:
        again = spacy.blank("en")
        again.add_pipe("nlptasks", config={"model": str(both_exported)})
        component = pickle.loads(pickle.dumps(component_of(nlp)))
        again._components[0] = ("nlptasks", component)
    assert [written(doc) for doc in again.pipe(TEXTS)] == expected
    assert nlp.config["components"] == again.config["components"] or target == "pickle"


def moved(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "own")


def test_a_copy_needs_nothing_from_where_it_was_made(exported: Path, tmp_path: Path) -> None:
    own = moved(exported, tmp_path)
    nlp = blank(own)
    expected = written(nlp(TEXT))
    nlp.to_disk(tmp_path / "kept")
    content = nlp.to_bytes()
    config = nlp.config
    shutil.rmtree(own)
    (tmp_path / "kept").rename(tmp_path / "elsewhere")
    loaded = spacy.load(tmp_path / "elsewhere")
    assert written(loaded(TEXT)) == expected
    stored = ModelFolder.open(tmp_path / "elsewhere/nlptasks")
    assert set(stored.exports) == {"fp32"}
    from_bytes = load_model_from_config(config).from_bytes(content)
    assert written(from_bytes(TEXT)) == expected
    component = pickle.loads(pickle.dumps(component_of(from_bytes)))  # which runs from a temporary folder
    del from_bytes
    gc.collect()
    assert written(component(nlp.make_doc(TEXT))) == expected


def test_a_model_with_a_damaged_export_is_saved_without_it(exported: Path, tmp_path: Path) -> None:
    own = moved(exported, tmp_path)
    (own / "onnx/fp32/encode.onnx").unlink()
    nlp = blank(own)
    expected = written(nlp(TEXT))
    content = nlp.to_bytes()
    nlp.to_disk(tmp_path / "kept")
    assert written(spacy.load(tmp_path / "kept")(TEXT)) == expected
    assert written(load_model_from_config(nlp.config).from_bytes(content)(TEXT)) == expected


def test_a_pipeline_from_a_config_opens_the_model_when_it_is_needed(trained: Path, tmp_path: Path) -> None:
    own = moved(trained, tmp_path)
    config = blank(own).config
    nlp = load_model_from_config(config)
    assert nlp.meta["labels"]["nlptasks"] == []
    assert nlp(TEXT).ents
    shutil.rmtree(own)
    nlp = load_model_from_config(config)
    with pytest.raises(ModelError, match="is no folder, so it is no model"):
        nlp(TEXT)


def test_an_excluded_component_uses_the_model_of_the_config(trained: Path, tmp_path: Path) -> None:
    nlp = blank(trained)
    nlp.to_disk(tmp_path / "kept", exclude=["nlptasks"])
    assert not (tmp_path / "kept/nlptasks").exists()
    assert written(spacy.load(tmp_path / "kept")(TEXT)) == written(nlp(TEXT))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place: flip(place / "backbone/model.safetensors"), "model.safetensors"),
        (lambda place: (place / "heads/ner.safetensors").unlink(), "ner.safetensors"),
        (lambda place: (place / "nlptasks.json").unlink(), "has no nlptasks.json"),
        (lambda place: flip(place / "nlptasks.json"), "is damaged"),
    ],
)
def test_a_damaged_copy_is_refused_by_name(
    trained: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    blank(trained).to_disk(tmp_path / "kept")
    damage(tmp_path / "kept/nlptasks")
    with pytest.raises(ModelError, match=message):
        spacy.load(tmp_path / "kept")


def test_a_reference_checks_its_model(trained: Path, both: Path, tmp_path: Path) -> None:
    own = moved(trained, tmp_path)
    nlp = blank(own, store="reference")
    nlp.to_disk(tmp_path / "kept")
    file = tmp_path / "kept/nlptasks/reference.json"
    assert json.loads(file.read_text())["model"] == str(own)
    shutil.rmtree(own)
    shutil.copytree(both, own)
    with pytest.raises(ModelError, match=r"reference.json: refers to the model .*own, which was changed since"):
        spacy.load(tmp_path / "kept")
    shutil.rmtree(own)
    with pytest.raises(ModelError, match=r"own, which is not there; put that model back, .* store='copy'"):
        spacy.load(tmp_path / "kept")
    shutil.copytree(trained, tmp_path / "moved")
    config = {"components": {"nlptasks": {"model": str(tmp_path / "moved")}}}
    assert spacy.load(tmp_path / "kept", config=config)(TEXT).ents  # it is the same there
    file.write_text(json.dumps({"model": 1}))
    with pytest.raises(ModelError, match=r"reference.json: is damaged \(the reference has \['model'\]"):
        spacy.load(tmp_path / "kept")


@pytest.mark.parametrize("method", ["to_disk", "to_bytes", "pickle"])
@pytest.mark.parametrize("store", ["copy", "reference"])
def test_only_the_model_that_runs_is_saved(trained: Path, both: Path, tmp_path: Path, method: str, store: str) -> None:
    own = moved(trained, tmp_path)
    component = component_of(blank(own, store=store))
    shutil.rmtree(own)
    shutil.copytree(both, own)  # as training again does
    methods: dict[str, Callable[[], Any]] = {
        "to_disk": lambda: component.to_disk(tmp_path / "kept"),
        "to_bytes": component.to_bytes,
        "pickle": lambda: pickle.loads(pickle.dumps(component)).open(),
    }
    with pytest.raises(ModelError, match=r"refers to the model .*own, which was changed since"):
        methods[method]()


def test_a_temporary_folder_is_never_referred_to(trained: Path, tmp_path: Path) -> None:
    content = component_of(blank(trained)).to_bytes()
    component = component_of(blank(trained, store="reference")).from_bytes(content)
    component.to_disk(tmp_path / "kept")
    assert ModelFolder.open(tmp_path / "kept").path


def test_a_relative_folder_is_found_from_elsewhere(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent)
    nlp = blank(Path(trained.name))
    monkeypatch.chdir(tmp_path)
    nlp.to_disk("kept")
    assert spacy.load("kept")(TEXT).ents


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "are not those of a component"),
        (b"\x93\x01\x02\x03", "are not those of a component"),
        (b"\x81\xa4copy\x01", "are not those of a component"),
        (b"\x81\xa4copy\x81\xaa../outside\xc4\x01x", "expected a path inside the folder"),
        (b"\x81\xa4copy\x80", "has no nlptasks.json"),
        (b"\x81\xa4copy\x81\xa1a\x01", "hold no files by name"),
        (b"\x81\xa4copy\x81\x01\xc4\x01x", "hold no files by name"),
        (b"\x81\xa4copy\x82\xa1a\xc4\x01x\xa3a/b\xc4\x01x", "cannot be written to"),
    ],
)
def test_other_bytes_are_refused(trained: Path, content: bytes, message: str) -> None:
    nlp = blank(trained)
    component = component_of(nlp)
    with pytest.raises(ModelError, match=message):
        component.from_bytes(content)
    assert nlp(TEXT).ents  # it goes on as before
    assert component.to_bytes()


def test_a_checkpoint_cannot_be_copied(trained: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    done = script(
        "import sys; from nlptasks.cli.main import main; main(sys.argv[1:])", "to-hf", trained, "ner", "-o", hf
    )
    assert done.stdout
    nlp = blank(hf, heads=["ner"])
    assert [ent.text for ent in nlp(TEXT).ents] == ["Ada Smith", "London"]
    with pytest.raises(UsageError, match="is a checkpoint, of which no copy can be kept; import it"):
        nlp.to_disk(tmp_path / "kept")
    blank(hf, heads=["ner"], store="reference").to_disk(tmp_path / "kept")
    assert spacy.load(tmp_path / "kept")(TEXT).ents


def test_documents_go_through_docbins_with_their_results(both: Path, tmp_path: Path) -> None:
    nlp = blank(both)
    docs = list(nlp.pipe(TEXTS))
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "docs.spacy")
    again = list(DocBin().from_disk(tmp_path / "docs.spacy").get_docs(nlp.vocab))
    assert [written(doc) for doc in again] == [written(doc) for doc in docs]


def test_a_document_from_another_process_says_what_to_do(six: Path, tmp_path: Path) -> None:
    code = (
        "import sys, spacy; nlp = spacy.blank('en'); nlp.add_pipe('nlptasks', config={'model': sys.argv[1]})\n"
        "open(sys.argv[2], 'wb').write(nlp('Rome is old.').to_bytes())"
    )
    script(code, six, tmp_path / "doc")
    nlp = blank(six)
    doc = Doc(nlp.vocab).from_bytes((tmp_path / "doc").read_bytes())
    assert doc._.nlptasks.keys() == component_of(nlp).heads.keys() - {"qa"}
    with pytest.raises(
        UsageError,
        match=r"no component of this process has read the document; .* nlp.get_pipe\('nlptasks'\).answer",
    ):
        doc._.answer("What?")
    assert isinstance(component_of(nlp).answer(doc, "What?"), Answer)
    assert isinstance(nlp(doc)._.answer("What?"), Answer)


PROCESSES = """
import multiprocessing, signal, sys
import spacy

if __name__ == "__main__":
    signal.alarm(200 if sys.argv[1] == "spawn" else 60)
    how, language, model = sys.argv[1:]
    multiprocessing.set_start_method(how)
    nlp = spacy.blank(language)
    nlp.add_pipe("nlptasks", config={"model": model})
    texts = ["Ada Smith saw London .", "", "Bob left Paris .", "我在巴黎看见 Ada Smith"] * 3
    expected = [doc._.nlptasks for doc in nlp.pipe(texts)]
    try:
        found = [doc for doc in nlp.pipe(texts, n_process=2, batch_size=3)]
    except ValueError as error:
        print("fork" if "before this process was forked; open it in the process that uses it" in str(error) else error)
    else:
        print([doc._.nlptasks for doc in found] == expected, [ent.text for ent in found[0].ents], found[0].cats.keys())
"""


@pytest.mark.parametrize(
    ("how", "backend", "language"),
    [
        ("spawn", "torch", "en"),
        pytest.param("spawn", "onnx", "zh", marks=pytest.mark.slow),
        ("fork", "torch", "zh"),
        ("fork", "onnx", "en"),
    ],
)
def test_processes(both: Path, both_exported: Path, tmp_path: Path, how: str, backend: str, language: str) -> None:
    if how == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    file = tmp_path / "processes.py"
    file.write_text(PROCESSES)
    model = {"torch": both, "onnx": both_exported}[backend]
    done = subprocess.run(
        [sys.executable, file, how, language, model], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = {"spawn": "True ['Ada Smith', 'London']", "fork": "fork"}
    assert done.stdout.startswith(expected[how]), done.stdout + done.stderr


# Other tools


def test_displacy_shows_the_entities(trained: Path) -> None:
    doc = blank(trained)(TEXT)
    for style in ("ent", "span"):
        html = displacy.render(doc, style=style, options={"spans_key": "ner"}, jupyter=False)
        assert "PER" in html
        assert "London" in html


@pytest.mark.slow
def test_a_pipeline_is_packaged(trained: Path, tmp_path: Path) -> None:
    nlp = blank(trained)
    nlp.meta.update(name="names", version="1.2.3")
    nlp.to_disk(tmp_path / "kept")
    (tmp_path / "out").mkdir()
    command = ["-m", "spacy", "package", str(tmp_path / "kept"), str(tmp_path / "out"), "--build", "none"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [package] = (tmp_path / "out").iterdir()
    meta = json.loads((package / "meta.json").read_text())
    assert any(requirement.startswith("nlptasks") for requirement in meta["requirements"])
    shutil.copyfile(package / "meta.json", package / "en_names/meta.json")  # as its setup.py does when it is installed
    code = f"import en_names; nlp = en_names.load(); print([ent.text for ent in nlp({TEXT!r}).ents])"
    environment = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "['Ada Smith', 'London']\n", done.stderr


def test_a_copy_has_a_readme_that_somebody_wrote(trained: Path, tmp_path: Path) -> None:
    nlptasks.Model.load(trained).save(tmp_path / "own")  # without a model card
    (tmp_path / "own/README.md").write_text("mine")
    blank(tmp_path / "own").to_disk(tmp_path / "kept")
    assert (tmp_path / "kept/nlptasks/README.md").read_text() == "mine"


def test_documents_without_annotated_entities_do_not_hide_the_scores_of_the_others(trained: Path) -> None:
    nlp = blank(trained)
    doc = nlp(TEXT)
    reference = Doc(nlp.vocab, words=[token.text for token in doc])
    reference.ents = [Span(reference, ent.start, ent.end, label=ent.label_) for ent in doc.ents]
    examples = [Example(nlp.make_doc(TEXT), reference), Example(nlp.make_doc("saw"), nlp.make_doc("saw"))]
    assert nlp.evaluate(examples)["ents_f"] == 1


def test_a_document_is_answered_after_a_copy_of_its_component_is_gone(six: Path) -> None:
    nlp = blank(six, heads=["qa"])
    doc = nlp("Rome is old.")
    copy = pickle.loads(pickle.dumps(component_of(nlp)))
    copy(nlp.make_doc("Ada left."))
    del copy
    gc.collect()
    assert isinstance(doc._.answer("What is old?"), Answer)


def test_categories_are_scored_one_by_one_if_a_document_has_none(both: Path) -> None:
    nlp = blank(both, heads=["mood"])
    examples = []
    for text, right in (
        ("Ada smiled", {"positive": 1.0, "negative": 0.0}),
        ("Rome", {"positive": 0.0, "negative": 0.0}),
    ):
        examples.append(Example(nlp.make_doc(text), nlp.make_doc(text)))
        examples[-1].reference.cats = right
    assert nlp.evaluate(examples)["cats_score_desc"] == "macro AUC"
    assert nlp.evaluate(examples[:1])["cats_score_desc"] != "macro AUC"
