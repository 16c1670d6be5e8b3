"""Heads on decoders: against Hugging Face's own losses and `generate`, on several architectures, in batches, on both backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers

from nlptasks import CausalConfig, CausalHead, Model, Source, hypotheses_in
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.errors import ModelError
from nlptasks.exporting.exporter import export_graph
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.tracing import traceables
from nlptasks.inference.engine import Engine
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import TorchRuntime, open_torch
from nlptasks.testing.backbones import END, PAD, POSITIONS, START, VOCABULARY, byte_pairs, save_tokenizer

CPU = torch.device("cpu")
PROMPTS = ["Ada Smith saw London and left", "Bob", "The quick brown fox", "Cleo Smith and Dan Smith saw the", "1 2 3 4"]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": END,
}
GROUPED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**SIZES),
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=4),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=4, final_logit_softcapping=5.0),
    "granite": lambda: transformers.GraniteConfig(**GROUPED, logits_scaling=3.0),
    "neox": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=64),
    "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32),
}


@dataclass(frozen=True)
class Words:
    """A text, to be measured or to go on from."""

    text: str
    prompt: bool


class Probe(CausalHead):
    """The least that a head on a decoder says itself."""

    contract = 1
    fields: ClassVar = ("text",)
    sample = "samples/ner"
    main_metric = "none"

    @classmethod
    def configure(cls, rows: Sequence[Any], given: Mapping[str, Any]) -> CausalConfig:
        return CausalConfig(**given)

    def read(self, row: Any) -> Words:
        return Words(row.fields["text"], prompt=True)

    def gold(self, example: Words) -> str | None:
        return None if example.prompt else example.text

    def sources(self, example: Words) -> list[Source]:
        return [Source(example.text, continued=example.prompt, overlaps=False, reserved=self.reserved * example.prompt)]

    def features(self, example: Words, window: Any) -> dict[str, Any]:
        return {"learned": self.learned(window)}

    def decode(self, example: Words, windows: Any, outputs: Any) -> Any:
        return outputs[0] if not example.prompt else [list(one.tokens) for one in hypotheses_in(outputs[0])]

    def metrics(self, examples: Sequence[Any], results: Sequence[Any]) -> dict[str, float]:
        return {}


@dataclass
class Scene:
    """A decoder of Hugging Face's, and the same as a model of ours."""

    theirs: Any
    model: Model
    tokenizer: transformers.PreTrainedTokenizerFast

    @property
    def head(self) -> Probe:
        head = self.model.heads["probe"]
        assert isinstance(head, Probe)
        return head

    def engine(self, runtime: Any = None, **options: Any) -> Engine:
        self.head.config = replace(self.head.config, **options)
        backbone = self.model.backbone
        runtime = runtime or TorchRuntime(self.model.graphs(), CPU)
        return Engine({"probe": self.head}, backbone.tokenizer(), runtime, backbone.info)

    def written(self, runtime: Any = None, prompts: Sequence[str] = PROMPTS, **options: Any) -> list[list[list[int]]]:
        items = [{"probe": Words(prompt, prompt=True)} for prompt in prompts]
        return [found["probe"] for found in self.engine(runtime, **options).stream(items, first_chunk=len(items))]

    def generated(self, prompt: str, **options: Any) -> list[list[int]]:
        """What Hugging Face writes behind one prompt, without the end."""
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        count = options.get("num_return_sequences", 1)
        found = self.theirs.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=PAD, **options)
        assert len(found) == count
        texts = [row[ids.shape[1] :].tolist() for row in found]
        return [text[: text.index(END)] if END in text else text for text in texts]


def make(folder: Path, architecture: str) -> Scene:
    tokenizer = byte_pairs()
    tokenizer.post_processor = None
    torch.manual_seed(3)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]()).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if weight.dim() > 1:  # logits far from equal
                weight.mul_(6.0 if "embed" in name or "wte" in name else 3.0)
    theirs.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    backbone = load_backbone(str(folder))
    head = Probe(Probe.for_backbone(CausalConfig(max_new_tokens=8), [], backbone.info), backbone=backbone.info)
    with torch.no_grad():
        head.adopt(backbone.pretrained)
    return Scene(
        theirs, Model(backbone, {"probe": head}, {}).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    )


@pytest.fixture(params=CONFIGS)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return make(tmp_path / "decoder", request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make(tmp_path_factory.mktemp("llama") / "decoder", "llama")


def test_tokens_are_as_likely_as_hugging_face_says(scene: Scene) -> None:
    items = [{"probe": Words(prompt, prompt=False)} for prompt in PROMPTS]
    for prompt, found in zip(PROMPTS, scene.engine().stream(items, first_chunk=len(items)), strict=True):
        ids = scene.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = scene.theirs(ids).logits[0].log_softmax(-1)
        following = [*ids[0, 1:].tolist(), END]
        expected = logits[range(len(following)), following].numpy()
        np.testing.assert_allclose(found["probe"]["log_probs"], expected, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 5, "num_beams": 2},
    ],
    ids=str,
)
def test_what_is_written_is_what_generate_writes_one_by_one(scene: Scene, options: Any) -> None:
    """Ours in one batch of prompts of different lengths, theirs each alone."""
    found = scene.written(**options, max_new_tokens=8)
    expected = [scene.generated(prompt, **{"max_new_tokens": 8, "do_sample": False, **options}) for prompt in PROMPTS]
    assert found == expected
    assert len({str(one) for one in found}) > 1


