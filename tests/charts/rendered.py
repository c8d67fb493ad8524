"""How tests find their way in rendered objects, and run the commands that stand in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

Objects = list[dict[str, Any]]


def one(items: Objects, kind: str, suffix: str = "") -> dict[str, Any]:
    """The only object of a kind whose name ends so."""
    [found] = [item for item in items if item["kind"] == kind and item["metadata"]["name"].endswith(suffix)]
    return found


def pod_templates(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The templates of whatever makes pods, and the pod itself, wherever they stand in the object."""
    if item["kind"] == "Pod":
        return [item]

    def search(found: Any) -> Iterator[dict[str, Any]]:
        for value in found.values() if isinstance(found, dict) else ():
            if isinstance(value, dict) and "containers" in value.get("spec", {}):
                yield value
            else:
                yield from search(value)

    return list(search(item.get("spec") or {}))


def workload(items: Objects) -> dict[str, Any]:
    """The spec of what runs Triton."""
    found: dict[str, Any] = next(item for item in items if item["kind"] in ("Deployment", "StatefulSet"))["spec"]
    return found


def pod(items: Objects) -> dict[str, Any]:
    """The spec of Triton's pod."""
    spec: dict[str, Any] = workload(items)["template"]["spec"]
    return spec


def container(items: Objects, name: str) -> dict[str, Any]:
    """A container of Triton's pod, init containers included."""
    spec = pod(items)
    return next(found for found in [*spec.get("initContainers", []), *spec["containers"]] if found["name"] == name)


def as_kubernetes_passes(words: list[str], paths: dict[str, Path]) -> list[str]:
    """Words of a command after Kubernetes has read ``$$`` as ``$``, with folders of the test for those of the pod."""
    words = [word.replace("$$", "$") for word in words]
    for path, folder in paths.items():
        words = [word.replace(f"{path}/", f"{folder}/") for word in words]
    return words


def program(folder: Path, name: str, text: str) -> None:
    """A stand-in for a program of the image."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
