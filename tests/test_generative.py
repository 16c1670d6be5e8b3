"""Sequence-to-sequence heads: vocabulary, long texts, several answers, and encoder-decoders as checkpoints in and out."""

from __future__ import annotations

import gzip
import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from click.testing import CliRunner
from rouge_score import rouge_scorer
from tokenizers import processors

import nlptasks
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.cli.main import main
from nlptasks.config import TrainSettings
from nlptasks.data.datasets import load_data
from nlptasks.errors import DataError, ModelError, UsageError
from nlptasks.generation.decoder_init import FreshDecoder
from nlptasks.generation.hypotheses import GeneratedText
from nlptasks.generation.target_vocabulary import decoder_config, read_decoder_config
from nlptasks.heads.base import read_gold, sample_folder
from nlptasks.heads.summarization import SummarizationHead
from nlptasks.heads.translation import TranslationConfig, TranslationHead
from nlptasks.inference.batching import make_instances
from nlptasks.metrics.base import Metrics, merge
from nlptasks.metrics.generation import rouge_counts, rouge_scores
from nlptasks.models.huggingface import TOLERANCE, import_checkpoint, to_hugging_face
from nlptasks.models.model import Model
from nlptasks.networks.base import make_network
from nlptasks.networks.seq2seq import Seq2Seq
from nlptasks.pipeline import Pipeline, pipeline
from nlptasks.testing.backbones import save_tokenizer
from nlptasks.types import FIRST, Row, Window

TEXT = "Ada Smith saw London and left Paris, Rome or Berlin."
LANGUAGES = {"source_language": "en", "target_language": "de"}


def head_on(backbone: Path, rows: list[Row], **options: Any) -> TranslationHead:
    info = load_backbone(str(backbone)).info
    return TranslationHead(TranslationHead.configure(rows, TranslationConfig(**options), info), info)


def network_on(backbone: Path, head: TranslationHead) -> Seq2Seq:
    network = make_network(head.network, load_backbone(str(backbone)).info, head.network_options())
    assert isinstance(network, Seq2Seq)
    return network


def measured(head: Any, examples: list[Any], results: list[Any]) -> Metrics:
    metrics: Metrics = head.metrics(merge(map(head.count, examples, results)))
    return metrics


def rouge(gold: list[str], predicted: str) -> dict[str, float]:
    return rouge_scores(rouge_counts(gold, predicted))


def rows_of(*pairs: tuple[str, str]) -> list[Row]:
    return [Row({"source": one, "target": two}, f"row {number}") for number, (one, two) in enumerate(pairs)]


@pytest.mark.parametrize("cls", [SummarizationHead, TranslationHead])
def test_every_dev_target_survives_encoding_and_decoding(cls: Any, backbones: Path) -> None:
    parts = load_data(sample_folder(cls), cls.schema.formats, {}).parts
    info = load_backbone(str(backbones / "bert")).info
    head = cls(cls.configure(parts["train"], cls.Config(), info), info)
    for row in [*parts["dev"], *parts["test"]]:
        [target] = head.read(row).targets
        assert head.vocabulary.decode(head.vocabulary.encode(target, add_special_tokens=False).ids) == target


@pytest.mark.parametrize(
    "text", ["Straße, ärgerlich!", "日本語と한국어", "👍🏽  zwei", "</s> <pad> <s>", "\tTab", "a\u0301"]
)
def test_a_vocabulary_encodes_unseen_characters(text: str, backbones: Path) -> None:
    head = head_on(backbones / "bert", rows_of(("a", "ein Haus"), ("b", "zwei Häuser")))
    ids = head.vocabulary.encode(text, add_special_tokens=False).ids
    assert not set(ids) & {0, 1, 2}
    assert head.vocabulary.decode(ids) == text


