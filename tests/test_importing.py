"""Hugging Face checkpoints, imported and written: equal logits for every architecture, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import nlptasks
import nlptasks.models.huggingface
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.cli.main import main
from nlptasks.config import TrainSettings
from nlptasks.errors import ModelError, UsageError
from nlptasks.inference.batching import random_batch
from nlptasks.models.huggingface import TOLERANCE, import_checkpoint, read_checkpoint, to_hugging_face
from nlptasks.models.model import Model
from nlptasks.networks.sequence_classifier import SequenceClassifier
from nlptasks.pipeline import pipeline
from nlptasks.testing.backbones import save_tokenizer
from nlptasks.text.tags import spans_of

ENCODERS = ("bert", "roberta", "distilbert", "electra", "deberta", "mpnet", "modernbert", "xlm-roberta")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "classification": ("AutoModelForSequenceClassification", {"id2label": dict(enumerate(("sport", "art", "war")))}),
    "sentiment": ("AutoModelForSequenceClassification", {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}}),
    "ner": ("AutoModelForTokenClassification", {"id2label": dict(enumerate(TAGS))}),
    "qa": ("AutoModelForQuestionAnswering", {}),
}
TEXT = "Ada Smith saw London and left Paris, Rome or Berlin."
ROWS = {"qa": {"question": "Who saw London?", "context": TEXT}}


def make_checkpoint(task: str, architecture: str, folder: Path, **says: Any) -> Any:
    """Write a checkpoint with random weights, whose logits are not near zero."""
    auto, config_says = KINDS[task]
    make_config, make_tokenizer = tiny.ARCHITECTURES[architecture]
    config = make_config()
    for key, value in {**config_says, **says}.items():
        setattr(config, key, value)
    torch.manual_seed(3)
    model = getattr(transformers, auto).from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith(model.base_model_prefix + ".") or "pooler" in name:
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(make_tokenizer(), folder)
    return model


def logits_of(model: Any, info: Any, seed: int) -> dict[str, torch.Tensor]:
    """Return the logits of Hugging Face's model for random tokens."""
    batch = {name: torch.from_numpy(array) for name, array in random_batch(info, (3, 11), seed).items()}
    given = {"input_ids": batch["ids"], "attention_mask": batch["mask"]}
    if info.has_types:
        given["token_type_ids"] = batch["types"]
    with torch.no_grad():
        return {name: value for name, value in model(**given).items() if "logits" in name}


def ours(model: Model, name: str, seed: int) -> dict[str, torch.Tensor]:
    batch = {name: torch.from_numpy(array) for name, array in random_batch(model.backbone.info, (3, 11), seed).items()}
    with torch.no_grad():
        return {key.partition(".")[2]: value for key, value in model(batch).items()}