def test_samples_do_not_depend_on_the_prompts_beside(llama: Scene) -> None:
    options = {"do_sample": True, "num_return_sequences": 2, "temperature": 2.0, "top_k": 0, "num_beams": 1}
    together = llama.written(**options)
    alone = [llama.written(prompts=[prompt], **options)[0] for prompt in PROMPTS]
    llama.written(do_sample=False, num_return_sequences=1)
    assert together == alone
    assert len({str(text) for texts in together for text in texts}) > 5


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gemma2"])
def test_onnx_runtime_writes_the_same(architecture: str, tmp_path: Path) -> None:
    scene = make(tmp_path / "decoder", architecture)
    paths = {}
    for name, graph in traceables(scene.model).items():
        paths[name] = tmp_path / f"{name}.onnx"
        _, parity = export_graph(graph, paths[name], PRECISIONS["fp32"])
        assert parity.max_difference <= 1e-4
    runtime = OnnxRuntime(paths, device="cpu", precision="fp32")
    for options in ({}, {"num_beams": 3}):
        assert scene.written(runtime, **options) == scene.written(**options)


def test_a_branch_writes_by_its_own_layers(tmp_path: Path) -> None:
    scene = make(tmp_path / "decoder", "llama")
    backbone = scene.model.backbone
    branch = backbone.branch(1)
    with torch.no_grad():
        for weight in branch.parameters():
            weight.mul_(1.5)
        theirs = dict(scene.theirs.model.state_dict())
        for name, tensor in branch.tensors().items():
            theirs[name].copy_(tensor)
    scene.model = Model(backbone, scene.model.heads, {}, {"probe": branch}).eval()
    assert scene.written() == [scene.generated(prompt, max_new_tokens=8, do_sample=False) for prompt in PROMPTS]


def test_the_end_of_a_long_prompt_is_kept_and_room_is_left(llama: Scene) -> None:
    long = " ".join(PROMPTS * 20)
    [window] = llama.engine(max_new_tokens=30).tokenizer.windows([Source(long, continued=True, reserved=30)])[0]
    whole = llama.tokenizer(long, add_special_tokens=False).input_ids
    assert len(window) == POSITIONS - 30
    assert window.ids.tolist() == whole[-len(window) :]
    assert (window.opens, window.closes, window.continued) == (False, True, True)
    [[text]] = llama.written(prompts=[long], max_new_tokens=30)
    assert len(text) <= 30
    [[text]] = llama.written(prompts=[long], max_new_tokens=10_000, min_new_tokens=10_000)
    assert len(text) == POSITIONS // 2
    llama.written(max_new_tokens=8, min_new_tokens=0)


def test_markup_is_read_as_special_tokens_and_text_is_not(llama: Scene) -> None:
    tokenizer = llama.model.backbone.tokenizer()
    [marked], [plain] = tokenizer.windows([Source("a</s>", markup=True), Source("a</s>")])
    assert marked.ids[-1] == END
    assert END not in plain.ids


def test_a_prompt_of_an_encoder_has_nothing_behind_it(backbones: Path) -> None:
    tokenizer = load_backbone(str(backbones / "bert")).tokenizer()
    [begun], [whole] = tokenizer.windows([Source("ada", continued=True), Source("ada")])
    assert begun.ids.tolist() == whole.ids.tolist()[:-1]


def test_bf16_writes_something_like_it(llama: Scene) -> None:
    try:
        runtime = open_torch(llama.model.graphs(), "cpu", "bf16")
    except Exception as error:  # only some machines have such numbers
        pytest.skip(str(error))
    assert len(llama.written(runtime)) == len(PROMPTS)


def test_a_head_does_not_stand_on_a_backbone_of_another_kind(llama: Scene, backbones: Path) -> None:
    from nlptasks.registry import head_class

    with pytest.raises(
        ModelError, match=r"is of the kind decoder \(llama\), which reads only to the left, and NerHead does not"
    ):
        head_class("ner").check_backbone(llama.model.backbone.info)
    with pytest.raises(ModelError, match=r"is of the kind encoder \(bert\), and Probe does not stand on such; take a"):
        Probe.check_backbone(load_backbone(str(backbones / "bert")).info)


def test_a_decoder_that_names_no_end_is_refused(llama: Scene) -> None:
    info = llama.model.backbone.info
    config = transformers.LlamaConfig(**{**GROUPED, "eos_token_id": None})
    with pytest.raises(ModelError, match="does not say with which token a text ends"):
        Probe.for_backbone(CausalConfig(), [], replace(info, config=config, generation={}))
