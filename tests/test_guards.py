"""A model folder is loaded as it was written, or refused in one line that names what is wrong; nothing in it is ever run."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch

import nlptasks
import nlptasks.storage.safetensors
from nlptasks.backbones.backbone import Backbone
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.errors import ModelError
from nlptasks.models.folder import ModelFolder
from nlptasks.pipeline import pipeline
from nlptasks.storage.atomic import parsed, sealed, sha256, unsealed
from nlptasks.storage.integrity import check_shape, read_json
from nlptasks.storage.safetensors import read_header

EXPORTED = [
    "README.md",
    "backbone/config.json",
    "backbone/model.safetensors",
    "backbone/tokenizer.json",
    "backbone/tokenizer_config.json",
    "heads/ner.safetensors",
    "nlptasks.json",
    "onnx/fp32/encode.onnx",
    "onnx/fp32/encode.onnx.data",
    "onnx/fp32/report.json",
    "training.json",
]
WEIGHTS = "backbone/model.safetensors"


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    place = tmp_path / "model"
    shutil.copytree(exported, place)
    return place


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as somebody would who knows how it is sealed."""
    manifest = unsealed((folder / "nlptasks.json").read_bytes())
    change(manifest)
    (folder / "nlptasks.json").write_bytes(sealed(manifest))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Change a file, and its sha256 wherever it stands, so that its content is what is met."""
    (folder / name).write_bytes(content)
    digest = {name: sha256(folder / name)}
    edit(folder, lambda manifest: manifest["files"].update(digest))
    path = folder / "onnx" / "fp32" / "report.json"
    report = unsealed(path.read_bytes())
    path.write_bytes(sealed({**report, "made_from": {**report["made_from"], **digest}}))


def refused(folder: Path, message: str) -> ModelError:
    with pytest.raises(ModelError, match=message) as caught:
        nlptasks.Model.load(folder)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def nothing_is_run() -> Iterator[list[str]]:
    """Every import of a Python file, start of a process and unpickling, as the interpreter itself tells them."""
    seen: list[str] = []
    watching = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching and event in ("os.system", "subprocess.Popen", "pickle.find_class"):
            seen.append(event)
        read = event in ("compile", "import") or (event == "open" and args[1] != "w")
        if watching and read and any(str(part).endswith(("canary", "canary.py")) for part in args[:2]):
            seen.append(f"{event} {args[:2]}")

    sys.addaudithook(hook)  # there is no taking it away
    yield seen
    watching = False
    assert seen == []


# Whole folders


def test_these_are_all_the_files(exported: Path) -> None:
    assert sorted(path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()) == EXPORTED


@pytest.mark.parametrize("mutation", ["flip", "truncate", "remove", "append"])
@pytest.mark.parametrize("name", [name for name in EXPORTED if name != "README.md"])
def test_a_changed_file_is_named(model: Path, name: str, mutation: str) -> None:
    path = model / name
    content = bytearray(path.read_bytes())
    if mutation == "flip":
        content[len(content) // 2] ^= 1
    elif mutation == "truncate":
        del content[-1:]
    else:
        content += b" "
    path.write_bytes(content)
    if mutation == "remove":
        path.unlink()
    if name.startswith("onnx/"):
        assert nlptasks.Model.load(model)  # a damaged export disables only itself
        with pytest.raises(ModelError) as caught:
            pipeline("ner", model=model, backend="onnx")
        error = caught.value
    else:
        error = refused(model, "sha256|is missing|is damaged|so it is no model")
    if path.name not in ("nlptasks.json", "report.json"):
        found = "is missing" if mutation == "remove" else "has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"
        again = f"remove {model / 'onnx/fp32'}, and run: nlptasks export {model} --precision fp32"
        assert error.where == str(path)
        assert re.search(
            f"{found}; {re.escape(again) if name.startswith('onnx') else 'restore the folder'}", str(error)
        )
    elif name.startswith("onnx/"):
        assert "has no ONNX export in fp32" in str(error)
    elif mutation != "remove":
        assert error.where == str(path)


@pytest.mark.parametrize("mutation", ["change", "remove", "unlisted"])
def test_the_card_may_be_edited(model: Path, mutation: str, caplog: pytest.LogCaptureFixture) -> None:
    if mutation == "unlisted":
        edit(model, lambda manifest: manifest["files"].pop("README.md"))
    (model / "README.md").write_text("my notes")
    if mutation == "remove":
        (model / "README.md").unlink()
    assert nlptasks.Model.load(model)
    assert len(caplog.records) == (mutation != "unlisted")
    assert re.search("README.md: (has sha256|is missing)", caplog.text) or mutation == "unlisted"


CODE_AND_PICKLES = ["bin", "pt", "pth", "pkl", "ckpt", "joblib", "npy", "h5", "keras", "msgpack", "py", "so", "dll"]
STRAYS = [
    "heads/other.safetensors",
    "onnx/fp32/x",
    "LICENSE",
    "Thumbs.db",
    "desktop.ini",
    "backbone/Thumbs.db",
    "setup.py",
    "a b/c",
]


@pytest.mark.parametrize("name", [*(f"backbone/x.{ending}" for ending in CODE_AND_PICKLES), *STRAYS])
def test_files_that_do_not_belong_are_never_opened(model: Path, name: str, nothing_is_run: list[str]) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).mkdir()  # whoever opened it would fail
    loaded = nlptasks.Model.load(model)
    assert set(loaded.backbone.assets) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert pipeline("ner", model=model, backend="onnx")("Ada Smith saw London.") is not None


def test_hidden_files_and_a_training_in_progress_are_left_alone(model: Path) -> None:
    for name in (".DS_Store", "backbone/.gitkeep", "onnx/.fp32.tmp-1/encode.onnx", "checkpoints/1/x.safetensors"):
        (model / name).parent.mkdir(exist_ok=True, parents=True)
        (model / name).write_text("x")
    assert set(nlptasks.Model.load(model).backbone.assets) == {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_files_of_another_model_are_refused(model: Path, trained: Path, tmp_path: Path) -> None:
    other = nlptasks.Model.load(trained)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, model / WEIGHTS)
    refused(model, "model.safetensors: has sha256 .*, expected")


def test_every_file_is_hashed_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.relative_to(model).as_posix())
        return sha256(path)

    monkeypatch.setattr("nlptasks.storage.integrity.sha256_beside", counted)
    for backend in ("torch", "onnx"):
        pipeline("ner", model=model, backend=backend)
        ours = [name for name in EXPORTED if backend == "onnx" or not name.startswith("onnx/")]
        assert sorted(hashed) == [name for name in ours if name not in ("nlptasks.json", "onnx/fp32/report.json")]
        hashed.clear()


# The manifest


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "C:\\x",
        "C:x",
        "backbone\\x",
        "a//b",
        "a/../b",
        "./a",
        "",
        "a/",
        "a\x00",
    ],
)
def test_a_list_names_plain_files_only(model: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(model, lambda manifest: manifest["files"].update({name: "0" * 64}))
    monkeypatch.setattr("nlptasks.storage.integrity.sha256_beside", lambda path: pytest.fail(f"opened {path}"))
    refused(model, "lists the file .*, expected a path inside the folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["files"].update({"x": "?"}), "lists 'x' with '[?]', expected a sha256"),
        (lambda m: m["files"].update({"x": 5}), r"is damaged \(files.x is 5, expected str"),
        (lambda m: m["files"].pop(WEIGHTS), "is damaged .it does not list backbone/model.safetensors"),
        (lambda m: m["files"].pop("heads/ner.safetensors"), "is damaged .it does not list heads/ner.safetensors"),
        (lambda m: m.update(files=[]), r"is damaged \(files is \[\], expected an object"),
        (lambda m: m.update(nlptasks=None), "is damaged .nlptasks is None, expected str"),
        (lambda m: m.update(more=1), r"is damaged \( ?has \["),
        (lambda m: m.pop("heads"), "is damaged"),
        (lambda m: m.update(format=99), "has format 99 of nlptasks '.*', expected 1; upgrade nlptasks"),
        (lambda m: m.update(format=0), "is damaged .its format is 0"),
        (lambda m: m.update(format="1"), "is damaged"),
        (lambda m: m["backbone"].update(max_tokens="x"), "backbone.max_tokens is 'x', expected int"),
        (lambda m: m["backbone"].update(max_tokens=True), "backbone.max_tokens is True, expected int"),
        (lambda m: m["backbone"].update(max_tokens=10**9), "records windows of 1000000000 tokens, its backbone reads 128"),
        (lambda m: m["backbone"].update(max_tokens=2), "reads only 2 tokens at a time"),
        (lambda m: m["backbone"].update(pad_id=-1), "has no token with the padding's id -1"),
        (lambda m: m["backbone"].update(revision=5), "backbone.revision is 5, expected str or NoneType"),
        (lambda m: m["heads"].update({"../x": m["heads"]["ner"]}), "is damaged .head name '../x'"),
        (lambda m: m["heads"]["ner"].update(config=5), "heads.ner.config is 5, expected dict"),
        (lambda m: m["heads"]["ner"]["config"].update(tags=5), r"tags of the head ner is 5\)"),
        (lambda m: m["heads"]["ner"]["config"].update(more=5), "has an unusable head 'ner'"),
        (lambda m: m["heads"]["ner"]["config"].update(tags=["O", "B-X"]), r"ner.safetensors: has F32\[.*\] for .*, expected"),
        (lambda m: m["heads"]["ner"]["config"].update(temperature=0), "temperature of the head ner is 0"),
        (lambda m: m["backbone"].update(width=5), "records width=5 for its backbone"),
        (lambda m: m["backbone"].update(kind="decoder"), "records kind='decoder' for its backbone"),
        (lambda m: m["heads"]["ner"].update(metrics={"dev": {"f1": "x"}}), "metrics.dev.f1 is 'x', expected float or int"),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_refused(model: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(model, change)
    with pytest.raises(ModelError, match=message):
        pipeline("ner", model=model, backend="torch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 1_000_000, "is damaged"),
        (sealed({"a": 1}).replace(b'"a"', b'"b"'), "is damaged .it does not match its sha256"),
        (b'{"format": 1, "files": {}}', "is damaged"),
        (
            b'{"seal": 7, "format": 2, "nlptasks": "9.0"}',
            "has format 2 of nlptasks '9.0', expected 1; upgrade nlptasks",
        ),
    ],
)
def test_a_damaged_manifest_is_told_from_a_newer_one(model: Path, content: bytes, message: str) -> None:
    (model / "nlptasks.json").write_bytes(content)
    assert refused(model, message).where == str(model / "nlptasks.json")


def test_a_manifest_is_not_read_without_end(model: Path) -> None:
    os.truncate(model / "nlptasks.json", 65 * 2**20)
    refused(model, "has 68157440 bytes, expected at most 67108864")


def test_json_says_nothing_twice_and_is_no_well() -> None:
    with pytest.raises(ValueError, match="it has the key 'a' twice"):
        parsed(b'{"a": 1, "a": 2}')
    with pytest.raises(ValueError, match="it is nested too deeply"):
        parsed(b"[" * 200_000 + b"]" * 200_000)
    with pytest.raises(ValueError, match="it has no sha256"):
        unsealed(b'{"a": 1}')
    with pytest.raises(ValueError, match=r"x has \['a'\], expected \['b'\]"):
        check_shape({"a": 1}, {"b": int}, name="x")


def test_json_files_are_objects(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"is \[1\], expected an object"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ModelError, match="is no usable JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("change", [{"files": {"../../nlptasks.json": "0" * 64}}, {"files": 5}, {"made_from": None}])
def test_an_exports_list_is_checked_as_well(
    model: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    report = model / "onnx" / "fp32" / "report.json"
    report.write_bytes(sealed({**unsealed(report.read_bytes()), **change}))
    with pytest.raises(ModelError, match="has no ONNX export in fp32"):
        pipeline("ner", model=model, backend="onnx")
    assert re.search("expected a path inside|is damaged", caplog.text)
    assert str(report) in caplog.text


def test_a_folder_that_cannot_be_read_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> str:
        raise PermissionError("Permission denied")

    monkeypatch.setattr("nlptasks.storage.integrity.sha256_beside", failing)
    refused(model, "cannot be read .Permission denied")
    monkeypatch.setattr("pathlib.Path.read_bytes", failing)
    refused(model, "nlptasks.json: cannot be read .Permission denied")


# Links and odd kinds


def symlink(path: Path, outside: Path) -> None:
    path.rename(outside)
    path.symlink_to(outside)


def hard_link(path: Path, outside: Path) -> None:
    os.link(path, outside)


def pipe(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()


def listen(path: Path, outside: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as ear:
        os.chdir(path.parent)  # addresses of sockets are short
        ear.bind(path.name)


PLACES = ["nlptasks.json", "backbone/config.json", WEIGHTS, "onnx/fp32/encode.onnx.data", "onnx/fp32/report.json"]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("make", [symlink, hard_link])
def test_links_are_followed(model: Path, name: str, make: Callable[[Path, Path], None]) -> None:
    make(model / name, model.parent / "elsewhere")
    assert nlptasks.Model.load(model)
    assert pipeline("ner", model=model, backend="onnx")("Ada Smith saw London.") is not None


def test_a_hub_cache_is_a_model(model: Path, tmp_path: Path) -> None:
    """Every file of a snapshot is a link to a blob elsewhere; a mounted volume has links to folders."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(path for path in model.rglob("*") if path.is_file()):
        symlink(path, blobs / str(number))
    (model / "backbone").rename(tmp_path / "..data")
    (model / "backbone").symlink_to(tmp_path / "..data")
    (tmp_path / "latest").symlink_to(model)
    expected = pipeline("ner", model=tmp_path / "latest", backend="torch")("Ada Smith saw London.")
    found = pipeline("ner", model=tmp_path / "latest", backend="onnx")("Ada Smith saw London.")
    assert [(one.text, one.label) for one in found] == [(one.text, one.label) for one in expected]


