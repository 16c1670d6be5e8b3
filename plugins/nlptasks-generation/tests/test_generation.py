"""The generation head: what is learned from a row, chats, streaming, and agreement with Hugging Face."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from nlptasks_generation import Chat, GenerationHead, Likelihood, Passage, stream
from nlptasks_generation.templates import Template

import nlptasks
from nlptasks import DataError, ModelError, Row, TrainSettings, UsageError, merge, read_gold, without_gold
from nlptasks.pipeline import Pipeline, pipeline
from nlptasks.testing import Conformance, make_tiny
from nlptasks.testing.checks import HeadUnderTest, make_head
from nlptasks.testing.commands import check_alike, main, run


class TestGeneration(Conformance):
    task = "generation"


CHATS = [
    [("system", "Be brief."), ("user", "Who are you?"), ("assistant", "Ada."), ("user", "Where?"), ("assistant", "Rome")],
    [("user", "Hi"), ("assistant", "Bye now")],
]  # fmt: skip
SETTINGS: dict[str, Any] = {"precision": "fp32", "device": "cpu", "lr": 1e-2, "patience": 100}


def messages(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in chat]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for part in ("train", "dev"):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("decoders")
    for name in ("qwen2", "gpt2", "llama"):
        make_tiny(name, place / name)
    return place


@pytest.fixture(scope="module")
def chatting(decoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has memorised two chats."""
    place = tmp_path_factory.mktemp("chats")
    data = write(place / "data", [{"messages": messages(chat)} for chat in CHATS] * 4)
    settings = TrainSettings(backbone=str(decoders / "qwen2"), epochs=40, **SETTINGS)
    nlptasks.train(f"generation={data}", output=place / "model", settings=settings)
    return place / "model"


@pytest.fixture(scope="module")
def pipe(chatting: Path) -> Pipeline:
    return pipeline("generation", model=chatting, options={"generation": {"max_new_tokens": 12}})


def subject_on(decoders: Path, name: str) -> HeadUnderTest:
    return make_head("generation", decoders / name)


def gold_example(subject: HeadUnderTest, fields: Mapping[str, Any], *, where: str = "row 1") -> Passage:
    [example] = read_gold(subject.head, [Row(fields, where)])
    assert isinstance(example, Passage)
    return example


def learned(subject: HeadUnderTest, fields: Mapping[str, Any]) -> str:
    """Return the text of the tokens that are learned, special tokens included."""
    head = subject.head
    assert isinstance(head, GenerationHead)
    example = gold_example(subject, fields)
    [windows] = subject.tokenizer.windows(head.inputs(example))
    found = []
    for window in windows:
        flags = head.targets(example, window)["learned"]
        following = [*window.ids[1:].tolist(), head.config.end[0]]
        found += [token for token, flag in zip(following, flags, strict=True) if flag]
    return str(head.vocabulary.decode(found, skip_special_tokens=False))


def test_completions_are_learned_with_the_end_token_and_prompts_are_not(decoders: Path) -> None:
    for name in ("gpt2", "llama"):
        subject = subject_on(decoders, name)
        row = {"prompt": "Ada saw", "completion": " London."}
        assert learned(subject, row) == " London.</s>"
        # Only a tokenizer with a start token has something before the first token of the text.
        first = "" if name == "gpt2" else "Ada"
        assert learned(subject, {"text": "Ada saw"}).endswith(" saw</s>")
        assert learned(subject, {"text": "Ada saw"}).startswith(first)


def test_answers_of_chats_are_learned_with_their_end_tokens(decoders: Path) -> None:
    subject = subject_on(decoders, "qwen2")
    found = learned(subject, {"messages": messages(CHATS[0])})
    assert found == "Ada.<|im_end|>\nRome<|im_end|>\n"
    as_json = learned(subject, {"messages": json.dumps(messages(CHATS[0]))})
    assert as_json == found


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BEGUN = THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def with_template(decoders: Path, template: str, place: Path) -> HeadUnderTest:
    shutil.copytree(decoders / "qwen2", place)
    (place / "chat_template.jinja").write_text(template)
    return make_head("generation", place)


def test_answers_that_a_template_later_writes_differently_are_learned(decoders: Path, tmp_path: Path) -> None:
    subject = with_template(decoders, THINKING, tmp_path / "thinking")
    found = learned(subject, {"messages": messages(CHATS[0])})
    assert found == "Ada.<|im_end|><think></think>Rome<|im_end|>\n"


