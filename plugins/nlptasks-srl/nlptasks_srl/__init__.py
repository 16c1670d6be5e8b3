"""Semantic role labelling for nlptasks: the task ``srl``."""

from __future__ import annotations

from nlptasks_srl.columns import read_columns
from nlptasks_srl.head import Argument, Frame, SrlConfig, SrlHead

__all__ = ["Argument", "Frame", "SrlConfig", "SrlHead", "read_columns"]