def differences(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    real = {11: [slice(0, 11), slice(0, 10), slice(0, 9)]}  # the second and third row end with padding
    worst = 0.0
    for name in one:
        by_token = one[name].shape[1] == 11
        for row in range(3):
            part = real[11][row] if by_token else slice(None)
            worst = max(worst, float((one[name][row][part] - two[name][row][part]).abs().max()))
    return worst


@pytest.mark.parametrize("architecture", ENCODERS)
@pytest.mark.parametrize("task", KINDS)
def test_logits_do_not_change_in_either_direction(task: str, architecture: str, tmp_path: Path) -> None:
    original = make_checkpoint(task, architecture, tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", task=task, output=tmp_path / "ours")
    model = Model.load(tmp_path / "ours")
    auto, lost = to_hugging_face(tmp_path / "ours", task, output=tmp_path / "again")
    again = getattr(transformers, auto).from_pretrained(tmp_path / "again").eval()
    for seed in (7, 8):
        theirs = logits_of(original, model.backbone.info, seed)
        assert max(float(value.abs().max()) for value in theirs.values()) > 0.05
        assert differences(theirs, ours(model, task, seed)) <= TOLERANCE
        assert differences(theirs, logits_of(again, model.backbone.info, seed)) <= TOLERANCE
    assert lost == []
    assert (auto, again.config.id2label) == (KINDS[task][0], original.config.id2label)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again")(TEXT)["input_ids"]


@pytest.mark.parametrize("task", KINDS)
def test_a_checkpoint_runs_directly_with_the_results_of_hugging_face(task: str, tmp_path: Path) -> None:
    original = make_checkpoint(task, "roberta", tmp_path / "theirs")
    pipe = pipeline(task, model=tmp_path / "theirs")
    found = pipe(ROWS.get(task, TEXT))
    import_checkpoint(tmp_path / "theirs", task=task, output=tmp_path / "ours")
    assert pipeline(task, model=tmp_path / "ours")(ROWS.get(task, TEXT)) == found
    if task in ("classification", "sentiment"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
        given = tokenizer(TEXT, return_tensors="pt", truncation=False, padding=False)
        with torch.no_grad():
            probabilities = original(**given).logits.softmax(-1)[0]
        assert found.label == original.config.id2label[int(probabilities.argmax())]
        assert found.score == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_several_labels_and_the_problem_type_are_imported_and_written(tmp_path: Path) -> None:
    make_checkpoint("classification", "bert", tmp_path / "theirs", problem_type="multi_label_classification")
    model = import_checkpoint(tmp_path / "theirs", task="classification", output=tmp_path / "ours", name="topics")
    assert model.heads["topics"].config.several
    to_hugging_face(tmp_path / "ours", "topics", output=tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["label2id"] == {"sport": 0, "art": 1, "war": 2}


def test_the_temperature_is_in_the_weights_and_what_is_lost_is_named(backbones: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"text": f"{name} left {n}", "labels": [name]} for name in ("Ada", "Bob", "Cleo") for n in range(70)]
    for part in ("train", "dev"):
        (data / f"{part}.jsonl").write_text("".join(json.dumps(own) + "\n" for own in rows))
    settings = TrainSettings(backbone=str(backbones / "bert"), epochs=3, lr=3e-3, batch_tokens=64, precision="fp32")
    nlptasks.train(f"classification={data}", output=tmp_path / "model", settings=settings)
    model = Model.load(tmp_path / "model")
    temperature = model.heads["classification"].config.temperature
    assert temperature != 1
    _, lost = to_hugging_face(tmp_path / "model", "classification", output=tmp_path / "theirs")
    assert lost == ["the thresholds of its labels: other libraries use one half"]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "theirs").eval()
    mine = {name: value / temperature for name, value in ours(model, "classification", 5).items()}
    assert differences(mine, logits_of(theirs, model.backbone.info, 5)) <= TOLERANCE
    done = CliRunner().invoke(main, ["to-hf", str(tmp_path / "model"), "classification", "-o", str(tmp_path / "new")])
    assert "not in it: the thresholds" in done.stderr
    assert "transformers.AutoModelForSequenceClassification" in done.stdout


def test_a_new_network_starts_with_the_pretrained_pooler(backbones: Path) -> None:
    backbone = load_backbone(str(backbones / "bert"))
    network = SequenceClassifier(backbone.info, classes=2)
    with torch.no_grad():
        network.load_pretrained(backbone.pretrained)
    pretrained = load_file(backbones / "bert" / "model.safetensors")
    own = network.layers.model.state_dict()["bert.pooler.dense.weight"]
    assert torch.equal(own, pretrained["pooler.dense.weight"])


@pytest.mark.parametrize(
    ("tags", "scheme", "entities"),
    [
        (("O", "B-PER", "I-PER"), "lenient", [("a b", "PER"), ("c", "PER")]),  # I-PER I-PER B-PER in iob1
        (("O", "I-PER", "X"), "io", [("a b c", "PER")]),
        (("O", "B-PER", "I-PER", "E-PER", "S-PER"), "bioes", []),
    ],
)
def test_tags_of_any_scheme_are_read(tmp_path: Path, tags: tuple[str, ...], scheme: str, entities: Any) -> None:
    make_checkpoint("ner", "bert", tmp_path / "theirs", id2label=dict(enumerate(tags)))
    head = read_checkpoint(tmp_path / "theirs", task="ner", name="ner").heads["ner"]
    assert head.config.tags_scheme == scheme
    wanted = {"lenient": ["I-PER", "I-PER", "B-PER"], "io": ["I-PER"] * 3}.get(scheme)
    if wanted:
        words = ["a", "b", "c"]
        found = [(" ".join(words[start:end]), label) for start, end, label in spans_of(wanted, scheme)]
        assert found == entities


def test_an_imported_tagger_is_evaluated_on_data_of_any_scheme(tmp_path: Path) -> None:
    make_checkpoint("ner", "bert", tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", task="ner", output=tmp_path / "ours")
    for tags in ("B-PER I-PER O B-LOC", "I-PER I-PER O I-LOC", "B-PER E-PER O S-LOC"):
        (tmp_path / "test.conll").write_text(
            "\n".join(
                f"{word} {tag}" for word, tag in zip(["Ada", "Smith", "saw", "London"], tags.split(), strict=True)
            )
            + "\n"
        )
        metrics = nlptasks.evaluate(tmp_path / "ours", f"ner={tmp_path / 'test.conll'}").metrics
        assert (metrics["PER.support"], metrics["LOC.support"]) == (1, 1)


# What is refused


def spoiled(folder: Path, **says: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **says}))


def test_gaps_in_the_labels_are_refused(tmp_path: Path) -> None:
    make_checkpoint("classification", "bert", tmp_path / "theirs")
    spoiled(tmp_path / "theirs", id2label={"0": "a", "1": "b", "3": "c"}, label2id={"a": 0, "b": 1, "c": 3})
    with pytest.raises(ModelError, match="numbers its labels 0, 1, 3, expected 0 to 2 without gaps; repair id2label"):
        read_checkpoint(tmp_path / "theirs", task="classification", name="topics")


@pytest.mark.parametrize("old", ["pytorch_model.bin", "tf_model.h5"])
def test_weights_that_are_not_safetensors_are_refused_with_a_fix(tmp_path: Path, old: str) -> None:
    make_checkpoint("classification", "bert", tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").rename(tmp_path / "theirs" / old)
    with pytest.raises(ModelError, match=rf"only {old}; convert it to safetensors"):
        read_checkpoint(tmp_path / "theirs", task="classification", name="topics")


def test_code_is_refused_with_a_fix(tmp_path: Path) -> None:
    make_checkpoint("classification", "bert", tmp_path / "theirs")
    spoiled(tmp_path / "theirs", auto_map={"AutoModelForSequenceClassification": "model.Evil"})
    (tmp_path / "theirs" / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="has the key 'auto_map', which names code to run; use a model"):
        read_checkpoint(tmp_path / "theirs", task="classification", name="topics")
    assert not (tmp_path / "ran").exists()


def test_a_backbone_without_a_head_is_refused(backbones: Path) -> None:
    with pytest.raises(
        ModelError, match=r"is no checkpoint of AutoModelForSequenceClassification: it lacks .*classifier"
    ):
        read_checkpoint(backbones / "bert", task="classification", name="topics")


def test_a_checkpoint_for_another_task_is_refused(tmp_path: Path) -> None:
    make_checkpoint("ner", "bert", tmp_path / "theirs")
    with pytest.raises(ModelError, match="it lacks qa_outputs"):
        read_checkpoint(tmp_path / "theirs", task="qa", name="qa")
    make_checkpoint("ner", "bert", tmp_path / "other", id2label={0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(ModelError, match="names its classes LABEL_0"):
        read_checkpoint(tmp_path / "other", task="ner", name="ner")
    make_checkpoint("classification", "bert", tmp_path / "third")
    with pytest.raises(ModelError, match="the order of the labels art, sport, war is not known"):
        read_checkpoint(tmp_path / "third", task="sentiment", name="sentiment")
    read_checkpoint(tmp_path / "third", task="sentiment", name="mood", options={"scale": ("war", "sport", "art")})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: transformers.AlbertConfig(
                vocab_size=300,
                embedding_size=16,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=128,
            ),
            "has the architecture albert",
        ),
        (tiny.ARCHITECTURES["bart"][0], "has the architecture bart"),
        (tiny.ARCHITECTURES["t5"][0], "has the architecture t5"),
    ],
)
def test_architectures_whose_heads_use_more_than_states_are_refused_by_name(
    tmp_path: Path, config: Any, message: str
) -> None:
    described = config()
    described.num_labels = 3
    described.decoder_start_token_id = 0
    transformers.AutoModelForSequenceClassification.from_config(described).save_pretrained(tmp_path)
    save_tokenizer(tiny.ARCHITECTURES["bert"][1](), tmp_path)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path, task="classification", name="topics")


