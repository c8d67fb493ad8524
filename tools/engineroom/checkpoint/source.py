"""Where a checkpoint comes from, as the recipe names it: ``hf://``, ``demo://`` or a folder.

Only the spelling is checked here; nothing is looked up.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from engineroom.checkpoint import demo
from engineroom.errors import InputError

DEFAULT_REVISION = "main"

#: A full commit: it never changes what it means, so it needs no look-up on the Hub.
COMMIT = re.compile(r"[0-9a-f]{40}")

# The Hub's rules for names: at most 96 characters a part, no `--`, no `..`, no `.git` at the end.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_PART}/{_PART}")
# git-check-ref-format, narrowed to what is safe as part of a URL and of a file name.
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./+-]{0,253}[A-Za-z0-9_+-])?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class HubSource:
    """A model repository on the Hugging Face Hub."""

    name: str
    """``org/name``."""

    revision: str
    """Branch, tag or commit."""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a full commit, which always means the same files."""
        return COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"hf://{self.name}@{self.revision}"


@dataclass(frozen=True)
class DemoSource:
    """A model that comes in a package on PyPI."""

    name: str

    def __str__(self) -> str:
        return f"demo://{self.name}"


@dataclass(frozen=True)
class LocalSource:
    """A folder on this machine. It is read where it lies."""

    folder: Path
    """Absolute; links in it are kept."""

    def __str__(self) -> str:
        return str(self.folder)


Source = HubSource | DemoSource | LocalSource


def parse_source(source: str, revision: str | None = None) -> Source:
    """What ``source`` means; ``revision`` is the recipe's ``model.revision``. Raises InputError."""
    if not source or source != source.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in source):
        raise InputError(
            "it is empty, or has blanks around it or control characters in it",
            where=f"model source {source!r}",
            fix="write hf://org/name, demo://smollm2 or the path of a folder",
        )
    scheme = _SCHEME.match(source)
    if scheme is None:
        return _local(source, Path(source), revision)
    rest = source[scheme.end() :]
    match scheme[1].lower():
        case "hf":
            return _hub(source, rest, revision)
        case "demo":
            return _demo(source, rest, revision)
        case "file":
            return _local(source, _file_url(source), revision)
        case "http" | "https":
            near = "/".join(rest.split("/")[1:3])  # after the host
            fix = f"write hf://{near}" if is_name(near) else "write hf://org/name"
            raise InputError("a web address is no model source", where=source, fix=fix)
        case other:
            raise InputError(
                f"{other}:// is no model source", where=source, fix="use hf://org/name, demo://smollm2 or a folder"
            )


def is_name(text: str) -> bool:
    """Whether ``text`` can be the ``org/name`` of a model on the Hub."""
    return bool(_NAME.fullmatch(text)) and "--" not in text and ".." not in text and not text.endswith(".git")


def _hub(source: str, rest: str, revision: str | None) -> HubSource:
    name, at, in_name = rest.partition("@")
    if not is_name(name):
        fix = "write hf://org/name, such as hf://meta-llama/Llama-3.1-8B-Instruct"
        kind, _, repository = name.partition("/")
        if kind == "models" and is_name(repository):
            fix = f"write hf://{repository}"
        raise InputError(f"{name!r} is no name of a model on the Hub", where=source, fix=fix)
    if at and revision is not None and revision != in_name:
        raise InputError(
            f"the source says revision {in_name!r}, but model.revision says {revision!r}",
            where=source,
            fix="leave one of them out",
        )
    wanted = in_name if at else DEFAULT_REVISION if revision is None else revision
    if not _REVISION.fullmatch(wanted) or ".." in wanted or "//" in wanted:
        raise InputError(
            f"{wanted[:80]!r} is no branch, tag or commit",
            where=source,
            fix="write hf://org/name@main, or a full commit",
        )
    return HubSource(name, wanted.lower() if COMMIT.fullmatch(wanted.lower()) else wanted)


def _demo(source: str, name: str, revision: str | None) -> DemoSource:
    if name not in demo.MODELS:
        raise InputError("there is no such demo model", where=source, fix=f"use demo://{next(iter(demo.MODELS))}")
    # Only the installed package can be asked for its version, so a revision pins nothing before it is there.
    if revision is not None and revision != demo.revision(name):
        raise InputError(
            f"the installed demo model is {demo.revision(name)}, not {revision}",
            where=source,
            fix=f"leave model.revision out, or install {revision}",
        )
    return DemoSource(name)


def _local(source: str, folder: Path, revision: str | None) -> LocalSource:
    if revision not in (None, "local"):
        raise InputError(
            f"a folder has no revision {revision}", where=source, fix="leave model.revision out, or use hf://org/name"
        )
    folder = folder.expanduser() if str(folder).startswith("~") else folder
    if not folder.is_dir():
        found = "it is a file, not a folder" if folder.exists() else "there is no such folder"
        fix = f"write hf://{source} for the model on the Hub" if is_name(source) else "give a checkpoint's folder"
        raise InputError(found, where=source, fix=fix)
    return LocalSource(folder.absolute())


def _file_url(source: str) -> Path:
    path = source.split("://", 1)[1].removeprefix("localhost")
    if not path.startswith("/") or "?" in path or "#" in path or "%00" in path:
        raise InputError(
            "a file URL names an absolute path of this machine", where=source, fix="write file:///the/folder"
        )
    return Path(unquote(path))
