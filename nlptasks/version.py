"""The version of nlptasks."""

__version__ = "0.1.0"
