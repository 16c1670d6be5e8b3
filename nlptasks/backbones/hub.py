"""Models of the Hugging Face hub: check their names, and download the few files that are needed, at one commit."""

from __future__ import annotations

import re
from pathlib import Path

from nlptasks.errors import ModelError, first_line

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?P<repo>{_PART}(?:/{_PART})?)(?:@(?P<revision>[A-Za-z0-9_](?:[A-Za-z0-9_./-]*[A-Za-z0-9_])?))?")
_FORBIDDEN = ("..", "--", "//")
_COMMIT = re.compile("[0-9a-f]{40}")

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-[0-9]*-of-[0-9]*.safetensors",
)
"""Files to download: no code, no pickle, no subfolders."""

_REASONS = {
    "GatedRepoError": ("asks for consent", "accept its terms on its page, then run: hf auth login"),
    "RevisionNotFoundError": ("has no such revision", "give a branch, tag or commit behind the @"),
    "RepositoryNotFoundError": ("is not on the hub, or is private", "check the name, or run: hf auth login"),
}
"""Problem and fix for the error classes of the hub."""


def is_name(name: str) -> bool:
    """Return True for a valid hub name: ``owner/name`` or ``name``, optionally with ``@revision``."""
    match = _NAME.fullmatch(name)
    return match is not None and not any(part in name for part in _FORBIDDEN)


def hint(name: str) -> str:
    """Return the fix for an invalid name."""
    if "://" in name:
        return "leave out all of the address but owner/name"
    if not name.isascii():
        return "it has letters that only look like ASCII, or is a folder that does not exist"
    return "write a folder that exists, or a hub name: owner/name, or owner/name@revision"


def download(name: str, *, hint: str) -> tuple[Path, str]:
    """Download a model, unless it is cached. Return its folder and its commit.

    Args:
        name: a valid name.
        hint: fix for errors without a better one.

    Raises:
        ModelError: it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download  # slow to import, and most runs use a local folder

    match = _NAME.fullmatch(name)
    assert match is not None, "the caller has checked is_name"
    try:
        folder = Path(snapshot_download(match["repo"], revision=match["revision"], allow_patterns=list(FILES)))
    except Exception as error:
        reasons = (_REASONS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _REASONS)
        problem, fix = next(reasons, ("cannot be had from the hub", hint))
        raise ModelError(f"backbone {name!r}", f"is no folder here and {problem} ({first_line(error)})", fix) from error
    if not _COMMIT.fullmatch(folder.name):
        raise ModelError(f"backbone {name!r}", f"came without its commit, as {folder.name}", "use a local folder")
    return folder, folder.name
