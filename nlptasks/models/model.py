"""A model in memory: a backbone, its heads and their networks. It is written beside its place and renamed into it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nlptasks.backbones.backbone import Backbone
from nlptasks.backbones.graph import Graph
from nlptasks.backbones.layer_sharing import Branch, SharedPass
from nlptasks.config import attached, file_fields
from nlptasks.errors import ModelError, UsageError, refusing
from nlptasks.heads.base import Head
from nlptasks.models.folder import ModelFolder
from nlptasks.models.manifest import MANIFEST, HeadRecord, head_file, write_manifest
from nlptasks.networks.base import Network, make_network
from nlptasks.runtimes.base import ENCODE
from nlptasks.storage.atomic import written_beside
from nlptasks.storage.integrity import RESTORE, check_output
from nlptasks.storage.safetensors import check_header, own_tensors, read_header, read_into, write

IN_BACKBONE = "backbone."
"""Prefix of the layers that a head owns, in its file; no tensor of a network has this prefix."""


class Model(nn.Module):
    """A backbone with named heads.

    Args:
        backbone: the backbone.
        heads: heads by name.
        networks: the network of each head.
        records: what the model folder remembers of each head.
        branches: the layers that heads own, by the head's name.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Mapping[str, Head[Any, Any, Any]],
        networks: Mapping[str, Network],
        records: Mapping[str, HeadRecord],
        branches: Mapping[str, Branch] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads, self.networks = dict(heads), dict(networks)
        self.branches, self.records = dict(branches), dict(records)
        for name, network in networks.items():
            self.add_module(f"head {name}", network)  # so that no head's name clashes with an attribute of Module
        for name, branch in branches.items():
            self.add_module(f"branch {name}", branch)

    def forward(self, batch: Mapping[str, Tensor], names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Run the graph `encode`: one pass over the backbone; outputs are named ``HEAD.output``.

        Args:
            batch: ``ids``, ``mask`` and, if the backbone reads them, ``types`` [B,S].
            names: heads whose outputs are wanted; None for all. Layers that none of them needs are not run.
        """
        wanted = list(self.networks) if names is None else names
        one_pass = SharedPass(partial(self.backbone, batch), {self.branches.get(name) for name in wanted})
        return {
            f"{name}.{output}": tensor
            for name in wanted
            for output, tensor in self.networks[name](one_pass.states(self.branches.get(name)), batch).items()
        }

    def loss(self, name: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss of one head as a sum, and the count that it is a sum over; see `Network.loss`."""
        network = self.networks[name]
        return network.loss(network.training_outputs(self.states(name, batch), batch), batch)

    def states(self, name: str, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the hidden states [B,S,H] that one head reads."""
        branch = self.branches.get(name)
        return SharedPass(partial(self.backbone, batch), [branch]).states(branch)

    def base_model_weights(self, name: str) -> dict[str, Tensor]:
        """Return the backbone's tensors as one head sees them, by their names in the base model."""
        branch = self.branches.get(name)
        return {**self.backbone.base_model.state_dict(), **(branch.tensors() if branch else {})}

    def graphs(self) -> dict[str, nn.Module]:
        """Return every graph: `encode`, and those of networks, as ``HEAD.graph``."""
        return {ENCODE: self, **self.further_graphs()}

    def further_graphs(self) -> dict[str, Graph]:
        """Return the graphs of networks beside `encode`, as ``HEAD.graph``."""
        return {
            f"{name}.{graph}": module.on(self.backbone, self.branches.get(name))
            for name, network in self.networks.items()
            for graph, module in network.graphs().items()
        }

    @property
    def outputs(self) -> dict[str, Mapping[str, str]]:
        """The outputs of each network and their axes, by the head's name."""
        return {name: network.outputs for name, network in self.networks.items()}

    @classmethod
    def load(cls, folder: str | Path) -> Model:
        """Load the model in a folder.

        Raises:
            ModelError: it is no model, or a file is missing or changed.
            PluginError: a head's package is broken.
        """
        return ModelFolder.read(folder, load_model)

    def save(self, folder: str | Path, *, overwrite: bool = False, extra: Mapping[str, str] | None = None) -> Path:
        """Write the model into a new folder, atomically.

        Args:
            folder: the folder; it must be empty or missing.
            overwrite: True to replace what is there.
            extra: further text files by name, such as the model card.

        Raises:
            UsageError: the folder is not empty.
            ModelError: it cannot be written.
        """
        target = Path(folder)
        check_output(target, overwrite=overwrite)
        with written_beside(target, ModelError) as place:
            (place / "backbone").mkdir()
            self.backbone.save(place / "backbone")
            self.save_heads(place)
            for name, content in (extra or {}).items():
                (place / name).write_text(content, encoding="utf-8")
            write_manifest(place, backbone=self.backbone.info, heads=self.records)
        return target

    def save_heads(self, place: Path) -> None:
        """Write the networks, with the layers that heads own, into a folder that is being written.

        Raises:
            OSError: the disk refuses.
        """
        (place / "heads").mkdir(exist_ok=True)
        for name, head in self.heads.items():
            write(place / head_file(name), {**own_tensors(self.networks[name]), **_as_stored(self.branches.get(name))})
            for key, text in attached(head.config).items():
                (place / head_file(name, file_fields(head.Config)[key])).write_text(text, encoding="utf-8")


def load_model(stored: ModelFolder, names: list[str] | None = None) -> Model:
    """Load the model in a folder that was opened, with all heads or some.

    Raises:
        ModelError: its files do not fit each other, or a head's package is not installed.
        PluginError: a head's package is broken.
    """
    heads, records = stored.heads(names), stored.records
    backbone = load_stored_backbone(stored)
    networks = {name: _network(stored, name, head, backbone) for name, head in heads.items()}
    branches = {name: _branch(stored, name, backbone) for name in heads if records[name].branch}
    return Model(backbone, heads, networks, {name: records[name] for name in heads}, branches).eval()


def load_stored_backbone(stored: ModelFolder) -> Backbone:
    """Load the backbone of a model folder alone.

    Raises:
        ModelError: its files do not fit each other.
    """
    place = "backbone/"
    files = [name.removeprefix(place) for name in stored.manifest["files"] if name.startswith(place)]
    return Backbone.from_folder(stored.path / place, stored.manifest["backbone"], files)


def _network(stored: ModelFolder, name: str, head: Head[Any, Any, Any], backbone: Backbone) -> Network:
    path = stored.path / head_file(name)
    header = {key: spec for key, spec in read_header(path).items() if not key.startswith(IN_BACKBONE)}
    with (
        refusing(str(stored.path / MANIFEST), f"has an unusable head {name!r}", RESTORE),
        torch.random.fork_rng(devices=[]),
    ):
        with torch.device("meta"):  # sizes are checked before any memory is allocated
            planned = make_network(head.network, backbone.info, head.network_options())
        check_header(path, header, own_tensors(planned))
        network = make_network(head.network, backbone.info, head.network_options()).eval()
    read_into(path, own_tensors(network))
    return network


def _branch(stored: ModelFolder, name: str, backbone: Backbone) -> Branch:
    path = stored.path / head_file(name)
    try:
        branch = backbone.branch(stored.records[name].branch)
    except UsageError as error:
        problem = f"is damaged (the head {name} {error.problem})"
        raise ModelError(str(stored.path / MANIFEST), problem, RESTORE) from error
    layers = {key: spec for key, spec in read_header(path).items() if key.startswith(IN_BACKBONE)}
    check_header(path, layers, _as_stored(branch))
    read_into(path, _as_stored(branch))
    return branch


def _as_stored(branch: Branch | None) -> dict[str, Tensor]:
    """Return the tensors of a branch by their names in a head's file."""
    return {f"{IN_BACKBONE}{name}": tensor for name, tensor in branch.tensors().items()} if branch else {}