def test_logits_that_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint("classification", "bert", tmp_path / "theirs")
    copy_weights = nlptasks.models.huggingface._copy_weights

    def copy_wrongly(module: Any, original: Any, where: str) -> None:
        copy_weights(module, original, where)
        module.classifier.bias.data += 2e-5

    monkeypatch.setattr(nlptasks.models.huggingface, "_copy_weights", copy_wrongly)
    with pytest.raises(ModelError, match=r"has the architecture bert, whose logits differ from the original's by 2"):
        import_checkpoint(tmp_path / "theirs", task="classification", output=tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    make_checkpoint("classification", "bert", tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not finite in classifier.bias"):
        read_checkpoint(tmp_path / "theirs", task="classification", name="topics")


def test_a_head_without_an_auto_class_cannot_be_written(backbones: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{name} left", "label": name} for name in ("Ada", "Bob")] * 3
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(own) + "\n" for own in rows))
    settings = TrainSettings(backbone=str(backbones / "bart"), epochs=1, lr=1e-3, precision="fp32")
    nlptasks.train(f"classification={tmp_path / 'train.jsonl'}", output=tmp_path / "model", settings=settings)
    with pytest.raises(ModelError, match="has the architecture bart, for which AutoModelForSequenceClassification has"):
        to_hugging_face(tmp_path / "model", "classification", output=tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_the_pipeline_explains_the_limits_of_checkpoints(tmp_path: Path) -> None:
    make_checkpoint("classification", "bert", tmp_path / "theirs")
    with pytest.raises(
        UsageError, match=r"a Hugging Face checkpoint has one head; .* task: classification, ner, qa, sentiment"
    ):
        pipeline(model=tmp_path / "theirs")
    with pytest.raises(UsageError, match=r"needs an exported model.*nlptasks import .* --task classification -o DIR"):
        pipeline("classification", model=tmp_path / "theirs", backend="onnx")
    with pytest.raises(ModelError, match=r"is a Hugging Face checkpoint, so it is no model; run: nlptasks import"):
        Model.load(tmp_path / "theirs")
    with pytest.raises(ModelError, match=r"'owner/model': is no folder here and cannot be had from the hub"):
        pipeline("classification", model="owner/model")


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("ner", {"class_weights": {"PER": 2.0}}),
        ("classification", {"class_weights": {"art": 2, "war": 0.5}}),
        ("sentiment", {"scale": ("bad", "ok", "good"), "class_weights": {"bad": 2.0}}),
        ("qa", {"no_answer": True}),
    ],
)
def test_a_stored_model_keeps_typed_options(task: str, options: dict[str, Any], tmp_path: Path) -> None:
    labels = {"id2label": {0: "ok", 1: "good", 2: "bad"}} if task == "sentiment" else {}
    make_checkpoint(task, "bert", tmp_path / "theirs", **labels)
    made = import_checkpoint(tmp_path / "theirs", task=task, output=tmp_path / "ours", options=options)
    head = pipeline(task, model=tmp_path / "ours").heads[task]
    assert head.config == made.heads[task].config
    assert {name: getattr(head.config, name) for name in options} == options


