"""Where trained heads go: into a new model, or into one that is there already."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from nlptasks.backbones.backbone import Backbone
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.config import EMBEDDED, TrainSettings
from nlptasks.errors import ModelError, UsageError, listing
from nlptasks.models.editing import add, logs_as_text, read_logs
from nlptasks.models.manifest import LOG, MANIFEST
from nlptasks.models.model import Model, ModelFolder
from nlptasks.models.model_card import model_card
from nlptasks.storage.checkpoints import is_begun, newest
from nlptasks.storage.integrity import CARD, RUNNING, check_output

_ADDED_SHARE = 2
"""An added head owns one layer of so many, unless told otherwise. With half of `minilm`'s it is 2.0 points behind a model of its
own on CoNLL-2003, 1.5 on SST-2 and not at all on TREC; with a third 3.9, 3.1 and 0.4 (`tests/benchmarks/tuning.py`)."""


class Destination(Protocol):
    """Where trained heads go.

    Attributes:
        folder: the model's; checkpoints stand in it while training goes on.
    """

    folder: Path

    def check(self, names: Collection[str], *, resume: bool) -> None:
        """Refuse what would be lost, or could not be written in the end.

        Args:
            names: of the heads that are to be trained.
            resume: whether to go on from the checkpoints in the folder.

        Raises:
            UsageError: it does not fit.
        """

    def settings(self, given: TrainSettings) -> TrainSettings:
        """The settings with the backbone's name.

        Raises:
            UsageError: the settings do not fit.
        """

    def backbone(self, settings: TrainSettings) -> Backbone:
        """The backbone to begin with, by what `settings` gave."""

    def default_tune(self, backbone: Backbone) -> str:
        """What is trained where nothing is said."""

    def logs(self, names: Collection[str]) -> Mapping[str, Any] | None:
        """How the heads that are there came to be; None if these are still to be trained."""

    def write(self, model: Model, logs: Mapping[str, Any]) -> None:
        """Write the trained heads, in the place of the checkpoints.

        Raises:
            ModelError: it cannot be done.
        """


class NewModel:
    """A new folder.

    Args:
        folder: the folder.
        overwrite: whether what is there may be replaced.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self.folder, self._overwrite = folder, overwrite

    def check(self, names: Collection[str], *, resume: bool) -> None:
        check_output(self.folder, overwrite=True)  # which puts back what a killed writer had moved away
        if resume and not self._overwrite:
            self._check_can_go_on()
        check_output(self.folder, overwrite=self._overwrite or resume, resumable=True)

    def _check_can_go_on(self) -> None:
        folder, begun = self.folder, is_begun(self.folder)
        is_model = (folder / MANIFEST).is_file()
        finished = is_model and (folder / LOG).is_file()
        if not finished and not begun and folder.is_dir() and any(folder.iterdir()):
            fix = "give another -o, or --overwrite"
            raise UsageError(str(folder), "is not empty, and no run has begun there", fix)
        if is_model and begun and newest(folder) is None:
            fix = f"give --overwrite to replace it, or add to it: --add-to {folder}"
            raise UsageError(str(folder), "is a model, and no run can be gone on with there", fix)

    def settings(self, given: TrainSettings) -> TrainSettings:
        return replace(given, backbone=given.backbone or EMBEDDED)

    def backbone(self, settings: TrainSettings) -> Backbone:
        return load_backbone(settings.backbone or EMBEDDED)

    def default_tune(self, backbone: Backbone) -> str:
        return "all"

    def logs(self, names: Collection[str]) -> Mapping[str, Any] | None:
        if is_begun(self.folder) or not (self.folder / LOG).is_file():
            return None
        return read_logs(ModelFolder.open(self.folder))  # the log, too, must be the one that was written

    def write(self, model: Model, logs: Mapping[str, Any]) -> None:
        folder = self.folder
        inside = {path.name for path in folder.iterdir()} - {RUNNING} if folder.is_dir() else set()
        is_ours = MANIFEST in inside or self._overwrite  # a model was to be overwritten from the beginning
        if inside and not is_ours:
            problem = f"has {listing(sorted(inside))}, which was not there when training began"
            raise ModelError(str(folder), problem, "move it elsewhere, and go on with --resume")
        card = model_card(model.backbone.info, model.heads, model.records, logs)
        model.save(folder, overwrite=True, extra={LOG: logs_as_text(logs), CARD: card})


class ExistingModel:
    """A model that is there: its backbone and its other heads are not touched.

    Args:
        folder: the model's.
        overwrite: whether heads of the same names may be replaced, and a run that was begun there may be given up.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self.folder, self._overwrite = folder, overwrite
        self._stored = ModelFolder.open(folder)

    def check(self, names: Collection[str], *, resume: bool) -> None:
        there = [name for name in names if name in self._stored.records]
        finished = resume and len(there) == len(names) and not is_begun(self.folder)
        if there and not finished and not self._overwrite:
            way = "--resume --overwrite" if resume and is_begun(self.folder) else "--overwrite"
            fix = f"name it otherwise, as NAME:TASK=DATA, or replace it: {way}"
            raise UsageError(f"head {there[0]!r}", f"is in {self.folder} already", fix)
        if is_begun(self.folder) and not resume and not self._overwrite:
            raise UsageError(
                str(self.folder),
                "has checkpoints of a training that did not come to its end",
                "go on with it: --resume, or give it up: --overwrite",
            )
        check_output(self.folder, overwrite=True)

    def settings(self, given: TrainSettings) -> TrainSettings:
        if given.backbone is not None:
            problem = f"is for new models; an added head stands on that of {self.folder}"
            raise UsageError(f"--backbone {given.backbone}", problem, "leave it out")
        if given.tune == "all":
            raise UsageError(
                "--tune all",
                "would change what the other heads answer",
                "take top:K (the head owns the K top layers) or head",
            )
        return replace(given, backbone=self._stored.manifest["backbone"]["source"])

    def backbone(self, settings: TrainSettings) -> Backbone:
        return self._stored.backbone()

    def default_tune(self, backbone: Backbone) -> str:
        return f"top:{max(1, backbone.layers // _ADDED_SHARE)}" if backbone.layers else "head"

    def logs(self, names: Collection[str]) -> Mapping[str, Any] | None:
        there = all(name in self._stored.records for name in names)
        return None if is_begun(self.folder) or not there else read_logs(self._stored)

    def write(self, model: Model, logs: Mapping[str, Any]) -> None:
        now = ModelFolder.open(self.folder)  # other heads may have come meanwhile
        if _backbone_files(now) != _backbone_files(self._stored):
            problem = "has another backbone than when training began"
            raise ModelError(str(self.folder), problem, "put the model back as it was, and go on with --resume")
        taken = [name for name in model.heads if name in now.records and name not in self._stored.records]
        if taken and not self._overwrite:
            problem = f"has got a head {taken[0]!r} since training began"
            raise ModelError(str(self.folder), problem, f"rename it: nlptasks rename {self.folder} {taken[0]} NEW")
        add(now, model, logs)


def _backbone_files(stored: ModelFolder) -> dict[str, str]:
    return {name: digest for name, digest in stored.manifest["files"].items() if name.startswith("backbone/")}