def test_a_link_to_other_content_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).symlink_to(tmp_path / "secret")
    assert "secret" not in str(refused(model, "has sha256"))


@pytest.mark.parametrize("name", ["nlptasks.json", "backbone/config.json", WEIGHTS, "README.md"])
@pytest.mark.parametrize("make", [pipe, listen, folder])
def test_only_regular_files_are_opened(
    model: Path, name: str, make: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    make(model / name, model.parent / "elsewhere")
    if name == "README.md":
        assert nlptasks.Model.load(model)  # as if it were missing
    else:
        refused(model, "is no regular file|is missing|cannot be read")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs the right to make devices")
def test_a_device_is_refused(model: Path) -> None:
    (model / WEIGHTS).unlink()
    try:
        os.mknod(model / WEIGHTS, 0o020644, os.makedev(1, 5))  # /dev/zero, which has no end
    except OSError:
        pytest.skip("no devices here")
    refused(model, "is missing")


# Weights


def raw(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def one(**change: Any) -> bytes:
    member = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **change}
    return raw(json.dumps({"a": member}).encode(), b"\x00" * 4)


NOTHING = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
MALFORMED = {
    "empty": b"",
    "short length": b"\x01\x00",
    "length beyond the file": (2**20).to_bytes(8, "little") + b"{}",
    "huge length": (2**63).to_bytes(8, "little") + b"{}",
    "header too long": raw(b" " * (16 * 2**20 + 1)),
    "no JSON": raw(b"{,}"),
    "a list": raw(b"[]"),
    "too deep": raw(b'{"a":' + b"[" * 200_000),
    "not UTF-8": raw(b'{"\xff": 1}'),
    "twice the same key": raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2 + b'"b":1}', b"\x00" * 4),
    "no tensor": raw(b'{"a": 5}'),
    "shape no list": one(shape=5),
    "negative shape": one(shape=[-1]),
    "shape of floats": one(shape=[1.5]),
    "shape that overflows": one(shape=[2**62, 2**62]),
    "unknown dtype": one(dtype="F3"),
    "integer dtype": one(dtype="I32"),
    "offsets beyond the file": one(data_offsets=[0, 400], shape=[100]),
    "offsets turned round": one(data_offsets=[4, 0]),
    "hole in the data": one(data_offsets=[4, 8]),
    "bytes behind the data": one() + b"x",
    "100,000 tensors": raw(json.dumps({str(n): NOTHING for n in range(100_000)}).encode()),
    "the same bytes for two tensors": raw(json.dumps({"a": NOTHING, "b": NOTHING}).encode()),
    "a pickle": pickle.dumps({"a": 1}),
    "a zip": b"PK\x03\x04" + b"\x00" * 100,
}  # fmt: skip


