"""Heads on decoders against the losses and `generate` of Hugging Face, on several architectures, in batches, on both backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nlptasks.backbones.info import DECODER
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.errors import ModelError
from nlptasks.exporting.exporter import export_graph
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.tracing import traceables
from nlptasks.generation.hypotheses import hypotheses_in
from nlptasks.heads.base import Schema, check_backbone
from nlptasks.heads.causal import CausalConfig, CausalFormat, CausalHead
from nlptasks.heads.ner import NerHead
from nlptasks.inference.engine import Engine
from nlptasks.metrics.base import Counts, Metrics
from nlptasks.models.model import Model
from nlptasks.networks.base import make_network
from nlptasks.networks.causal_lm import CausalLM
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import TorchRuntime, open_torch
from nlptasks.testing.backbones import END, PAD, POSITIONS, START, VOCABULARY, byte_pairs, save_tokenizer
from nlptasks.types import End, ModelInput, Parts, Row

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
    """A text to score or to continue."""

    text: str
    prompt: bool


class Probe(CausalHead[CausalConfig, Words, Any]):
    """The smallest head on a decoder."""

    Config = CausalConfig
    schema = Schema(contract=2, fields=("text",), sample="samples/ner", backbones=(DECODER,))

    def read(self, row: Row) -> Words:
        return Words(row.fields["text"], prompt=True)

    def gold(self, example: Words) -> str | None:
        return None if example.prompt else example.text

    def inputs(self, example: Words) -> list[ModelInput]:
        return [ModelInput((example.text,), cut=End(reserve=self.reserved) if example.prompt else Parts())]

    def targets(self, example: Words, window: Any) -> dict[str, Any]:
        return {"learned": self.learned(window)}

    def decode(self, example: Words, windows: Any, outputs: Any) -> Any:
        return outputs[0] if not example.prompt else [list(one.tokens) for one in hypotheses_in(outputs[0])]

    def count(self, example: Words, result: Any) -> Counts:
        return Counts()

    def metrics(self, counts: Counts) -> Metrics:
        return Metrics({"none": 0.0}, main="none")


@dataclass
class Scene:
    """A decoder of Hugging Face, and the same as a model of ours."""

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
        runtime = runtime or TorchRuntime(self.model.graphs(), CPU, outputs=self.model.outputs)
        return Engine({"probe": self.head}, backbone.tokenizer(), runtime, backbone.info)

    def generated(self, runtime: Any = None, prompts: Sequence[str] = PROMPTS, **options: Any) -> list[list[list[int]]]:
        items = [{"probe": Words(prompt, prompt=True)} for prompt in prompts]
        return [found["probe"] for found in self.engine(runtime, **options).stream(items, first_chunk=len(items))]

    def expected(self, prompt: str, **options: Any) -> list[list[int]]:
        """Return what Hugging Face generates after one prompt, without the end token."""
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
            if weight.dim() > 1:  # so that logits differ
                weight.mul_(6.0 if "embed" in name or "wte" in name else 3.0)
    theirs.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    backbone = load_backbone(str(folder))
    head = Probe(Probe.configure([], CausalConfig(max_new_tokens=8), backbone.info), backbone.info)
    network = make_network(head.network, backbone.info, head.network_options())
    with torch.no_grad():
        network.load_pretrained(backbone.pretrained)
    model = Model(backbone, {"probe": head}, {"probe": network}, {}).eval()
    return Scene(theirs, model, transformers.AutoTokenizer.from_pretrained(folder))


@pytest.fixture(params=CONFIGS)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return make(tmp_path / "decoder", request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make(tmp_path_factory.mktemp("llama") / "decoder", "llama")


def test_log_probabilities_equal_hugging_face(scene: Scene) -> None:
    items = [{"probe": Words(prompt, prompt=False)} for prompt in PROMPTS]
    for prompt, found in zip(PROMPTS, scene.engine().stream(items, first_chunk=len(items)), strict=True):
        ids = scene.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = scene.theirs(ids).logits[0].log_softmax(-1)
        following = [*ids[0, 1:].tolist(), END]
        expected = logits[range(len(following)), following].numpy()
        np.testing.assert_allclose(found["probe"]["log_probs"], expected, atol=2e-5)


def test_the_loss_is_that_of_the_token_logits(scene: Scene) -> None:
    backbone, network = scene.model.backbone, scene.model.networks["probe"]
    assert isinstance(network, CausalLM)
    ids = torch.randint(3, VOCABULARY, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    learned = mask.clone()
    learned[0, :2] = 0
    batch = {"ids": ids, "mask": mask, "learned": learned}
    with torch.no_grad():
        outputs = network.training_outputs(backbone(batch), batch)
        theirs = scene.theirs(ids, attention_mask=mask).logits
        loss, count = network.loss(outputs, batch)
        whole = network(backbone(batch), batch)["log_probs"]
    real = mask == 1
    torch.testing.assert_close(outputs["logits"][real], theirs[real], atol=1e-5, rtol=1e-5)
    following = torch.where(torch.cat([mask[:, 1:], torch.zeros(2, 1)], 1) == 1, ids.roll(-1, 1), END)
    expected = torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), following.masked_fill(learned == 0, -100).flatten(), reduction="sum"
    )
    assert int(count) == 5 + 4
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss) == pytest.approx(-float(whole[learned == 1].sum()), rel=1e-5)


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
def test_a_batch_generates_what_generate_does_one_by_one(scene: Scene, options: Any) -> None:
    """Ours in one batch of prompts of different lengths, theirs one by one."""
    found = scene.generated(**options, max_new_tokens=8)
    expected = [scene.expected(prompt, **{"max_new_tokens": 8, "do_sample": False, **options}) for prompt in PROMPTS]
    assert found == expected
    assert len({str(one) for one in found}) > 1


def test_samples_do_not_depend_on_other_prompts(llama: Scene) -> None:
    options = {"do_sample": True, "num_return_sequences": 2, "temperature": 2.0, "top_k": 0, "num_beams": 1}
    together = llama.generated(**options)
    alone = [llama.generated(prompts=[prompt], **options)[0] for prompt in PROMPTS]
    llama.generated(do_sample=False, num_return_sequences=1)
    assert together == alone
    assert len({str(text) for texts in together for text in texts}) > 5


@pytest.mark.parametrize(
    "architecture", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "gemma2"))]
)
def test_onnx_runtime_generates_the_same(architecture: str, tmp_path: Path) -> None:
    scene = make(tmp_path / "decoder", architecture)
    paths = {}
    for name, graph in traceables(scene.model).items():
        paths[name] = tmp_path / f"{name}.onnx"
        _, parity = export_graph(graph, paths[name], PRECISIONS["fp32"])
        assert parity.max_difference <= 1e-4
    specs = {name: graph.spec() for name, graph in scene.model.further_graphs().items()}
    runtime = OnnxRuntime(paths, device="cpu", precision="fp32", outputs=scene.model.outputs, specs=specs)
    for options in ({}, {"num_beams": 3}):
        assert scene.generated(runtime, **options) == scene.generated(**options)


def test_a_head_generates_with_its_own_layers(tmp_path: Path) -> None:
    scene = make(tmp_path / "decoder", "llama")
    backbone = scene.model.backbone
    branch = backbone.branch(1)
    with torch.no_grad():
        for weight in branch.parameters():
            weight.mul_(1.5)
        theirs = dict(scene.theirs.model.state_dict())
        for name, tensor in branch.tensors().items():
            theirs[name].copy_(tensor)
    scene.model = Model(backbone, scene.model.heads, scene.model.networks, {}, {"probe": branch}).eval()
    assert scene.generated() == [scene.expected(prompt, max_new_tokens=8, do_sample=False) for prompt in PROMPTS]


def test_the_end_of_a_long_prompt_is_read_and_room_is_left(llama: Scene) -> None:
    long = " ".join(PROMPTS * 20)
    [window] = llama.engine(max_new_tokens=30).tokenizer.windows([ModelInput((long,), cut=End(reserve=30))])[0]
    whole = llama.tokenizer(long, add_special_tokens=False).input_ids
    assert len(window) == POSITIONS - 30
    assert window.ids.tolist() == whole[-len(window) :]
    assert (window.opens, window.closes, window.encoded) == (False, True, False)
    [[text]] = llama.generated(prompts=[long], max_new_tokens=30)
    assert len(text) <= 30
    [[text]] = llama.generated(prompts=[long], max_new_tokens=10_000, min_new_tokens=10_000)
    assert len(text) == POSITIONS // 2
    llama.generated(max_new_tokens=8, min_new_tokens=0)


def test_markup_is_read_as_special_tokens_and_text_is_not(llama: Scene) -> None:
    tokenizer = llama.model.backbone.tokenizer()
    [marked], [plain] = tokenizer.windows([ModelInput(("a</s>",), markup=True), ModelInput(("a</s>",))])
    assert marked.ids[-1] == END
    assert END not in plain.ids


def test_a_prompt_is_not_closed_by_a_special_token(backbones: Path) -> None:
    tokenizer = load_backbone(str(backbones / "bert")).tokenizer()
    [prompt], [whole] = tokenizer.windows([ModelInput(("ada",), cut=End()), ModelInput(("ada",))])
    assert prompt.ids.tolist() == whole.ids.tolist()[:-1]


def test_bf16_generates_texts(llama: Scene) -> None:
    try:
        runtime = open_torch(llama.model.graphs(), "cpu", "bf16", outputs=llama.model.outputs)
    except Exception as error:  # only some machines support bf16
        pytest.skip(str(error))
    assert len(llama.generated(runtime)) == len(PROMPTS)


def test_backbones_of_another_kind_are_refused(llama: Scene, backbones: Path) -> None:
    with pytest.raises(
        ModelError, match=r"is of the kind decoder \(llama\), and NerHead does not run on it; use an enc"
    ):
        check_backbone(NerHead, llama.model.backbone.info)
    with pytest.raises(
        ModelError, match=r"is of the kind encoder \(bert\), and Probe does not run on it; use a decoder"
    ):
        check_backbone(Probe, load_backbone(str(backbones / "bert")).info)


def test_a_decoder_without_end_token_is_refused(llama: Scene) -> None:
    info = llama.model.backbone.info
    info = replace(info, config={**info.config, "eos_token_id": None}, generation={})
    with pytest.raises(ModelError, match="does not name the token with which a text ends"):
        Probe.configure([], CausalConfig(), info)


def test_settings_for_generate_become_options(llama: Scene) -> None:
    settings = {"num_beams": 3, "max_length": 9, "eos_token_id": [END, 7]}
    info = replace(llama.model.backbone.info, generation=settings)
    config = CausalFormat(CausalConfig).to_config(info, {"num_beams": 2})
    assert (config.num_beams, config.end, config.max_new_tokens) == (2, (END, 7), CausalConfig().max_new_tokens)