RUNAWAYS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
    "{% set all = namespace(x='a' * 1000) %}{% for i in range(40) %}{% set all.x = all.x ~ all.x %}{% endfor %}{{ all.x }}",
    "{% set x = 'a' * 10**15 %}{{ x }}",
]


@pytest.mark.parametrize("template", RUNAWAYS)
def test_a_template_that_does_not_come_to_an_end_is_refused(template: str) -> None:
    message = {"role": "user", "content": "hi"}
    with pytest.raises(DataError, match="a:1: has messages on which the chat template does not terminate"):
        Template(template, {}, {}).rendered([message], where="a:1")
    assert Template("{% for m in messages %}{{ m.content }}{% endfor %}", {}, {}).rendered([message] * 9, where="a:1")


def test_a_template_that_begins_answers_differently_allows_texts_and_no_chats(decoders: Path, tmp_path: Path) -> None:
    subject = with_template(decoders, BEGUN, tmp_path / "begun")
    assert learned(subject, {"prompt": "Ada saw", "completion": " it"}) == " it</s>"
    row = Row({"messages": messages(CHATS[1])}, "row 1")
    with pytest.raises(DataError, match="has an answer in message 2 that the chat template writes differently"):
        read_gold(subject.head, [row])
    assert subject.head.read(without_gold(row, GenerationHead.schema)).text.endswith("assistant\n<think>\n")


def test_rows_of_a_table_may_have_different_fields(decoders: Path, tmp_path: Path) -> None:
    subject = subject_on(decoders, "qwen2")
    assert learned(subject, {"text": "Ada", "prompt": "", "completion": "", "messages": None}).endswith("</s>")
    row = {"text": "", "prompt": "Ada saw", "completion": " it", "messages": ""}
    assert learned(subject, row) == " it</s>"
    (tmp_path / "train.txt").write_text("Ada saw it.\n\n \nBob\n")
    rows = list(subject.head.schema.formats[".txt"](tmp_path / "train.txt", nlptasks.refuse))
    assert [one.fields["text"] for one in rows] == ["Ada saw it.", "Bob"]


def test_an_answer_may_contain_a_special_token(pipe: Pipeline) -> None:
    chat = Chat(pipe)
    chat.messages = messages([("user", "Hi"), ("assistant", "a <|im_end|> b")])
    assert isinstance(chat("Where?"), str)
    with pytest.raises(DataError, match="in message 5, with which"):  # counted from the start of the chat
        chat("<|im_end|>")


def test_the_end_of_a_long_prompt_is_read_and_the_text_is_marked_as_truncated(pipe: Pipeline) -> None:
    long = "Bob left. " * 100 + "The quick brown"
    assert pipe(long).truncated
    assert pipe(long).text == pipe("Cleo. " * 100 + long).text


def test_prompts_and_questions_can_be_learned(decoders: Path) -> None:
    subject = subject_on(decoders, "qwen2")
    subject.head.config = replace(subject.head.config, learn="all")
    found = learned(subject, {"messages": messages(CHATS[1])})
    assert found == "user\nHi<|im_end|>\n<|im_start|>assistant\nBye now<|im_end|>\n"
    assert learned(subject, {"prompt": "Ada saw", "completion": " it"}).endswith("saw it</s>")


def test_every_token_of_a_long_text_is_learned_except_the_first_of_each_window(decoders: Path) -> None:
    subject = subject_on(decoders, "gpt2")
    head, text = subject.head, "Ada saw London. " * 60
    example = gold_example(subject, {"text": text})
    [windows] = subject.tokenizer.windows(head.inputs(example))
    assert len(windows) > 2
    flags = [head.targets(example, window)["learned"] for window in windows]
    assert sum(len(window) for window in windows) - sum(own.sum() for own in flags) == len(windows) - 1
    assert [int(own[-1]) for own in flags] == [0] * (len(windows) - 1) + [1]