@pytest.mark.parametrize("name", ["backbone/model.safetensors", "heads/ner.safetensors"])
@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_of_weights_is_refused(model: Path, name: str, content: bytes) -> None:
    replace_file(model, name, content)
    error = refused(model, "is no usable safetensors file|the file holds|lacks|has unknown|cannot be read")
    assert str(model / name).startswith(error.where)


@pytest.mark.parametrize("name", ["bytes behind the data", "hole in the data", "offsets turned round"])
def test_wrong_offsets_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(ModelError, match="is no usable safetensors file"):
        read_header(path)
    with pytest.raises(ModelError, match="cannot be read"):
        nlptasks.storage.safetensors.read_into(path, {"a": torch.zeros(1)})
    with pytest.raises(ModelError, match="cannot be read"):
        nlptasks.storage.safetensors.read_without(path, ())


NAMES = {WEIGHTS: "encoder.layer.1.output.dense.weight", "heads/ner.safetensors": "layers.model.classifier.weight"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, key: tensors.pop(key), "lacks {key}; has unknown none"),
        (lambda tensors, key: tensors.update(extra=torch.zeros(1)), "lacks none; has unknown extra"),
        (
            lambda tensors, key: tensors.update({f"e{n}": torch.zeros(1) for n in range(20)}),
            "has unknown e0, .* and 10 more",
        ),
        (lambda tensors, key: tensors.update({key: torch.zeros(3)}), r"has F32\[3\] for {key}, expected float\["),
        (lambda tensors, key: tensors.update({key: tensors[key][:1]}), r"has F32\[1, \d+\] for {key}"),
        (lambda tensors, key: tensors.update({key: tensors[key].T.contiguous()}), r"has F32\[.* for {key}"),
        (lambda tensors, key: tensors.update({key: tensors[key].long()}), r"has I64\[.* for {key}"),
        (
            lambda tensors, key: tensors.update({key: tensors[key].fill_(float("nan"))}),
            "values that are not finite in {key}",
        ),
        (
            lambda tensors, key: tensors[key].view(-1)[7].fill_(float("-inf")),
            "values that are not finite in {key}",
        ),
    ],
)
def test_weights_fit_one_by_one(model: Path, name: str, change: Any, message: str) -> None:
    tensors = safetensors.torch.load_file(model / name)
    change(tensors, NAMES[name])
    replace_file(model, name, safetensors.torch.save(tensors))
    refused(model, message.replace("{key}", NAMES[name]))


