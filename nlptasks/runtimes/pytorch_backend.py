"""The backend ``torch``. PyTorch is imported when a model is opened."""

from __future__ import annotations

from collections.abc import Sequence

from nlptasks.runtimes.base import Choice, ModelSource, Runtime


class TorchBackend:
    """Runs models on PyTorch, in fp32 or with bf16 in its matrix products."""

    name = "torch"
    precisions: Sequence[str] = ("fp32", "bf16")
    priority = 0
    needs_export = False

    def choose(self, source: ModelSource, device: str) -> Choice:
        """Return the first precision: PyTorch runs every model."""
        return Choice(self.precisions[0])

    def open(self, source: ModelSource, precision: str, device: str) -> Runtime:
        """Load a model.

        Raises:
            ModelError: its files do not fit each other.
            BackendError: the device or the precision is not available.
        """
        from nlptasks.runtimes.pytorch import open_torch

        graphs = source.graphs()
        return open_torch(graphs, device, precision, outputs=source.outputs())
