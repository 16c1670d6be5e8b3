"""Inference on a GPU with a BERT of base size and random weights: ONNX Runtime in fp16 and its alternatives.

    python tests/benchmarks/gpu.py --data CONLL_FOLDER

The texts are CoNLL-2003's test sentences, as they are and joined to about 128 tokens. `transformers.pipeline` in fp16 at batch
size 32 is compared with our PyTorch backend in bf16 (with and without `torch.compile`) and our exports in fp32 and fp16. The
share of the ceiling is the fraction of the speed of large fp16 matrix products on the same GPU. ``--device cpu --tiny`` runs on
any machine.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conll
import torch
import transformers
from common import keep, summary

import nlptasks
from nlptasks.backbones.pretrained import embedded_folder, load_backbone
from nlptasks.config import recorded
from nlptasks.data.datasets import load_data
from nlptasks.heads.base import sample_folder
from nlptasks.models.huggingface import to_hugging_face
from nlptasks.models.manifest import HeadRecord
from nlptasks.models.model import Model
from nlptasks.networks.base import make_network
from nlptasks.pipeline import Pipeline, pipeline
from nlptasks.registry import head_class
from nlptasks.runtimes.base import ENCODE
from nlptasks.types import ModelInput

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
_TOKENS = 128
_SIDE = 8192
_HF_BATCH = 32

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Return the time of one call, including the work that is left on the GPU."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def made(place: Path, sizes: dict[str, int]) -> Path:
    """Return a model with a head for names, random weights and the tokenizer of `minilm`."""
    folder = embedded_folder()
    assert folder is not None
    source = place / "backbone"
    config = transformers.AutoConfig.from_pretrained(folder)
    for name, value in sizes.items():
        setattr(config, name, value)
    transformers.AutoModel.from_config(config).save_pretrained(source)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(source)
    cls = head_class("ner")
    backbone = load_backbone(str(source))
    info = backbone.info
    rows = load_data(sample_folder(cls), cls.schema.formats, {}).parts["train"]
    head = cls(cls.configure(rows, cls.Config(), info), info)
    network = make_network(cls.network, info, head.network_options())
    record = HeadRecord("ner", recorded(head.config))
    return Model(backbone, {"ner": head}, {"ner": network}, {"ner": record}).eval().save(place / "model")


def joined(texts: list[str], words: int) -> list[str]:
    """Return texts of so many words, joined from shorter ones."""
    every = list(itertools.chain.from_iterable(text.split() for text in texts))
    return [" ".join(every[start : start + words]) for start in range(0, len(every) - words, words)]


def ceiling(device: str) -> float:
    """Return the operations per second in products of large matrices, in fp16 (on a CPU in fp32)."""
    kind, side = (torch.float16, _SIDE) if device == "cuda" else (torch.float32, _SIDE // 8)
    one, two = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    for _ in range(3):
        one @ two
    times = [seconds(lambda: one @ two) for _ in range(10)]
    return 2 * side**3 / min(times)


def torch_model(pipe: Pipeline) -> Any:
    """Return the PyTorch model inside a pipeline."""
    return pipe._engine.runtime._graphs[ENCODE]  # type: ignore[attr-defined]


def compiled(pipe: Pipeline) -> Pipeline:
    """Compile the backbone of a pipeline."""
    model = torch_model(pipe)
    model.backbone.base_model = torch.compile(model.backbone.base_model, dynamic=True)
    return pipe


def ways(model: Path, place: Path, device: str) -> dict[str, Callable[[list[str]], object]]:
    """Return every way to find names."""
    to_hugging_face(model, "ner", output=place / "checkpoint")
    theirs = transformers.pipeline(
        "token-classification",
        model=str(place / "checkpoint"),
        device=device,
        dtype=torch.float16 if device == "cuda" else torch.float32,
        aggregation_strategy="first",
    )
    opened = {name: pipeline("ner", model=model, backend=name, device=device) for name in ("torch", "onnx:fp32")}
    if device == "cuda":
        opened["torch:bf16"] = pipeline("ner", model=model, backend="torch:bf16", device=device)
        opened["torch:bf16, compiled"] = compiled(pipeline("ner", model=model, backend="torch:bf16", device=device))
        opened["onnx:fp16"] = pipeline("ner", model=model, backend="onnx:fp16", device=device)
    return {"transformers": lambda texts: theirs(texts, batch_size=_HF_BATCH), **opened}


def compare(ways: dict[str, Callable[[list[str]], object]], texts: list[str], runs: int) -> dict[str, Any]:
    """Return the texts per second of each way, and the ratio to transformers and to the compiled model."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + runs):  # the first is a warm-up
        for name, work in ways.items():
            times[name].append(seconds(lambda work=work: work(texts)))
    times = {name: own[1:] for name, own in times.items()}
    bases = [name for name in ("transformers", "torch:bf16, compiled") if name in ways]
    return {
        "texts": len(texts),
        "texts_per_second": {name: summary([len(texts) / value for value in own]) for name, own in times.items()},
        **{
            f"times {base}": {
                name: summary([a / b for a, b in zip(times[base], own, strict=True)]) for name, own in times.items()
            }
            for base in bases
        },
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    short = [" ".join(words) for words, _ in conll.read(options.data, "test")]
    with tempfile.TemporaryDirectory() as place:
        model = made(Path(place), _TINY if options.tiny else _BASE)
        reports = {
            precision: nlptasks.export(model, precision=precision)
            for precision in (["fp32", "fp16"] if options.device == "cuda" else ["fp32"])
        }
        found = ways(model, Path(place), options.device)
        counted = pipeline("ner", model=model, backend="torch", device="cpu")
        weights = torch_model(counted).backbone.parameter_count()
        most = ceiling(options.device)
        result: dict[str, Any] = {"ceiling_teraflops": round(most / 1e12, 1)}
        for name, texts in {"conll": short, f"{_TOKENS} tokens": joined(short, int(_TOKENS / 1.5))}.items():
            result[name] = compare(found, texts, options.runs)
            windows = counted._engine.tokenizer.windows([ModelInput((text,)) for text in texts])
            tokens = sum(len(window) for own in windows for window in own)
            result[name]["share_of_ceiling"] = {
                way: round(2 * weights * tokens * own["median"] / len(texts) / most, 4)
                for way, own in result[name]["texts_per_second"].items()
            }
        result["exports"] = {
            name: {"device": one.device, "max_difference": one.max_difference} for name, one in reports.items()
        }
        result["gpu"] = torch.cuda.get_device_name() if options.device == "cuda" else "none"
    keep(
        "gpu" if options.device == "cuda" else "gpu_tried_on_cpu",
        result,
        command="python tests/benchmarks/gpu.py --data CONLL_FOLDER",
    )


if __name__ == "__main__":
    main()
