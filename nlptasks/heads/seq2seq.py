"""Base of heads that generate a text about a text, such as a summary or a translation.

On an encoder-decoder the head owns the pretrained decoder and generates in the backbone's vocabulary. On an encoder it has a
small decoder of its own and a vocabulary trained on the targets: the backbone's vocabulary may lower-case and strip accents, a
generated text must keep them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import tokenizers

from nlptasks.backbones.info import ENCODER_DECODER, BackboneInfo, read_tokenizer
from nlptasks.config import AT_LEAST_0, AT_LEAST_1, SHARE_BELOW_1, Range, derived, option
from nlptasks.data.fields import text_field, texts_field
from nlptasks.errors import DataError, ModelError, UsageError, each, listing, refusing
from nlptasks.generation.generation_config import generation_settings, search_options, special_tokens
from nlptasks.generation.hypotheses import Generated, GeneratedText, Hypothesis, best, hypotheses_in
from nlptasks.generation.options import SearchOptions, SpecialTokens
from nlptasks.generation.target_vocabulary import (
    MAX_LAYERS,
    SPECIAL_TOKENS,
    decoder_config,
    read_decoder_config,
    train_vocabulary,
)
from nlptasks.heads.base import Generator, Head, HuggingFaceFormat, Presenter, SpacyWriter
from nlptasks.heads.class_weights import SMOOTHING_DOC
from nlptasks.storage.integrity import RESTORE
from nlptasks.text.windows import plain, reserved_tokens, tokens_around
from nlptasks.text.words import is_blank, is_mostly_unspaced, readable
from nlptasks.types import IGNORED, Beginning, Ints, ModelInput, Outputs, Parts, Row, Window

_log = logging.getLogger("nlptasks")

_TRUNCATE, _WINDOWS = "truncate", "windows"

_CHUNK = 1000
"""Sources that are tokenized at once to count those that are cut."""


@dataclass(frozen=True)
class Seq2SeqConfig(SearchOptions):
    """Options of a head, and what its training data decided."""

    long_texts: str = option(
        _TRUNCATE,
        "a text that is too long for one window: truncate reads its beginning and marks the result as truncated; windows "
        "generates a text for each part and joins them",
        choices=(_TRUNCATE, _WINDOWS),
        at_run=True,
    )
    prefix: str = option("", "text in front of every input, as T5 expects: 'summarize: '")
    label_smoothing: float = option(0.1, SMOOTHING_DOC, within=SHARE_BELOW_1)
    max_target_tokens: int = option(
        128, "longest target in training, in tokens; the rest of it is cut off", within=AT_LEAST_1
    )
    decoder_layers: int = option(
        3, "layers of the decoder, on a backbone that has none", within=Range(least=1, most=MAX_LAYERS)
    )
    decoder_width: int = option(0, "width of this decoder; 0 for the backbone's", within=AT_LEAST_0)
    vocabulary_size: int = option(8000, "largest number of tokens in its vocabulary", within=Range(least=300))
    vocabulary: str = derived("", "the vocabulary of a decoder of its own", file="tokenizer.json")
    decoder: str = derived("", "the Hugging Face config of a decoder of its own, as JSON; empty for the backbone's")
    prompt: tuple[int, ...] = derived((), "the tokens that every target starts with")
    end: tuple[int, ...] = derived((), "the tokens that end a target")
    forced_first: int | None = derived(None, "the token that must come first after the prompt")
    forced_last: int | None = derived(None, "the token that must come last when there is no room for more")
    never: tuple[int, ...] = derived((), "tokens that are never generated")

    @property
    def special(self) -> SpecialTokens:
        """The tokens with a meaning of their own."""
        return SpecialTokens(self.prompt, self.end, self.forced_first, self.forced_last, self.never)


Seq2SeqConfigT = TypeVar("Seq2SeqConfigT", bound=Seq2SeqConfig)


@dataclass(frozen=True)
class Seq2SeqExample:
    """A text to generate a text about.

    Attributes:
        source: the text.
        targets: the gold texts, the first of which is learned; empty if there is no gold answer.
    """

    source: str
    targets: tuple[str, ...] = ()


class Seq2SeqFormat(HuggingFaceFormat[Seq2SeqConfigT]):
    """Checkpoints of encoder-decoders: their settings for ``generate`` become options.

    Args:
        config_class: the config of the head.
    """

    def __init__(self, config_class: type[Seq2SeqConfigT]) -> None:
        self._config_class = config_class

    def to_config(self, backbone: BackboneInfo, options: Mapping[str, Any]) -> Seq2SeqConfigT:
        if backbone.kind != ENCODER_DECODER:
            problem = f"has the architecture {backbone.architecture}, which has no decoder"
            raise ModelError("config.json", problem, "use an encoder-decoder, such as T5 or BART")
        named = backbone.config.get("task_specific_params")
        params = named.items() if isinstance(named, Mapping) else ()
        tasks = {name: settings for name, settings in params if isinstance(settings, Mapping)}
        settings = {**backbone.generation, **self.task_settings(tasks, options)}
        special = special_tokens(backbone, settings, "config.json")
        try:
            config = self._config_class(**search_options(settings), **vars(special))
        except UsageError as error:
            raise ModelError("generation_config.json", f"says that {error.where} {error.problem}", error.fix) from error
        return replace(config, **options)

    def task_settings(self, tasks: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the settings for this task of a checkpoint for several tasks.

        Args:
            tasks: the settings in ``task_specific_params``, by the checkpoint's name of the task.
            options: options that the user set, by name.

        Raises:
            UsageError: the options name a task that the checkpoint does not know.
        """
        return {}

    def to_checkpoint(self, config: Seq2SeqConfigT, backbone: BackboneInfo) -> tuple[dict[str, Any], list[str]]:
        if config.decoder:
            problem = f"is one of the head's own on {backbone.architecture}, and Hugging Face has no class for that"
            raise UsageError("decoder", problem, "export the model to ONNX instead")
        settings = generation_settings(config.special, config, pad_id=backbone.pad_id)
        lost = [f"the prefix {config.prefix!r}: put it in front of every text"] if config.prefix else []
        if config.long_texts == _WINDOWS:
            lost.append("that long texts are read in windows: others cut them")
        return {"generation_config": settings}, lost


