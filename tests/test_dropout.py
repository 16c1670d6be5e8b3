"""Fast dropout: probability, mean, seed, and the unchanged model afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from nlptasks.backbones.pretrained import load_backbone
from nlptasks.training.fast_dropout import _FastDropout, _levels, cheap_dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_values_are_zeroed_with_the_probability_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    module = _FastDropout(p).train()
    found = module(torch.ones(1000, 999))
    assert (found == 0).float().mean().item() == pytest.approx(p, abs=0.003)
    assert found.mean().item() == pytest.approx(1, abs=0.005)
    assert len(found.unique()) == 2
    again = module(torch.ones(1000, 999))
    assert not torch.equal(found, again)
    torch.manual_seed(0)
    assert torch.equal(module(torch.ones(1000, 999)), found)
    assert torch.equal(module.eval()(torch.ones(3)), torch.ones(3))


def test_dropped_values_have_no_gradient() -> None:
    x = torch.randn(100, 7, requires_grad=True)
    found = _FastDropout(0.5).train()(x)
    found.sum().backward()
    assert torch.equal(x.grad == 0, found == 0)


@pytest.mark.parametrize(("p", "levels"), [(0.0, 0), (0.1, 26), (0.001, None), (1.0, None), (0.99, 253)])
def test_probabilities_that_rounding_would_change_are_left_to_torch(p: float, levels: int | None) -> None:
    assert _levels(p) == levels


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_backbone_is_unchanged_in_evaluation_and_afterwards(architecture: str, backbones: Path) -> None:
    backbone = load_backbone(str(backbones / architecture)).eval()
    batch = {name: torch.ones(2, 5, dtype=torch.int64) for name in backbone.info.inputs}
    batch["mask"][1, 3:] = 0
    before = backbone(batch)
    kinds = [type(module) for module in backbone.modules()]
    config = backbone.base_model.config._attn_implementation
    with cheap_dropout(backbone, backbone, torch.device("cpu")):
        assert not [child for child in backbone.modules() if isinstance(child, nn.Dropout) and _levels(child.p)]
        real = batch["mask"] == 1
        torch.testing.assert_close(backbone(batch)[real], before[real], atol=1e-6, rtol=0)
        backbone.train()(batch).sum().backward()
    assert [type(module) for module in backbone.modules()] == kinds
    assert backbone.base_model.config._attn_implementation == config
    assert torch.equal(backbone.eval()(batch), before)
