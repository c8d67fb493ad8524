"""A values file before it is text: settings with their reasons, in the order in which a person reads them."""

import textwrap
from dataclasses import dataclass
from typing import Any

import yaml

GIB, MIB = 1 << 30, 1 << 20


@dataclass(frozen=True)
class Setting:
    """One value of the chart."""

    path: str
    """Dotted, as ``--set`` writes it."""

    value: Any
    why: str
    """Where the value comes from: the comment above it."""


@dataclass(frozen=True)
class Values:
    """A whole values file."""

    title: str
    """What it is for: the comment at its head."""

    settings: tuple[Setting, ...]
    """Those of one section stand together."""

    def as_dict(self) -> dict[str, Any]:
        """The values alone, nested as Helm takes them."""
        tree: dict[str, Any] = {}
        for setting in self.settings:
            *sections, key = setting.path.split(".")
            inner = tree
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[key] = setting.value
        return tree

    def to_yaml(self) -> str:
        """The file: every value under the comment that says where it comes from."""
        lines = _comment(self.title, 0)
        above: list[str] = []
        why = ""
        for setting in self.settings:
            *sections, key = setting.path.split(".")
            same = 0
            while same < min(len(sections), len(above)) and sections[same] == above[same]:
                same += 1
            for depth in range(same, len(sections)):
                lines.append(f"{'  ' * depth}{sections[depth]}:")
            # One comment for neighbours that share their reason.
            if sections != above or setting.why != why:
                lines += _comment(setting.why, len(sections))
            above, why = sections, setting.why
            lines += [f"{'  ' * len(sections)}{line}" for line in _entry(key, setting.value)]
        return "\n".join(lines) + "\n"


def quantity(size: int) -> str:
    """Bytes as Kubernetes writes them, rounded up to whole MiB: ``2Gi``, ``2049Mi``."""
    mebibytes = -(-size // MIB)
    return f"{mebibytes // 1024}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"


def _entry(key: str, value: Any) -> list[str]:
    if isinstance(value, list) and value:
        return [f"{key}:", *(f"  - {_scalar(item)}" for item in value)]
    return [f"{key}: {_scalar(value)}"]


def _scalar(value: Any) -> str:
    # A flow sequence of one keeps YAML from ending the document behind a bare scalar.
    # Unprintable text is escaped: PyYAML writes U+0085 as it is, and reads it back as a line break.
    plain = not isinstance(value, str) or value.isprintable()
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=plain, width=1 << 20).strip()[1:-1]


def _comment(text: str, depth: int) -> list[str]:
    indent = "  " * depth + "# "
    # Only printable characters: a line break out of a model's name would end the comment.
    words = "".join(character if character.isprintable() else " " for character in text)
    return textwrap.wrap(words, width=118, initial_indent=indent, subsequent_indent=indent)
