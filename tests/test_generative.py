"""Heads that write: their own vocabulary, long texts, several answers, and encoder-decoders of others in and out."""

from __future__ import annotations

import gzip
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from rouge_score import rouge_scorer
from tokenizers import processors

import nlptasks
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.config import TrainSettings
from nlptasks.data.datasets import load_data
from nlptasks.errors import DataError, ModelError, UsageError
from nlptasks.generation.target_vocabulary import own_config, own_decoder
from nlptasks.heads.seq2seq import Text
from nlptasks.heads.summarization import SummarizationHead
from nlptasks.heads.translation import TranslationHead
from nlptasks.inference.batching import make_units
from nlptasks.metrics.generation import rouge_scores
from nlptasks.models.huggingface import TOLERANCE, import_checkpoint, to_hugging_face
from nlptasks.models.model import Model
from nlptasks.pipeline import pipeline
from nlptasks.testing.backbones import save_tokenizer
from nlptasks.types import FIRST, Row

TEXT = "Ada Smith saw London and left Paris, Rome or Berlin."
LANGUAGES = {"source_language": "en", "target_language": "de"}


def head_on(backbone: Path, rows: list[Row], **given: Any) -> TranslationHead:
    loaded = load_backbone(str(backbone))
    config = TranslationHead.for_backbone(TranslationHead.configure(rows, given), rows, loaded.info)
    return TranslationHead(config, backbone=loaded.info)


def rows_of(*pairs: tuple[str, str]) -> list[Row]:
    return [Row({"source": one, "target": two}, f"row {number}") for number, (one, two) in enumerate(pairs)]


@pytest.mark.parametrize("cls", [SummarizationHead, TranslationHead])
def test_every_dev_target_survives_encoding_and_decoding(cls: Any, backbones: Path) -> None:
    parts = load_data(cls.sample_folder(), cls.formats, {}).parts
    backbone = load_backbone(str(backbones / "bert"))
    head = cls(
        cls.for_backbone(cls.configure(parts["train"], {}), parts["train"], backbone.info), backbone=backbone.info
    )
    for row in [*parts["dev"], *parts["test"]]:
        [target] = head.read(row).targets
        assert head.vocabulary.decode(head.vocabulary.encode(target, add_special_tokens=False).ids) == target


@pytest.mark.parametrize(
    "text", ["Straße, ärgerlich!", "日本語と한국어", "👍🏽  zwei", "</s> <pad> <s>", "\tTab", "a\u0301"]
)
def test_a_vocabulary_writes_what_it_has_never_seen(text: str, backbones: Path) -> None:
    head = head_on(backbones / "bert", rows_of(("a", "ein Haus"), ("b", "zwei Häuser")))
    ids = head.vocabulary.encode(text, add_special_tokens=False).ids
    assert not set(ids) & {0, 1, 2}
    assert head.vocabulary.decode(ids) == text


