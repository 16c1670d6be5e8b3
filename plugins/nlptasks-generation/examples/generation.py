"""Fine-tune a decoder on a chat, chat with it, stream an answer, and run the same on ONNX Runtime.

    python examples/generation.py [BACKBONE]

BACKBONE is a folder or a hub name with a chat template, such as Qwen/Qwen2.5-0.5B-Instruct. The default is a tiny model with
random weights, which memorises one chat.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from nlptasks_generation import Chat

import nlptasks
from nlptasks import TrainSettings
from nlptasks.pipeline import pipeline

CHAT = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "Ada."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "London."},
]


def main(folder: Path, backbone: str | None) -> None:
    """Train, export, and chat on both backends."""
    if backbone is None:
        from nlptasks.testing import make_tiny

        make_tiny("qwen2", folder / "backbone")
    for part in ("train", "dev"):
        (folder / f"{part}.jsonl").write_text((json.dumps({"messages": CHAT}) + "\n") * 8)
    settings = TrainSettings(
        backbone=backbone or str(folder / "backbone"),
        epochs=30 if backbone is None else 3,
        lr=1e-2 if backbone is None else None,
    )
    nlptasks.train(f"generation={folder}", output=folder / "model", settings=settings)
    nlptasks.export(folder / "model")
    for backend in ("torch", "onnx"):
        options = {"generation": {"max_new_tokens": 16}}
        pipe = pipeline("generation", model=folder / "model", backend=backend, options=options)
        chat = Chat(pipe)
        print(f"{pipe.backend}:")
        print(" ", chat("Who are you?"))
        print(" ", *chat.stream("Where?"), sep="|")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), sys.argv[1] if len(sys.argv) > 1 else None)
