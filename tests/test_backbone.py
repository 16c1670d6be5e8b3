"""Backbones: any encoder from a folder, read strictly, saved completely."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

import nlptasks.backbones.pretrained
from nlptasks.backbones.backbone import Backbone
from nlptasks.backbones.pretrained import embedded_folder, load_backbone
from nlptasks.errors import ModelError
from nlptasks.types import ModelInput


def batch_of(backbone: Backbone, text: str = "Ada saw London.") -> dict[str, torch.Tensor]:
    [[window]] = backbone.tokenizer().windows([ModelInput((text,))])
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
    again = Backbone.from_folder(tmp_path, backbone.info.record(), list(backbone.assets)).eval()
    batch = batch_of(backbone)
    assert torch.equal(again(batch), backbone(batch))
    full = transformers.AutoModel.from_pretrained(tmp_path).eval()
    encoder = full.get_encoder() if full.config.is_encoder_decoder else full
    states = encoder(input_ids=batch["ids"], attention_mask=batch["mask"]).last_hidden_state
    assert torch.equal(states, backbone(batch))
    # Weights that the backbone does not hold, of a decoder or a pooler, are saved unchanged.
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
    monkeypatch.setattr(nlptasks.backbones.pretrained, "embedded_folder", lambda: copy)
    with pytest.raises(ModelError, match=r"has sha256 .*, expected 53aa51"):
        load_backbone("minilm")


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

    monkeypatch.setattr(nlptasks.backbones.pretrained.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(ModelError, match="has the tokenizer Slow, which gives no offsets"):
        load_backbone(str(backbones / "bert"))


def test_a_tokenizer_with_more_tokens_than_the_table_is_refused(backbones: Path, tmp_path: Path) -> None:
    folder = copy_of(backbones, "bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:50].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"has a tokenizer of \d+ tokens and an embedding table of 50"):
        load_backbone(str(folder))


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
        Backbone.from_folder(tmp_path, backbone.info.record(), list(backbone.assets))


def test_a_config_of_an_unknown_architecture_is_refused(backbones: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(backbones / "bert"))
    backbone.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bertt"}))
    with pytest.raises(ModelError, match=r"has no usable config\.json"):
        Backbone.from_folder(tmp_path, backbone.info.record(), list(backbone.assets))


# Names on the hub


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("", "write a folder that exists, or a hub name"),
        ("no such folder", "write a folder that exists"),
        (" bert", "write a folder that exists"),
        ("../x", "write a folder that exists"),
        ("./x", "write a folder that exists"),
        ("/x", "write a folder that exists"),
        ("a/b/c", "write a folder that exists"),
        ("a/", "write a folder that exists"),
        ("a/..b", "write a folder that exists"),
        ("a--b", "write a folder that exists"),
        ("a/b@", "write a folder that exists"),
        ("a/b@../c", "write a folder that exists"),
        ("a/b@c@d", "write a folder that exists"),
        ("a/b\n", "write a folder that exists"),
        ("a" * 97, "write a folder that exists"),
        ("https://huggingface.co/bert", "leave out all of the address but owner/name"),
        ("C:\\models\\bert", "write a folder that exists"),
        ("google/b\u0435rt", "letters that only look like ASCII"),
        ("b\uff45rt", "letters that only look like ASCII"),
    ],
)
def test_invalid_names_are_refused_with_a_hint(name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match=f"neither a folder nor a hub name; .*{hint}"):
        load_backbone(name)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """A hub with one repository; it records what is asked for."""

    def __init__(self, place: Path, error: Exception | None = None) -> None:
        self.place, self.error, self.asked = place, error, {}  # type: ignore[var-annotated]

    def __call__(self, name: str, **given: object) -> str:
        self.asked = {"name": name, **given}
        if self.error:
            raise self.error
        return str(self.place)


@pytest.fixture
def hub(backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    # Like the cache: a folder named by the commit, with links to files elsewhere.
    fake = FakeHub(tmp_path / "snapshots" / COMMIT)
    shutil.copytree(backbones / "bert", tmp_path / "blobs")
    fake.place.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():
        (fake.place / path.name).symlink_to(path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    return fake


@pytest.mark.parametrize(
    ("name", "revision"),
    [("some/bert", None), ("bert", None), ("some/bert@v1.0", "v1.0"), (f"bert@{COMMIT}", COMMIT), ("b@refs/pr/1", "refs/pr/1")],
)  # fmt: skip
def test_a_hub_model_is_the_folder_that_the_hub_gives(hub: FakeHub, name: str, revision: str | None) -> None:
    backbone = load_backbone(name)
    assert (hub.asked["name"], hub.asked["revision"]) == (name.partition("@")[0], revision)
    assert (backbone.info.source, backbone.info.revision) == (name, COMMIT)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("config.json", True),
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("tokenizer.json", True),
        ("generation_config.json", True),
        ("pytorch_model.bin", False),
        ("modeling_x.py", False),
        ("onnx/config.json", False),
        ("adapter_config.json", False),
        ("1_Pooling/config.json", False),
        ("openvino/model.safetensors", False),
        ("chat_template.jinja", False),
    ],
)
def test_only_a_models_own_files_are_fetched(hub: FakeHub, name: str, wanted: bool) -> None:
    from huggingface_hub.utils import filter_repo_objects

    load_backbone("some/bert")
    assert list(filter_repo_objects([name], allow_patterns=hub.asked["allow_patterns"])) == [name] * wanted


def test_a_folder_wins_over_a_hub_name(hub: FakeHub, backbones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(backbones)
    assert load_backbone("bert").info.revision is None
    (backbones / "empty").mkdir(exist_ok=True)
    assert load_backbone("empty").info.revision == COMMIT
    (backbones / "empty").rmdir()


def test_a_model_is_no_backbone(trained: Path) -> None:
    with pytest.raises(ModelError, match=r"is a model, not a backbone; give its backbone: .*backbone"):
        load_backbone(str(trained))


def hub_error(kind: str) -> Exception:
    import httpx
    from huggingface_hub import errors

    if kind == "TimeoutException":
        return httpx.ReadTimeout("The read operation timed out")
    cls = getattr(errors, kind)
    if issubclass(cls, errors.HfHubHTTPError):
        request = httpx.Request("GET", "https://hub.test")
        return cls("404 Client Error.\nMore lines.", response=httpx.Response(404, request=request))  # type: ignore[no-any-return]
    return cls("Not here.\nMore lines.")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "asks for consent .*; accept its terms on its page, then run: hf auth login"),
        ("RepositoryNotFoundError", "is not on the hub, or is private .*; check the name, or run: hf auth login"),
        ("RevisionNotFoundError", "has no such revision .*; give a branch, tag or commit behind the @"),
        ("LocalEntryNotFoundError", "cannot be had from the hub .*; check the name and the network, or give a folder"),
        ("OfflineModeIsEnabled", "cannot be had from the hub .*; check the name and the network, or give a folder"),
        ("HfHubHTTPError", "cannot be had from the hub .*; check the name and the network"),
        ("TimeoutException", "cannot be had from the hub .ReadTimeout.*; check the name and the network"),
    ],
)
def test_errors_of_the_hub_are_one_line_with_a_fix(hub: FakeHub, kind: str, message: str) -> None:
    hub.error = hub_error(kind)
    with pytest.raises(ModelError, match=f"backbone 'some/bert': is no folder here and {message}") as caught:
        load_backbone("some/bert")
    assert "\n" not in str(caught.value)


def test_a_hub_model_without_its_commit_is_refused(hub: FakeHub, backbones: Path) -> None:
    hub.place = backbones / "bert"
    with pytest.raises(ModelError, match="came without its commit, as bert"):
        load_backbone("some/bert")


def test_a_hub_model_without_safetensors_says_convert(hub: FakeHub) -> None:
    (hub.place / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no usable weights: no model\.safetensors; convert it to safetensors"):
        load_backbone("some/bert")


def test_the_embedded_backbone_is_fetched_where_its_package_is_missing(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nlptasks.backbones.pretrained, "embedded_folder", lambda: None)
    assert load_backbone("minilm").info.revision == COMMIT
    assert hub.asked["name"] == "sentence-transformers/all-MiniLM-L6-v2"


# Foreign folders


@pytest.mark.parametrize("name", ["adapter_config.json", "custom_generate/generate.py"])
def test_folders_with_code_beside_are_refused(backbones: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(backbones, "bert", tmp_path / "bert")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(ModelError, match=f"has {name.partition('/')[0]}, which only code of its own can use"):
        load_backbone(str(folder))


def test_a_tokenizer_that_names_code_is_refused(backbones: Path, tmp_path: Path) -> None:
    folder = copy_of(backbones, "bert", tmp_path / "bert")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["canary.Canary", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: has the key 'auto_map', which names code"):
        load_backbone(str(folder))


def test_a_longest_window_that_is_no_number_is_refused(backbones: Path, tmp_path: Path) -> None:
    folder = copy_of(backbones, "bert", tmp_path / "bert")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": "x"}))
    with pytest.raises(ModelError, match=r"unusable tokenizer_config\.json|is no Hugging Face model"):
        load_backbone(str(folder))


def sharded(backbones: Path, place: Path) -> Path:
    folder = copy_of(backbones, "bert", place)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = [list(weights)[::2], list(weights)[1::2]]
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for half, name in zip(halves, names, strict=True):
        save_file({key: weights[key] for key in half}, folder / name, metadata={"format": "pt"})
    index = {key: name for half, name in zip(halves, names, strict=True) for key in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def test_a_checkpoint_in_parts_is_read(backbones: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(sharded(backbones, tmp_path / "bert"))).eval()
    whole = load_backbone(str(backbones / "bert")).eval()
    assert torch.equal(backbone(batch_of(backbone)), whole(batch_of(whole)))


@pytest.mark.parametrize("part", ["../x.safetensors", "/x.safetensors", "a\\x", "..", "", "none.safetensors", 5, None])
def test_an_index_names_files_beside_it_only(backbones: Path, tmp_path: Path, part: object) -> None:
    shutil.copy(backbones / "bert" / "model.safetensors", tmp_path / "x.safetensors")
    folder = sharded(backbones, tmp_path / "bert")
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    key = next(iter(values["weight_map"]))
    index.write_text(json.dumps({"weight_map": {**values["weight_map"], key: part}}))
    with pytest.raises(ModelError, match=r"index\.json: names the file .*, expected one beside it"):
        load_backbone(str(folder))
    index.write_text(json.dumps({"weight_map": part}))
    with pytest.raises(ModelError, match=r"index\.json: names the file .*, expected one beside it"):
        load_backbone(str(folder))


def test_foreign_weights_that_are_not_finite_are_refused(backbones: Path, tmp_path: Path) -> None:
    folder = copy_of(backbones, "bert", tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not finite in encoder\.layer\.1\.output\.dense\.weight"):
        load_backbone(str(folder))
