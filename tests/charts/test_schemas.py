"""Every rendered object follows Kubernetes' own schemas, of the oldest version supported and of the newest known."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

CUSTOM = Path(__file__).parent / "schemas"
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


@cache
def custom(version: str, kind: str) -> tuple[str, Draft202012Validator] | None:
    """The API and a validator of the `spec` of a custom resource, from schemas/; None for Kubernetes' own kinds."""
    path = CUSTOM / f"{kind}.yaml"
    if not path.is_file():
        return None
    schema = yaml.safe_load(path.read_text(encoding="utf-8"))
    api = schema.pop("apiVersion")
    folder = SCHEMAS / f"v{version}.0-local-strict"
    schema["$defs"] = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))["$defs"]
    return api, Draft202012Validator(schema)


def problems(version: str, item: dict[str, Any]) -> list[str]:
    if found := custom(version, item["kind"].lower()):
        api, specification = found
        wrong = [] if item["apiVersion"] == api else [f"{item['apiVersion']} is not {api}"]
        return wrong + [error.message for error in specification.iter_errors(item["spec"])]
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", item["apiVersion"])
    return [error.message for error in validator(version, item["kind"].lower(), group).iter_errors(item)]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_follows_the_schema(version: str, shipped: dict[str, list[dict[str, Any]]]) -> None:
    found = {
        f"{values}: {item['kind']} {item['metadata']['name']}": problems(version, item)
        for values, items in shipped.items()
        for item in items
    }

    assert len(found) >= 3
    assert not {name: texts for name, texts in found.items() if texts}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_misspelt_field_would_be_noticed(version: str, render: Callable[..., list[dict[str, Any]]]) -> None:
    deployment = next(item for item in render("cpu") if item["kind"] == "Deployment")
    assert not problems(version, deployment)

    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}

    assert problems(version, deployment)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ("multi-node", "LeaderWorkerSet"),
        ("nim-values", "NIMCache"),
        ("nim-values", "NIMService"),
        ("stateful-values", "HTTPRoute"),
        ("stateful-values", "GRPCRoute"),
    ],
)
def test_a_misspelt_field_of_a_custom_resource_would_be_noticed(
    values: str, kind: str, render: Callable[..., list[dict[str, Any]]]
) -> None:
    item = next(item for item in render(values) if item["kind"] == kind)
    assert not problems(NEWEST, item)

    item["spec"]["replica"] = 1

    assert problems(NEWEST, item)


def test_the_operator_takes_replicas_or_scale_of_a_nim_and_the_chart_gives_one(
    render: Callable[..., list[dict[str, Any]]],
) -> None:
    scaled = next(item for item in render("nim-values") if item["kind"] == "NIMService")
    fixed = next(
        item for item in render("nim-values", nim={"scale": {"enabled": False}}) if item["kind"] == "NIMService"
    )

    assert "replicas" not in scaled["spec"]
    assert fixed["spec"]["replicas"] == 1
    assert not problems(NEWEST, fixed)
    assert problems(NEWEST, {**scaled, "spec": {**scaled["spec"], "replicas": 1}})
