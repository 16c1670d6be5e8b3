"""Backbones: any encoder from a folder, read strictly, saved whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

import nlptasks.pretrained
from nlptasks.backbone import Backbone
from nlptasks.errors import ModelError
from nlptasks.pretrained import embedded_folder, load_backbone
from nlptasks.types import Source


def batch_of(backbone: Backbone, text: str = "Ada saw London.") -> dict[str, torch.Tensor]:
    [[window]] = backbone.tokenizer().windows([Source(text)])
    arrays = {"ids": window.ids, "mask": window.ids * 0 + 1, "types": window.types}
    return {name: torch.from_numpy(array)[None] for name, array in arrays.items()}


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_every_architecture_gives_the_states_that_hugging_face_gives(backbones: Path, name: str) -> None:
    backbone = load_backbone(str(backbones / name)).eval()
    batch = batch_of(backbone)
    full = transformers.AutoModel.from_pretrained(backbones / name).eval()
    encoder = full.get_encoder() if full.config.is_encoder_decoder else full
    expected = encoder(input_ids=batch["ids"], attention_mask=batch["mask"]).last_hidden_state
    assert torch.equal(backbone(batch), expected)
    assert backbone.info.width == expected.shape[-1] == 32


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_saved_backbones_load_here_and_in_hugging_face(backbones: Path, name: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(backbones / name)).eval()
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(0.01)
    backbone.save(tmp_path)
    again = Backbone.from_folder(tmp_path, backbone.info.record()).eval()
    batch = batch_of(backbone)
    assert torch.equal(again(batch), backbone(batch))
    full = transformers.AutoModel.from_pretrained(tmp_path).eval()
    encoder = full.get_encoder() if full.config.is_encoder_decoder else full
    states = encoder(input_ids=batch["ids"], attention_mask=batch["mask"]).last_hidden_state
    assert torch.equal(states, backbone(batch))
    # What the backbone does not hold, a decoder or a pooler, is carried along as it was.
    before, after = load_file(backbones / name / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    held = set(backbone.names.values())
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before if key not in held)
    again.save(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(after)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_decoder_is_not_held(backbones: Path, name: str) -> None:
    backbone = load_backbone(str(backbones / name))
    assert not any("decoder" in key for key in backbone.state_dict())


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_longest_window_is_the_longest_the_backbone_reads(backbones: Path, name: str) -> None:
    backbone = load_backbone(str(backbones / name)).eval()
    longest = backbone.info.max_tokens
    ids = torch.full((1, longest), 7)
    batch = {"ids": ids, "mask": torch.ones_like(ids), "types": torch.zeros_like(ids)}
    assert backbone(batch).shape == (1, longest, 32)
    assert longest == (512 if name == "t5" else longest)
    assert longest >= 126


def test_the_embedded_backbone_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_backbone("minilm").info.max_tokens == 512
    copy = tmp_path / "model"
    folder = embedded_folder()
    assert folder is not None
    shutil.copytree(folder, copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    monkeypatch.setattr(nlptasks.pretrained, "embedded_folder", lambda: copy)
    with pytest.raises(ModelError, match=r"has sha256 .*, expected 53aa51"):
        load_backbone("minilm")


@pytest.mark.parametrize("name", ["", "https://huggingface.co/bert", "a/b/c", "no such folder"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a hub name"):
        load_backbone(name)


def test_a_hub_name_without_a_network_says_so() -> None:
    with pytest.raises(ModelError, match="cannot be had from the hub"):
        load_backbone("somebody/some-model")


def test_a_hub_model_is_the_folder_that_the_hub_gives(backbones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = {}

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        (backbones / commit).symlink_to(backbones / "bert")
        return str(backbones / commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    backbone = load_backbone("somebody/some-bert")
    assert asked["name"] == "somebody/some-bert"
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in asked["patterns"])
    assert (backbone.info.source, backbone.info.revision) == ("somebody/some-bert", commit)


def copy_of(backbones: Path, name: str, place: Path) -> Path:
    shutil.copytree(backbones / name, place)
    return place


def test_a_checkpoint_with_missing_weights_is_refused(backbones: Path, tmp_path: Path) -> None:
    folder = copy_of(backbones, "bert", tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the weights encoder\.layer\.1\.output\.dense\.weight"):
        load_backbone(str(folder))


def test_a_checkpoint_without_safetensors_is_refused(backbones: Path, tmp_path: Path) -> None:
    folder = copy_of(backbones, "bert", tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="has no usable weights"):
        load_backbone(str(folder))


def test_a_tokenizer_without_offsets_is_refused(backbones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        model_max_length = 64

    monkeypatch.setattr(nlptasks.pretrained.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(ModelError, match="has the tokenizer Slow, which gives no offsets"):
        load_backbone(str(backbones / "bert"))


def test_a_tokenizer_with_more_tokens_than_the_table_is_refused(backbones: Path, tmp_path: Path) -> None:
    folder = copy_of(backbones, "bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    with pytest.raises(ModelError, match="tokens for a table of 50"):
        load_backbone(str(folder))


def test_a_decoder_alone_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tiny.save_tokenizer(tiny.ARCHITECTURES["roberta"][1](), tmp_path)
    with pytest.raises(ModelError, match="is a decoder"):
        load_backbone(str(tmp_path))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no Hugging Face model"):
        load_backbone(str(tmp_path))


def test_a_model_without_a_tokenizer_is_refused(backbones: Path, tmp_path: Path) -> None:
    folder = copy_of(backbones, "bert", tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer beside the model"):
        load_backbone(str(folder))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "garbage"])
def test_our_own_folders_are_read_strictly(backbones: Path, tmp_path: Path, change: str) -> None:
    backbone = load_backbone(str(backbones / "bert"))
    backbone.save(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    key = "encoder.layer.0.output.dense.weight"
    if change == "missing":
        del weights[key]
    elif change == "unknown":
        weights["extra"] = torch.zeros(1)
    else:
        weights[key] = torch.zeros(3)
    save_file(weights, path)
    if change == "garbage":
        path.write_bytes(b"\x80\x04garbage")
    with pytest.raises(ModelError):
        Backbone.from_folder(tmp_path, backbone.info.record())


def test_a_config_of_an_unknown_architecture_is_refused(backbones: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(backbones / "bert"))
    backbone.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bertt"}))
    with pytest.raises(ModelError, match=r"has no usable config\.json"):
        Backbone.from_folder(tmp_path, backbone.info.record())
