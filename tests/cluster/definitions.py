"""Definitions of custom resources for the API server: the real ones, and stand-ins where no real one can be had.

The real ones come from the modules of those who publish them (ci/cluster-tools). LeaderWorkerSet and NVIDIA's NIM
publish none that a package registry serves: for these, tests/charts/schemas/ holds the fields that the chart uses, and
a definition is made of each. It proves that our objects fit together, not that the real controller takes them.
"""

from pathlib import Path
from typing import Any

import yaml

SCHEMAS = Path(__file__).resolve().parents[1] / "charts" / "schemas"

#: Of the real definitions, those of the kinds that the chart renders; all would take the API server half a minute.
WANTED = ("podmonitors", "servicemonitors", "prometheusrules", "httproutes", "grpcroutes", "scaledobjects")

#: The stand-ins by file: kind, plural, and the paths that the HPA controller scales by, where it can.
USED_FIELDS: dict[str, tuple[str, str, dict[str, str] | None]] = {
    "leaderworkerset": (
        "LeaderWorkerSet",
        "leaderworkersets",
        {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.hpaPodSelector",
        },
    ),
    "nimcache": ("NIMCache", "nimcaches", None),
    "nimservice": ("NIMService", "nimservices", None),
}


def real(folder: Path) -> list[Path]:
    """Files with the wanted definitions below a folder of ci/cluster-tools."""
    found = [path for path in sorted(folder.rglob("*.yaml")) if path.stem.endswith(WANTED)]
    assert len(found) == len(WANTED), f"{folder} lacks some of {WANTED}"
    return found


def stand_ins() -> list[dict[str, Any]]:
    """A definition for each kind of USED_FIELDS."""
    made = []
    for file, (kind, plural, scale) in USED_FIELDS.items():
        specification = yaml.safe_load((SCHEMAS / f"{file}.yaml").read_text(encoding="utf-8"))
        group, _, version = specification.pop("apiVersion").partition("/")
        schema = {
            "type": "object",
            "properties": {
                "spec": structural(specification),
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            },
        }
        served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
        if scale:
            served["subresources"] = {"scale": scale, "status": {}}
        made.append(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{group}"},
                "spec": {
                    "group": group,
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
                    "versions": [served],
                },
            }
        )
    return made


def structural(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema in the form that Kubernetes takes: each field has one type, and unknown ones are refused anyway."""
    if "$ref" in schema:  # an object of Kubernetes' own, which the schema tests look at
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if isinstance(schema.get("type"), list):
        return {"x-kubernetes-int-or-string": True}
    made = {key: value for key, value in schema.items() if key != "additionalProperties" or value is not False}
    if "enum" in made:
        made.setdefault("type", "string")
    if "properties" in made:
        made["properties"] = {name: structural(inner) for name, inner in made["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = structural(made[key])
    return made