@pytest.fixture(scope="module")
def translator(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned a few sentences by heart, exported too."""
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


def test_it_learns_trains_and_runs_the_same_on_both_runtimes(translator: Path) -> None:
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
        assert one[2] == Text("", None, False)
    assert pipeline("translation", model=translator)("ada saw london").text == "Ada sah London."


def test_results_do_not_depend_on_the_texts_beside_them(translator: Path) -> None:
    sources = ["ada saw london", "bob left paris " * 5, "cleo saw rome", "x"]
    for options in ({}, {"num_beams": 2}, {"do_sample": True}):
        pipe = pipeline("translation", model=translator, backend="torch", options={"translation": options})
        assert [one.text for one in pipe(sources)] == [pipe(source).text for source in sources]


def test_several_answers_are_a_list_the_best_first(translator: Path) -> None:
    options = {"translation": {"num_beams": 4, "num_return_sequences": 3}}
    found = pipeline("translation", model=translator, options=options)("ada saw london")
    assert len(found) == 3
    assert found[0].text == "Ada sah London."
    assert len({one.text for one in found}) == 3


def test_what_is_cut_says_so(translator: Path) -> None:
    short = pipeline("translation", model=translator, options={"translation": {"max_new_tokens": 2}})("ada saw london")
    assert short.truncated
    assert not pipeline("translation", model=translator)("ada saw london").truncated
    long = "ada saw london " * 100
    assert pipeline("translation", model=translator)(long).truncated
    parts = pipeline(
        "translation", model=translator, options={"translation": {"long_texts": "windows", "max_new_tokens": 40}}
    )
    head = parts.engine.heads["translation"]
    [windows] = parts.engine.tokenizer.windows(head.sources(head.read(Row({"source": long}, "row 1"))))
    assert len(windows) > 1
    assert max(map(len, windows)) - min(map(len, windows)) < len(windows)  # no scrap at the end
    assert len(parts(long).text) > len(pipeline("translation", model=translator)(long).text)


def test_texts_are_heard_as_they_are_written(translator: Path) -> None:
    pipe = pipeline("translation", model=translator)
    heard: list[str] = []
    head = pipe.engine.heads["translation"]
    assert isinstance(head, TranslationHead)
    head.listener = heard.append
    assert pipe("bob left paris").text == "Bob verließ Paris."
    assert "".join(heard) == "Bob verließ Paris."
    assert len(heard) > 3
    head.config = replace(head.config, long_texts="windows")
    with pytest.raises(UsageError, match="long_texts: is windows, with a listener, and a text has several"):
        pipe("ada saw london " * 100)


def test_a_step_has_no_more_scores_than_fit(translator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("translation", model=translator, options={"translation": {"num_beams": 2}})
    sources = ["ada saw london", "bob left paris", "cleo saw rome"]
    whole = pipe(sources)
    monkeypatch.setattr("nlptasks.heads.seq2seq.MOST_SCORES", 1)
    assert [one.text for one in pipe(sources)] == [one.text for one in whole]


def test_options_are_evaluated(translator: Path) -> None:
    data = str(translator.parent / "dev.jsonl")
    whole = nlptasks.evaluate(translator, f"translation={data}")
    options = {"max_new_tokens": "2"}
    cut = nlptasks.evaluate(translator, nlptasks.Target("translation", "translation", data, options=options))
    assert cut.metrics["bleu"] < whole.metrics["bleu"] / 2
    assert whole.measured_by.startswith("BLEU nrefs:1|case:mixed")


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
def test_wrong_rows_are_named(fields: dict[str, Any], message: str, backbones: Path) -> None:
    head = head_on(backbones / "bert", rows_of(("a", "b"), ("c", "d")))
    with pytest.raises(DataError, match=message):
        head.read_gold_row(Row(fields, "row 1"))


def test_several_references_count(backbones: Path) -> None:
    head = head_on(backbones / "bert", rows_of(("a", "b"), ("c", "d")))
    examples = [head.read(Row({"source": "x", "target": ["a", "the house is old today"]}, "row 1")) for _ in range(4)]
    assert head.metrics(examples, [Text("the house is old today", 0.5, False)] * 4)["bleu"] == pytest.approx(100)
    assert rouge_scores([["a", "the house is old"]], ["the house is old"])["rougeL"] == 1


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
def test_the_signature_says_what_a_word_is(language: str, text: str, tokenizer: str, backbones: Path) -> None:
    head = head_on(backbones / "bert", rows_of(("a", text)), target_language=language)
    examples = [head.read(Row({"source": "x", "target": text}, "row 1"))]
    assert head.metrics(examples, [Text(text, 0.5, False)])["bleu"] == pytest.approx(100)
    assert f"tok:{tokenizer}|" in head.measured_by()


def test_the_loss_is_that_of_hugging_face_targets_padded_and_smoothed(tmp_path: Path) -> None:
    original = make_checkpoint("bart", tmp_path / "theirs")
    head = head_on(tmp_path / "theirs", rows_of(("a", "b")), label_smoothing="0.1")
    head.adopt(load_backbone(str(tmp_path / "theirs")).pretrained)
    ids, labels = torch.randint(3, 290, (2, 7)), torch.randint(3, 290, (2, 5))
    labels[1, 3:] = -100
    with torch.no_grad():
        states = original.get_encoder()(input_ids=ids).last_hidden_state
        ours, count = head.eval().loss(states, {"mask": torch.ones_like(ids), "labels": labels})
        logits = original(input_ids=ids, labels=labels).logits
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1, reduction="sum"
    )
    assert int(count) == 8
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_parallel_files_are_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "train.source").write_text("one\ntwo\n")
    (tmp_path / "train.target").write_text("eins\nzwei\n")
    (tmp_path / "dev.source").write_text("three\n")
    (tmp_path / "dev.target").write_text("drei\n")
    parts = load_data(tmp_path, TranslationHead.formats, {}).parts
    assert [row.fields for row in parts["train"]] == [
        {"source": "one", "target": "eins"},
        {"source": "two", "target": "zwei"},
    ]
    assert parts["dev"][0].where.endswith("dev.source:1")
    assert {Path(name).name for name in load_data(tmp_path, TranslationHead.formats, {}).files} == {
        f"{part}.{end}" for part in ("train", "dev") for end in ("source", "target")
    }
    (tmp_path / "dev.target").unlink()
    with gzip.open(tmp_path / "dev.target.gz", "wt") as packed:
        packed.write("drei\n")
    assert load_data(tmp_path, TranslationHead.formats, {}).parts == parts
    (tmp_path / "dev.target").write_text("drei\nvier\n")
    (tmp_path / "dev.target.gz").unlink()
    with pytest.raises(DataError, match=r"dev.source:2: ends after 1 lines, dev.target goes on"):
        load_data(tmp_path, TranslationHead.formats, {})
    (tmp_path / "dev.target.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"dev.source: has both dev.target and dev.target.gz beside it"):
        load_data(tmp_path, TranslationHead.formats, {})
    (tmp_path / "dev.target.gz").unlink()
    (tmp_path / "dev.target").unlink()
    with pytest.raises(DataError, match=r"dev.source: has no file beside it with the same name that ends in .target"):
        load_data(tmp_path, TranslationHead.formats, {})


def test_parallel_files_may_have_names_with_dots_and_be_summaries(tmp_path: Path) -> None:
    for end, line in (("source", "long\n"), ("target", "short\n")):
        (tmp_path / f"train.v1.[x].{end}").write_text(line)
    [row] = load_data(tmp_path, SummarizationHead.formats, {}).parts["train"]
    assert row.fields == {"document": "long", "summary": "short"}


def test_tables_are_read_too(tmp_path: Path, backbones: Path) -> None:
    (tmp_path / "train.csv").write_text("document,summary\nlong,short\n")
    [row] = load_data(tmp_path, SummarizationHead.formats, {}).parts["train"]
    backbone = load_backbone(str(backbones / "bert")).info
    config = SummarizationHead.for_backbone(SummarizationHead.configure([row], {}), [row], backbone)
    head = SummarizationHead(config, backbone=backbone)
    assert head.read_gold_row(row).targets == ("short",)


def make_checkpoint(name: str, folder: Path, **generation: Any) -> Any:
    """A random encoder-decoder as Hugging Face writes it."""
    make_tokenizer = tiny.ARCHITECTURES["t5" if name.startswith("t5") else "bart"][1]
    model = tiny.make_writer(tiny.WRITERS[name]())
    for key, value in generation.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(folder)
    save_tokenizer(make_tokenizer(), folder)
    return model


@pytest.mark.parametrize("name", tiny.WRITERS)
def test_encoder_decoders_come_in_and_go_out_with_the_same_logits(name: str, tmp_path: Path) -> None:
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
def test_what_was_trained_here_goes_out_with_the_same_logits(name: str, tmp_path: Path) -> None:
    make_checkpoint(name, tmp_path / "theirs")
    rows = "".join(json.dumps({"source": f"ada {n}", "target": f"bob {n}"}) + "\n" for n in range(24))
    (tmp_path / "train.jsonl").write_text(rows)
    settings = TrainSettings(backbone=str(tmp_path / "theirs"), epochs=1, lr=1e-2, precision="fp32")
    nlptasks.train(f"translation={tmp_path / 'train.jsonl'}", output=tmp_path / "ours", settings=settings)
    to_hugging_face(tmp_path / "ours", "translation", output=tmp_path / "hf")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    [decoders] = {again.get_decoder().embed_tokens.weight}
    assert not torch.equal(again.get_encoder().embed_tokens.weight, decoders)  # each has learned its own
    import_checkpoint(tmp_path / "hf", task="translation", output=tmp_path / "back")
    one, two = (pipeline("translation", model=tmp_path / folder)("ada 7") for folder in ("ours", "back"))
    assert one.text == two.text


def test_what_a_checkpoint_says_for_generate_becomes_options(tmp_path: Path) -> None:
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
    import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours", options={"num_beams": "2"})
    found = Model.load(tmp_path / "ours").heads["summarization"].config
    assert (found.num_beams, found.max_new_tokens, found.min_new_tokens, found.no_repeat_ngram_size) == (2, 8, 2, 3)
    assert (found.never, found.length_penalty, found.early_stopping, found.forced_last) == ((7,), 2.0, "true", 2)


def test_what_a_checkpoint_says_and_is_not_followed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    says = {"suppress_tokens": [7, 9], "bad_words_ids": [[8], [10, 11]], "num_beam_groups": 1, "min_p": 0.3}
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(says))
    import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours")
    assert Model.load(tmp_path / "ours").heads["summarization"].config.never == (8, 7, 9)
    assert caplog.messages == [
        "what the checkpoint says for generate is followed, but for min_p, bad_words_ids of several tokens"
    ]


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"_attn_implementation": "evil/repo"}, "names code to be run"),
        ({"top_p": 0.0}, "generation_config.json.* says that top_p is 0.0"),
        ({"num_beams": "4"}, "says that num_beams is '4'"),
        ({"decoder_start_token_id": 1_000_000}, "says decoder_start_token_id=1000000, expected a token from 0 to 2"),
        ({"eos_token_id": "x"}, "says eos_token_id='x'"),
        ({"bad_words_ids": [["x"]]}, "says bad_words_ids='x'"),
        ({"suppress_tokens": [-1]}, "says suppress_tokens=-1"),
    ],
)
def test_what_a_checkpoint_must_not_say_for_generate(says: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(says))
    with pytest.raises(ModelError, match=message):
        import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours")


def test_a_sampling_temperature_is_not_folded_into_weights(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs", do_sample=True, temperature=0.5)
    import_checkpoint(tmp_path / "theirs", task="summarization", output=tmp_path / "ours")
    to_hugging_face(tmp_path / "ours", "summarization", output=tmp_path / "again")
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    assert (again.do_sample, again.temperature) == (True, 0.5)


@pytest.mark.parametrize("changed", [{"encoder_layers": 10**6}, {"attn_implementation": "x/y"}, {"d_model": "64"}])
def test_a_decoder_of_ones_own_is_checked(changed: dict[str, Any]) -> None:
    text = json.dumps({**own_decoder(width=64, layers=2, vocabulary_size=300), **changed})
    with pytest.raises(ValueError, match="the decoder's config has"):
        own_config(text)


def test_parts_have_the_prefix_and_do_not_overlap(tmp_path: Path) -> None:
    make_checkpoint("t5", tmp_path / "theirs")
    options = {"prefix": "a b: ", "long_texts": "windows", "max_new_tokens": 3}
    pipe = pipeline("summarization", model=tmp_path / "theirs", options={"summarization": options})
    head = pipe.engine.heads["summarization"]
    text = "Ada Smith saw London. " * 200
    [windows] = pipe.engine.tokenizer.windows(head.sources(head.read(Row({"document": text}, "row 1"))))
    begins = windows[0].ids[:3].tolist()
    assert len(windows) > 2
    ends = [0]
    for window in windows:
        assert window.ids[:3].tolist() == begins
        inside = window.offsets[(window.parts == FIRST) & (window.offsets[:, 1] > 0)]
        assert inside[0, 0] >= ends[-1]
        ends.append(int(inside[-1, 1]))
    assert pipe({"document": text}).text is not None


def test_the_prefix_stands_in_the_config_even_of_newer_checkpoints(tmp_path: Path) -> None:
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
    head = pipe.heads["summarization"]
    [[window]] = pipe.engine.tokenizer.windows(head.sources(head.read(Row({"document": TEXT}, "row 1"))))
    assert window.ids.tolist() == tokenizer(prefix + TEXT, truncation=False, padding=False)["input_ids"]
    inside = window.offsets[(window.parts == FIRST) & (window.offsets[:, 1] > 0)]
    assert (inside[0, 0], inside[-1, 1]) == (0, len(TEXT))


def test_a_checkpoint_writes_what_generate_writes(tmp_path: Path) -> None:
    original = make_checkpoint("bart", tmp_path / "theirs", num_beams=3, max_length=12, forced_bos_token_id=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    found = pipeline("summarization", model=tmp_path / "theirs")(TEXT)
    ids = tokenizer(TEXT, return_tensors="pt", truncation=False, padding=False)["input_ids"]
    with torch.no_grad():
        theirs = original.generate(input_ids=ids)
    assert found.text == tokenizer.decode(theirs[0], skip_special_tokens=True).strip()
    assert found.text


def test_training_begins_with_the_pretrained_decoder(tmp_path: Path) -> None:
    original = make_checkpoint("t5-v1.1", tmp_path / "theirs")
    backbone = load_backbone(str(tmp_path / "theirs"))
    rows = rows_of(("a", "b"), ("c", "d"))
    config = TranslationHead.for_backbone(TranslationHead.configure(rows, {}), rows, backbone.info)
    head = TranslationHead(config, backbone=backbone.info)
    head.adopt(backbone.pretrained)
    for name, weight in head.decoder.model.named_parameters():
        assert torch.equal(weight, original.get_parameter(name)), name
    assert head.own_lr_scale == 1


def test_targets_begin_as_the_backbones_texts_do(tmp_path: Path) -> None:
    rows = rows_of(("a", "b"), ("c", "d"))
    for name, first in (("t5", None), ("bart", 1)):
        make_checkpoint(name, tmp_path / name)
        assert head_on(tmp_path / name, rows).marks.forced_first == first


def test_training_goes_by_what_the_backbone_says_for_generate(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs", forced_bos_token_id=5, bad_words_ids=[[7]], num_beams=3)
    (saved := tmp_path / "saved").mkdir()
    load_backbone(str(tmp_path / "theirs")).save(saved)
    for folder in (tmp_path / "theirs", saved):
        head = head_on(folder, rows_of(("a", "b")))
        assert (head.marks.forced_first, head.marks.never, head.config.num_beams) == (5, (7,), 1)


def test_a_language_pair_that_a_checkpoint_does_not_know_is_answered_with_those_it_knows(tmp_path: Path) -> None:
    make_checkpoint("t5", tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    specific = {f"translation_en_to_{other}": {"prefix": f"to {other}: "} for other in ("de", "fr")}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "task_specific_params": specific}))

    def prefix(**given: str) -> str:
        pipe = pipeline("translation", model=tmp_path / "theirs", options={"translation": given})
        return str(pipe.heads["translation"].config.prefix)

    assert prefix(source_language="en", target_language="fr") == "to fr: "
    assert prefix(prefix="x: ") == "x: "
    with pytest.raises(UsageError, match="'en' and 'es'; take one of en to de, en to fr"):
        prefix(source_language="en", target_language="es")


def test_an_option_against_the_checkpoint_is_the_users(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs", min_length=50, max_length=60)
    with pytest.raises(UsageError, match="min_new_tokens: is 49, above max_new_tokens"):
        pipeline("summarization", model=tmp_path / "theirs", options={"summarization": {"max_new_tokens": 20}})


def test_what_is_cut_in_training_is_counted(backbones: Path) -> None:
    rows = rows_of(("a " * 300, "b"), ("c", "b " * 50), ("d", "b"))
    head = head_on(backbones / "bert", rows, max_target_tokens="7")
    examples = head.read_gold(rows)
    windows = load_backbone(str(backbones / "bert")).tokenizer().windows([head.sources(one)[0] for one in examples])
    assert head.warnings(examples, windows) == [
        "1 of 3 rows of train have a source that is cut at 128 tokens, the most that the backbone reads",
        "1 of 3 rows of train have a target that is cut at max_target_tokens=7",
    ]
    assert make_units(head, load_backbone(str(backbones / "bert")).tokenizer(), examples)[1].tokens == 7


def test_encoder_decoders_read_whole_documents(tmp_path: Path) -> None:
    config = tiny.WRITERS["bart"]()
    config.max_position_embeddings = 2000
    tiny.make_writer(config).save_pretrained(tmp_path)
    save_tokenizer(tiny.ARCHITECTURES["bart"][1](), tmp_path)
    assert load_backbone(str(tmp_path)).info.max_tokens == 1024


def test_two_models_in_one_config_are_refused_by_name(tmp_path: Path) -> None:
    parts = (transformers.BertConfig(), transformers.BertConfig(is_decoder=True, add_cross_attention=True))
    transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has the architecture encoder-decoder, which does not say"):
        load_backbone(str(tmp_path))


def test_what_a_checkpoint_cannot_say_is_told(tmp_path: Path) -> None:
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
def test_marks_belong_to_their_words(one: str, other: str) -> None:
    assert rouge_scores([[one]], [one])["rouge1"] == 1
    assert rouge_scores([[one]], [other])["rouge1"] == 0
    assert rouge_scores([["ada ❤️ bob"]], ["cleo ❤️ dan"])["rouge1"] == 0


@pytest.mark.parametrize("text", ["Привет, мир", "안녕 세상", "γειά σου", "新华社北京电"])  # noqa: RUF001
def test_summaries_in_any_script_are_measured(text: str) -> None:
    assert rouge_scores([[text]], [text])["rougeL"] == 1
    assert rouge_scores([[text]], ["anders"])["rougeL"] == 0
    assert 0 < rouge_scores([[f"{text} {text[:2]}"]], [text])["rouge1"] < 1


def test_latin_words_are_those_of_rouge_score() -> None:
    gold, found = "The U.S. runners' runs: 3.5 miles_long!", "runner running 5 miles long in the us"
    theirs = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(gold, found)["rougeL"].fmeasure
    assert rouge_scores([[gold]], [found])["rougeL"] == pytest.approx(theirs)


def test_without_a_pretrained_decoder_there_is_no_checkpoint(backbones: Path, translator: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="bert, which has no decoder"):
        import_checkpoint(backbones / "bert", task="summarization", output=tmp_path / "m")
    with pytest.raises(UsageError, match="has a decoder of its own on bert"):
        to_hugging_face(translator, "translation", output=tmp_path / "hf")


def test_marks_that_the_tokenizer_does_not_have_are_refused(tmp_path: Path) -> None:
    config = tiny.WRITERS["bart"]()
    config.vocab_size += 10
    tiny.make_writer(config).save_pretrained(tmp_path)
    save_tokenizer(tiny.ARCHITECTURES["bart"][1](), tmp_path)
    says = {"decoder_start_token_id": 2, "eos_token_id": config.vocab_size - 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(says))
    with pytest.raises(ModelError, match="with the tokens 309, which its tokenizer does not have"):
        pipeline("summarization", model=tmp_path)


@pytest.mark.parametrize("named", [{"summarization": None}, ["summarization"], {"summarization": [1]}])
def test_what_a_checkpoint_says_of_a_task_in_no_known_way_is_passed_over(named: Any, tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "task_specific_params": named}))
    assert pipeline("summarization", model=tmp_path / "theirs").heads["summarization"].config.num_beams == 1


def test_a_prefix_leaves_room_for_the_text(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    pipe = pipeline("summarization", model=tmp_path / "theirs", options={"summarization": {"prefix": "ada " * 200}})
    with pytest.raises(UsageError, match=r"prefix: is \d+ tokens, of 128 that the backbone reads; give at most 110"):
        pipe("bob")


@pytest.mark.parametrize("name", ["marian", "pegasus"])
def test_positions_that_are_computed_are_not_learned(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(name, tmp_path / "theirs")
    (tmp_path / "train.jsonl").write_text("".join(f'{{"source": "ada {n}", "target": "bob {n}"}}\n' for n in range(8)))
    learned: list[torch.Tensor | None] = []
    step = torch.optim.AdamW.step

    def heard(self: Any, *given: Any) -> Any:
        learned.extend(weight.grad for group in self.param_groups for weight in group["params"])
        return step(self, *given)

    monkeypatch.setattr("torch.optim.AdamW.step", heard)
    settings = TrainSettings(backbone=str(tmp_path / "theirs"), epochs=1, precision="fp32")
    nlptasks.train(f"translation={tmp_path / 'train.jsonl'}", output=tmp_path / "ours", settings=settings)
    assert learned
    assert all(gradient is not None for gradient in learned)


def test_sizes_of_the_own_decoder_are_options(backbones: Path) -> None:
    rows = rows_of(("a", "b"), ("c", "d"))
    head = head_on(backbones / "bert", rows, decoder_layers="2", decoder_width="64", vocabulary_size="300")
    assert (head.decoder.layers, head.decoder.width) == (2, 64)
    assert head.decoder.vocabulary_size <= 300
    with pytest.raises(UsageError, match="vocabulary_size"):
        head_on(backbones / "bert", rows, vocabulary_size="20")
    for name, value in (("decoder_width", "131"), ("decoder_width", "-64"), ("decoder_layers", "200")):
        with pytest.raises(UsageError, match=f"{name}: is {value}"):
            head_on(backbones / "bert", rows, **{name: value})
    assert head_on(backbones / "bert", rows, decoder_width="312").decoder.cache_shape == (4, 78)


def test_targets_are_cut_where_they_are_told_to_be(backbones: Path) -> None:
    head = head_on(backbones / "bert", rows_of(("a", "b " * 50), ("c", "d")), max_target_tokens="7")
    example = head.read(rows_of(("a", "b " * 50))[0])
    [windows] = load_backbone(str(backbones / "bert")).tokenizer().windows(head.sources(example))
    labels = head.features(example, windows[0])["labels"]
    assert labels.dtype == np.int64
    assert len(labels) == 7


def with_codes(folder: Path) -> None:
    """An encoder-decoder whose tokenizer puts a language's code before a text, as M2M100's and mBART's do."""
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


def test_languages_are_told_by_their_codes(tmp_path: Path) -> None:
    with_codes(tmp_path / "theirs")
    options = {"source_language": "fr", "target_language": "de_DE", "max_new_tokens": 6}
    pipe = pipeline("translation", model=tmp_path / "theirs", options={"translation": options})
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    french, german = tokenizer.convert_tokens_to_ids(["fr_XX", "de_DE"])
    head = pipe.engine.heads["translation"]
    assert isinstance(head, TranslationHead)
    [[window]] = pipe.engine.tokenizer.windows(head.sources(head.read(Row({"source": "ada"}, "row 1"))))
    assert window.ids[0] == french
    original = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        ids = torch.from_numpy(window.ids)[None]
        theirs = original.generate(input_ids=ids, forced_bos_token_id=german, max_new_tokens=6)
    assert theirs[0, 1] == german
    assert pipe("ada").text == tokenizer.decode(theirs[0], skip_special_tokens=True).strip()
    labels = head.features(head.read(Row({"source": "ada", "target": "ada"}, "row 1")), window)["labels"]
    assert (labels[0], labels[-1]) == (german, 2)


def test_where_texts_begin_with_their_language_it_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    with_codes(tmp_path / "theirs")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    french, german = tokenizer.convert_tokens_to_ids(["fr_XX", "de_DE"])
    says = json.dumps({"decoder_start_token_id": french, "eos_token_id": 2, "max_new_tokens": 6})
    (tmp_path / "theirs" / "generation_config.json").write_text(says)
    options = {"source_language": "en", "target_language": "de"}
    pipe = pipeline("translation", model=tmp_path / "theirs", options={"translation": options})
    original = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs")
    ids = torch.tensor([tokenizer("ada")["input_ids"]])
    with torch.no_grad():
        theirs = original.generate(input_ids=ids, decoder_start_token_id=german, max_new_tokens=6)
    assert pipe("ada").text == tokenizer.decode(theirs[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize(("code", "message"), [("xx", "source_language: is 'xx'"), ("", "is not given")])
def test_unknown_languages_are_answered_with_the_known(code: str, message: str, tmp_path: Path) -> None:
    with_codes(tmp_path / "theirs")
    options = {"translation": {"source_language": code, "target_language": "de_DE"}}
    with pytest.raises(UsageError, match=f"{message}.*de_DE.*en_XX.*fr_XX"):
        pipeline("translation", model=tmp_path / "theirs", options=options)


def test_no_more_is_written_than_the_decoder_has_positions_for(tmp_path: Path) -> None:
    make_checkpoint("bart", tmp_path / "theirs")
    options = {"max_new_tokens": 500, "min_new_tokens": 400, "num_beams": 1}
    pipe = pipeline("summarization", model=tmp_path / "theirs", options={"summarization": options})
    head = pipe.engine.heads["summarization"]
    assert isinstance(head, SummarizationHead)
    assert head.decoder.positions == 128
    assert pipe(TEXT).truncated
