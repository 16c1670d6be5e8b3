"""Many heads on one backbone: exact, in one pass, with shared weights held once, on every architecture."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from torch import Tensor, nn

from nlptasks.backbones.architecture import hf_config
from nlptasks.backbones.backbone import Backbone
from nlptasks.backbones.layer_sharing import Branch
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.errors import UsageError
from nlptasks.inference.batching import random_batch
from nlptasks.models.model import Model
from nlptasks.networks.base import Network
from nlptasks.testing.backbones import save_tokenizer, unigram, wordpiece
from nlptasks.types import ModelInput


class Reads(Network):
    """A network whose output is the hidden states."""

    outputs: Mapping[str, str] = {"states": "BSH"}
    targets: Mapping[str, str] = {}

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"states": states}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return outputs["states"].square().sum(), batch["mask"].sum()


DEPTHS = {"one": 1, "none": 0, "two": 2, "other": 1, "free": 0}


@pytest.fixture(scope="module", params=[*tiny.ARCHITECTURES, *(f"writer {name}" for name in tiny.WRITERS)])
def backbone(request: pytest.FixtureRequest, backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    kind, _, name = request.param.rpartition(" ")
    if not kind:
        return load_backbone(str(backbones / name)).eval()
    place = tmp_path_factory.mktemp("writer")
    transformers.AutoModel.from_config(tiny.WRITERS[name]()).save_pretrained(place)
    save_tokenizer(unigram(), place)
    return load_backbone(str(place)).eval()


def moved(backbone: Backbone, depth: int) -> Branch:
    """Return a branch whose outputs differ from those of the backbone."""
    branch = backbone.branch(depth)
    with torch.no_grad():
        for weight in branch.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return branch


def model_of(backbone: Backbone, depths: Mapping[str, int] = DEPTHS) -> Model:
    branches = {name: moved(backbone, depth) for name, depth in depths.items() if depth}
    return Model(backbone, {}, {name: Reads() for name in depths}, {}, branches).eval()


def inputs(backbone: Backbone) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in random_batch(backbone.info, (3, 9)).items()}


def alone(backbone: Backbone, branch: Branch | None, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the hidden states of Hugging Face's model with the branch's weights, without our code."""
    config = hf_config(backbone.info)
    full = transformers.AutoModel.from_config(config).eval()
    base_model = full.get_encoder() if config.is_encoder_decoder else full
    weights = {**backbone.base_model.state_dict(), **(branch.tensors() if branch else {})}
    base_model.load_state_dict(weights, strict=False)
    given = {"input_ids": batch["ids"], "attention_mask": batch["mask"]}
    if "types" in batch:
        given["token_type_ids"] = batch["types"]
    states: Tensor = base_model(**given).last_hidden_state
    return states


def test_each_head_reads_the_states_of_a_separate_model(backbone: Backbone) -> None:
    model, batch = model_of(backbone), inputs(backbone)
    with torch.no_grad():
        found = model(batch)
        for name in DEPTHS:
            assert torch.equal(found[f"{name}.states"], alone(backbone, model.branches.get(name), batch)), name
            assert torch.equal(model(batch, [name])[f"{name}.states"], found[f"{name}.states"])
        assert torch.equal(backbone(batch), found["none.states"])
    assert not torch.allclose(found["one.states"], found["other.states"], atol=1e-3)


def test_gradients_reach_only_the_trained_branch(backbone: Backbone) -> None:
    model, batch = model_of(backbone), inputs(backbone)
    backbone.requires_grad_(False)
    model.loss("two", batch)[0].backward()
    backbone.requires_grad_(True)
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith("branch two")}


def layers_run(model: Model, work: Callable[[], object]) -> Counter[str]:
    """Return how often each layer ran, by its owner and its index in the backbone."""
    counts: Counter[str] = Counter()
    layers = {f"shared {number}": layer for number, layer in enumerate(shared_layers(model.backbone))}
    for name, branch in model.branches.items():
        layers |= {f"{name} {number}": layer for number, layer in branch.numbered()}
    hooks = [
        layer.register_forward_hook(lambda *_, key=key: counts.update([key]))  # type: ignore[misc]
        for key, layer in layers.items()
    ]
    work()
    for hook in hooks:
        hook.remove()
    return counts


def shared_layers(backbone: Backbone) -> Sequence[nn.Module]:
    path = backbone.branch(1).path
    return list(backbone.base_model.get_submodule(path).children())