class GeneratedTextWriter(SpacyWriter[Generated]):
    """The attributes in `assigns` get the best text, unless an earlier head has set them."""

    def write(self, doc: Any, result: Generated, name: str) -> None:
        for place in self.assigns:
            attribute = place.removeprefix("doc._.")
            if doc._.get(attribute) is None:
                doc._.set(attribute, best(result).text)


class Seq2SeqPresenter(Presenter[Seq2SeqExample, Generated]):
    """Shows the source with the generated texts."""

    def render(self, example: Seq2SeqExample, result: Generated) -> list[tuple[str, str]]:
        texts = result if isinstance(result, list) else [result]
        return [(example.source, ""), *((f" -> {one.text}", "truncated" if one.truncated else "") for one in texts)]


class Seq2SeqHead(Head[Seq2SeqConfigT, Seq2SeqExample, Generated]):
    """Generates a text about a text. A task declares the fields of a row, and how a text is measured.

    Attributes:
        source_field: name of the field with the source; a row may call it ``text``.
        target_field: name of the field with the gold text or texts.
        vocabulary: the target vocabulary.
        special: its special tokens.
        replaced: special tokens around a source and those that replace them, as pairs of ids.
    """

    network = "nlptasks.networks.seq2seq:Seq2Seq"
    source_field: ClassVar[str]
    target_field: ClassVar[str]

    def __init__(self, config: Seq2SeqConfigT, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone)
        self.vocabulary, self._positions = _decoder_of(config, backbone)
        self._reserved = reserved_tokens(self.vocabulary)
        self.special = config.special
        self.replaced: tuple[tuple[int, int], ...] = ()
        self._check_special(backbone.source)

    def _check_special(self, where: str) -> None:
        """Check that the tokens with which targets start and end are in the vocabulary."""
        special = (*self.special.prompt, *self.special.end, self.special.forced_first, self.special.forced_last)
        unknown = sorted({token for token in special if token is not None and not self.vocabulary.id_to_token(token)})
        if unknown:
            problem = f"starts or ends targets with the tokens {listing(unknown)}, which its tokenizer does not have"
            raise ModelError(where, problem, "use a checkpoint with its own tokenizer.json")

    @classmethod
    def configure(cls, rows: Sequence[Row], options: Seq2SeqConfigT, backbone: BackboneInfo) -> Seq2SeqConfigT:
        if backbone.kind == ENCODER_DECODER:
            special = special_tokens(backbone, backbone.generation, backbone.source)
            if special.forced_first is None:  # targets start like inputs: BART's with <s>, T5's with nothing
                before, _ = tokens_around(backbone.vocabulary())
                special = replace(special, forced_first=next(iter(before), None))
            config = replace(options, **vars(special))
        else:
            config = _with_decoder(options, [target for own in each(cls._targets, rows) for target in own], backbone)
        head = cls(config, backbone)
        head._warn_of_cuts(each(head.read, rows), backbone)
        return config

    @classmethod
    def _targets(cls, row: Row) -> tuple[str, ...]:
        """Return the gold texts of a row, none if it has none."""
        return texts_field(row, cls.target_field) if row.fields.get(cls.target_field) is not None else ()

    def network_options(self) -> Mapping[str, Any]:
        return {
            "prompt": self.special.prompt,
            "decoder": self.config.decoder,
            "smoothing": self.config.label_smoothing,
        }

    def read(self, row: Row) -> Seq2SeqExample:
        has_text = self.source_field not in row.fields and "text" in row.fields
        source = text_field(row, "text" if has_text else self.source_field)
        targets = self._targets(row)
        for target in targets:
            if is_blank(target):
                raise DataError(row.where, f"has an empty {self.target_field}", "write one, or remove the row")
        if targets and is_blank(source):
            raise DataError(row.where, f"has an empty {self.source_field}", "remove the row")
        return Seq2SeqExample(source, targets)

    def gold(self, example: Seq2SeqExample) -> Hashable | None:
        return example.targets or None

    def inputs(self, example: Seq2SeqExample) -> list[ModelInput]:
        if is_blank(example.source):
            return []
        cut = Parts() if self._in_windows else Beginning()
        return [ModelInput((example.source,), cut=cut, prefix=self.config.prefix, replaced=self.replaced)]

    @property
    def _in_windows(self) -> bool:
        return self.config.long_texts == _WINDOWS

    def targets(self, example: Seq2SeqExample, window: Window) -> dict[str, Ints]:
        """Return the tokens of the target for the first window of a text, and nothing to learn for the others."""
        if not window.opens:
            return {"labels": np.array([IGNORED], dtype=np.int64)}
        return {"labels": np.array(self._target(example.targets[0])[: self._longest_target], dtype=np.int64)}

    def _target(self, text: str) -> list[int]:
        """Return the tokens of a target."""
        found = self.vocabulary.encode(readable(text), add_special_tokens=False).ids
        # A Unigram model reads </s> in a text as its own token.
        ids = [token for token in found if token not in self._reserved]
        first = [] if self.special.forced_first is None else [self.special.forced_first]
        return [*first, *ids, *self.special.end[:1]]

    @property
    def _longest_target(self) -> int:
        longest = self.config.max_target_tokens
        return longest if self._room is None else min(longest, self._room)

    @property
    def _room(self) -> int | None:
        """Tokens that the decoder has positions for after the prompt, None if that is not limited."""
        return None if self._positions is None else max(1, self._positions - len(self.special.prompt))

    def _warn_of_cuts(self, examples: Sequence[Seq2SeqExample], backbone: BackboneInfo) -> None:
        """Warn of training rows whose source or target is cut."""
        sources = 0 if self._in_windows else self._cut_sources(examples, backbone)
        lengths = np.array([len(self._target(example.targets[0])) for example in examples if example.targets])
        learned, generated = self._longest_target, self.config.max_new_tokens
        cuts = [
            (sources, self.source_field, f"{backbone.max_tokens} tokens, the most that the backbone reads"),
            (int((lengths > learned).sum()), self.target_field, f"max_target_tokens={learned}"),
            (int((lengths > generated).sum()), self.target_field, f"max_new_tokens={generated} when it is generated"),
        ]
        for count, field, limit in cuts:
            if count:
                _log.warning("%d of %d rows of train have a %s that is cut at %s", count, len(examples), field, limit)

    def _cut_sources(self, examples: Sequence[Seq2SeqExample], backbone: BackboneInfo) -> int:
        """Return how many sources are cut."""
        tokenizer = read_tokenizer(backbone)
        inputs = [one for example in examples for one in self.inputs(example)]
        chunks = (inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK))
        return sum(not own[-1].closes for chunk in chunks for own in tokenizer.windows(chunk) if own)

    @property
    def generator(self) -> Generator:
        from nlptasks.generation.seq2seq_generator import Seq2SeqGenerator  # imports torch

        return Seq2SeqGenerator(
            self.vocabulary, self.special, self.config, longest=self._room, in_windows=self._in_windows
        )

    def decode(self, example: Seq2SeqExample, windows: Sequence[Window], outputs: Sequence[Outputs]) -> Generated:
        """Return the best text or texts; the texts for several windows are joined."""
        several = self.config.num_return_sequences > 1
        if not windows:
            nothing = GeneratedText("", None, False)
            return [nothing] if several else nothing
        unread = not windows[-1].closes
        texts = [self._joined(parts, unread) for parts in zip(*map(hypotheses_in, outputs), strict=False)]
        return texts if several else texts[0]

    def _joined(self, parts: Sequence[Hypothesis], unread: bool) -> GeneratedText:
        decoded = (self.vocabulary.decode(list(part.tokens)).strip() for part in parts)
        texts = [text for text in decoded if text]
        text = ("" if is_mostly_unspaced("".join(texts)) else " ").join(texts)
        score = float(np.mean([part.mean_probability for part in parts]))
        return GeneratedText(text, score, unread or not all(part.ended for part in parts))

    @property
    def presenter(self) -> Seq2SeqPresenter:
        return Seq2SeqPresenter()


def _decoder_of(config: Seq2SeqConfig, backbone: BackboneInfo) -> tuple[tokenizers.Tokenizer, int | None]:
    """Return the target vocabulary, and the tokens that the decoder has positions for.

    Raises:
        ModelError: the config of a decoder of the head's own is damaged.
    """
    if not config.decoder:
        return backbone.vocabulary(), backbone.positions
    with refusing("decoder", "cannot be built from its config and vocabulary", RESTORE):
        positions: int = read_decoder_config(config.decoder)["max_position_embeddings"]
        return plain(tokenizers.Tokenizer.from_str(config.vocabulary)), positions


def _with_decoder(options: Seq2SeqConfigT, targets: Sequence[str], backbone: BackboneInfo) -> Seq2SeqConfigT:
    """Return the config with a vocabulary trained on the targets, and a decoder for it."""
    vocabulary = train_vocabulary(targets, options.vocabulary_size)
    decoder = decoder_config(
        width=options.decoder_width or backbone.width,
        layers=options.decoder_layers,
        vocabulary_size=tokenizers.Tokenizer.from_str(vocabulary).get_vocab_size(),
    )
    return replace(options, vocabulary=vocabulary, decoder=json.dumps(decoder), **vars(SPECIAL_TOKENS))
