"""The output of a run: a new model, or heads added to an existing one."""

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
from nlptasks.models.folder import ModelFolder
from nlptasks.models.manifest import LOG, MANIFEST
from nlptasks.models.model import Model, load_stored_backbone
from nlptasks.models.model_card import model_card
from nlptasks.storage.checkpoints import is_begun, newest
from nlptasks.storage.integrity import CARD, RUNNING, check_output

_ADDED_SHARE = 2
"""By default an added head owns one layer in this many. With half of `minilm`'s it is 2.0 points behind a model of its
own on CoNLL-2003, 1.5 on SST-2 and not at all on TREC; with a third 3.9, 3.1 and 0.4 (`tests/benchmarks/tuning.py`)."""


class RunOutput(Protocol):
    """Where trained heads are written.

    Attributes:
        folder: the model's folder; it holds the checkpoints during training.
    """

    folder: Path

    def check(self, names: Collection[str], *, resume: bool) -> None:
        """Refuse to start if something would be lost, or could not be written in the end.

        Args:
            names: names of the heads to train.
            resume: True to continue from the checkpoints in the folder.

        Raises:
            UsageError: the folder holds something else.
        """

    def settings(self, given: TrainSettings) -> TrainSettings:
        """Return the settings with the backbone's name.

        Raises:
            UsageError: the settings do not fit this output.
        """

    def backbone(self, settings: TrainSettings) -> Backbone:
        """Return the backbone to start from."""

    def default_tune(self, backbone: Backbone) -> str:
        """Return the default of the setting `tune`."""

    def logs(self, names: Collection[str]) -> Mapping[str, Any] | None:
        """Return the training logs of the heads in the model, or None if these heads are not trained yet."""

    def write(self, model: Model, logs: Mapping[str, Any]) -> None:
        """Write the trained heads in place of the checkpoints.

        Raises:
            ModelError: the folder has changed, or cannot be written.
        """


class NewModel:
    """A new folder.

    Args:
        folder: the folder.
        overwrite: True to replace what is there.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self.folder, self._overwrite = folder, overwrite

    def check(self, names: Collection[str], *, resume: bool) -> None:
        check_output(self.folder, overwrite=True)  # restores what a killed writer had moved away
        if resume and not self._overwrite:
            self._check_can_go_on()
        check_output(self.folder, overwrite=self._overwrite or resume, resumable=True)

    def _check_can_go_on(self) -> None:
        folder, begun = self.folder, is_begun(self.folder)
        is_model = (folder / MANIFEST).is_file()
        finished = is_model and (folder / LOG).is_file()
        if not finished and not begun and folder.is_dir() and any(folder.iterdir()):
            fix = "use another `output`, or `overwrite=True`"
            raise UsageError(str(folder), "is not empty, and contains no unfinished run", fix)
        if is_model and begun and newest(folder) is None:
            fix = f"use `overwrite=True` to replace it, or add heads to it: `add_to={str(folder)!r}`"
            raise UsageError(str(folder), "already contains a finished model; there is nothing to resume", fix)

    def settings(self, given: TrainSettings) -> TrainSettings:
        return replace(given, backbone=given.backbone or EMBEDDED)

    def backbone(self, settings: TrainSettings) -> Backbone:
        return load_backbone(settings.backbone or EMBEDDED)

    def default_tune(self, backbone: Backbone) -> str:
        return "all"

    def logs(self, names: Collection[str]) -> Mapping[str, Any] | None:
        if is_begun(self.folder) or not (self.folder / LOG).is_file():
            return None
        return read_logs(ModelFolder.open(self.folder))  # which checks the log, too

    def write(self, model: Model, logs: Mapping[str, Any]) -> None:
        folder = self.folder
        inside = {path.name for path in folder.iterdir()} - {RUNNING} if folder.is_dir() else set()
        is_ours = MANIFEST in inside or self._overwrite
        if inside and not is_ours:
            problem = f"has {listing(sorted(inside))}, which was not there when training started"
            raise ModelError(str(folder), problem, "move it elsewhere, and continue with `resume=True`")
        card = model_card(model.backbone.info, model.heads, model.records, logs)
        model.save(folder, overwrite=True, extra={LOG: logs_as_text(logs), CARD: card})


class ExistingModel:
    """An existing model, whose backbone and other heads stay as they are.

    Args:
        folder: the model's folder.
        overwrite: True to replace heads of the same names, and to discard an unfinished run.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self.folder, self._overwrite = folder, overwrite
        self._stored = ModelFolder.open(folder)

    def check(self, names: Collection[str], *, resume: bool) -> None:
        there = [name for name in names if name in self._stored.records]
        finished = resume and len(there) == len(names) and not is_begun(self.folder)
        if there and not finished and not self._overwrite:
            way = ("`resume=True` and " if resume and is_begun(self.folder) else "") + "`overwrite=True`"
            fix = f"choose another name, as NAME:TASK=DATA, or replace it with {way}"
            raise UsageError(f"head {there[0]!r}", f"already exists in {self.folder}", fix)
        if is_begun(self.folder) and not resume and not self._overwrite:
            raise UsageError(
                str(self.folder),
                "contains checkpoints of an unfinished run",
                "continue it with `resume=True`, or discard it with `overwrite=True`",
            )
        check_output(self.folder, overwrite=True)

    def settings(self, given: TrainSettings) -> TrainSettings:
        if given.backbone is not None:
            problem = f"is {given.backbone!r}, and an added head uses the backbone of {self.folder}"
            raise UsageError("backbone", problem, "leave it out", argument="backbone")
        if given.tune == "all":
            raise UsageError(
                "tune",
                "is all, which would change the answers of the other heads",
                "use top:K (the head owns the K top layers) or head",
                argument="tune",
            )
        return replace(given, backbone=self._stored.manifest["backbone"]["source"])

    def backbone(self, settings: TrainSettings) -> Backbone:
        return load_stored_backbone(self._stored)

    def default_tune(self, backbone: Backbone) -> str:
        return f"top:{max(1, backbone.layers // _ADDED_SHARE)}" if backbone.layers else "head"

    def logs(self, names: Collection[str]) -> Mapping[str, Any] | None:
        there = all(name in self._stored.records for name in names)
        return None if is_begun(self.folder) or not there else read_logs(self._stored)

    def write(self, model: Model, logs: Mapping[str, Any]) -> None:
        now = ModelFolder.open(self.folder)  # other heads may have been added meanwhile
        if _backbone_files(now) != _backbone_files(self._stored):
            problem = "has another backbone than when training started"
            raise ModelError(str(self.folder), problem, "restore the model, and continue with `resume=True`")
        taken = [name for name in model.heads if name in now.records and name not in self._stored.records]
        if taken and not self._overwrite:
            problem = f"has a new head {taken[0]!r} since training started"
            raise ModelError(str(self.folder), problem, f"rename it: nlptasks rename {self.folder} {taken[0]} NEW")
        add(now, model, logs)


def _backbone_files(stored: ModelFolder) -> dict[str, str]:
    return {name: digest for name, digest in stored.manifest["files"].items() if name.startswith("backbone/")}