@pytest.fixture(scope="module")
def translator(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has memorised a few sentences, with an export."""
    place = tmp_path_factory.mktemp("translator")
    pairs = [
        ("ada saw london", "Ada sah London."),
        ("bob left paris", "Bob verließ Paris."),
        ("cleo saw rome", "Cleo sah Rom."),
    ]
    lines = "".join(json.dumps({"source": one, "target": two}) + "\n" for one, two in pairs)
    (place / "train.jsonl").write_text(lines * 60)
    (place / "dev.jsonl").write_text(lines)
    settings = TrainSettings(
        backbone=str(backbones / "bert"), epochs=10, lr=3e-3, head_lr=1e-2, batch_tokens=60, precision="fp32"
    )
    options = {**LANGUAGES, "label_smoothing": 0.0, "max_new_tokens": 24, "decoder_layers": 1}
    target = nlptasks.Target("translation", "translation", str(place), options=options)
    nlptasks.train(target, output=place / "model", settings=settings)
    nlptasks.export(place / "model")
    return place / "model"


def test_both_runtimes_generate_what_was_learned(translator: Path) -> None:
    log = tiny.log_of(translator)
    assert log["metrics"]["dev"]["bleu"] > 90
    sources = ["ada saw london", "bob left paris", "", "cleo saw rome", "somebody else " * 3]
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "seed": 3}):
        given = {"translation": options}
        one, two = (
            pipeline("translation", model=translator, backend=backend, options=given)(sources)
            for backend in ("torch", "onnx")
        )
        assert [found.text for found in one] == [found.text for found in two]
        for found, other in zip(one, two, strict=True):
            assert (found.score is None) == (other.score is None)
            assert found.score is None or found.score == pytest.approx(other.score, abs=1e-4)
        assert one[2] == GeneratedText("", None, False)
    assert pipeline("translation", model=translator)("ada saw london").text == "Ada sah London."


def test_results_do_not_depend_on_other_texts(translator: Path) -> None:
    sources = ["ada saw london", "bob left paris " * 5, "cleo saw rome", "x"]
    for options in ({}, {"num_beams": 2}, {"do_sample": True}):
        pipe = pipeline("translation", model=translator, backend="torch", options={"translation": options})
        assert [one.text for one in pipe(sources)] == [pipe(source).text for source in sources]


def test_several_answers_are_a_list_with_the_best_first(translator: Path) -> None:
    options = {"translation": {"num_beams": 4, "num_return_sequences": 3}}
    found = pipeline("translation", model=translator, options=options)("ada saw london")
    assert len(found) == 3
    assert found[0].text == "Ada sah London."
    assert len({one.text for one in found}) == 3


def test_cut_texts_are_marked_as_truncated(translator: Path) -> None:
    short = pipeline("translation", model=translator, options={"translation": {"max_new_tokens": 2}})("ada saw london")
    assert short.truncated
    assert not pipeline("translation", model=translator)("ada saw london").truncated
    long = "ada saw london " * 100
    assert pipeline("translation", model=translator)(long).truncated
    parts = pipeline(
        "translation", model=translator, options={"translation": {"long_texts": "windows", "max_new_tokens": 40}}
    )
    windows = windows_of(parts, "translation", {"source": long})
    assert len(windows) > 1
    assert max(map(len, windows)) - min(map(len, windows)) < len(windows)  # no short rest at the end
    assert len(parts(long).text) > len(pipeline("translation", model=translator)(long).text)


def test_texts_are_streamed(translator: Path) -> None:
    pipe = pipeline("translation", model=translator)
    pieces = list(pipe.stream_text("bob left paris"))
    assert "".join(pieces) == "Bob verließ Paris."
    assert len(pieces) > 3
    assert pipe("bob left paris").text == "Bob verließ Paris."
    long = "ada saw london " * 100
    assert "".join(pipe.stream_text(long)) == pipe(long).text
    windows = pipeline("translation", model=translator, options={"translation": {"long_texts": "windows"}})
    assert "".join(windows.stream_text("bob left paris")) == "Bob verließ Paris."
    with pytest.raises(UsageError, match="long_texts: is windows, and a text that is streamed has several"):
        list(windows.stream_text(long))


def test_each_request_gets_its_own_stream(translator: Path) -> None:
    """Streams that run at the same time in several threads never receive each other's pieces."""
    pipe = pipeline("translation", model=translator)
    sources = ["ada saw london", "bob left paris", "cleo saw rome"]
    expected = [pipe(source).text for source in sources]
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(10):
            found = "".join(pipe.stream_text(sources[index % 3]))
            if found != expected[index % 3]:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_stream_that_nobody_reads_any_more_stops(translator: Path) -> None:
    pipe = pipeline("translation", model=translator)
    before = threading.active_count()
    stream = pipe.stream_text("bob left paris")
    assert next(stream)
    stream.close()
    assert threading.active_count() == before
    assert pipe("bob left paris").text == "Bob verließ Paris."


def test_a_step_has_at_most_as_many_scores_as_fit(translator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("translation", model=translator, options={"translation": {"num_beams": 2}})
    sources = ["ada saw london", "bob left paris", "cleo saw rome"]
    whole = pipe(sources)
    monkeypatch.setattr("nlptasks.generation.cache.MOST_SCORES", 1)
    assert [one.text for one in pipe(sources)] == [one.text for one in whole]


def test_evaluation_uses_the_options(translator: Path) -> None:
    data = str(translator.parent / "dev.jsonl")
    whole = nlptasks.evaluate(translator, f"translation={data}")
    options = {"max_new_tokens": 2}
    cut = nlptasks.evaluate(translator, nlptasks.Target("translation", "translation", data, options=options))
    assert cut.metrics["bleu"] < whole.metrics["bleu"] / 2
    assert whole.signature.startswith("BLEU nrefs:1|case:mixed")


def test_a_bare_text_is_a_source(translator: Path) -> None:
    pipe = pipeline("translation", model=translator)
    assert pipe({"source": "ada saw london"}) == pipe("ada saw london")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "a", "target": " "}, "row 1: has an empty target"),
        ({"source": " ", "target": "a"}, "row 1: has an empty source"),
        ({"source": 5, "target": "a"}, "source is 5, expected a string"),
        ({"source": "a", "target": 5}, "target is 5, expected a text or a list of texts"),
        ({"source": "a", "target": []}, "expected a text or a list of texts"),
        ({"source": "a"}, "has no gold answer"),
        ({"target": "a"}, "has no 'source'"),
    ],
)
def test_wrong_rows_are_refused(fields: dict[str, Any], message: str, backbones: Path) -> None:
    head = head_on(backbones / "bert", rows_of(("a", "b"), ("c", "d")))
    with pytest.raises(DataError, match=message):
        read_gold(head, [Row(fields, "row 1")])


