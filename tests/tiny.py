"""Tiny backbones of every architecture, made from a config with random weights, each with a tokenizer of its family's kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "Ada Smith saw London and left Paris, Rome or Berlin.",
    "Bob Smith, Cleo Smith and Dan Smith saw the U.S. in 1996.",
    "The quick brown fox jumps over the lazy dog; 日本語 café naïve Straße.",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "0 1 2 3 4 5 6 7 8 9 . , ; : ! ? ' \" ( ) [ ] { } - _ / \\ @ # $ % & * + = < > | ~ `",
]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
_PAD, _START, _END = 0, 1, 2
_VOCABULARY = 300
_POSITIONS = 128


def _wordpiece() -> tokenizers.Tokenizer:
    # Its trainer numbers the pieces differently in every process, and what a tiny model learns would depend on that.
    words = {word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(" ".join(TEXT).lower())}
    letters = sorted(set("".join(words)))
    pieces = _SPECIAL + letters + [f"##{letter}" for letter in letters] + sorted(words - set(letters))
    vocabulary = {piece: number for number, piece in enumerate(pieces[:_VOCABULARY])}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", _START), ("</s>", _END)]
    )
    return tokenizer


def _bytes() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", _END), ("<s>", _START), add_prefix_space=False)
    return tokenizer


def _unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=_VOCABULARY, special_tokens=_SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", _END)]
    )
    return tokenizer


def _config(cls: type, **more: Any) -> Callable[[], Any]:
    sizes = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": _POSITIONS,
        "pad_token_id": _PAD,
    }
    return lambda: cls(**{**sizes, **more})


def _roberta(cls: type) -> Callable[[], Any]:
    # RoBERTa counts positions from behind the padding's id: 128 rows hold 126 tokens for id 1, 127 for id 0.
    return _config(cls, type_vocab_size=1)


def _writer(cls: type, **more: Any) -> Callable[[], Any]:
    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 40,
        "max_position_embeddings": _POSITIONS,
        "vocab_size": _VOCABULARY,
        "pad_token_id": _PAD,
        "bos_token_id": _START,
        "eos_token_id": _END,
        "decoder_start_token_id": _END,
    }
    return lambda: cls(**{**sizes, **more})


ARCHITECTURES: dict[str, tuple[Callable[[], Any], Callable[[], tokenizers.Tokenizer]]] = {
    "bert": (_config(transformers.BertConfig), _wordpiece),
    "roberta": (_roberta(transformers.RobertaConfig), _bytes),
    "distilbert": (
        lambda: transformers.DistilBertConfig(
            vocab_size=_VOCABULARY, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=_POSITIONS
        ),
        _wordpiece,
    ),
    "electra": (_config(transformers.ElectraConfig, embedding_size=16), _wordpiece),
    "deberta": (
        _config(
            transformers.DebertaV2Config,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            type_vocab_size=0,
        ),
        _unigram,
    ),
    "mpnet": (_config(transformers.MPNetConfig, pad_token_id=1), _wordpiece),
    "modernbert": (
        _config(
            transformers.ModernBertConfig,
            num_hidden_layers=4,
            bos_token_id=_START,
            cls_token_id=_START,
            eos_token_id=_END,
            sep_token_id=_END,
            local_attention=8,
        ),
        _bytes,
    ),
    "xlm-roberta": (_roberta(transformers.XLMRobertaConfig), _unigram),
    "t5": (
        lambda: transformers.T5Config(
            vocab_size=_VOCABULARY,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_decoder_layers=1,
            num_heads=2,
            decoder_start_token_id=_PAD,
        ),
        _unigram,
    ),
    "bart": (
        _writer(
            transformers.BartConfig,
            decoder_layers=1,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            forced_eos_token_id=_END,
        ),
        _bytes,
    ),
}
"""Name: config and tokenizer."""


_T5 = {
    "vocab_size": _VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": _PAD,
    "eos_token_id": _END,
}


def _t5(**more: Any) -> Callable[[], Any]:
    return lambda: transformers.T5Config(**_T5, **more)


WRITERS: dict[str, Callable[[], Any]] = {
    "bart": _writer(transformers.BartConfig),
    "mbart": _writer(transformers.MBartConfig, scale_embedding=True),
    "marian": _writer(transformers.MarianConfig, activation_function="swish"),
    "m2m100": _writer(transformers.M2M100Config),
    "pegasus": _writer(transformers.PegasusConfig, scale_embedding=True),
    "t5": _t5(),
    "mt5": lambda: transformers.MT5Config(**_T5, feed_forward_proj="gated-gelu"),
    "t5-v1.1": _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}
"""Configs of encoder-decoders, decoders of other depths than their encoders where `generate` bears it."""


def _with_codes(*codes: str, single: str) -> Callable[[], tokenizers.Tokenizer]:
    """Pieces, and the codes of languages that texts are marked with."""

    def make_tokenizer() -> tokenizers.Tokenizer:
        tokenizer = _unigram()
        tokenizer.add_special_tokens(list(codes))
        special = [(token, tokenizer.token_to_id(token)) for token in (*codes, "</s>")]
        pair = single.replace("$A", "$A $B")
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
        return tokenizer

    return make_tokenizer


_CODED = _VOCABULARY + 2

BACKBONES: dict[str, tuple[Callable[[], Any], Callable[[], tokenizers.Tokenizer]]] = {
    **ARCHITECTURES,
    "marian": (WRITERS["marian"], _unigram),
    "mbart": (
        _writer(transformers.MBartConfig, scale_embedding=True, vocab_size=_CODED),
        _with_codes("en_XX", "de_DE", single="$A </s> en_XX"),
    ),
    "m2m100": (
        _writer(transformers.M2M100Config, vocab_size=_CODED),
        _with_codes("__en__", "__de__", single="__en__ $A </s>"),
    ),
    "pegasus": (WRITERS["pegasus"], _unigram),
}
"""All that `make` makes: those that heads are tried on one by one, and more that are exported with all heads at once."""


def make_writer(config: Any, *, spread: float = 3.0) -> Any:
    """A random encoder-decoder as Hugging Face has it, whose logits are far from equal."""
    torch.manual_seed(1)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" not in name:  # Marian's are what the architecture says, and are in no file
                weight.mul_(spread).add_(0.1 * torch.randn_like(weight))
    model.tie_weights()
    return model


def make(name: str, folder: Path) -> None:
    """Write a tiny backbone as a Hugging Face folder."""
    make_config, make_tokenizer = BACKBONES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.AutoModel.from_config(make_config())
    model.save_pretrained(folder)
    save_tokenizer(make_tokenizer(), folder)


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Write a tokenizer beside a model, with the state (truncation, padding) that many published ones have."""
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=_PAD, pad_token="<pad>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(folder)


def log_of(folder: Path) -> dict[str, Any]:
    """How the only head of a model came to be, or the first of several."""
    log: dict[str, Any] = next(iter(json.loads((folder / "training.json").read_text()).values()))
    return log