def test_other_floats_are_read_as_they_are(model: Path) -> None:
    tensors = safetensors.torch.load_file(model / WEIGHTS)
    replace_file(model, WEIGHTS, safetensors.torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}))
    assert {weight.dtype for weight in nlptasks.Model.load(model).parameters()} == {torch.float32}


class Canary:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("name", [WEIGHTS, "heads/ner.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_refused_and_nothing_of_it_runs(
    model: Path, tmp_path: Path, name: str, kind: str, nothing_is_run: list[str]
) -> None:
    bomb = tmp_path / "bomb"
    if kind == "pickle":
        bomb.write_bytes(pickle.dumps(Canary(tmp_path / "sprung")))
    else:
        torch.save(Canary(tmp_path / "sprung"), bomb)
    replace_file(model, name, bomb.read_bytes())
    refused(model, "is no usable safetensors file")
    with pytest.raises(ModelError, match="is no usable safetensors file"):
        load_backbone(str(model / "backbone")) if name == WEIGHTS else nlptasks.Model.load(model)
    assert not (tmp_path / "sprung").exists()


# Configs that name code, or are not that of the weights

CODE = [
    {"auto_map": {"AutoModel": "canary.Canary", "AutoConfig": "canary.Canary"}},
    {"trust_remote_code": True},
    {"quantization_config": {"quant_method": "canary"}},
    {"custom_generate": "canary"},
    {"_attn_implementation": "evil/kernel"},
    {"attn_implementation": "evil/kernel"},
    {"_attn_implementation_internal": "evil/kernel"},
    {"_experts_implementation": "evil/kernel"},
    {"experts_implementation": {"": "evil/kernel"}},
    {"text_config": {"deep": [{"auto_map": {}}]}},
]


@pytest.mark.parametrize("keys", CODE, ids=[next(iter(keys)) for keys in CODE])
def test_a_config_that_names_code_is_refused(
    model: Path, keys: dict[str, Any], nothing_is_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    config = json.loads((model / "backbone" / "config.json").read_text())
    replace_file(model, "backbone/config.json", json.dumps({**config, **keys}).encode())
    key = "auto_map" if "text_config" in keys else next(iter(keys))
    message = f"config.json: has the key '{key}', which names code"
    refused(model, message)
    with pytest.raises(ModelError, match=message):
        pipeline("ner", model=model, backend="onnx")
    (model / "backbone" / "canary.py").write_text("class Canary: ...")
    with pytest.raises(ModelError, match=message):
        load_backbone(str(model / "backbone"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": -1}, "backbone: (does not run|has a config.json that describes no model)"),
        ({"chunk_size_feed_forward": 3}, "backbone: does not run"),
        (
            {"hidden_dropout_prob": float("nan")},
            "backbone: has no usable config.json .*hidden_dropout_prob is no number",
        ),
    ],
)
def test_a_config_that_fits_its_weights_and_does_not_run_is_refused(
    model: Path, change: dict[str, Any], message: str
) -> None:
    config = json.loads((model / "backbone" / "config.json").read_text())
    replace_file(model, "backbone/config.json", json.dumps({**config, **change}).encode())
    assert refused(model, message).where == str(model / "backbone")


def test_outputs_have_names_whatever_a_config_says(model: Path) -> None:
    config = json.loads((model / "backbone" / "config.json").read_text())
    replace_file(model, "backbone/config.json", json.dumps({**config, "return_dict": False}).encode())
    assert pipeline("ner", model=model, backend="torch")("Ada Smith saw London .") is not None


def test_a_flag_of_old_writers_is_no_code(model: Path) -> None:
    config = json.loads((model / "backbone" / "config.json").read_text())
    changed = json.dumps({**config, "_attn_implementation_autoset": True}).encode()
    replace_file(model, "backbone/config.json", changed)
    assert nlptasks.Model.load(model)


BOUNDS: list[tuple[dict[str, Any], str]] = [
    ({"classifier_dropout": float("nan")}, "classifier_dropout is no number"),
    ({"hidden_size": 10**9}, "describes .* weights, the file holds"),
    ({"vocab_size": 10**12}, "describes .* weights, the file holds|describes no model"),
    ({"hidden_size": 2**62}, "describes no model"),
    ({"hidden_size": 0}, "describes no model|expected"),
    ({"hidden_size": -1}, "no usable config|describes no model"),
    ({"hidden_size": 64}, "expected float|the file holds"),
    ({"hidden_size": "x"}, "no usable config"),
    ({"num_attention_heads": 0}, "describes no model"),
    ({"num_attention_heads": 7}, "describes no model"),
    ({"num_hidden_layers": 2_000_000}, "num_hidden_layers is 2000000, expected at most 10000"),
    ({"num_hidden_layers": 9_000}, "it describes .* weights, the file holds"),
    ({"num_hidden_layers": 3}, "lacks encoder.layer.2"),
    ({"num_hidden_layers": 1}, "has unknown encoder.layer.1"),
    ({"num_hidden_layers": -1}, "has unknown encoder|no usable config"),
    ({"num_labels": 10**9}, "num_labels is 1000000000, expected at most 10000"),
    ({"max_position_embeddings": 64}, "expected float"),
    ({"type_vocab_size": 1}, "expected float"),
    ({"layer_norm_eps": "x"}, "no usable config|does not run"),
    ({"hidden_act": "canary"}, "describes no model"),
    ({"model_type": "bertt"}, "has no usable config.json"),
    ({"model_type": ["bert"]}, "has no usable config.json"),
    ({"model_type": "vit"}, "describes no model|lacks|no usable config"),
    ({"model_type": None}, "has no usable config.json"),
]


@pytest.mark.parametrize(("change", "message"), BOUNDS, ids=[str(change) for change, _ in BOUNDS])
def test_a_config_is_that_of_its_weights(model: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((model / "backbone" / "config.json").read_text())
    replace_file(model, "backbone/config.json", json.dumps({**config, **change}).encode())
    refused(model, message)
    if "has unknown" not in message:  # somebody else's folder may hold more than is used
        with pytest.raises(ModelError):
            load_backbone(str(model / "backbone"))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"5", b"{", b"\xff", b'{"a":' + b"[" * 5000, b'{"a": 1, "a": 2}'], ids=range(7)
)
def test_a_config_that_is_none_is_refused(model: Path, content: bytes) -> None:
    replace_file(model, "backbone/config.json", content)
    refused(model, "(has no usable config.json|config.json: cannot be read)")


# Tokenizers


def tokenizer_with(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((model / "backbone" / "tokenizer.json").read_text())
    change(values)
    replace_file(model, "backbone/tokenizer.json", json.dumps(values).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"]["vocab"].update(extra=300), "has a tokenizer of 301 tokens and an embedding table of"),
        (lambda t: t["model"]["vocab"].update(extra=2**32 - 1), "has a tokenizer of 4294967296 tokens"),
        (lambda t: t["model"]["vocab"].update(extra=-1), "cannot be read"),
        (lambda t: t["post_processor"]["special_tokens"]["<s>"].update(ids=[99999]), "has a tokenizer of 100000 tokens"),
        (lambda t: t["post_processor"]["pair"][-1]["SpecialToken"].update(type_id=7), "8 token types, expected at most 2"),
        (lambda t: t.update(normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}), "cannot be read"),
        (lambda t: t.clear(), "cannot be read"),
    ],
)  # fmt: skip
def test_tokenizers_have_the_tokens_that_the_backbone_has(model: Path, change: Any, message: str) -> None:
    tokenizer_with(model, change)
    for backend in ("torch", "onnx"):
        with pytest.raises(ModelError, match=message):
            pipeline("ner", model=model, backend=backend)