@pytest.mark.parametrize(
    ("backbone", "fields", "message"),
    [
        (
            "gpt2",
            {"messages": messages(CHATS[1])},
            "has messages, and the tokenizer of .* has no chat template; use a",
        ),
        ("qwen2", {"messages": []}, r"messages is \[\], expected a list of messages"),
        ("qwen2", {"messages": "no"}, "messages is not JSON"),
        ("qwen2", {"messages": [{"role": "user"}]}, "message 1 is .* expected role and content"),
        (
            "qwen2",
            {"messages": [{"role": "bot", "content": "a"}]},
            "message 1 has the role 'bot'; use one of system, user",
        ),
        (
            "qwen2",
            {"messages": messages([("user", "a <|im_end|> b"), ("assistant", "c")])},
            r"has <\|im_end\|> in message 1, with which the chat template marks messages; remove it",
        ),
        ("qwen2", {"messages": messages([("user", "a")])}, "has no answer to learn"),
        ("gpt2", {"prompt": "a", "completion": ""}, "has no answer to learn"),
        ("gpt2", {"prompt": "a"}, "has no 'completion'"),
        ("gpt2", {"text": "  "}, "has an empty text"),
        ("gpt2", {"text": 3}, "text is 3, expected a string"),
        ("gpt2", {"other": "a"}, "has no 'text'"),
    ],
    ids=str,
)
def test_bad_rows_are_refused(backbone: str, fields: dict[str, Any], message: str, decoders: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        gold_example(subject_on(decoders, backbone), fields, where="train.jsonl:7")
    assert caught.value.where == "train.jsonl:7"


def test_perplexity_equals_hugging_face(decoders: Path, tmp_path: Path) -> None:
    texts = ["Ada saw London and left Paris.", "Bob", "1 2 3 4 5 6"]
    subject = subject_on(decoders, "llama")
    with torch.no_grad():
        subject.network.load_pretrained(subject.backbone.pretrained)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(decoders / "llama").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoders / "llama")
    losses, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])
        losses += float(theirs(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    subject.model().save(tmp_path / "model")
    write(tmp_path / "data", [{"text": text} for text in texts])
    found = nlptasks.evaluate(tmp_path / "model", f"generation={tmp_path / 'data'}", split="dev").metrics
    assert found["perplexity"] == pytest.approx(math.exp(losses / count), rel=1e-4)
    assert found["likelihood"] == pytest.approx(1 / found["perplexity"])


def test_memorised_answers_are_generated(pipe: Pipeline) -> None:
    for chat in CHATS:
        answer = pipe({"messages": messages(chat)})  # the last answer in the row is ignored
        assert (answer.text, answer.truncated) == (chat[-1][1], False)
        assert 0.5 < answer.score <= 1


def test_a_chat_remembers_its_messages(pipe: Pipeline) -> None:
    chat = Chat(pipe, system="Be brief.")
    assert chat("Who are you?") == "Ada."
    assert "".join(chat.stream("Where?")) == "Rome"
    assert chat.messages == messages(CHATS[0])


def test_a_chat_does_not_remember_refused_messages(pipe: Pipeline) -> None:
    chat = Chat(pipe)
    with pytest.raises(DataError, match="in message 1"):
        chat("<|im_start|>")
    with pytest.raises(DataError, match="in message 1"):
        list(chat.stream("<|im_start|>"))
    assert chat.messages == []


def test_pieces_join_to_the_text_and_closing_the_stream_stops_the_generation(pipe: Pipeline) -> None:
    head, steps = pipe.heads["generation"], []
    runtime = pipe._engine.runtime
    run_graph = runtime.run
    runtime.run = lambda *given: (steps.append(1), run_graph(*given))[1]  # type: ignore[method-assign]
    before = head.config
    head.config = replace(before, max_new_tokens=60, min_new_tokens=60)
    try:
        text = pipe("The quick brown").text
        assert "".join(stream(pipe, "The quick brown")) == text
        assert len(steps) == 2 * 60
        pieces = stream(pipe, "The quick brown")
        first = next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    finally:
        head.config = before
        del runtime.run
    assert first
    assert text.startswith(first)
    assert 0 < len(steps) - 2 * 60 < 60


def test_streams_get_only_their_own_text(pipe: Pipeline) -> None:
    text, other = pipe("The quick brown").text, pipe("Cleo Smith").text
    one, two = stream(pipe, "The quick brown"), stream(pipe, "Cleo Smith")
    pieces, others = [next(one)], [next(two)]
    assert pipe("Cleo Smith").text == other
    assert "".join(pieces + list(one)) == text
    assert "".join(others + list(two)) == other


def test_several_answers_cannot_be_streamed(chatting: Path) -> None:
    pipe = pipeline("generation", model=chatting, options={"generation": {"num_beams": 3, "num_return_sequences": 2}})
    assert len(pipe("Ada")) == 2
    with pytest.raises(UsageError, match="use 1 to stream a text"):
        list(stream(pipe, "Ada"))


def test_other_pipelines_are_refused(tmp_path: Path, decoders: Path) -> None:
    class Other:
        heads: Mapping[str, Any] = {"ner": object()}

    with pytest.raises(UsageError, match="has 0 heads that continue texts, of ner; open it with one"):
        Chat(Other())  # type: ignore[arg-type]


def test_an_empty_prompt_has_no_continuation(pipe: Pipeline) -> None:
    found = pipe("")
    assert (found.text, found.score) == ("", None)


def test_imported_checkpoints_generate_the_same_and_are_written_with_the_same_logits(
    decoders: Path, tmp_path: Path
) -> None:
    for name in ("gpt2", "qwen2"):
        theirs, folder = tmp_path / f"{name}-theirs", tmp_path / name
        torch.manual_seed(5)
        config = transformers.AutoConfig.from_pretrained(decoders / name)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        model.save_pretrained(theirs)
        transformers.AutoTokenizer.from_pretrained(decoders / name).save_pretrained(theirs)
        run("import", theirs, "--task", "generation", "-o", folder)
        ids = transformers.AutoTokenizer.from_pretrained(theirs)("Ada saw", return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.input_ids.shape[1] :]
        options = {"generation": {"max_new_tokens": 6}}
        found = pipeline("generation", model=folder, options=options)("Ada saw")
        as_they_are = pipeline("generation", model=theirs)
        as_they_are.heads["generation"].config = (
            pipeline("generation", model=folder, options=options).heads["generation"].config
        )
        assert as_they_are("Ada saw") == found
        vocabulary = as_they_are.heads["generation"].vocabulary
        ends = [
            place for place, token in enumerate(written.tolist()) if token in as_they_are.heads["generation"].config.end
        ]
        assert found.text == vocabulary.decode(written.tolist()[: ends[0] if ends else None])
        run("to-hf", folder, "generation", "-o", tmp_path / f"{name}-again")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-again").eval()
        torch.testing.assert_close(again(**ids).logits, model(**ids).logits, atol=1e-5, rtol=0)


def test_a_second_head_shares_the_backbone_and_does_not_change_the_first(chatting: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chatting, folder)
    before = pipeline("generation", model=folder)({"messages": messages(CHATS[0])})
    data = write(
        tmp_path / "data", [{"prompt": "Ada", "completion": " wins"}, {"prompt": "Bob", "completion": " fails"}] * 4
    )
    nlptasks.train(
        f"plain:generation={data}", add_to=folder, settings=TrainSettings(tune="top:1", epochs=40, **SETTINGS)
    )
    assert pipeline("generation", model=folder)({"messages": messages(CHATS[0])}) == before
    assert pipeline("plain", model=folder)("Ada").text == " wins"
    nlptasks.export(folder)
    both = pipeline(["generation", "plain"], model=folder, backend="onnx")(["Ada", "Bob"])
    assert [found["plain"].text for found in both] == [" wins", " fails"]
    on_torch = pipeline(["generation", "plain"], model=folder, backend="torch")(["Ada", "Bob"])
    check_alike(
        [{k: vars(v) for k, v in one.items()} for one in both],
        [{k: vars(v) for k, v in one.items()} for one in on_torch],
    )


def test_an_encoder_is_refused_with_what_to_use(tmp_path: Path) -> None:
    make_tiny("bert", tmp_path / "bert")
    with pytest.raises(ModelError, match=r"is of the kind encoder \(bert\), .* use a decoder, such as GPT-2"):
        nlptasks.train("generation", output=tmp_path / "model", settings=TrainSettings(backbone=str(tmp_path / "bert")))


def test_scores_and_texts_are_printed_for_people(chatting: Path) -> None:
    done = CliRunner().invoke(main, ["predict", str(chatting), "Ada saw", "--set", "generation.max_new_tokens=3"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Ada saw[")


def test_likelihoods_add_up(decoders: Path) -> None:
    head = subject_on(decoders, "gpt2").head
    example = Passage("a", learned=((0, 1),))
    counts = merge(head.count(example, result) for result in (Likelihood(-2.0, 2), Likelihood(-4.0, 1)))
    found = head.metrics(counts)
    assert found.values == {"likelihood": math.exp(-2), "perplexity": pytest.approx(math.exp(2)), "nats_per_token": 2.0}
    assert found.main == "likelihood"
