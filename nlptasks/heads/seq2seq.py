"""What heads that write text have in common: a decoder, a search, and the vocabulary that they write in.

On an encoder-decoder the head owns its decoder and writes in its vocabulary. On a bare encoder it brings a small decoder of its
own, and a vocabulary made from the training targets: backbones may lower-case and strip accents, what is written must not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import tokenizers
import torch
from torch import Tensor, nn

from nlptasks.backbones.architecture import refusing
from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.backbones.graph import Graph
from nlptasks.config import AT_LEAST_0, AT_LEAST_1, SHARE_BELOW_1, Range, decided, parse_options, setting
from nlptasks.data.fields import text_field, texts_field
from nlptasks.errors import DataError, ModelError, UsageError, each, listing
from nlptasks.generation.decoder import Decoder
from nlptasks.generation.decoder_init import New, OfBackbone, Origin
from nlptasks.generation.generation_config import marks_of, options_of, said_of
from nlptasks.generation.search import Hypothesis, Marks, SearchOptions, search
from nlptasks.generation.step_graph import MOST_SCORES, CachedStepper, StepGraph, as_outputs, hearer, hypotheses_in
from nlptasks.generation.target_vocabulary import MARKS, MAX_LAYERS, own_decoder, train_vocabulary
from nlptasks.heads.base import Head
from nlptasks.heads.losses import SMOOTHING_DOC, cross_entropy
from nlptasks.runtimes.base import STEP, Pass
from nlptasks.text.windowing import reserved_tokens, tokens_around
from nlptasks.text.words import is_blank, is_mostly_unspaced, readable
from nlptasks.types import IGNORED, Ints, Outputs, Row, Source, Window


@dataclass(frozen=True)
class Text:
    """A text that was written.

    Attributes:
        text: the text.
        score: the geometric mean of its tokens' probabilities, in 0..1 (of a text that was written in parts their mean); None
            for a text without tokens.
        truncated: whether something is missing: the end of the source was not read, or there was no room to write on.
    """

    text: str
    score: float | None
    truncated: bool


@dataclass(frozen=True)
class GenerativeConfig(SearchOptions):
    """Options of a head that writes, and what its training data decided."""

    long_texts: str = setting(
        "truncate",
        "a text that is too long to be read at once: truncate reads its beginning, and the result says that it is truncated; "
        "windows writes on each part, and joins what was written",
        choices=("truncate", "windows"),
        at_run=True,
    )
    prefix: str = setting("", "what is put before every text, as T5 wants it: 'summarize: '")
    label_smoothing: float = setting(0.1, SMOOTHING_DOC, within=SHARE_BELOW_1)
    max_target_tokens: int = setting(
        128, "longest target that is learned, in tokens; the rest of it is cut off", within=AT_LEAST_1
    )
    decoder_layers: int = setting(
        3, "layers of the decoder, on a backbone that has none", within=Range(least=1, most=MAX_LAYERS)
    )
    decoder_width: int = setting(0, "width of this decoder; 0 for the backbone's", within=AT_LEAST_0)
    vocabulary_size: int = setting(8000, "tokens of its vocabulary, at most", within=Range(least=300))
    vocabulary: str = decided("", "the vocabulary of a decoder of its own", file="tokenizer.json")
    decoder: str = decided("", "the Hugging Face config of a decoder of its own, as JSON; empty for the backbone's")
    prompt: tuple[int, ...] = decided((), "the tokens that every target begins with")
    end: tuple[int, ...] = decided((), "the tokens that end a target")
    forced_first: int | None = decided(None, "the token that comes first, behind the prompt")
    forced_last: int | None = decided(None, "the token that comes last where there is no room for more")
    never: tuple[int, ...] = decided((), "tokens that are never written")

    @property
    def marks(self) -> Marks:
        """The tokens with a meaning of their own."""
        return Marks(self.prompt, self.end, self.forced_first, self.forced_last, self.never)


@dataclass(frozen=True)
class Writing:
    """A text to write about, and the gold texts, the first of which is learned: empty if there is none."""

    source: str
    targets: tuple[str, ...] = ()


class GenerativeHead(Head):
    """Writes a text about a text. A task says which fields of a row these are, and how a text is measured.

    Attributes:
        vocabulary: what it writes in.
        listener: hears the pieces of texts as they are written, if it is set. Texts are then written one after another: give
            one at a time to know whose pieces these are.
    """

    Config: ClassVar[type] = GenerativeConfig
    config: GenerativeConfig
    source_field: ClassVar[str]
    target_field: ClassVar[str]
    target_features = ("labels",)
    results = (Text,)
    hf_auto = "AutoModelForSeq2SeqLM"

    def __init__(self, config: GenerativeConfig, *, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone=backbone)
        self._origin: Origin = New(config.decoder, config.vocabulary) if config.decoder else OfBackbone(backbone)
        problem = f"has the architecture {backbone.config.model_type}, whose decoder cannot be run token by token"
        with refusing(backbone.source, problem, "take another one, such as T5 or BART"):
            self.decoder = Decoder(self._origin.config)
        width = self.decoder.width
        self.bridge = nn.Identity() if width == backbone.width else nn.Linear(backbone.width, width)
        self.outputs = dict.fromkeys(self.decoder.crosses, "BNSD")
        self.own_lr_scale = self._origin.lr_scale
        self.vocabulary = self._origin.vocabulary
        self._reserved = reserved_tokens(self.vocabulary)
        self.marks = config.marks
        self._check_marks(backbone.source)
        self.special: tuple[tuple[int, int], ...] = ()
        self.listener: Callable[[str], None] | None = None

    def _check_marks(self, where: str) -> None:
        """Check that the tokens which targets begin and end with are tokens of the vocabulary."""
        marks = (*self.marks.prompt, *self.marks.end, self.marks.forced_first, self.marks.forced_last)
        unknown = sorted({token for token in marks if token is not None and not self.vocabulary.id_to_token(token)})
        if unknown:
            problem = (
                f"begins or ends what it writes with the tokens {listing(unknown)}, which its tokenizer does not have"
            )
            raise ModelError(where, problem, "take a checkpoint with its own tokenizer.json")

    @classmethod
    def configure(cls, rows: Sequence[Row], given: Mapping[str, Any]) -> Any:
        return cls.Config(**parse_options(cls.Config, given, where=cls.sample.rpartition("/")[2]))

    @classmethod
    def for_backbone(cls, config: Any, rows: Sequence[Row], backbone: BackboneInfo) -> Any:
        if backbone.config.is_encoder_decoder:
            marks = marks_of(backbone.config, backbone.generation, backbone.source)
            # Targets begin as texts do: BART's with <s>, T5's with nothing.
            before, _ = tokens_around(backbone.vocabulary())
            first = next(iter(before), None) if marks["forced_first"] is None else marks["forced_first"]
            return replace(config, **{**marks, "forced_first": first})
        targets = [target for own in each(cls._targets, rows) for target in own]
        vocabulary = train_vocabulary(targets, config.vocabulary_size)
        decoder = own_decoder(
            width=config.decoder_width or backbone.width,
            layers=config.decoder_layers,
            vocabulary_size=tokenizers.Tokenizer.from_str(vocabulary).get_vocab_size(),
        )
        return replace(config, vocabulary=vocabulary, decoder=json.dumps(decoder), **MARKS)

    @classmethod
    def _targets(cls, row: Row) -> tuple[str, ...]:
        """The gold texts of a row, none if it has none."""
        return texts_field(row, cls.target_field) if row.fields.get(cls.target_field) is not None else ()

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    def read(self, row: Row) -> Writing:
        source = text_field(
            row, "text" if self.source_field not in row.fields and "text" in row.fields else self.source_field
        )
        targets = self._targets(row)
        for target in targets:
            if is_blank(target):
                raise DataError(row.where, f"has an empty {self.target_field}", "write one, or remove the row")
        return Writing(source, targets)

    def read_gold_row(self, row: Row) -> Writing:
        example: Writing = super().read_gold_row(row)
        if is_blank(example.source):
            raise DataError(row.where, f"has an empty {self.source_field}", "remove the row")
        return example

    def gold(self, example: Writing) -> Hashable | None:
        return example.targets or None

    def sources(self, example: Writing) -> list[Source]:
        if is_blank(example.source):
            return []
        begins_only = self.config.long_texts == "truncate"
        return [
            Source(
                example.source, prefix=self.config.prefix, begins_only=begins_only, overlaps=False, special=self.special
            )
        ]

    def features(self, example: Writing, window: Window) -> dict[str, Ints]:
        """The target's tokens, at the first window of a text."""
        if not window.opens:
            return {"labels": np.array([IGNORED], dtype=np.int64)}
        return {"labels": np.array(self._target(example)[: self._longest_target], dtype=np.int64)}

    def _target(self, example: Writing) -> list[int]:
        """The tokens to be learned."""
        found = self.vocabulary.encode(readable(example.targets[0]), add_special_tokens=False).ids
        # A Unigram model takes </s> that stands in a text for its own.
        ids = [token for token in found if token not in self._reserved]
        first = [] if self.marks.forced_first is None else [self.marks.forced_first]
        return [*first, *ids, *self.marks.end[:1]]

    def warnings(self, examples: Sequence[Writing], windows: Sequence[Sequence[Window]]) -> list[str]:
        """How many texts and targets are cut before anything is learned from them."""
        sources = sum(not own[-1].closes for own in windows)
        lengths = np.array([len(self._target(example)) for example in examples])
        learned, written = self._longest_target, self.config.max_new_tokens
        cut = [
            (sources, self.source_field, f"{self.backbone_info.max_tokens} tokens, the most that the backbone reads"),
            (int((lengths > learned).sum()), self.target_field, f"max_target_tokens={learned}"),
            (int((lengths > written).sum()), self.target_field, f"max_new_tokens={written} when it is written"),
        ]
        return [
            f"{count} of {len(examples)} rows of train have a {name} that is cut at {limit}"
            for count, name, limit in cut
            if count
        ]

    @property
    def _longest_target(self) -> int:
        return min(self.config.max_target_tokens, self._room)

    @property
    def _room(self) -> int:
        """Tokens that the decoder has positions for, behind the prompt."""
        return max(1, self.decoder.positions - len(self.marks.prompt))

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.decoder.cross(self.bridge(states), batch["mask"])  # each [B,N,S,D]

    def graphs(self) -> Mapping[str, Graph]:
        return {STEP: StepGraph(self.decoder)}

    def loss(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]  # [B,T]
        prompt = labels.new_tensor(self.marks.prompt).expand(len(labels), -1)
        tokens = torch.cat([prompt, labels[:, :-1].clamp(min=0)], 1)
        logits = self.decoder.logits(self.bridge(states), batch["mask"], tokens)[:, prompt.shape[1] - 1 :]  # [B,T,V]
        return cross_entropy(logits.float(), labels, smoothing=self.config.label_smoothing)

    def adopt(self, pretrained: Callable[[], Mapping[str, Tensor]]) -> None:
        self._origin.adopt(self.decoder.model, pretrained)

    def collect(self, passed: Pass) -> list[Outputs]:
        lengths = {name: min(getattr(self.config, name), self._room) for name in ("min_new_tokens", "max_new_tokens")}
        options = replace(self.config, **lengths)
        beams = max(options.num_beams, options.num_return_sequences)
        size = 1 if self.listener else max(1, MOST_SCORES // (beams * self.decoder.vocabulary_size))
        if self.listener and not all(window.opens for window in passed.windows.values()):
            fix = "take truncate to hear texts as they are written"
            raise UsageError("long_texts", "is windows, with a listener, and a text has several", fix)
        rows = np.array(list(passed.windows))
        found: list[list[Hypothesis]] = []
        for start in range(0, len(rows), size):
            own = rows[start : start + size]
            stepper = CachedStepper(passed, own, self.decoder)
            sources = [passed.windows[row].ids for row in own.tolist()]
            listener = hearer(self.vocabulary, self.listener) if self.listener else None
            found += search(stepper, sources=sources, marks=self.marks, options=options, listener=listener)
        return [as_outputs(hypotheses) for hypotheses in found]

    def decode(self, example: Writing, windows: Sequence[Window], outputs: Sequence[Outputs]) -> Any:
        """The best text, or as many as are asked for; those for several windows are joined."""
        if not windows:
            nothing = Text("", None, False)
            return nothing if self.config.num_return_sequences == 1 else [nothing]
        found = [hypotheses_in(output) for output in outputs]
        unread = not windows[-1].closes
        texts = [self._joined(parts, unread) for parts in zip(*found, strict=False)]
        return texts[0] if self.config.num_return_sequences == 1 else texts

    def _joined(self, parts: Sequence[Hypothesis], unread: bool) -> Text:
        decoded = (self.vocabulary.decode(list(part.tokens)).strip() for part in parts)
        texts = [text for text in decoded if text]
        text = ("" if is_mostly_unspaced("".join(texts)) else " ").join(texts)
        score = float(np.mean([part.mean_probability for part in parts]))
        return Text(text, score, unread or not all(part.ended for part in parts))

    @property
    def borrowed(self) -> nn.Module | None:
        return self._origin.borrowed(self.decoder.model)

    def like_hugging_face(
        self, states: Tensor, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        tokens = batch["ids"].flip(1)  # any
        return {"logits": self.decoder.logits(states, batch["mask"], tokens)}, {"decoder_input_ids": tokens}

    @classmethod
    def from_hugging_face(cls, backbone: BackboneInfo, given: Mapping[str, Any]) -> Any:
        """Options as the checkpoint has them for ``generate``, unless they are given."""
        config = backbone.config
        if not config.is_encoder_decoder:
            problem = f"has the architecture {config.model_type}, which has no decoder"
            raise ModelError("config.json", problem, "take an encoder-decoder, such as T5 or BART")
        options = parse_options(cls.Config, given, where=cls.sample.rpartition("/")[2])
        named = getattr(config, "task_specific_params", None)
        params = named.items() if isinstance(named, Mapping) else ()
        specific = cls._specific({name: said for name, said in params if isinstance(said, Mapping)}, options)
        generation = {**backbone.generation, **specific}
        try:
            said = cls.Config(**options_of(generation), **marks_of(config, generation, "config.json"))
        except UsageError as error:
            raise ModelError("generation_config.json", f"says that {error.where} {error.problem}", error.fix) from error
        return replace(said, **options)

    @classmethod
    def _specific(cls, named: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a checkpoint for several tasks says of this one, in its ``task_specific_params``."""
        return {}

    def to_hugging_face(self) -> tuple[dict[str, Any], list[str]]:
        if self.borrowed is None:
            problem = f"has a decoder of its own on {self.backbone_info.config.model_type}, which no such class has"
            raise UsageError(type(self).__name__, problem, "export it to ONNX instead")
        generation = said_of(self.marks, self.config, pad_id=self.backbone_info.pad_id)
        prefix = self.config.prefix
        lost = [f"the prefix {prefix!r}: put it before every text"] if prefix else []
        if self.config.long_texts == "windows":
            lost.append("that long texts are read in windows: others cut them")
        return {"generation_config": generation}, lost

    def show(self, example: Writing, result: Any) -> list[tuple[str, str]]:
        texts = result if isinstance(result, list) else [result]
        return [(example.source, ""), *((f" -> {one.text}", "truncated" if one.truncated else "") for one in texts)]

    def annotate(self, doc: Any, result: Any, name: str) -> None:
        """The task's attribute of the document has the best text."""
        for place in self.assigns:
            attribute = place.removeprefix("doc._.")
            if doc._.get(attribute) is None:
                doc._.set(attribute, best(result).text)


def best(result: Any) -> Text:
    """The best of the texts that were written, of one or of several."""
    text: Text = result[0] if isinstance(result, list) else result
    return text
