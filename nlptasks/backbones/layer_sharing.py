"""One backbone under many heads: a head may own the top layers, its branch; what lies below is shared, and computed once.

Hugging Face's own forward, with its masks, positions and rotary embeddings, runs once for each distinct branch. The backbone's
list of layers hands it a slot for each layer: the branch's own layer, or the shared one, whose output is remembered for the
batch. So it works for every architecture that runs through one list of layers, and nothing of any is written again here.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from nlptasks.errors import UsageError


class Branch(nn.Module):
    """The top layers of a backbone that a head owns.

    Args:
        layers: the layers, the lowest first.
        path: of the list that they stand in for, inside the trunk.
        begin: the number, in that list, of the first.
    """

    def __init__(self, layers: Iterable[nn.Module], *, path: str, begin: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.path, self.begin = path, begin

    @property
    def depth(self) -> int:
        """Layers in it."""
        return len(self.layers)

    def numbered(self) -> Iterator[tuple[int, nn.Module]]:
        """Its layers by their numbers in the backbone."""
        return enumerate(self.layers, start=self.begin)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by the names of those in the trunk that they stand in for; of tied ones the first."""
        found: dict[int, tuple[str, Tensor]] = {}
        for number, layer in self.numbered():
            for name, tensor in layer.state_dict(keep_vars=True).items():
                found.setdefault(id(tensor), (f"{self.path}.{number}.{name}", tensor.detach()))
        return dict(found.values())


class SharedPass:
    """One batch on its way through a backbone.

    Args:
        run: runs the trunk on the batch and gives its states [B,S,H].
        branches: those whose states will be asked for; None is the backbone's own.
    """

    def __init__(self, run: Callable[[], Tensor], branches: Collection[Branch | None]) -> None:
        self._run = run
        self._outputs: dict[int, Any] = {}
        # A layer is met again only if two branches begin above it; the backbone's own begins nowhere.
        begins = sorted(sys.maxsize if branch is None else branch.begin for branch in branches)
        self._met_again = begins[-2] if len(begins) > 1 else 0
        self._states: dict[Branch | None, Tensor] = {}

    def states(self, branch: Branch | None) -> Tensor:
        """The states [B,S,H] at the top of a branch."""
        if branch not in self._states:
            token = _now.set((branch, self._outputs, self._met_again))
            try:
                self._states[branch] = self._run()
            finally:
                _now.reset(token)
        return self._states[branch]


_now: ContextVar[tuple[Branch | None, dict[int, Any], int]] = ContextVar("_now", default=(None, {}, 0))
"""Of the pass under way in this thread its branch, the outputs of shared layers in this batch, by number, and how many of these
layers, from the lowest, are met again."""


class _Layers(nn.ModuleList):
    """A backbone's list of layers; while a pass is under way it gives what that is to run."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._slots())

    def __getitem__(self, index: Any) -> Any:
        return self._slots()[index]

    def _slots(self) -> list[Any]:
        layers: list[Any] = list(self._modules.values())
        branch, outputs, met_again = _now.get()
        layers[:met_again] = [_Remembered(layer, number, outputs) for number, layer in enumerate(layers[:met_again])]
        if branch is not None:
            layers[branch.begin :] = branch.layers
        return layers


class _Remembered:
    """A shared layer that runs once a batch; whatever else is asked of it, the layer answers."""

    def __init__(self, layer: nn.Module, number: int, outputs: dict[int, Any]) -> None:
        self._layer, self._number, self._outputs = layer, number, outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._number not in self._outputs:
            self._outputs[self._number] = self._layer(*args, **kwargs)
        return self._outputs[self._number]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def make_slots(trunk: nn.Module) -> None:
    """Let the layers of a trunk be shared, if it has a list of them; its tensors keep their names."""
    path = path_of_layers(trunk)
    if path is not None:
        parent, _, name = path.rpartition(".")
        setattr(trunk.get_submodule(parent), name, _Layers(trunk.get_submodule(path).children()))


def path_of_layers(trunk: nn.Module) -> str | None:
    """Where the list is that a trunk runs through, each layer once; None if it has no such list, as ALBERT has not."""
    lists: list[str] = [name for name, module in trunk.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1 or len(_children(trunk, outermost[0])) != _layers_said(trunk):
        return None
    return outermost[0]


def layer_count(trunk: nn.Module) -> int:
    """How many layers a head can own; 0 if the architecture has no list of them."""
    path = path_of_layers(trunk)
    return 0 if path is None else len(_children(trunk, path))


def _children(trunk: nn.Module, path: str) -> list[nn.Module]:
    return list(trunk.get_submodule(path).children())


def _layers_said(trunk: nn.Module) -> int | None:
    """How many layers the config speaks of; None if it does not say."""
    return getattr(getattr(trunk, "config", None), "num_hidden_layers", None)


def new_branch(trunk: nn.Module, depth: int) -> Branch:
    """A branch that begins as a copy of the trunk's own top layers.

    Args:
        trunk: the trunk.
        depth: layers that it owns.

    Raises:
        UsageError: the trunk has not so many layers, or no list of them.
    """
    count, path = layer_count(trunk), path_of_layers(trunk)
    if path is None:
        kind = getattr(getattr(trunk, "config", None), "model_type", "this architecture")
        problem = f"cannot be had of {kind}: it has no list of layers of which a head could own some"
        raise UsageError(f"--tune top:{depth}", problem, "take --tune head, or another backbone")
    if not 1 <= depth <= count:
        problem = f"asks for {depth} layers, the backbone has {count}"
        raise UsageError(f"--tune top:{depth}", problem, f"take top:1 to top:{count}")
    # A config is one object for all layers, which a change of attention reaches.
    copied = {
        id(config): config for module in trunk.modules() if (config := getattr(module, "config", None)) is not None
    }
    own = _children(trunk, path)[count - depth :]
    return Branch([copy.deepcopy(layer, copied) for layer in own], path=path, begin=count - depth)
