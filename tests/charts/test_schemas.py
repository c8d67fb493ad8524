"""Every rendered object follows Kubernetes' own schemas, of the oldest version supported and of the newest known."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
OLDEST, NEWEST = "1.29", ".".join(kubernetes_validate.latest_version().split(".")[:2])


@cache
def validator(version: str, kind: str, group: str) -> Draft202012Validator:
    """Built once: the package itself reads a schema of megabytes again for each object, which takes 0.1 s."""
    folder = SCHEMAS / f"v{version}.0-local-strict"
    schema = json.loads((folder / f"{kind}-{group}.json").read_text(encoding="utf-8"))
    registry = definitions(version) @ (Resource.from_contents(schema) @ Registry())
    return Draft202012Validator(schema, registry=registry)


@cache
def definitions(version: str) -> Resource[Any]:
    folder = SCHEMAS / f"v{version}.0-local-strict"
    return Resource.from_contents(json.loads((folder / "_definitions.json").read_text(encoding="utf-8")))


def problems(version: str, item: dict[str, Any]) -> list[str]:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", item["apiVersion"])
    return [error.message for error in validator(version, item["kind"].lower(), group).iter_errors(item)]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_follows_the_schema(version: str, shipped: dict[str, list[dict[str, Any]]]) -> None:
    found = {
        f"{values}: {item['kind']}": problems(version, item) for values, items in shipped.items() for item in items
    }

    assert len(found) >= 3
    assert not {name: texts for name, texts in found.items() if texts}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_misspelt_field_would_be_noticed(version: str, render: Callable[..., list[dict[str, Any]]]) -> None:
    deployment = next(item for item in render("cpu") if item["kind"] == "Deployment")
    assert not problems(version, deployment)

    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}

    assert problems(version, deployment)