def test_several_references_count(backbones: Path) -> None:
    head = head_on(backbones / "bert", rows_of(("a", "b"), ("c", "d")))
    examples = [head.read(Row({"source": "x", "target": ["a", "the house is old today"]}, "row 1")) for _ in range(4)]
    found = measured(head, examples, [GeneratedText("the house is old today", 0.5, False)] * 4)
    assert (found.score, found.main, found.scale) == (pytest.approx(100), "bleu", 100)
    assert found.values["support"] == 4
    assert rouge(["a", "the house is old"], "the house is old")["rougeL"] == 1


def test_rouge_is_the_mean_over_texts() -> None:
    counts = [rouge_counts(["ada"], "ada"), rouge_counts(["bob"], "ada"), rouge_counts(["ada bob"], "ada")]
    found = rouge_scores(merge(counts))
    assert (found["rouge1"], found["support"]) == (pytest.approx((1 + 0 + 2 / 3) / 3), 3)


@pytest.mark.parametrize(
    ("language", "text", "tokenizer"),
    [
        ("zh", "新华社北京电", "zh"),
        ("zho_Hans", "新华社北京电", "zh"),
        ("", "新华社北京电", "char"),
        ("ja", "日本語の文です", "ja-mecab" if importlib.util.find_spec("ipadic") else "char"),
        ("de", "Ein altes Haus.", "13a"),
    ],
)
def test_the_signature_names_the_tokenizer_of_the_metric(
    language: str, text: str, tokenizer: str, backbones: Path
) -> None:
    head = head_on(backbones / "bert", rows_of(("a", text)), target_language=language)
    examples = [head.read(Row({"source": "x", "target": text}, "row 1"))]
    found = measured(head, examples, [GeneratedText(text, 0.5, False)])
    assert found.score == pytest.approx(100)
    assert f"tok:{tokenizer}|" in found.signature


