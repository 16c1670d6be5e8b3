"""The backend ``onnx``. ONNX Runtime is imported when a model is opened."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nlptasks.errors import ModelError
from nlptasks.runtimes.base import Choice, ModelSource, Runtime
from nlptasks.runtimes.providers import usable_device

_log = logging.getLogger("nlptasks")


class OnnxBackend:
    """Runs exported models on ONNX Runtime."""

    name = "onnx"
    precisions: Sequence[str] = ("fp32", "fp16", "int8")
    priority = 10
    needs_export = True

    def choose(self, source: ModelSource, device: str) -> Choice:
        """Return the precision of the best export for the device, or why each export is not chosen."""
        reasons = []
        for state in source.export_states(usable_device(device)):
            reason = state.auto_skip_reason
            if reason is None:
                try:
                    source.exported(state.precision)
                except ModelError as error:
                    reason = f"has a damaged export ({error})"
                else:
                    return Choice(state.precision)
            reasons.append(reason)
        return Choice(None, reasons)

    def open(self, source: ModelSource, precision: str, device: str) -> Runtime:
        """Open an export.

        Raises:
            ModelError: there is none, or it is damaged or older than the model.
            UsageError: the model cannot have exports.
            BackendError: CUDA is not available, or ONNX Runtime cannot open the export.
        """
        exported = source.exported(precision)
        if exported.unverified_reason:
            _log.warning("%s: the export in %s %s", source.where, precision, exported.unverified_reason)
        from nlptasks.runtimes.onnx import OnnxRuntime

        return OnnxRuntime(
            exported.files,
            device=device,
            precision=precision,
            outputs=exported.outputs,
            specs=exported.specs,
            heads=source.heads,
        )
