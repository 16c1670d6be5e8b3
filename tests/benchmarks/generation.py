"""Generation speed of a BART of base size with random weights, in tokens a second, against ``generate`` in transformers.

    python tests/benchmarks/generation.py

Every implementation generates 64 tokens for each of 8 sources of 64 tokens, by greedy search and with 4 beams; no text ends
early. In fp32 the tokens must be equal. CTranslate2 is measured, too, if it is installed (``pip install ctranslate2``). On a
machine with CUDA, where ``generate`` runs in fp16:

    python tests/benchmarks/generation.py --device cuda
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import keep, summary
from onnxruntime import OrtValue

from nlptasks.exporting.exporter import export_graph
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.tracing import further
from nlptasks.generation.decoder import Decoder
from nlptasks.generation.options import SearchOptions, SpecialTokens
from nlptasks.generation.search import search
from nlptasks.generation.seq2seq_generator import CachedStepper
from nlptasks.generation.step_graph import StepGraph
from nlptasks.runtimes.base import STEP, EncodedBatch, Runtime
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import has_bf16, open_torch
from nlptasks.types import Window

_BATCH, _SOURCE, _NEW = 8, 64, 64
_HEAD = "head"
_GRAPH = f"{_HEAD}.{STEP}"
_SUITABLE = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16")}

Write = Callable[[int], list[list[int]]]
"""Returns the tokens generated for each source, for a number of beams."""


def seconds(work: Callable[[], object]) -> float:
    """Return the time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Writers:
    """The model and its sources, and two implementations of generation.

    Attributes:
        theirs: Hugging Face's model.
        decoder: ours, with the same weights.
        ids: the sources [8,64].
    """

    theirs: Any
    decoder: Decoder
    ids: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """1 for all tokens."""
        return torch.ones_like(self.ids)

    def generate(self, beams: int) -> list[list[int]]:
        """Generate with transformers."""
        with torch.inference_mode():
            found = self.theirs.generate(
                input_ids=self.ids,
                attention_mask=self.mask,
                num_beams=beams,
                do_sample=False,
                max_new_tokens=_NEW,
                eos_token_id=None,
                forced_eos_token_id=None,
            )
        return found[:, 1:].tolist()

    def ours(self, runtime: Runtime, place: Callable[[torch.Tensor], Any]) -> Write:
        """Generate with our search on a runtime, whose tensors `place` makes; the encoder is the same for all."""
        nothing = np.zeros(0, dtype=np.int64)
        window = Window(nothing, nothing, nothing, nothing)
        special = SpecialTokens(prompt=(self.theirs.config.decoder_start_token_id,), end=())

        def write(beams: int) -> list[list[int]]:
            with torch.inference_mode():
                states = self.theirs.get_encoder()(input_ids=self.ids, attention_mask=self.mask).last_hidden_state
                cross = {name: place(tensor) for name, tensor in self.decoder.cross(states, self.mask).items()}
            batch = EncodedBatch(_HEAD, dict.fromkeys(range(_BATCH), window), self.mask.cpu().numpy(), cross, runtime)
            stepper = CachedStepper(batch, np.arange(_BATCH), runtime.spec(_GRAPH))
            options = SearchOptions(max_new_tokens=_NEW, num_beams=beams)
            found = search(stepper, sources=[nothing] * _BATCH, special=special, options=options)
            return [list(own[0].tokens) for own in found]

        return write


def fresh(config: Any, theirs: Any, device: str) -> Decoder:
    """Return a decoder with the model's weights."""
    decoder = Decoder(config).eval()
    decoder.model.load_state_dict(theirs.state_dict(), strict=False)
    return decoder.to(device)


