"""Tiny backbones of every architecture, with random weights and a tokenizer like that of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import processors

from nlptasks.testing.backbones import (
    END,
    PAD,
    POSITIONS,
    START,
    TINY,
    VOCABULARY,
    byte_pairs,
    unigram,
    wordpiece,
    write_backbone,
)


def _config(cls: type, **more: Any) -> Callable[[], Any]:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": PAD,
    }
    return lambda: cls(**{**sizes, **more})


def _roberta(cls: type) -> Callable[[], Any]:
    # RoBERTa's first position is the padding's id + 1: 128 rows hold 126 tokens for id 1, 127 for id 0.
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
        "max_position_embeddings": POSITIONS,
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        "bos_token_id": START,
        "eos_token_id": END,
        "decoder_start_token_id": END,
    }
    return lambda: cls(**{**sizes, **more})


ARCHITECTURES: dict[str, tuple[Callable[[], Any], Callable[[], tokenizers.Tokenizer]]] = {
    "bert": (TINY["bert"].config, TINY["bert"].tokenizer),
    "roberta": (_roberta(transformers.RobertaConfig), byte_pairs),
    "distilbert": (
        lambda: transformers.DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=POSITIONS
        ),
        wordpiece,
    ),
    "electra": (_config(transformers.ElectraConfig, embedding_size=16), wordpiece),
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
        unigram,
    ),
    "mpnet": (_config(transformers.MPNetConfig, pad_token_id=1), wordpiece),
    "modernbert": (
        _config(
            transformers.ModernBertConfig,
            num_hidden_layers=4,
            bos_token_id=START,
            cls_token_id=START,
            eos_token_id=END,
            sep_token_id=END,
            local_attention=8,
        ),
        byte_pairs,
    ),
    "xlm-roberta": (_roberta(transformers.XLMRobertaConfig), unigram),
    **{name: (TINY[name].config, TINY[name].tokenizer) for name in ("t5", "bart")},
}
"""Config and tokenizer by name."""


_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": PAD,
    "eos_token_id": END,
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
"""Configs of encoder-decoders. Decoders have another depth than their encoders where `generate` supports it."""


def _with_codes(*codes: str, single: str) -> Callable[[], tokenizers.Tokenizer]:
    """Return a tokenizer that has language codes and adds one to texts."""

    def make_tokenizer() -> tokenizers.Tokenizer:
        tokenizer = unigram()
        tokenizer.add_special_tokens(list(codes))
        special = [(token, tokenizer.token_to_id(token)) for token in (*codes, "</s>")]
        pair = single.replace("$A", "$A $B")
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
        return tokenizer

    return make_tokenizer


_CODED = VOCABULARY + 2

BACKBONES: dict[str, tuple[Callable[[], Any], Callable[[], tokenizers.Tokenizer]]] = {
    **ARCHITECTURES,
    "marian": (WRITERS["marian"], unigram),
    "mbart": (
        _writer(transformers.MBartConfig, scale_embedding=True, vocab_size=_CODED),
        _with_codes("en_XX", "de_DE", single="$A </s> en_XX"),
    ),
    "m2m100": (
        _writer(transformers.M2M100Config, vocab_size=_CODED),
        _with_codes("__en__", "__de__", single="__en__ $A </s>"),
    ),
    "pegasus": (WRITERS["pegasus"], unigram),
}
"""All backbones of `make`: those that each head is tested on alone, and more that are exported with all heads."""


def make_writer(config: Any, *, spread: float = 3.0) -> Any:
    """Return a random encoder-decoder of Hugging Face whose logits differ much."""
    torch.manual_seed(1)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" not in name:  # Marian computes them, and they are in no file
                weight.mul_(spread).add_(0.1 * torch.randn_like(weight))
    model.tie_weights()
    return model


def make(name: str, folder: Path) -> None:
    """Write a tiny backbone as a Hugging Face folder."""
    make_config, make_tokenizer = BACKBONES[name]
    write_backbone(make_config(), make_tokenizer(), folder)


def log_of(folder: Path) -> dict[str, Any]:
    """Return the log of a model's first head."""
    log: dict[str, Any] = next(iter(json.loads((folder / "training.json").read_text()).values()))
    return log