# The command line


def test_import_and_to_hf_by_command_line(tmp_path: Path) -> None:
    make_checkpoint("sentiment", "distilbert", tmp_path / "theirs", id2label={0: "LABEL_0", 1: "LABEL_1"})
    command = ["import", str(tmp_path / "theirs"), "--task", "sentiment", "-o", str(tmp_path / "ours")]
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, "HEAD.scale=" in done.stderr) == (4, True)
    done = CliRunner().invoke(main, [*command, "--name", "mood", "--set", "mood.scale=LABEL_0,LABEL_1"])
    assert done.exit_code == 0, done.output
    assert "mood: logits are the original's within 1e-05" in done.stdout
    assert CliRunner().invoke(main, command).exit_code == 2  # the folder is not empty
    done = CliRunner().invoke(main, ["predict", str(tmp_path / "ours"), TEXT, "--json"])
    assert json.loads(done.stdout)["results"]["mood"]["label"] in ("LABEL_0", "LABEL_1")
    assert -1 <= json.loads(done.stdout)["results"]["mood"]["polarity"] <= 1
    assert "imported with nlptasks" in (tmp_path / "ours" / "README.md").read_text()
    done = CliRunner().invoke(main, ["to-hf", str(tmp_path / "ours"), "mood", "-o", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(main, ["to-hf", str(tmp_path / "ours"), "tone", "-o", str(tmp_path / "x")]).exit_code == 2
    shutil.rmtree(tmp_path / "theirs")
    assert np.isfinite(
        pipeline("sentiment", model=tmp_path / "again", options={"sentiment": {"scale": ["LABEL_0", "LABEL_1"]}})(
            TEXT
        ).polarity
    )