def test_the_loss_of_padded_and_smoothed_targets_equals_hugging_face(tmp_path: Path) -> None:
    original = make_checkpoint("bart", tmp_path / "theirs")
    head = head_on(tmp_path / "theirs", rows_of(("a", "b")), label_smoothing=0.1)
    network = network_on(tmp_path / "theirs", head).eval()
    network.load_pretrained(load_backbone(str(tmp_path / "theirs")).pretrained)
    ids, labels = torch.randint(3, 290, (2, 7)), torch.randint(3, 290, (2, 5))
    labels[1, 3:] = -100
    with torch.no_grad():
        states = original.get_encoder()(input_ids=ids).last_hidden_state
        batch = {"mask": torch.ones_like(ids), "labels": labels}
        outputs = network.training_outputs(states, batch)
        ours, count = network.loss(outputs, batch)
        logits = original(input_ids=ids, labels=labels).logits
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1, reduction="sum"
    )
    assert outputs["logits"].shape == logits.shape
    assert int(count) == 8
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_parallel_files_are_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "train.source").write_text("one\ntwo\n")
    (tmp_path / "train.target").write_text("eins\nzwei\n")
    (tmp_path / "dev.source").write_text("three\n")
    (tmp_path / "dev.target").write_text("drei\n")
    parts = load_data(tmp_path, TranslationHead.schema.formats, {}).parts
    assert [row.fields for row in parts["train"]] == [
        {"source": "one", "target": "eins"},
        {"source": "two", "target": "zwei"},
    ]
    assert parts["dev"][0].where.endswith("dev.source:1")
    assert {Path(name).name for name in load_data(tmp_path, TranslationHead.schema.formats, {}).files} == {
        f"{part}.{end}" for part in ("train", "dev") for end in ("source", "target")
    }
    (tmp_path / "dev.target").unlink()
    with gzip.open(tmp_path / "dev.target.gz", "wt") as packed:
        packed.write("drei\n")
    assert load_data(tmp_path, TranslationHead.schema.formats, {}).parts == parts
    (tmp_path / "dev.target").write_text("drei\nvier\n")
    (tmp_path / "dev.target.gz").unlink()
    with pytest.raises(DataError, match=r"dev.source:2: ends after 1 lines, dev.target has more"):
        load_data(tmp_path, TranslationHead.schema.formats, {})
    (tmp_path / "dev.target.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"dev.source: has both dev.target and dev.target.gz beside it"):
        load_data(tmp_path, TranslationHead.schema.formats, {})
    (tmp_path / "dev.target.gz").unlink()
    (tmp_path / "dev.target").unlink()
    with pytest.raises(DataError, match=r"dev.source: has no file beside it with the same name that ends in .target"):
        load_data(tmp_path, TranslationHead.schema.formats, {})


def test_parallel_files_may_have_dots_in_their_names_and_hold_summaries(tmp_path: Path) -> None:
    for end, line in (("source", "long\n"), ("target", "short\n")):
        (tmp_path / f"train.v1.[x].{end}").write_text(line)
    [row] = load_data(tmp_path, SummarizationHead.schema.formats, {}).parts["train"]
    assert row.fields == {"document": "long", "summary": "short"}


def test_tables_are_read(tmp_path: Path, backbones: Path) -> None:
    (tmp_path / "train.csv").write_text("document,summary\nlong,short\n")
    [row] = load_data(tmp_path, SummarizationHead.schema.formats, {}).parts["train"]
    info = load_backbone(str(backbones / "bert")).info
    head = SummarizationHead(SummarizationHead.configure([row], SummarizationHead.Config(), info), info)
    [example] = read_gold(head, [row])
    assert example.targets == ("short",)


def windows_of(pipe: Pipeline, name: str, fields: dict[str, str]) -> list[Window]:
    """Return the windows of a row in a pipeline."""
    head = pipe.heads[name]
    [windows] = pipe._engine.tokenizer.windows(head.inputs(head.read(Row(fields, "row 1"))))
    return windows


def make_checkpoint(name: str, folder: Path, **generation: Any) -> Any:
    """Write a random encoder-decoder as a Hugging Face checkpoint."""
    make_tokenizer = tiny.ARCHITECTURES["t5" if name.startswith("t5") else "bart"][1]
    model = tiny.make_writer(tiny.WRITERS[name]())
    for key, value in generation.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(folder)
    save_tokenizer(make_tokenizer(), folder)
    return model


@pytest.mark.parametrize("name", tiny.WRITERS)
def test_imported_encoder_decoders_are_written_with_the_same_logits(name: str, tmp_path: Path) -> None:
    original = make_checkpoint(name, tmp_path / "theirs", num_beams=2, max_length=9, forced_eos_token_id=2)
    import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours")
    auto, lost = to_hugging_face(tmp_path / "ours", "summarization", output=tmp_path / "again")
    assert (auto, lost) == ("AutoModelForSeq2SeqLM", [])
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again").eval()
    ids, tokens = torch.randint(3, 290, (2, 7)), torch.randint(3, 290, (2, 5))
    with torch.no_grad():
        one, two = (
            model(input_ids=ids, decoder_input_ids=tokens, use_cache=False).logits for model in (original, again)
        )
    torch.testing.assert_close(one, two, atol=TOLERANCE, rtol=0)
    assert again.generation_config.num_beams == 2
    config = Model.load(tmp_path / "ours").heads["summarization"].config
    assert (config.num_beams, config.max_new_tokens, config.forced_last) == (2, 8, 2)


@pytest.mark.parametrize("name", ["bart", "t5", "t5-v1.1", "marian"])
def test_trained_encoder_decoders_are_written_as_checkpoints(name: str, tmp_path: Path) -> None:
    make_checkpoint(name, tmp_path / "theirs")
    rows = "".join(json.dumps({"source": f"ada {n}", "target": f"bob {n}"}) + "\n" for n in range(24))
    (tmp_path / "train.jsonl").write_text(rows)
    settings = TrainSettings(backbone=str(tmp_path / "theirs"), epochs=1, lr=1e-2, precision="fp32")
    nlptasks.train(f"translation={tmp_path / 'train.jsonl'}", output=tmp_path / "ours", settings=settings)
    to_hugging_face(tmp_path / "ours", "translation", output=tmp_path / "hf")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    [decoders] = {again.get_decoder().embed_tokens.weight}
    assert not torch.equal(again.get_encoder().embed_tokens.weight, decoders)  # each was trained on its own
    import_checkpoint(tmp_path / "hf", task="translation", output=tmp_path / "back")
    one, two = (pipeline("translation", model=tmp_path / folder)("ada 7") for folder in ("ours", "back"))
    assert one.text == two.text


def test_settings_for_generate_become_options(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    older = {
        "num_beams": 4,
        "max_length": 9,
        "min_length": 3,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[7], [8, 9]],
    }
    specific = {"summarization": {"length_penalty": 2.0, "early_stopping": True}}
    (tmp_path / "theirs" / "generation_config.json").unlink()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, **older, "task_specific_params": specific}))
    import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours", options={"num_beams": 2})
    found = Model.load(tmp_path / "ours").heads["summarization"].config
    assert (found.num_beams, found.max_new_tokens, found.min_new_tokens, found.no_repeat_ngram_size) == (2, 8, 2, 3)
    assert (found.never, found.length_penalty, found.early_stopping, found.forced_last) == ((7,), 2.0, True, 2)


