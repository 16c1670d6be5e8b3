"""From the tokens of a search to pieces of text while it is generated."""

from __future__ import annotations

from collections.abc import Callable

import tokenizers
from tokenizers.decoders import DecodeStream

from nlptasks.generation.search import TokenStreamer


def token_streamer(vocabulary: tokenizers.Tokenizer, streamer: Callable[[str], None]) -> TokenStreamer:
    """Return what passes the tokens of one text on to a streamer, in whole characters."""
    stream = DecodeStream(skip_special_tokens=True)

    def receive(_: int, token: int) -> None:
        piece = stream.step(vocabulary, token)
        if piece:
            streamer(piece)

    return receive
