"""Tiny backbones with random weights and a tokenizer, for tests without network access."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from nlptasks.backbones.backbone import facts_of
from nlptasks.backbones.info import DECODER, ENCODER, ENCODER_DECODER

TEXT = [
    "Ada Smith saw London and left Paris, Rome or Berlin.",
    "Bob Smith, Cleo Smith and Dan Smith saw the U.S. in 1996.",
    "The quick brown fox jumps over the lazy dog; 日本語 café naïve Straße.",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "0 1 2 3 4 5 6 7 8 9 . , ; : ! ? ' \" ( ) [ ] { } - _ / \\ @ # $ % & * + = < > | ~ `",
]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
PAD, START, END = 0, 1, 2
VOCABULARY = 300
POSITIONS = 128


def wordpiece() -> tokenizers.Tokenizer:
    # The trainer of WordPiece numbers the pieces differently in every process, and what a tiny model learns depends on that.
    words = {word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(" ".join(TEXT).lower())}
    letters = sorted(set("".join(words)))
    pieces = _SPECIAL + letters + [f"##{letter}" for letter in letters] + sorted(words - set(letters))
    vocabulary = {piece: number for number, piece in enumerate(pieces[:VOCABULARY])}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", START), ("</s>", END)]
    )
    return tokenizer


def byte_pairs() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", END), ("<s>", START), add_prefix_space=False)
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=_SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    return tokenizer


_CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """How to make a tiny backbone.

    Attributes:
        kind: ``encoder``, ``encoder-decoder`` or ``decoder``.
        config: returns its Hugging Face config.
        tokenizer: returns its tokenizer.
        chat_template: its chat template; empty for none.
    """

    kind: str
    config: Callable[[], Any]
    tokenizer: Callable[[], tokenizers.Tokenizer]
    chat_template: str = ""


def _bert() -> Any:
    return transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        pad_token_id=PAD,
    )


def _t5() -> Any:
    return transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=2,
        decoder_start_token_id=PAD,
    )


def _bart() -> Any:
    return transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=POSITIONS,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=END,
        forced_eos_token_id=END,
    )


def _decoder(cls: type, **more: Any) -> Callable[[], Any]:
    sizes = {
        "vocab_size": VOCABULARY + len(_CHAT_TOKENS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": PAD,
        "bos_token_id": START,
        "eos_token_id": END,
    }
    return lambda: cls(**{**sizes, **more})


_GROUPED = {"intermediate_size": 64, "num_key_value_heads": 2}
"""Sizes of decoders whose attention heads share keys and values."""


def _chatting() -> tokenizers.Tokenizer:
    """Return a tokenizer that adds no special tokens to a text."""
    tokenizer = byte_pairs()
    tokenizer.add_special_tokens(list(_CHAT_TOKENS))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _begun() -> tokenizers.Tokenizer:
    """Return a tokenizer that adds a special token before each text."""
    tokenizer = byte_pairs()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", START)]
    )
    return tokenizer


TINY = {
    "bert": Tiny(ENCODER, _bert, wordpiece),
    "t5": Tiny(ENCODER_DECODER, _t5, unigram),
    "bart": Tiny(ENCODER_DECODER, _bart, byte_pairs),
    "qwen2": Tiny(
        DECODER, _decoder(transformers.Qwen2Config, tie_word_embeddings=True, **_GROUPED), _chatting, _CHAT_TEMPLATE
    ),
    "gpt2": Tiny(DECODER, _decoder(transformers.GPT2Config), _chatting),
    "llama": Tiny(DECODER, _decoder(transformers.LlamaConfig, **_GROUPED), _begun),
}
"""Tiny backbones by name. Where one of a kind is enough, the first is used."""


def make_tiny(name: str, folder: Path) -> None:
    """Write a tiny backbone as a Hugging Face folder.

    Args:
        name: its name in `TINY`.
        folder: the folder; it need not exist.
    """
    tiny = TINY[name]
    write_backbone(tiny.config(), tiny.tokenizer(), folder, chat_template=tiny.chat_template)


def write_backbone(config: Any, tokenizer: tokenizers.Tokenizer, folder: Path, *, chat_template: str = "") -> None:
    """Write a backbone with random weights, the same every time, as a Hugging Face folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.AutoModel.from_config(config)
        if facts_of(model, config)["kind"] == DECODER:
            torch.manual_seed(1)
            model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, chat_template=chat_template)


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path, *, chat_template: str = "") -> None:
    """Write a tokenizer beside a model, with the settings for truncation and padding that many published ones have."""
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=PAD, pad_token="<pad>")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    fast.chat_template = chat_template or None
    fast.save_pretrained(folder)