@pytest.mark.parametrize("early", [True, False, "never"])
def test_a_stored_model_keeps_early_stopping(early: bool | str, tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    options = {"early_stopping": early, "num_beams": 2}
    import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours", options=options)
    assert pipeline("summarization", model=tmp_path / "ours").heads["summarization"].config.early_stopping == early
    text = str(early).lower()
    done = CliRunner().invoke(
        main, ["predict", str(tmp_path / "ours"), "ada", "--set", f"summarization.early_stopping={text}"]
    )
    assert done.exit_code == 0, done.stderr
    to_hugging_face(tmp_path / "ours", "summarization", output=tmp_path / "again")
    again = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert again.get("early_stopping", False) == early


def test_unsupported_settings_for_generate_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    settings = {"suppress_tokens": [7, 9], "bad_words_ids": [[8], [10, 11]], "num_beam_groups": 1, "min_p": 0.3}
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(settings))
    import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours")
    assert Model.load(tmp_path / "ours").heads["summarization"].config.never == (8, 7, 9)
    assert caplog.messages == [
        "the checkpoint's settings for generate are used, except min_p, bad_words_ids of several tokens"
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_attn_implementation": "evil/repo"}, "names code to run"),
        ({"top_p": 0.0}, "generation_config.json.* says that top_p is 0.0"),
        ({"num_beams": "4"}, "says that num_beams is '4'"),
        ({"decoder_start_token_id": 1_000_000}, "has decoder_start_token_id=1000000, expected a token from 0 to 2"),
        ({"eos_token_id": "x"}, "has eos_token_id='x'"),
        ({"bad_words_ids": [["x"]]}, "has bad_words_ids='x'"),
        ({"suppress_tokens": [-1]}, "has suppress_tokens=-1"),
    ],
)
def test_wrong_settings_for_generate_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours")


