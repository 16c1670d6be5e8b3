"""The pipeline: any text in, results in order out, the same on both runtimes."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nlptasks
import nlptasks.pipeline
from nlptasks.errors import BackendError, DataError, ModelError, UsageError
from nlptasks.heads.ner import Entity
from nlptasks.pipeline import Pipeline, Prediction, pipeline
from nlptasks.runtimes import pytorch as runtime
from nlptasks.types import Row

TEXTS = [
    "Ada Smith saw London .",
    "",
    "Bob left",
    "Rome " * 300,
    "\x00\ufeff\u200b",
    "Cleo Smith left Paris . " * 9,
    "a\ud800b Berlin",
    "日本 and 👍🏽 London\r\n",
]


@pytest.fixture(scope="module", params=["torch", "onnx"])
def pipe(request: pytest.FixtureRequest, exported: Path) -> Pipeline:
    return pipeline("ner", model=exported, backend=request.param)


def test_the_example_of_the_docs(pipe: Pipeline) -> None:
    [person, place] = pipe("Ada Smith saw London .")
    assert isinstance(person, Entity)
    assert (person.text, person.label, person.start, person.end) == ("Ada Smith", "PER", 0, 9)
    assert (place.text, place.label, place.start, place.end) == ("London", "LOC", 14, 20)
    assert 0.5 < place.score <= 1


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\n", "\x00\x01", "\u200b", "\ufeff"])
def test_a_text_without_words_has_no_entities(pipe: Pipeline, text: str) -> None:
    assert pipe(text) == []


def test_lists_generators_and_tuples(pipe: Pipeline) -> None:
    assert pipe([]) == []
    expected = pipe(TEXTS)
    assert len(expected) == len(TEXTS)
    assert pipe(iter(TEXTS)) == expected
    assert pipe(tuple(TEXTS)) == expected
    assert pipe([np.str_(text) for text in TEXTS]) == expected


@pytest.mark.parametrize("wrong", [b"bytes", None, 5])
def test_what_is_no_text_is_named_with_its_place(pipe: Pipeline, wrong: object) -> None:
    with pytest.raises(TypeError, match=f"text 2 is {type(wrong).__name__}, expected str"):
        pipe(["fine", wrong])  # type: ignore[list-item]
    if not isinstance(wrong, bytes):
        with pytest.raises(TypeError):
            pipe(wrong)  # type: ignore[arg-type]


def test_rows_are_read_as_in_training(pipe: Pipeline) -> None:
    assert pipe({"tokens": ["Ada", "Smith", "saw", "London", "."]}) == pipe("Ada Smith saw London .")
    with pytest.raises(DataError, match="has neither 'tokens' nor 'text'"):
        pipe({"words": ["Ada"]})


def close(one: list[Entity], two: list[Entity]) -> bool:
    same = [(e.text, e.label, e.start, e.end) for e in one] == [(e.text, e.label, e.start, e.end) for e in two]
    return same and all(abs(a.score - b.score) < 1e-5 for a, b in zip(one, two, strict=True))


def test_results_do_not_depend_on_company_or_order(pipe: Pipeline) -> None:
    alone = {text: pipe(text) for text in TEXTS}
    for seed in range(4):
        shuffled = TEXTS * 3
        random.Random(seed).shuffle(shuffled)
        assert all(close(found, alone[text]) for text, found in zip(shuffled, pipe(shuffled), strict=True))


def test_both_runtimes_agree(exported: Path) -> None:
    one, two = (pipeline("ner", model=exported, backend=backend)(TEXTS) for backend in ("torch", "onnx"))
    assert all(close(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("at", range(0, 250, 25))
def test_long_texts_are_read_to_the_end(pipe: Pipeline, at: int) -> None:
    text = "saw . " * at + "Ada Smith" + " . saw" * (250 - at)
    assert ("Ada Smith", 6 * at) in [(entity.text, entity.start) for entity in pipe(text)]


def test_a_word_of_a_hundred_thousand_characters_and_a_text_of_a_million(pipe: Pipeline) -> None:
    assert isinstance(pipe("x" * 100_000), list)
    text = "saw . " * 170_000 + "Ada Smith"
    assert pipe(text)[-1].end == len(text)


def test_streaming_is_lazy(pipe: Pipeline) -> None:
    taken = []

    def endless() -> Any:
        for number in itertools.count():
            taken.append(number)
            yield "Ada Smith saw London ."

    stream = pipe.stream(endless())
    assert next(stream)[0].text == "Ada Smith"
    assert len(taken) == 1
    for _ in range(5000):
        next(stream)
    assert len(taken) < 8000


def test_threads_get_their_own_answers(pipe: Pipeline) -> None:
    texts = ["saw " * n + "Ada Smith saw London ." for n in (0, 3, 60, 200)]
    expected = [pipe(text) for text in texts]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(10):
            if not close(pipe(texts[index % 4]), expected[index % 4]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_several_heads_come_as_a_dict(exported: Path) -> None:
    text = "Ada Smith saw London ."
    assert list(pipeline(None, model=exported)(text)) == ["ner"]
    assert pipeline(["ner"], model=exported)(text)["ner"] == pipeline("ner", model=exported)(text)


def test_auto_takes_the_export_only_while_it_is_fresh(exported: Path, trained: Path, tmp_path: Path) -> None:
    assert pipeline("ner", model=exported).backend == "ONNX Runtime fp32 on the CPU"
    assert pipeline("ner", model=trained).backend == "PyTorch on the CPU"
    stale = tmp_path / "stale"
    shutil.copytree(trained, stale)
    model = nlptasks.Model.load(stale)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save(stale, overwrite=True)
    shutil.copytree(exported / "onnx", stale / "onnx")
    assert pipeline("ner", model=stale).backend == "PyTorch on the CPU"
    with pytest.raises(ModelError, match=r"has a stale ONNX export in fp32.*run: nlptasks export"):
        pipeline("ner", model=stale, backend="onnx")
    with pytest.raises(ModelError, match=r"has no ONNX export in fp16 \(available: fp32\)"):
        pipeline("ner", model=stale, backend="onnx:fp16")


def test_a_changed_export_is_refused(exported: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(exported, place)
    data = place / "onnx" / "fp32" / "encode.onnx.data"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    with pytest.raises(ModelError, match=r"encode\.onnx\.data: has sha256 .*, expected"):
        pipeline("ner", model=place, backend="onnx")


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_changed_small_file_is_refused_with_an_export_too(exported: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / "model"
    shutil.copytree(exported, place)
    path = place / "backbone" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModelError, match="has sha256"):
        pipeline("ner", model=place, backend="onnx")
    path.unlink()
    with pytest.raises(ModelError, match="is missing"):
        pipeline("ner", model=place)


def test_exports_have_known_precisions_only(trained: Path) -> None:
    with pytest.raises(UsageError, match="'int4': is unknown; use one of fp32, fp16, int8"):
        nlptasks.export(trained, precision="int4")


def test_no_model_is_an_error_with_a_line_that_works() -> None:
    with pytest.raises(UsageError, match=r'pipeline\(\'ner\', model="runs/ner"\)'):
        pipeline("ner")


def test_wrong_names_are_refused(exported: Path) -> None:
    with pytest.raises(UsageError, match="has no head 'sentiment'"):
        pipeline("sentiment", model=exported)
    with pytest.raises(UsageError, match="did you mean 'onnx'"):
        pipeline("ner", model=exported, backend="onx")
    with pytest.raises(UsageError, match="use one of auto, cpu, cuda"):
        pipeline("ner", model=exported, device="gpu")


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_cuda_means_cuda_or_an_error(exported: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"device cuda: .*`device=\"cpu\"`") as caught:
        pipeline("ner", model=exported, backend=backend, device="cuda")
    assert caught.value.exit_code == 6


def test_weights_that_are_not_numbers_never_become_labels(trained: Path) -> None:
    pipe = pipeline("ner", model=trained, backend="torch")
    with torch.no_grad():
        next(pipe._engine.runtime._graphs["encode"].parameters()).fill_(float("nan"))
    with pytest.raises(BackendError, match="not finite"):
        pipe("Ada")


def test_packed_linear_layers_answer_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.GELU(), torch.nn.Linear(40, 3, bias=False)).eval()
    x = torch.randn(2, 5, 24)
    expected = module(x)
    monkeypatch.setattr(runtime, "_packing_pays", lambda: False)
    runtime.pack_linears(module)
    assert type(module[0]) is torch.nn.Linear
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        pytest.skip("this build of torch has no oneDNN")
    runtime.pack_linears(module, few_rows=True)
    assert not any(type(layer) is torch.nn.Linear for layer in module)
    with torch.inference_mode():
        assert torch.allclose(module(x), expected, atol=1e-5)


def test_predictions_have_their_rows(pipe: Pipeline) -> None:
    rows = [Row({"text": text, "id": number}, f"row {number}") for number, text in enumerate(TEXTS)]
    found = list(pipe.predict(rows))
    assert all(isinstance(one, Prediction) for one in found)
    assert [one.row.fields["id"] for one in found] == list(range(len(TEXTS)))
    assert [one.results["ner"] for one in found] == pipe(TEXTS)


def test_bad_rows_are_reported_and_have_no_prediction(pipe: Pipeline) -> None:
    rows = [Row({"text": "Ada left"}, "a:1"), Row({"words": []}, "a:2"), Row({"text": "Bob left"}, "a:3")]
    errors: list[DataError] = []
    assert [one.row.where for one in pipe.predict(rows, on_error=errors.append)] == ["a:1", "a:3"]
    assert [error.where for error in errors] == ["a:2"]
    with pytest.raises(DataError, match="a:2"):
        list(pipe.predict(rows))
    assert [len(one.results) for one in pipe.predict(rows, partial=True)] == [1, 0, 1]


def test_an_unknown_head_is_refused_by_name(pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match="head 'nerr': is not in this pipeline; did you mean 'ner'"):
        next(pipe.predict([Row({"text": "Ada"}, "a")], heads=["nerr"]))


def test_a_pipeline_is_copied_and_pickled_as_its_folder_and_settings(pipe: Pipeline, exported: Path) -> None:
    text = "Ada Smith saw London ."
    content = pickle.dumps(pipe)
    assert len(content) < 1000 + len(str(exported))
    for again in (pickle.loads(content), copy.deepcopy(pipe)):
        assert again.backend == pipe.backend
        assert again(text) == pipe(text)
        assert again._engine is not pipe._engine


def test_a_pipeline_says_what_it_is(pipe: Pipeline, exported: Path) -> None:
    assert repr(pipe) == f"<nlptasks.Pipeline of {str(exported)!r}: ner on {pipe.backend}>"
    assert {"predict", "stream_text", "stream", "heads", "backend"} <= set(dir(pipe))
    assert dir(nlptasks.pipeline) == ["Pipeline", "Prediction", "pipeline", "predict"]


def test_a_model_predicts_in_one_call_and_results_become_dictionaries(exported: Path) -> None:
    [person, place] = nlptasks.predict(exported, "Ada Smith saw London .", heads="ner")
    assert person.to_dict() == {"text": "Ada Smith", "label": "PER", "start": 0, "end": 9, "score": person.score}
    [again] = nlptasks.predict(exported, ["Ada Smith saw London ."], heads="ner", backend="torch")
    assert [(one.text, one.label) for one in again] == [("Ada Smith", person.label), ("London", place.label)]
