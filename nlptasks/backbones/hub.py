"""Models of the Hugging Face hub: which names there can be, and the few files that are fetched, at one commit."""

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
"""What is fetched: no code, no pickle, and nothing of a folder inside."""

_REASONS = {
    "GatedRepoError": ("asks for consent", "accept its terms on its page, then run: hf auth login"),
    "RevisionNotFoundError": ("has no such revision", "give a branch, tag or commit behind the @"),
    "RepositoryNotFoundError": ("is not on the hub, or is private", "check the name, or run: hf auth login"),
}
"""What the hub's own errors mean, and what to do."""


def is_name(name: str) -> bool:
    """Whether this is how a model of the hub is named: ``owner/name`` or ``name``, with ``@revision`` or without."""
    match = _NAME.fullmatch(name)
    return match is not None and not any(part in name for part in _FORBIDDEN)


def hint(name: str) -> str:
    """What to write instead of something that is no name."""
    if "://" in name:
        return "leave out all of the address but owner/name"
    if not name.isascii():
        return "it has letters that only look like ASCII, or a folder of that name does not exist"
    return "write a folder that exists, or a hub name: owner/name, or owner/name@revision"


def download(name: str, *, hint: str) -> tuple[Path, str]:
    """The folder of a model of the hub, and the commit that it is at.

    Raises:
        ModelError: it cannot be had; with what to do, and `hint` where nothing better is known.
    """
    from huggingface_hub import snapshot_download  # heavy, and most runs take a folder

    match = _NAME.fullmatch(name)
    assert match is not None, "is_name was asked"
    try:
        folder = Path(snapshot_download(match["repo"], revision=match["revision"], allow_patterns=list(FILES)))
    except Exception as error:
        kinds = (kind.__name__ for kind in type(error).__mro__)
        problem, fix = next(
            (_REASONS[kind] for kind in kinds if kind in _REASONS), ("cannot be had from the hub", hint)
        )
        raise ModelError(f"backbone {name!r}", f"is no folder here and {problem} ({first_line(error)})", fix) from error
    if not _COMMIT.fullmatch(folder.name):
        raise ModelError(f"backbone {name!r}", f"came without its commit, as {folder.name}", "give a folder")
    return folder, folder.name