def test_a_sampling_temperature_does_not_change_the_weights(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs", do_sample=True, temperature=0.5)
    import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours")
    to_hugging_face(tmp_path / "ours", "summarization", output=tmp_path / "again")
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    assert (again.do_sample, again.temperature) == (True, 0.5)


@pytest.mark.parametrize("changed", [{"encoder_layers": 10**6}, {"attn_implementation": "x/y"}, {"d_model": "64"}])
def test_the_config_of_a_fresh_decoder_is_checked(changed: dict[str, Any]) -> None:
    text = json.dumps({**decoder_config(width=64, layers=2, vocabulary_size=300), **changed})
    with pytest.raises(ValueError, match="the decoder's config has"):
        read_decoder_config(text)
    with pytest.raises(ModelError, match="decoder: cannot be built from its config"):
        FreshDecoder(text)


def test_windows_have_the_prefix_and_do_not_overlap(tmp_path: Path) -> None:
    make_checkpoint("t5", tmp_path / "theirs")
    options = {"prefix": "a b: ", "long_texts": "windows", "max_new_tokens": 3}
    pipe = pipeline("summarization", model=tmp_path / "theirs", options={"summarization": options})
    text = "Ada Smith saw London. " * 200
    windows = windows_of(pipe, "summarization", {"document": text})
    begins = windows[0].ids[:3].tolist()
    assert len(windows) > 2
    ends = [0]
    for window in windows:
        assert window.ids[:3].tolist() == begins
        inside = window.offsets[(window.parts == FIRST) & (window.offsets[:, 1] > 0)]
        assert inside[0, 0] >= ends[-1]
        ends.append(int(inside[-1, 1]))
    assert pipe({"document": text}).text is not None


def test_the_prefix_is_read_from_the_config_of_newer_checkpoints(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs", num_beams=2)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "prefix": " "}))
    found = pipeline("summarization", model=tmp_path / "theirs").heads["summarization"].config
    assert (found.prefix, found.num_beams) == (" ", 2)


@pytest.mark.parametrize(("name", "prefix"), [("t5", "a b: "), ("bart", " "), ("bart", "a b: ")])
def test_a_prefix_is_read_as_hugging_face_reads_it(name: str, prefix: str, tmp_path: Path) -> None:
    make_checkpoint(name, tmp_path / "theirs")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    pipe = pipeline("summarization", model=tmp_path / "theirs", options={"summarization": {"prefix": prefix}})
    [window] = windows_of(pipe, "summarization", {"document": TEXT})
    assert window.ids.tolist() == tokenizer(prefix + TEXT, truncation=False, padding=False)["input_ids"]
    inside = window.offsets[(window.parts == FIRST) & (window.offsets[:, 1] > 0)]
    assert (inside[0, 0], inside[-1, 1]) == (0, len(TEXT))


def test_a_checkpoint_generates_what_generate_does(tmp_path: Path) -> None:
    original = make_checkpoint("bart", tmp_path / "theirs", num_beams=3, max_length=12, forced_bos_token_id=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    found = pipeline("summarization", model=tmp_path / "theirs")(TEXT)
    ids = tokenizer(TEXT, return_tensors="pt", truncation=False, padding=False)["input_ids"]
    with torch.no_grad():
        theirs = original.generate(input_ids=ids)
    assert found.text == tokenizer.decode(theirs[0], skip_special_tokens=True).strip()
    assert found.text


def test_training_starts_from_the_pretrained_decoder(tmp_path: Path) -> None:
    original = make_checkpoint("t5-v1.1", tmp_path / "theirs")
    head = head_on(tmp_path / "theirs", rows_of(("a", "b"), ("c", "d")))
    network = network_on(tmp_path / "theirs", head)
    network.load_pretrained(load_backbone(str(tmp_path / "theirs")).pretrained)
    for name, weight in network.decoder.model.named_parameters():
        assert torch.equal(weight, original.get_parameter(name)), name
    assert network.own_lr_scale == 1


def test_targets_start_like_inputs(tmp_path: Path) -> None:
    rows = rows_of(("a", "b"), ("c", "d"))
    for name, first in (("t5", None), ("bart", 1)):
        make_checkpoint(name, tmp_path / name)
        assert head_on(tmp_path / name, rows).special.forced_first == first


def test_training_uses_the_special_tokens_of_the_backbone(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs", forced_bos_token_id=5, bad_words_ids=[[7]], num_beams=3)
    (saved := tmp_path / "saved").mkdir()
    load_backbone(str(tmp_path / "theirs")).save(saved)
    for folder in (tmp_path / "theirs", saved):
        head = head_on(folder, rows_of(("a", "b")))
        assert (head.special.forced_first, head.special.never, head.config.num_beams) == (5, (7,), 1)


def test_an_unknown_language_pair_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    make_checkpoint("t5", tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    specific = {f"translation_en_to_{other}": {"prefix": f"to {other}: "} for other in ("de", "fr")}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "task_specific_params": specific}))

    def prefix(**given: str) -> str:
        pipe = pipeline("translation", model=tmp_path / "theirs", options={"translation": given})
        return str(pipe.heads["translation"].config.prefix)

    assert prefix(source_language="en", target_language="fr") == "to fr: "
    assert prefix(prefix="x: ") == "x: "
    with pytest.raises(UsageError, match="'en' and 'es'; use one of en to de, en to fr"):
        prefix(source_language="en", target_language="es")


def test_an_option_that_contradicts_the_checkpoint_is_refused(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs", min_length=50, max_length=60)
    with pytest.raises(UsageError, match="min_new_tokens: is 49, above max_new_tokens"):
        pipeline("summarization", model=tmp_path / "theirs", options={"summarization": {"max_new_tokens": 20}})


def test_cut_training_texts_are_counted_in_a_warning(backbones: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of(("a " * 300, "b"), ("c", "b " * 50), ("d", "b"))
    head = head_on(backbones / "bert", rows, max_target_tokens=7)
    assert caplog.messages == [
        "1 of 3 rows of train have a source that is cut at 128 tokens, the most that the backbone reads",
        "1 of 3 rows of train have a target that is cut at max_target_tokens=7",
    ]
    tokenizer, axes = load_backbone(str(backbones / "bert")).tokenizer(), Seq2Seq.targets
    assert make_instances(head, tokenizer, read_gold(head, rows), axes)[1].tokens == 7
    caplog.clear()
    head_on(backbones / "bert", rows, long_texts="windows", max_new_tokens=40)
    assert caplog.messages == [
        "1 of 3 rows of train have a target that is cut at max_new_tokens=40 when it is generated",
    ]


def test_encoder_decoders_read_whole_documents(tmp_path: Path) -> None:
    config = tiny.WRITERS["bart"]()
    config.max_position_embeddings = 2000
    tiny.make_writer(config).save_pretrained(tmp_path)
    save_tokenizer(tiny.ARCHITECTURES["bart"][1](), tmp_path)
    assert load_backbone(str(tmp_path)).info.max_tokens == 1024


def test_a_config_of_two_models_is_refused_by_name(tmp_path: Path) -> None:
    parts = (transformers.BertConfig(), transformers.BertConfig(is_decoder=True, add_cross_attention=True))
    transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match="has the architecture encoder-decoder, whose config has no vocab_size or hidden_size"
    ):
        load_backbone(str(tmp_path))


def test_options_that_a_checkpoint_cannot_express_are_listed(tmp_path: Path) -> None:
    with_codes(tmp_path / "theirs")
    options = {"source_language": "fr", "target_language": "de", "long_texts": "windows", "prefix": "x: "}
    import_checkpoint(tmp_path / "theirs", task="translation", output=tmp_path / "ours", options=options)
    _, lost = to_hugging_face(tmp_path / "ours", "translation", output=tmp_path / "hf")
    assert [text.partition(":")[0] for text in lost] == [
        "the prefix 'x",
        "that long texts are read in windows",
        "the source language 'fr'",
    ]


@pytest.mark.parametrize(("one", "other"), [("हिन्दी", "हानादू"), ("தமிழ்", "தாமாழா"), ("cafe\u0301", "cafe")])
def test_combining_marks_belong_to_their_words(one: str, other: str) -> None:
    assert rouge([one], one)["rouge1"] == 1
    assert rouge([one], other)["rouge1"] == 0
    assert rouge(["ada ❤️ bob"], "cleo ❤️ dan")["rouge1"] == 0


@pytest.mark.parametrize("text", ["Привет, мир", "안녕 세상", "γειά σου", "新华社北京电"])  # noqa: RUF001
def test_summaries_in_any_script_are_measured(text: str) -> None:
    assert rouge([text], text)["rougeL"] == 1
    assert rouge([text], "anders")["rougeL"] == 0
    assert 0 < rouge([f"{text} {text[:2]}"], text)["rouge1"] < 1


def test_rouge_of_latin_texts_equals_rouge_score() -> None:
    gold, found = "The U.S. runners' runs: 3.5 miles_long!", "runner running 5 miles long in the us"
    theirs = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(gold, found)["rougeL"].fmeasure
    assert rouge([gold], found)["rougeL"] == pytest.approx(theirs)


def test_a_fresh_decoder_cannot_be_a_checkpoint(backbones: Path, translator: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="bert, which has no decoder"):
        import_checkpoint(backbones / "bert", task="summarization", output=tmp_path / "m")
    with pytest.raises(UsageError, match="is one of the head's own on bert"):
        to_hugging_face(translator, "translation", output=tmp_path / "hf")


def test_special_tokens_that_the_tokenizer_lacks_are_refused(tmp_path: Path) -> None:
    config = tiny.WRITERS["bart"]()
    config.vocab_size += 10
    tiny.make_writer(config).save_pretrained(tmp_path)
    save_tokenizer(tiny.ARCHITECTURES["bart"][1](), tmp_path)
    settings = {"decoder_start_token_id": 2, "eos_token_id": config.vocab_size - 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="with the tokens 309, which its tokenizer does not have"):
        pipeline("summarization", model=tmp_path)


@pytest.mark.parametrize("named", [{"summarization": None}, ["summarization"], {"summarization": [1]}])
def test_malformed_settings_of_a_task_are_ignored(named: Any, tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "task_specific_params": named}))
    assert pipeline("summarization", model=tmp_path / "theirs").heads["summarization"].config.num_beams == 1


def test_a_prefix_leaves_room_for_the_text(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    pipe = pipeline("summarization", model=tmp_path / "theirs", options={"summarization": {"prefix": "ada " * 200}})
    with pytest.raises(UsageError, match=r"prefix: has \d+ tokens, and the backbone reads 128; use at most 110"):
        pipe("bob")


@pytest.mark.parametrize("name", ["marian", "pegasus"])
def test_sinusoidal_positions_are_not_trained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(name, tmp_path / "theirs")
    (tmp_path / "train.jsonl").write_text("".join(f'{{"source": "ada {n}", "target": "bob {n}"}}\n' for n in range(8)))
    learned: list[torch.Tensor | None] = []
    step = torch.optim.AdamW.step

    def recorded(self: Any, *given: Any) -> Any:
        learned.extend(weight.grad for group in self.param_groups for weight in group["params"])
        return step(self, *given)

    monkeypatch.setattr("torch.optim.AdamW.step", recorded)
    settings = TrainSettings(backbone=str(tmp_path / "theirs"), epochs=1, precision="fp32")
    nlptasks.train(f"translation={tmp_path / 'train.jsonl'}", output=tmp_path / "ours", settings=settings)
    assert learned
    assert all(gradient is not None for gradient in learned)


def test_sizes_of_a_fresh_decoder_are_options(backbones: Path) -> None:
    rows = rows_of(("a", "b"), ("c", "d"))
    head = head_on(backbones / "bert", rows, decoder_layers=2, decoder_width=64, vocabulary_size=300)
    decoder = network_on(backbones / "bert", head).decoder
    assert (decoder.layers, decoder.width) == (2, 64)
    assert decoder.vocabulary_size == head.vocabulary.get_vocab_size() <= 300
    with pytest.raises(UsageError, match="vocabulary_size"):
        head_on(backbones / "bert", rows, vocabulary_size=20)
    for name, value in (("decoder_width", 131), ("decoder_width", -64), ("decoder_layers", 200)):
        with pytest.raises(UsageError, match=f"{name}: is {value}"):
            head_on(backbones / "bert", rows, **{name: value})
    wide = head_on(backbones / "bert", rows, decoder_width=312)
    assert network_on(backbones / "bert", wide).decoder.cache_shape == (4, 78)


def test_targets_are_cut_at_max_target_tokens(backbones: Path) -> None:
    head = head_on(backbones / "bert", rows_of(("a", "b " * 50), ("c", "d")), max_target_tokens=7)
    example = head.read(rows_of(("a", "b " * 50))[0])
    [windows] = load_backbone(str(backbones / "bert")).tokenizer().windows(head.inputs(example))
    labels = head.targets(example, windows[0])["labels"]
    assert labels.dtype == np.int64
    assert len(labels) == 7


def with_codes(folder: Path) -> None:
    """Write an encoder-decoder whose tokenizer puts a language code before a text, as M2M100's and mBART's do."""
    tokenizer = tiny.ARCHITECTURES["bart"][1]()
    codes = ["en_XX", "de_DE", "fr_XX"]
    tokenizer.add_special_tokens(codes)
    special = [(token, tokenizer.token_to_id(token)) for token in (*codes, "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="en_XX $A </s>", pair="en_XX $A </s> $B </s>", special_tokens=special
    )
    config = tiny.WRITERS["mbart"]()
    config.vocab_size = tokenizer.get_vocab_size()
    tiny.make_writer(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def test_languages_are_given_by_their_codes(tmp_path: Path) -> None:
    with_codes(tmp_path / "theirs")
    options = {"source_language": "fr", "target_language": "de_DE", "max_new_tokens": 6}
    pipe = pipeline("translation", model=tmp_path / "theirs", options={"translation": options})
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    french, german = tokenizer.convert_tokens_to_ids(["fr_XX", "de_DE"])
    head = pipe.heads["translation"]
    [window] = windows_of(pipe, "translation", {"source": "ada"})
    assert window.ids[0] == french
    original = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        ids = torch.from_numpy(window.ids)[None]
        theirs = original.generate(input_ids=ids, forced_bos_token_id=german, max_new_tokens=6)
    assert theirs[0, 1] == german
    assert pipe("ada").text == tokenizer.decode(theirs[0], skip_special_tokens=True).strip()
    labels = head.targets(head.read(Row({"source": "ada", "target": "ada"}, "row 1")), window)["labels"]
    assert (labels[0], labels[-1]) == (german, 2)


def test_targets_that_start_with_their_language_start_with_the_chosen_one(tmp_path: Path) -> None:
    with_codes(tmp_path / "theirs")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    french, german = tokenizer.convert_tokens_to_ids(["fr_XX", "de_DE"])
    settings = json.dumps({"decoder_start_token_id": french, "eos_token_id": 2, "max_new_tokens": 6})
    (tmp_path / "theirs" / "generation_config.json").write_text(settings)
    options = {"source_language": "en", "target_language": "de"}
    pipe = pipeline("translation", model=tmp_path / "theirs", options={"translation": options})
    original = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs")
    ids = torch.tensor([tokenizer("ada")["input_ids"]])
    with torch.no_grad():
        theirs = original.generate(input_ids=ids, decoder_start_token_id=german, max_new_tokens=6)
    assert pipe("ada").text == tokenizer.decode(theirs[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize(("code", "message"), [("xx", "source_language: is 'xx'"), ("", "is not given")])
def test_unknown_languages_are_refused_with_the_known_ones(code: str, message: str, tmp_path: Path) -> None:
    with_codes(tmp_path / "theirs")
    options = {"translation": {"source_language": code, "target_language": "de_DE"}}
    with pytest.raises(UsageError, match=f"{message}.*de_DE.*en_XX.*fr_XX"):
        pipeline("translation", model=tmp_path / "theirs", options=options)


def test_texts_end_where_the_decoder_has_no_more_positions(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    options = {"max_new_tokens": 500, "min_new_tokens": 400, "num_beams": 1}
    pipe = pipeline("summarization", model=tmp_path / "theirs", options={"summarization": options})
    assert load_backbone(str(tmp_path / "theirs")).info.positions == 128
    assert pipe(TEXT).truncated


def test_rouge_lsum_compares_sentence_by_sentence() -> None:
    one, two = "Ada left Rome today.", "Rome today. Ada left."
    for gold, predicted in ((one, two), (two, one)):
        assert rouge([gold], predicted)["rougeL"] == pytest.approx(0.5)
    assert rouge([one], two)["rougeLsum"] == 1  # both sentences are found in the one
    assert rouge(["Ada left. Bob stayed."], "Bob stayed. Ada left.")["rougeLsum"] == 1
