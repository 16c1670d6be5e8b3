"""Writing with a BART of base size and random weights, against transformers' ``generate``: tokens a second, in turn.

    python tests/benchmarks/generation.py

Both write 64 tokens for each of 8 sources of 64 tokens, greedily and with 4 beams; no text ends early. The tokens must be equal.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import keep, summary

from nlptasks.decoder import Decoder
from nlptasks.exporting import _export_checked, _of_head
from nlptasks.runtime.onnx import OnnxRuntime
from nlptasks.runtime.pytorch import TorchRuntime, pack_linears
from nlptasks.search import Marks, SearchOptions, search
from nlptasks.stepping import CachedStepper, StepGraph
from nlptasks.types import STEP, Pass, Window

_BATCH, _SOURCE, _NEW = 8, 64, 64
_HEAD = "head"


def seconds(work: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


_KINDS = {
    "matrix products": ("mm", "linear"),
    "attention": ("attention", "softmax"),
    "copies": ("copy_", "cat", "index", "gather", "repeat", "clone"),
    "choice of tokens": ("topk", "sort", "argmax", "logsumexp"),
}
"""What the names of PyTorch's operators have in them, by what they are for."""


def shares(work: Callable[[], object]) -> dict[str, float]:
    """Where the time of a call on PyTorch goes: the share of each kind of operator, and of what is none."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        whole = seconds(work) * 1e6
    found = dict.fromkeys([*_KINDS, "other operators"], 0.0)
    for event in profile.key_averages():
        kind = next(
            (kind for kind, parts in _KINDS.items() if any(part in event.key for part in parts)), "other operators"
        )
        found[kind] += event.self_cpu_time_total / whole
    return {name: round(share, 3) for name, share in {**found, "Python": 1 - sum(found.values())}.items()}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = transformers.BartConfig(vocab_size=50265, encoder_layers=6, decoder_layers=6, d_model=768)
    config.encoder_ffn_dim = config.decoder_ffn_dim = 3072
    config.encoder_attention_heads = config.decoder_attention_heads = 12
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    decoder = Decoder(config).eval()
    decoder.model.load_state_dict(theirs.state_dict(), strict=False)
    ids = torch.randint(3, config.vocab_size, (_BATCH, _SOURCE))
    mask = torch.ones_like(ids)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "step.onnx"
        _export_checked(_of_head(f"{_HEAD}.{STEP}", StepGraph(decoder), config.model_type), path)
        onnx = OnnxRuntime({f"{_HEAD}.{STEP}": path}, device="cpu", precision="fp32")
        pack_linears(decoder, few_rows=True)
        runtimes = {"torch": TorchRuntime({f"{_HEAD}.{STEP}": StepGraph(decoder)}, torch.device("cpu")), "onnx": onnx}
        result = {
            f"{beams} beams": compare(theirs, decoder, runtimes, ids, mask, beams, options.runs) for beams in (1, 4)
        }
    keep("generation", result, command="python tests/benchmarks/generation.py")


def compare(
    theirs: Any, decoder: Decoder, runtimes: Any, ids: torch.Tensor, mask: torch.Tensor, beams: int, runs: int
) -> dict[str, Any]:
    """Tokens a second of each way, and how many times those of ``generate``."""
    wanted = SearchOptions(max_new_tokens=_NEW, num_beams=beams)
    marks = Marks(prompt=(theirs.config.decoder_start_token_id,), end=())
    nothing = np.zeros(0, dtype=np.int64)
    window = Window(nothing, nothing, nothing, nothing)

    def generate() -> list[list[int]]:
        with torch.inference_mode():
            found = theirs.generate(
                input_ids=ids,
                attention_mask=mask,
                num_beams=beams,
                do_sample=False,
                max_new_tokens=_NEW,
                eos_token_id=None,
                forced_eos_token_id=None,
            )
        return found[:, 1:].tolist()

    def ours(name: str) -> list[list[int]]:
        with torch.inference_mode():
            states = theirs.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            cross = decoder.cross(states, mask)
        outputs = cross if name == "torch" else {key: value.numpy() for key, value in cross.items()}
        passed = Pass(_HEAD, dict.fromkeys(range(_BATCH), window), mask.numpy(), outputs, runtimes[name])
        stepper = CachedStepper(passed, np.arange(_BATCH), decoder)
        found = search(stepper, sources=[nothing] * _BATCH, marks=marks, options=wanted)
        return [list(own[0].tokens) for own in found]

    ways = {"generate": generate, **{name: lambda name=name: ours(name) for name in runtimes}}
    answers = {name: work() for name, work in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, work in ways.items():
            times[name].append(seconds(work))
    return {
        "tokens_per_second": {name: summary([_BATCH * _NEW / value for value in own]) for name, own in times.items()},
        "times_generate": {
            name: summary([a / b for a, b in zip(times["generate"], times[name], strict=True)]) for name in runtimes
        },
        "where_the_time_goes": {name: shares(ways[name]) for name in ("generate", "torch")},
        "same_tokens": {name: answers[name] == answers["generate"] for name in runtimes},
    }


if __name__ == "__main__":
    main()