def ctranslate2_way(theirs: Any, ids: torch.Tensor, kind: str, device: str, place: str) -> Write:
    """Generate with CTranslate2, whose converter reads settings that transformers 5 no longer writes."""
    import ctranslate2
    from ctranslate2.converters.transformers import BartLoader

    theirs.config.normalize_before, theirs.config.normalize_embedding = False, True
    theirs.config.add_final_layer_norm = False
    loader = BartLoader()
    spec = loader.get_model_spec(theirs)
    words = [f"t{token}" for token in range(theirs.config.vocab_size)]
    loader.set_vocabulary(spec, words)
    start = words[theirs.config.decoder_start_token_id]
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = words[0], words[1], words[3]
    spec.config.decoder_start_token = start
    Path(place).mkdir()
    spec.validate()
    spec.optimize(quantization=None if kind == "float32" else kind)
    spec.save(place)
    translator = ctranslate2.Translator(place, device=device, compute_type=kind, intra_threads=torch.get_num_threads())
    sources = [[words[token] for token in row] for row in ids.tolist()]

    def write(beams: int) -> list[list[int]]:
        found = translator.translate_batch(
            sources,
            beam_size=beams,
            max_decoding_length=_NEW,
            min_decoding_length=_NEW,
            suppress_sequences=[[words[1]]],
            max_batch_size=_BATCH,
        )
        return [[int(word[1:]) for word in one.hypotheses[0]] for one in found]

    return write


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", choices=list(_SUITABLE), default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    config = transformers.BartConfig(vocab_size=50265, encoder_layers=6, decoder_layers=6, d_model=768)
    config.encoder_ffn_dim = config.decoder_ffn_dim = 3072
    config.encoder_attention_heads = config.decoder_attention_heads = 12
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(config).eval().to(options.device)
    ids = torch.randint(4, config.vocab_size, (_BATCH, _SOURCE), device=options.device)
    with tempfile.TemporaryDirectory() as place:
        ways = all_ways(config, theirs, ids, options.device, Path(place))
        result = {f"{beams} beams": compare(ways, beams, options.runs) for beams in (1, 4)}
    command = "python tests/benchmarks/generation.py" + (" --device cuda" if options.device == "cuda" else "")
    keep("generation" + ("_cuda" if options.device == "cuda" else ""), result, command=command)


def all_ways(config: Any, theirs: Any, ids: torch.Tensor, device: str, place: Path) -> dict[str, Write]:
    """Return every implementation by name, ``generate`` first."""
    same = {"cpu": theirs, "cuda": copy.deepcopy(theirs).half()}[device]  # as it is usually run there
    ways: dict[str, Write] = {"generate": Writers(same, fresh(config, theirs, device), ids).generate}
    for precision in _SUITABLE[device]:
        own = place / precision
        own.mkdir()
        decoder = fresh(config, theirs, "cpu")
        step = StepGraph(decoder)
        export_graph(further(_GRAPH, step), own / "step.onnx", PRECISIONS[precision])
        files, specs = {_GRAPH: own / "step.onnx"}, {_GRAPH: step.spec()}
        runtime = OnnxRuntime(files, device=device, precision=precision, specs=specs)
        kind = np.float16 if precision == "fp16" else np.float32
        writers = Writers(theirs, decoder.to(device), ids)
        ways[f"onnx:{precision}"] = writers.ours(runtime, lambda tensor, kind=kind: _placed(tensor, kind, device))
    for precision in ("fp32", *(["bf16"] if has_bf16(torch.device(device)) else [])):
        packed = fresh(config, theirs, device)
        runtime = open_torch({_GRAPH: StepGraph(packed)}, device, precision)
        ways[f"torch:{precision}"] = Writers(theirs, packed, ids).ours(runtime, lambda tensor: tensor)
    if find_spec("ctranslate2"):
        for kind in {"cpu": ("float32", "int8"), "cuda": ("float16",)}[device]:
            with contextlib.suppress(ImportError):
                own = copy.deepcopy(theirs)  # the converter changes its input
                ways[f"ctranslate2:{kind}"] = ctranslate2_way(own, ids, kind, device, str(place / f"ct2 {kind}"))
    return ways


def _placed(tensor: torch.Tensor, kind: type, device: str) -> OrtValue:
    return OrtValue.ortvalue_from_numpy(tensor.cpu().numpy().astype(kind), device)


def compare(ways: Mapping[str, Write], beams: int, runs: int) -> dict[str, Any]:
    """Return tokens a second of each implementation, relative to ``generate``, and the share of equal texts."""
    answers = {name: work(beams) for name, work in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, work in ways.items():
            times[name].append(seconds(lambda work=work: work(beams)))
    others = [name for name in ways if name != "generate"]
    return {
        "tokens_per_second": {name: summary([_BATCH * _NEW / value for value in own]) for name, own in times.items()},
        "times_generate": {
            name: summary([a / b for a, b in zip(times["generate"], times[name], strict=True)]) for name in others
        },
        "same_texts": {
            name: sum(a == b for a, b in zip(answers[name], answers["generate"], strict=True)) / _BATCH
            for name in others
        },
    }


if __name__ == "__main__":
    main()
