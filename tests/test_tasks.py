"""All tasks from end to end: a model for each task on its sample data, on the command line and from Python, on both backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner, Result

import nlptasks
from nlptasks.cli.main import main
from nlptasks.config import TrainSettings
from nlptasks.errors import DataError, UsageError
from nlptasks.heads.base import sample_folder
from nlptasks.models.folder import ModelFolder
from nlptasks.pipeline import pipeline
from nlptasks.registry import head_class

TEXT = "Ada Smith saw London and left Paris."
QUESTION = {"question": "Who saw London?", "context": TEXT}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def trained(task: str, data: Path | None, backbone: Path, place: Path) -> Path:
    settings = TrainSettings(backbone=str(backbone), epochs=2, lr=1e-3, batch_tokens=1024, precision="fp32")
    nlptasks.train(f"{task}={data}" if data else task, output=place, settings=settings)
    return place


@pytest.fixture(scope="module")
def qa(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("qa", None, backbones / "bert", tmp_path_factory.mktemp("qa") / "model")


@pytest.fixture(scope="module")
def sentiment(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("sentiment", None, backbones / "bert", tmp_path_factory.mktemp("sentiment") / "model")


@pytest.mark.parametrize("task", ["qa", "sentiment"])
def test_temperature_and_calibration_error_are_recorded(task: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(task)
    log = tiny.log_of(model)
    temperature = log["fitted"]["temperature"]
    assert ModelFolder.open(model).records[task].config["temperature"] == temperature != 1
    assert set(log["calibration_error"]) == {"dev", "test"}
    assert log["rows"]["calibration"] == int(0.05 * (log["rows"]["train"] + log["rows"]["calibration"]))
    assert "calibration" not in log["metrics"]
    card = (model / "README.md").read_text()
    for part, found in log["calibration_error"].items():
        assert f"| {part} | {found['before']:.4f} | {found['after']:.4f} |" in card
    assert f"fitted to {log['rows']['calibration']} rows held out of train" in card


def test_the_calibration_error_is_that_of_the_results(sentiment: Path) -> None:
    """It is computed again from the results of the saved model."""
    rows = [json.loads(line) for line in (sample_folder(head_class("sentiment")) / "test.jsonl").open(encoding="utf-8")]
    bins: dict[int, list[float]] = {}
    for row, found in zip(rows, pipeline("sentiment", model=sentiment)([row["text"] for row in rows]), strict=True):
        bins.setdefault(min(int(found.score * 15), 14), []).append(found.score - (found.label == row["label"]))
    error = sum(abs(sum(gaps)) for gaps in bins.values()) / len(rows)
    log = tiny.log_of(sentiment)
    assert log["calibration_error"]["test"]["after"] == pytest.approx(error, abs=1e-4)


def test_a_threshold_for_unanswerable_questions_is_fitted(qa: Path) -> None:
    config = ModelFolder.open(qa).records["qa"].config
    assert config["unanswerable"]
    assert tiny.log_of(qa)["fitted"]["null_threshold"] == config["null_threshold"]


def test_a_bare_text_is_skipped_by_a_head_that_reads_pairs(qa: Path) -> None:
    done = run("predict", qa, TEXT, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"text": TEXT, "results": {}})
    assert "text:1: has no 'question'" in done.stderr
    done = run("predict", qa, TEXT, "--heads", "qa")
    assert (done.exit_code, "text:1: has no 'question'" in done.stderr) == (3, True)
    with pytest.raises(DataError, match="has no 'question'"):
        pipeline("qa", model=qa)(TEXT)


def test_records_of_pairs_have_their_own_fields(qa: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": 7, **QUESTION}) + "\n")
    done = run("predict", qa, "--input", path, "--json")
    [record] = [json.loads(line) for line in done.stdout.splitlines()]
    assert {key: record[key] for key in ("id", "question", "context")} == {"id": 7, **QUESTION}
    answer = record["results"]["qa"]
    assert set(answer) == {"text", "start", "end", "score"}
    assert TEXT[answer["start"] : answer["end"]] == answer["text"]


def test_some_options_can_be_changed_at_run_time(qa: Path, tmp_path: Path) -> None:
    best = pipeline("qa", model=qa, options={"qa": {"no_answer": False}})(QUESTION)
    three = pipeline("qa", model=qa, options={"qa": {"no_answer": False, "top_k": 3}})(QUESTION)
    assert (len(three), three[0]) == (3, best)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n")
    done = run("predict", qa, "--input", path, "--json", "--set", "qa.top_k=2", "--set", "qa.no_answer=false")
    assert [answer["text"] for answer in json.loads(done.stdout)["results"]["qa"]] == [one.text for one in three[:2]]
    assert run("predict", qa, "--input", path, "--set", "qa.top_k=2").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qa": {"topk": 3}}, r"qa.topk: is no option of this head; did you mean 'top_k'\?"),
        ({"qa": {"top_k": "many"}}, "qa.top_k: is 'many'; use a whole number"),
        ({"qa": {"top_k": 0}}, "top_k: is 0; give a number of at least 1"),
        ({"ner": {"top_k": 3}}, r"has no head 'ner'; known are: qa"),
    ],
)
def test_wrong_options_at_run_time_are_refused(qa: Path, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline("qa", model=qa, options=options)


def test_options_of_training_cannot_be_changed_at_run_time(sentiment: Path) -> None:
    with pytest.raises(UsageError, match=r"sentiment.class_weights: is an option of training"):
        pipeline("sentiment", model=sentiment, options={"sentiment": {"class_weights": "balanced"}})


@pytest.mark.parametrize("task", ["qa", "sentiment"])
def test_evaluation_gives_the_metrics_of_training_on_both_backends(task: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(task)
    log = tiny.log_of(model)["metrics"]["test"]
    sample = sample_folder(head_class(task))
    done = run("evaluate", model, f"{task}={sample}", "--json", "--backend", "torch")
    found = json.loads(done.stdout)
    assert (found["split"], found["main_metric"]) == ("test", tiny.log_of(model)["main_metric"])
    assert found["metrics"] == pytest.approx(log)
    assert run("export", model).exit_code == 0
    done = run("evaluate", model, f"{task}={sample}", "--json", "--backend", "onnx")
    assert json.loads(done.stdout)["metrics"] == pytest.approx(log)


def test_prediction_ignores_gold_answers(sentiment: Path, qa: Path, tmp_path: Path) -> None:
    for model, row in ((sentiment, {"text": TEXT, "label": -1}), (qa, {**QUESTION, "answers": "?", "answer_start": 7})):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n")
        assert run("predict", model, "--input", path, "--json").exit_code == 0


def test_a_typo_in_a_path_is_no_name_on_the_hub(sentiment: Path) -> None:
    for slip in ("runs/nope", str(sentiment.parent / "nope")):
        done = run("predict", slip, TEXT)
        assert (done.exit_code, f"{slip}: is no folder, so it is no model" in done.stderr) == (4, True)


@pytest.mark.parametrize("task", ["qa", "sentiment"])
def test_temperatures_are_included_in_checkpoints(task: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(task)
    assert run("to-hf", model, task, "-o", tmp_path / "theirs").exit_code == 0
    row = QUESTION if task == "qa" else TEXT
    one = pipeline(task, model=model, backend="torch", options={"qa": {"no_answer": False}} if task == "qa" else None)(
        row
    )
    two = pipeline(task, model=tmp_path / "theirs")(row)
    assert one.text == two.text if task == "qa" else one.label == two.label
    assert one.score == pytest.approx(two.score, abs=1e-4)


def test_people_see_text_label_and_score(sentiment: Path) -> None:
    done = run("predict", sentiment, TEXT)
    assert done.stdout.startswith(TEXT + " [")
    assert any(f" {label}]" in done.stdout for label in ("negative", "neutral", "positive"))


def test_spacy_documents_have_the_scores_of_labels(sentiment: Path) -> None:
    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(sentiment)})
    doc = nlp(TEXT)
    assert set(doc.cats) == {"negative", "neutral", "positive"}
    assert doc._.nlptasks["sentiment"].label == max(doc.cats, key=doc.cats.get)


def test_a_label_that_only_held_out_rows_have_is_known(backbones: Path, tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": f"label {number // 2}"} for number in range(60)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = trained("classification", tmp_path / "train.jsonl", backbones / "bert", tmp_path / "model")
    assert len(ModelFolder.open(model).records["classification"].config["labels"]) == 30
