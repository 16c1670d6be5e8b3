"""Decoders taken out of encoder-decoders: the logits of Hugging Face, however the target is split into steps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers

from nlptasks.generation.cache import empty_cache, next_cache
from nlptasks.generation.decoder import Decoder
from nlptasks.generation.step_graph import StepGraph
from nlptasks.storage.safetensors import own_tensors

TOLERANCE = 1e-5
NEW = 11


def unequal(name: str) -> Any:
    """Return a config whose encoder has another depth than its decoder."""
    config = tiny.WRITERS[name]()
    if isinstance(config, transformers.T5Config):
        config.num_layers = 1
    return config


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 9), (3, 2, 5), (2, 4, 17)])
@pytest.mark.parametrize("name", tiny.WRITERS)
def test_logits_equal_hugging_face(name: str, shape: tuple[int, int, int]) -> None:
    groups, beams, length = shape
    config = unequal(name)
    theirs = tiny.make_writer(config, spread=0.5)
    decoder = Decoder(config).eval()
    missing = decoder.model.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    assert missing == []
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(3, config.vocab_size, (groups, length), generator=draw)
    mask = torch.ones_like(ids)
    mask[1:, length // 2 + 1 :] = 0
    tokens = torch.randint(3, config.vocab_size, (groups, beams, NEW), generator=draw)
    flat = tokens.view(groups * beams, NEW)
    with torch.no_grad():
        expected = theirs(
            input_ids=ids.repeat_interleave(beams, 0),
            attention_mask=mask.repeat_interleave(beams, 0),
            decoder_input_ids=flat,
            use_cache=False,  # with a cache it returns other numbers for a T5 of unequal depths
        ).logits
        states = theirs.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        whole = decoder.logits(states.repeat_interleave(beams, 0), mask.repeat_interleave(beams, 0), flat)
        torch.testing.assert_close(whole, expected, atol=TOLERANCE, rtol=0)
        cross = decoder.cross(states, mask)
        for pieces in ([1] * NEW, [3, 1, 1, 2, 4], [NEW]):
            heads, width = decoder.cache_shape
            past = {name: torch.zeros(1, heads, 0, width) for name in decoder.past}
            rows = torch.zeros(groups * beams, dtype=torch.int64)
            for end, size in zip(itertools.accumulate(pieces), pieces, strict=True):
                fed = tokens[..., end - size : end]
                found = decoder.step({"tokens": fed, "rows": rows, "mask": mask, **cross, **past})
                torch.testing.assert_close(found["logits"], expected[:, end - 1], atol=TOLERANCE, rtol=0)
                past = {old: found[new] for old, new in zip(decoder.past, decoder.present, strict=True)}
                rows = torch.arange(groups * beams)


def test_a_step_continues_rows_of_the_cache_in_any_order() -> None:
    decoder = Decoder(tiny.WRITERS["bart"]()).eval()
    states, mask = torch.randn(2, 5, decoder.width), torch.ones(2, 5, dtype=torch.int64)
    cross = decoder.cross(states, mask)
    heads, width = decoder.cache_shape
    past = {name: torch.randn(6, heads, 4, width) for name in decoder.past}
    rows = torch.tensor([5, 5, 0, 2, 1, 2])
    given = {"tokens": torch.full((2, 3, 1), 7), "mask": mask, **cross}
    found = decoder.step({**given, "rows": rows, **past})
    taken = {name: tensor[rows] for name, tensor in past.items()}
    again = decoder.step({**given, "rows": torch.arange(6), **taken})
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert torch.equal(found["logits"][0], found["logits"][1])
    assert not torch.equal(found["logits"][0], found["logits"][2])


@pytest.mark.parametrize("name", tiny.WRITERS)
def test_the_spec_of_a_step_describes_its_cache(name: str) -> None:
    decoder = Decoder(tiny.WRITERS[name]()).eval()
    graph = StepGraph(decoder)
    spec = graph.spec()
    heads, width = decoder.cache_shape
    assert spec.limits["tokens"] == decoder.vocabulary_size
    assert {spec.sizes[name] for name in [*decoder.crosses, *decoder.past]} == {(None, heads, None, width)}
    assert (spec.sizes["tokens"], spec.sizes["rows"], spec.sizes["mask"]) == ((None,) * 3, (None,), (None,) * 2)
    empty = empty_cache(spec)
    assert list(empty) == decoder.past
    assert {cache.shape for cache in empty.values()} == {(1, heads, 0, width)}
    assert all(cache.dtype == np.float32 for cache in empty.values())
    following = next_cache(graph(graph.samples()[0]))
    assert list(following) == decoder.past
    assert all(cache.shape[2] > 0 for cache in following.values())


def test_tied_weights_stay_tied_and_are_saved_once() -> None:
    decoder = Decoder(tiny.WRITERS["bart"]())
    assert decoder.model.lm_head.weight is decoder.model.model.decoder.embed_tokens.weight
    names = own_tensors(decoder)
    assert [name for name in names if "shared" in name or "lm_head" in name or "embed_tokens" in name] == [
        "model.model.shared.weight"
    ]
    assert not any("encoder." in name for name in names)