def test_a_panic_of_the_tokenizer_is_an_error_and_an_interrupt_is_not(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def raising(kind: type[BaseException]) -> Callable[[str], object]:
        def raised(content: str) -> object:
            raise kind("called `Option::unwrap()` on a `None` value")

        return raised

    monkeypatch.setattr("tokenizers.Tokenizer.from_str", raising(PanicException))
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read \(PanicException: called"):
        pipeline("ner", model=model)
    monkeypatch.setattr("tokenizers.Tokenizer.from_str", raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pipeline("ner", model=model)


# Heads of packages that are not here


@pytest.mark.parametrize(
    ("package", "fix"),
    [
        ("nlptasks-topics 1.0", "pip install nlptasks-topics"),
        ("", "install the package that has it"),
        ("https://x.example/y.whl", "install the package that has it"),
    ],
)
def test_a_head_that_is_not_installed_names_its_package(
    model: Path, package: str, fix: str, nothing_is_run: list[str]
) -> None:
    edit(model, lambda manifest: manifest["heads"]["ner"].update(task="canary:Canary", package=package))
    for backend in ("torch", "onnx"):
        with pytest.raises(ModelError, match=f"needs for 'ner' the head 'canary:Canary' of the package .*; {fix}"):
            pipeline("ner", model=model, backend=backend)


def test_heads_record_the_package_that_they_come_from(model: Path) -> None:
    [record] = ModelFolder.open(model).records.values()
    assert record.package == f"nlptasks {nlptasks.__version__}"


def test_what_we_write_names_no_code(backbones: Path, tmp_path: Path) -> None:
    from nlptasks.backbones.architecture import refuse_code

    written = {folder.name: load_backbone(str(folder)).assets for folder in backbones.iterdir()}
    for name, assets in written.items():
        for content in assets.values():
            refuse_code(json.loads(content), where=name)
    assert all({"config.json", "tokenizer.json"} <= assets.keys() for assets in written.values())
    assert len(written) == len(tiny.ARCHITECTURES)


def test_a_backbone_that_is_said_to_read_types_reads_them(backbones: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(backbones / "roberta"))
    backbone.save(tmp_path)
    record = {**backbone.info.record(), "token_types": 2}
    with pytest.raises(ModelError, match="records token_types=2 for its backbone, which has 0"):
        Backbone.from_folder(tmp_path, record, list(backbone.assets))
