"""A model: a backbone and its named heads, in memory and as a folder.

The folder has ``nlptasks.json`` (what the model is, and the sha256 of every file), ``backbone/`` in Hugging Face's layout and
``heads/NAME.safetensors``. It is written beside its place and renamed into it, ``nlptasks.json`` last: half a folder is never
taken for a model. safetensors and JSON only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nlptasks import __version__
from nlptasks.backbone import Backbone, BackboneInfo, read_config, read_tokenizer
from nlptasks.disk import files_in, sealed, sha256, unsealed, written_beside
from nlptasks.errors import ModelError, NlptasksError, UsageError, did_you_mean
from nlptasks.heads.base import Head
from nlptasks.registry import head_class
from nlptasks.tokenizer import Tokenizer

MANIFEST = "nlptasks.json"
FORMAT = 1
_RESTORE = "restore the folder from where it was made"


@dataclass(frozen=True)
class HeadRecord:
    """What a model remembers of a head.

    Attributes:
        task: the registered task.
        config: the head's config, as JSON has it.
        metrics: metrics by part of the data.
    """

    task: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Model(nn.Module):
    """A backbone and its heads.

    Args:
        backbone: the backbone.
        heads: heads by name.
        records: what is remembered of each head.
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, Head], records: Mapping[str, HeadRecord]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = dict(heads)
        for name, head in heads.items():
            self.add_module(f"head {name}", head)  # so that no head's name can be one of Module's own
        self.records = dict(records)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The graph `encode`: one pass over the backbone and every head's outputs, named ``HEAD.output``."""
        states = self.backbone(batch)  # [B,S,H]
        return {
            f"{name}.{output}": tensor
            for name, head in self.heads.items()
            for output, tensor in head(states, batch).items()
        }

    def only(self, names: Sequence[str]) -> Model:
        """The same backbone with some of the heads."""
        return Model(self.backbone, {name: self.heads[name] for name in names}, {})

    @classmethod
    def load(cls, folder: str | Path) -> Model:
        """The model in a folder.

        Raises:
            ModelError: it is no model, or a file is missing or changed.
            PluginError: a head's package is broken.
        """
        stored = ModelFolder.open(folder)
        stored.verify("backbone/")
        stored.verify("heads/")
        record = stored.manifest["backbone"]
        backbone = Backbone.from_folder(stored.path / "backbone", record)
        heads = stored.heads()
        for name, head in heads.items():
            _load_head(head, stored.path / _head_file(name))
        return cls(backbone, heads, stored.records).eval()

    def save(self, folder: str | Path, *, overwrite: bool = False, extra: Mapping[str, str] | None = None) -> Path:
        """Write the model into a new folder, atomically.

        Args:
            folder: where; it must not hold anything yet.
            overwrite: whether what is there may be replaced.
            extra: further text files by name, such as the model card.

        Raises:
            UsageError: the folder is not empty.
            ModelError: it cannot be written.
        """
        target = Path(folder)
        check_output(target, overwrite=overwrite)
        with written_beside(target, ModelError) as place:
            (place / "backbone").mkdir()
            (place / "heads").mkdir()
            self.backbone.save(place / "backbone")
            for name, head in self.heads.items():
                save_file(_tensors(head), place / _head_file(name), metadata={"format": "pt"})
            for name, content in (extra or {}).items():
                (place / name).write_text(content, encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "nlptasks": __version__,
                "backbone": self.backbone.info.record(),
                "heads": {name: asdict(record) for name, record in self.records.items()},
                "files": {name: sha256(place / name) for name in sorted(files_in(place))},
            }
            (place / MANIFEST).write_bytes(sealed(manifest))
        return target


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk, of which only what is asked for is read.

    Attributes:
        path: the folder.
        manifest: its ``nlptasks.json``.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> ModelFolder:
        """Read a model folder's manifest.

        Raises:
            ModelError: it is no model, or made by a newer library.
        """
        path = Path(folder)
        file = path / MANIFEST
        if not file.is_file():
            what = "has no nlptasks.json" if path.is_dir() else "is no folder"
            raise ModelError(
                str(path), f"{what}, so it is no model", "give the folder that 'nlptasks train' wrote with -o"
            )
        try:
            manifest = unsealed(file.read_bytes())
            version, _ = manifest["format"], (manifest["backbone"], manifest["files"], manifest["heads"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(str(file), f"is damaged ({error})", _RESTORE) from error
        if version != FORMAT:
            made_by = manifest.get("nlptasks")
            raise ModelError(
                str(file), f"has format {version} of nlptasks {made_by}, expected {FORMAT}", "upgrade nlptasks"
            )
        return cls(path, manifest)

    @property
    def records(self) -> dict[str, HeadRecord]:
        """What is remembered of each head."""
        return {name: HeadRecord(**record) for name, record in self.manifest["heads"].items()}

    def head_name(self, wanted: str) -> str:
        """A head's name from its name, or from a task of which there is one head.

        Raises:
            UsageError: there is none, or several.
        """
        records = self.records
        if wanted in records:
            return wanted
        same = [name for name, record in records.items() if record.task == wanted]
        if len(same) == 1:
            return same[0]
        problem = f"has {len(same)} heads for {wanted!r}" if same else f"has no head {wanted!r}"
        raise UsageError(str(self.path), problem, did_you_mean(wanted, same or records))

    def head_names(self, wanted: list[str] | None) -> list[str]:
        """The heads that are wanted, all without a wish."""
        return list(self.records) if wanted is None else [self.head_name(name) for name in wanted]

    def verify(self, prefix: str) -> None:
        """Check the sha256 of every file whose name begins so.

        Raises:
            ModelError: one is missing or changed, or one is there that should not be.
        """
        listed = {name: digest for name, digest in self.manifest["files"].items() if name.startswith(prefix)}
        for name, expected in listed.items():
            file = self.path / name
            found = sha256(file) if file.is_file() else "no file"
            if found != expected:
                raise ModelError(str(file), f"has sha256 {found}, expected {expected}", _RESTORE)
        for name in files_in(self.path):
            if name.startswith(prefix) and name not in listed:
                raise ModelError(str(self.path / name), "does not belong to the model", "remove it")

    def backbone_info(self) -> BackboneInfo:
        """What heads may know of the backbone, without its weights."""
        config = read_config((self.path / "backbone" / "config.json").read_bytes(), where=str(self.path))
        return BackboneInfo.from_record(self.manifest["backbone"], config)

    def tokenizer(self) -> Tokenizer:
        """The backbone's tokenizer."""
        content = (self.path / "backbone" / "tokenizer.json").read_bytes()
        return read_tokenizer(content, max_tokens=self.manifest["backbone"]["max_tokens"])

    def heads(self, names: list[str] | None = None, *, device: str = "cpu") -> dict[str, Head]:
        """New heads as their configs say, without their weights; on the device ``meta`` they take no memory."""
        info = self.backbone_info()
        heads = {}
        for name in self.head_names(names):
            record = self.records[name]
            cls = head_class(record.task)
            try:
                config = cls.Config(**{key: _frozen(value) for key, value in record.config.items()})
                with torch.random.fork_rng(devices=[]), torch.device(device):
                    heads[name] = cls(config, backbone=info).eval()
            except NlptasksError:
                raise
            except (TypeError, ValueError, KeyError, RuntimeError) as error:
                raise ModelError(
                    str(self.path / MANIFEST), f"has an unusable head {name!r} ({error})", _RESTORE
                ) from error
        return heads


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that holds something, or that could not be written in the end.

    Raises:
        UsageError: it is not empty, no folder, or its parent cannot be written to.
    """
    target = folder.resolve()
    if target.exists() and not target.is_dir():
        raise UsageError(str(folder), "is a file", "give another -o")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UsageError(str(folder), "is not empty", "give another -o, --overwrite to replace it, or --resume")
    if target == Path.cwd() or target.is_mount():
        raise UsageError(str(folder), "cannot be replaced as a whole", "give a folder inside it as -o")
    parent = next(place for place in target.parents if place.exists())
    if not os.access(parent, os.W_OK):
        raise UsageError(str(folder), f"cannot be written: {parent} is not writable", "give another -o")


def _head_file(name: str) -> str:
    return f"heads/{name}.safetensors"


def _tensors(head: Head) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in head.state_dict().items()}


def _load_head(head: Head, path: Path) -> None:
    try:
        head.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ModelError(str(path), f"does not fit its head ({error})", _RESTORE) from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
