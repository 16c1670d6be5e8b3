"""Text generation and dialogue on decoder-only models: a head of nlptasks.

>>> from nlptasks.pipeline import pipeline
>>> from nlptasks_generation import Chat
>>> chat = Chat(pipeline("generation", model="runs/generation"))
>>> chat("Who are you?")
"""

from __future__ import annotations

from nlptasks_generation.dialogue import Chat, stream
from nlptasks_generation.head import GenerationConfig, GenerationHead, Likelihood, Passage

__all__ = ["Chat", "GenerationConfig", "GenerationHead", "Likelihood", "Passage", "stream"]