def test_every_layer_runs_once_and_only_those_that_are_needed(backbones: Path) -> None:
    backbone = load_backbone(str(backbones / "modernbert")).eval()  # it has four layers
    model, batch = model_of(backbone), inputs(backbone)
    shared = [f"shared {number}" for number in range(4)]
    owned = ["one 3", "two 2", "two 3", "other 3"]
    assert layers_run(model, lambda: model(batch)) == Counter([*shared, *owned])
    assert layers_run(model, lambda: model(batch, ["none", "free"])) == Counter(shared)
    assert layers_run(model, lambda: model(batch, ["two"])) == Counter([*shared[:2], "two 2", "two 3"])
    assert layers_run(model, lambda: model(batch, ["two", "one"])) == Counter([*shared[:3], "two 2", "two 3", "one 3"])


def test_weights_are_held_once_however_many_heads_there_are(backbones: Path) -> None:
    backbone = load_backbone(str(backbones / "modernbert"))
    alone = held(backbone)
    assert held(model_of(backbone, dict.fromkeys("abcd", 0))) == alone
    branch = held(backbone.branch(1))
    assert held(model_of(backbone, {"a": 1, "b": 0, "c": 1})) == alone + 2 * branch


def held(module: nn.Module) -> int:
    """Return the bytes of all storages that a module keeps alive."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in [*module.parameters(), *module.buffers()]
    }
    return sum(storages.values())


def test_a_change_of_attention_reaches_the_branches(backbones: Path) -> None:
    backbone = load_backbone(str(backbones / "bert")).eval()
    model, batch = model_of(backbone), inputs(backbone)
    with torch.no_grad():
        before = model(batch)["two.states"]
        backbone.base_model.set_attn_implementation("eager")  # type: ignore[operator]
        attention = next(module for name, module in model.branches["two"].named_modules() if name.endswith(".self"))
        assert attention.config._attn_implementation == "eager"  # type: ignore[union-attr]
        assert torch.allclose(model(batch)["two.states"], before, atol=1e-5)


def test_threads_do_not_see_each_others_passes(backbones: Path) -> None:
    model = model_of(load_backbone(str(backbones / "bert")).eval())
    batches = [
        {
            name: torch.from_numpy(array)
            for name, array in random_batch(model.backbone.info, (2, 3 + seed), seed).items()
        }
        for seed in range(24)
    ]

    def answer(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return model(batch)  # type: ignore[no-any-return]

    expected = [answer(batch) for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        for found, wanted in zip(threads.map(answer, batches * 4), expected * 4, strict=True):
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_models_can_be_copied(backbones: Path) -> None:
    model = model_of(load_backbone(str(backbones / "bert")).eval())
    batch = inputs(model.backbone)
    again = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(again(batch)["two.states"], model(batch)["two.states"])


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (99, "asks for 99 layers, the backbone has 2; use top:1 to top:2"),
        (0, "asks for 0 layers, the backbone has 2; use top:1 to top:2"),
    ],
)
def test_more_layers_than_there_are_cannot_be_owned(backbones: Path, depth: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_backbone(str(backbones / "bert")).branch(depth)


def test_layers_with_shared_weights_cannot_be_owned(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.AlbertConfig(vocab_size=300, embedding_size=16, **sizes)
    transformers.AlbertModel(config).save_pretrained(tmp_path)
    save_tokenizer(wordpiece(), tmp_path)
    backbone = load_backbone(str(tmp_path))
    with pytest.raises(UsageError, match=r"albert, which has no list of layers; use `tune=\"head\"`"):
        backbone.branch(1)
    assert backbone.layers == 0
    [[window]] = backbone.tokenizer().windows([ModelInput(("Ada saw London.",))])
    assert backbone(
        {"ids": torch.from_numpy(window.ids)[None], "mask": torch.ones(1, len(window)), **_types(window)}
    ).shape


def _types(window: object) -> dict[str, Tensor]:
    return {"types": torch.from_numpy(window.types)[None]}  # type: ignore[attr-defined]


def test_a_pass_leaves_no_branch_in_the_backbone(backbones: Path) -> None:
    model = model_of(load_backbone(str(backbones / "bert")).eval())
    batch = inputs(model.backbone)
    with torch.no_grad():
        before = model.backbone(batch)
        owned = model(batch, ["two"])["two.states"]
        assert torch.equal(model.backbone(batch), before)
    assert not torch.allclose(owned, before, atol=1e-3)
