"""One backbone for many heads. A head may own the top layers (a branch); the layers below are shared and computed once.

The forward pass of Hugging Face, with its masks, positions and rotary embeddings, runs once for each distinct branch. The list of
layers returns the branch's own layers, and shared layers that cache their outputs for the batch. This works for every
architecture that runs through one list of layers, without any code for single architectures.
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
        path: path of the list of layers inside the base model.
        begin: index of the first one in that list.
    """

    def __init__(self, layers: Iterable[nn.Module], *, path: str, begin: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.path, self.begin = path, begin

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def numbered(self) -> Iterator[tuple[int, nn.Module]]:
        """Return its layers with their indices in the backbone."""
        return enumerate(self.layers, start=self.begin)

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by their names in the base model; of tied tensors the first."""
        found: dict[int, tuple[str, Tensor]] = {}
        for number, layer in self.numbered():
            for name, tensor in layer.state_dict(keep_vars=True).items():
                found.setdefault(id(tensor), (f"{self.path}.{number}.{name}", tensor.detach()))
        return dict(found.values())


class SharedPass:
    """One batch in a backbone.

    Args:
        run: runs the base model on the batch and returns its hidden states [B,S,H].
        branches: the branches whose hidden states are needed; None for the layers of the backbone.
    """

    def __init__(self, run: Callable[[], Tensor], branches: Collection[Branch | None]) -> None:
        self._run = run
        self._outputs: dict[int, Any] = {}
        # A layer is used more than once only if two branches begin above it. Without a branch, all layers are shared.
        begins = sorted(sys.maxsize if branch is None else branch.begin for branch in branches)
        self._cached_layers = begins[-2] if len(begins) > 1 else 0
        self._states: dict[Branch | None, Tensor] = {}

    def states(self, branch: Branch | None) -> Tensor:
        """Return the hidden states [B,S,H] at the top of a branch."""
        if branch not in self._states:
            token = _current_pass.set((branch, self._outputs, self._cached_layers))
            try:
                self._states[branch] = self._run()
            finally:
                _current_pass.reset(token)
        return self._states[branch]


_current_pass: ContextVar[tuple[Branch | None, dict[int, Any], int]] = ContextVar(
    "_current_pass", default=(None, {}, 0)
)
"""The pass in this thread: its branch, the cached outputs of the batch by layer, and the number of lowest layers to cache."""


class _Layers(nn.ModuleList):
    """The list of layers of a backbone; during a pass it contains the layers of that pass."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._of_pass())

    def __getitem__(self, index: Any) -> Any:
        return self._of_pass()[index]

    def _of_pass(self) -> list[Any]:
        layers: list[Any] = list(self._modules.values())
        branch, outputs, count = _current_pass.get()
        layers[:count] = [_CachedLayer(layer, number, outputs) for number, layer in enumerate(layers[:count])]
        if branch is not None:
            layers[branch.begin :] = branch.layers
        return layers


class _CachedLayer:
    """A shared layer that runs once per batch; other attributes are those of the layer."""

    def __init__(self, layer: nn.Module, number: int, outputs: dict[int, Any]) -> None:
        self._layer, self._number, self._outputs = layer, number, outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._number not in self._outputs:
            self._outputs[self._number] = self._layer(*args, **kwargs)
        return self._outputs[self._number]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def make_slots(base_model: nn.Module) -> None:
    """Make the layers of a base model shareable if it has a list of layers. Its tensors keep their names."""
    path = path_of_layers(base_model)
    if path is not None:
        parent, _, name = path.rpartition(".")
        setattr(base_model.get_submodule(parent), name, _Layers(base_model.get_submodule(path).children()))


def path_of_layers(base_model: nn.Module) -> str | None:
    """Return the path of the list of layers that a base model runs through once, or None if it has none, like ALBERT."""
    lists: list[str] = [name for name, module in base_model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1 or len(_children(base_model, outermost[0])) != _configured_layers(base_model):
        return None
    return outermost[0]


def layer_count(base_model: nn.Module) -> int:
    """Return the number of layers that a head can own; 0 if the architecture has no list of layers."""
    path = path_of_layers(base_model)
    return 0 if path is None else len(_children(base_model, path))


def _children(base_model: nn.Module, path: str) -> list[nn.Module]:
    return list(base_model.get_submodule(path).children())


def _configured_layers(base_model: nn.Module) -> int | None:
    return getattr(getattr(base_model, "config", None), "num_hidden_layers", None)


def new_branch(base_model: nn.Module, depth: int) -> Branch:
    """Return a branch with copies of the top layers.

    Args:
        base_model: the base model.
        depth: number of layers.

    Raises:
        UsageError: the base model has fewer layers, or no list of layers.
    """
    count, path = layer_count(base_model), path_of_layers(base_model)
    if path is None:
        kind = getattr(getattr(base_model, "config", None), "model_type", "this architecture")
        problem = f"does not work with {kind}, which has no list of layers"
        raise UsageError(f"tune top:{depth}", problem, 'use `tune="head"`, or another backbone', argument="tune")
    if not 1 <= depth <= count:
        problem = f"asks for {depth} layers, the backbone has {count}"
        raise UsageError(f"tune top:{depth}", problem, f"use top:1 to top:{count}", argument="tune")
    # All layers share one config object, so that a change of the attention implementation reaches them: do not copy it.
    copied = {
        id(config): config for module in base_model.modules() if (config := getattr(module, "config", None)) is not None
    }
    own = _children(base_model, path)[count - depth :]
    return Branch([copy.deepcopy(layer, copied) for layer in own], path=path, begin=count - depth)
