"""Every refusal of the chart, with the sentence that it says, and its nearest legal neighbour."""

import re
from pathlib import Path
from typing import Any

import pytest
import scenarios
import yaml

from engineroom.deploy.helm import Helm
from engineroom.errors import CommandError

DIGEST = "@sha256:" + "a" * 64
NO_REF: dict[str, Any] = {"model": {"runtime": "tensorrt"}, "gpu": {"perNode": 2}}
GPU: dict[str, Any] = {
    "artifact": {"ref": "s3://b/m/llama" + DIGEST},
    "model": {"runtime": "tensorrt"},
    "gpu": {"perNode": 2},
}
GROUP: dict[str, Any] = {
    "artifact": {"ref": "s3://b/m/llama" + DIGEST},
    "model": {"runtime": "tensorrt", "worldSize": 16},
    "gpu": {"perNode": 8},
    "triton": {"workload": {"kind": "LeaderWorkerSet"}, "mpi": {"secret": "keys"}},
}
BUILD: dict[str, Any] = {
    "model": {"runtime": "tensorrt"},
    "gpu": {"perNode": 2},
    "engineBuild": {"enabled": True, "recipe": "model: {source: hf://a/b}", "to": "s3://b/m/llama"},
}
CPU: dict[str, Any] = {"artifact": {"ref": "s3://b/m/llama" + DIGEST}, "model": {"runtime": "ctranslate2"}}


def changed(base: dict[str, Any], **by_path: Any) -> dict[str, Any]:
    """``base`` with some keys changed; ``a__b=1`` is the key a.b."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(base))
    for path, value in by_path.items():
        *sections, key = path.split("__")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return values


def render(helm: Helm, values: dict[str, Any], folder: Path) -> str:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return helm.template(scenarios.CHART, [path], release="llm")


# What is refused, what the sentence holds, and the nearest values that are not refused.
REFUSALS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "no artifact",
        changed(GPU, artifact__ref=""),
        "artifact.ref is empty: publish a model with `engineroom publish`",
        GPU,
    ),
    (
        "a reference without scheme",
        changed(GPU, artifact__ref="models/llama" + DIGEST),
        "is no reference: write SCHEME://LOCATION/NAME",
        changed(GPU, artifact__ref="oci://models/llama" + DIGEST),
    ),
    (
        "an unknown scheme",
        changed(GPU, artifact__ref="http://b/llama" + DIGEST),
        "with the scheme file, s3, gs, az or oci",
        changed(GPU, artifact__ref="file:///b/llama" + DIGEST),
    ),
    (
        "a tag without digest",
        changed(GPU, artifact__ref="s3://b/m/llama:v1"),
        "has no digest, and a tag may name another model",
        changed(GPU, artifact__ref="s3://b/m/llama:v1" + DIGEST),
    ),
    (
        "a digest that is cut off",
        changed(GPU, artifact__ref="s3://b/m/llama@sha256:abc"),
        "append the @sha256:<64 digits>",
        changed(GPU, artifact__ref="s3://b/m/llama:recipe-0123456789abcdef"),
    ),
    (
        "no runtime",
        changed(GPU, model__runtime=""),
        "model.runtime is empty: use the file that `engineroom values`",
        GPU,
    ),
    (
        "ctranslate2 on GPU nodes",
        changed(CPU, gpu__perNode=1),
        "runs on the processor, but gpu.perNode=1 describes a GPU node",
        CPU,
    ),
    (
        "ctranslate2 over two ranks",
        changed(CPU, model__worldSize=2),
        "serves from one process: set model.worldSize=1",
        changed(CPU, model__worldSize=1),
    ),
    (
        "tensorrt without a GPU",
        changed(GPU, gpu__perNode=0),
        "model.runtime=tensorrt needs GPUs, but gpu.perNode is 0",
        changed(GPU, gpu__perNode=1),
    ),
    (
        "pytorch without a GPU",
        changed(GPU, model__runtime="pytorch", gpu__perNode=0),
        "model.runtime=pytorch needs GPUs",
        changed(GPU, model__runtime="pytorch"),
    ),
    (
        "more ranks than a node has GPUs",
        changed(GPU, model__worldSize=3),
        "model.worldSize=3 does not fit a node of gpu.perNode=2 GPUs",
        changed(GPU, model__worldSize=2),
    ),
    (
        "the tag latest of the server",
        changed(GPU, images__server__tag="latest"),
        "images.server.tag=latest changes under a running release",
        changed(GPU, images__server__tag="latest", images__server__digest="sha256:" + "b" * 64),
    ),
    (
        "the tag latest of the toolkit",
        changed(GPU, images__toolkit__tag="latest"),
        "images.toolkit.tag=latest changes under a running release",
        changed(GPU, images__toolkit__tag="0.1.0"),
    ),
    (
        "a cache in a claim that nobody names",
        changed(GPU, artifact__cache__kind="pvc"),
        "artifact.cache.kind=pvc has no claim for the pods of a Deployment to share",
        changed(GPU, artifact__cache={"kind": "pvc", "claim": "models"}),
    ),
    (
        "a cache of what has no digest",
        changed(GPU, artifact={"ref": "s3://b/m:recipe-12ab", "cache": {"kind": "pvc", "claim": "models"}}),
        "finds trees by their digest, and artifact.ref=s3://b/m:recipe-12ab has none",
        changed(GPU, artifact__ref="s3://b/m:recipe-12ab"),
    ),
    (
        "a model in a claim that nobody names",
        changed(NO_REF, artifact__source="pvc"),
        "artifact.source=pvc, but artifact.pvc.claim is empty",
        changed(NO_REF, artifact={"source": "pvc", "pvc": {"claim": "models"}}),
    ),
    (
        "a model in a folder that nobody names",
        changed(NO_REF, artifact__source="hostPath"),
        "artifact.source=hostPath, but artifact.hostPath.path is empty",
        changed(NO_REF, artifact={"source": "hostPath", "hostPath": {"path": "/srv/models"}}),
    ),
    (
        "a cache of what is not pulled",
        changed(GPU, artifact={"source": "hostPath", "hostPath": {"path": "/srv/m"}, "cache": {"kind": "hostPath"}}),
        "artifact.source=hostPath pulls nothing",
        changed(GPU, artifact__cache__kind="hostPath"),
    ),
    (
        "a group of nodes without TensorRT",
        changed(GROUP, model__runtime="pytorch"),
        "starts ranks of TensorRT engines only, and model.runtime is pytorch",
        GROUP,
    ),
    (
        "a group of nodes for what fits one",
        changed(GROUP, model__worldSize=8),
        "model.worldSize=8 fits one of gpu.perNode=8 GPUs",
        GROUP,
    ),
    (
        "ranks that nodes cannot share evenly",
        changed(GROUP, model__worldSize=12),
        "cannot be spread evenly over nodes of gpu.perNode=8",
        changed(GROUP, model__worldSize=12, gpu__perNode=6),
    ),
    (
        "a group of nodes without keys",
        changed(GROUP, triton__mpi__secret=""),
        "apply what `engineroom mpi-secret",
        GROUP,
    ),
    (
        "a rollout that cannot begin",
        changed(GPU, triton__maxSurge=0),
        "together let no rollout begin: set triton.maxSurge=1",
        changed(GPU, triton__maxSurge=0, triton__maxUnavailable=1),
    ),
    (
        "a gateway before all pods",
        changed(GPU, gateway__mode="router"),
        "gateway.mode=router is not there yet: set gateway.mode=sidecar",
        changed(GPU, gateway={"mode": "router", "enabled": False}),
    ),
    (
        "a password among the values",
        changed(GPU, artifact__environment={"AWS_SECRET_ACCESS_KEY": "x"}),
        "artifact.environment.AWS_SECRET_ACCESS_KEY looks like a secret",
        changed(GPU, artifact__environment={"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token"}),
    ),
    (
        "two ways to serve one model",
        changed(GPU, nim__enabled=True),
        "nim.enabled and triton.enabled are two ways to serve one model",
        changed(GPU, nim__enabled=True, triton__enabled=False),
    ),
    (
        "nothing to run",
        changed(GPU, triton__enabled=False),
        "nothing is left to run: set triton.enabled=true",
        changed(GPU, triton__enabled=False, nim__enabled=True),
    ),
    (
        "API keys that nobody checks",
        changed(GPU, gateway={"enabled": False, "apiKeysSecret": "keys"}),
        "Triton itself asks nobody for a key",
        changed(GPU, gateway__apiKeysSecret="keys"),
    ),
    (
        "a way in to nowhere",
        changed(GPU, triton__enabled=False, nim__enabled=True, ingress__kind="ingress"),
        "ingress.kind=ingress leads nowhere while triton.enabled=false",
        changed(GPU, ingress__kind="ingress"),
    ),
    (
        "routes of no Gateway",
        changed(GPU, ingress__kind="gateway-api"),
        "ingress.kind=gateway-api belongs to no Gateway",
        changed(GPU, ingress={"kind": "gateway-api", "parentRefs": [{"name": "public"}]}),
    ),
    (
        "gRPC through an Ingress",
        changed(GPU, ingress={"kind": "ingress", "grpc": True}),
        "ingress.grpc is a GRPCRoute",
        changed(GPU, ingress={"kind": "gateway-api", "grpc": True, "parentRefs": [{"name": "public"}]}),
    ),
    (
        "hashing by the Gateway API",
        changed(
            GPU, ingress={"kind": "gateway-api", "parentRefs": [{"name": "p"}], "hash": {"header": "X-Session-Id"}}
        ),
        "are for ingress.kind=ingress",
        changed(GPU, ingress={"kind": "ingress", "controller": "haproxy", "hash": {"header": "X-Session-Id"}}),
    ),
    (
        "hashing by an unknown controller",
        changed(GPU, ingress={"kind": "ingress", "hash": {"header": "X-Session-Id"}}),
        "set ingress.controller=haproxy",
        changed(GPU, ingress={"kind": "ingress", "controller": "nginx", "hash": {"header": "X-Session-Id"}}),
    ),
    (
        "a load balancer that may lead nobody in",
        changed(GPU, service__type="LoadBalancer"),
        "service.type=LoadBalancer takes requests from outside the cluster",
        changed(GPU, service__type="LoadBalancer", networkPolicy__clients=[{"ipBlock": {"cidr": "10.0.0.0/8"}}]),
    ),
    (
        "a build without recipe",
        changed(BUILD, engineBuild__recipe=""),
        "engineBuild.recipe is empty: add --set-file engineBuild.recipe=engineroom.yaml",
        BUILD,
    ),
    (
        "a build of a file's name",
        changed(BUILD, engineBuild__recipe="engineroom.yaml"),
        "engineBuild.recipe is no recipe",
        BUILD,
    ),
    ("a build for nobody", changed(BUILD, engineBuild__to=""), "engineBuild.to is empty: name the place", BUILD),
    (
        "a build onto its own disk",
        changed(BUILD, engineBuild__to="file:///models/llama"),
        "is the build pod's own disk",
        changed(BUILD, engineBuild__to="oci://registry.example.com/models/llama"),
    ),
    (
        "a backup to nowhere",
        changed(GPU, backup__enabled=True),
        "backup.enabled, but backup.to is empty",
        changed(GPU, backup={"enabled": True, "to": "s3://backups/llm"}),
    ),
    (
        "a backup onto its own disk",
        changed(GPU, backup={"enabled": True, "to": "file:///backups/llm"}),
        "is the backup pod's own disk",
        changed(GPU, backup={"enabled": True, "to": "gs://backups/llm"}),
    ),
    (
        "a backup into a registry",
        changed(GPU, backup={"enabled": True, "to": "oci://registry.example.com/backups/llm"}),
        "is a registry, which takes no backups",
        changed(GPU, backup={"enabled": True, "to": "az://backups/llm"}),
    ),
    (
        "a restore to nowhere",
        changed(GPU, backup__restore__from="s3://backups/llm"),
        "backup.restore.to is empty: name the store",
        changed(GPU, backup__restore={"from": "s3://backups/llm", "to": "s3://models"}),
    ),
    (
        "a store at a port that no policy lets through",
        changed(GPU, artifact__environment={"AWS_ENDPOINT_URL": "http://minio.storage.svc:9000/"}),
        "artifact.environment.AWS_ENDPOINT_URL=http://minio.storage.svc:9000/ is at port 9000",
        changed(
            GPU,
            artifact__environment={"AWS_ENDPOINT_URL": "http://minio.storage.svc:9000/"},
            networkPolicy__storage={"ports": [443, 9000]},
        ),
    ),
    (
        "a store without TLS, whose port no policy lets through",
        changed(GPU, artifact__environment={"AWS_ENDPOINT_URL": "http://minio.storage.svc"}),
        "is at port 80, which networkPolicy.storage.ports does not let through",
        changed(GPU, artifact__environment={"AWS_ENDPOINT_URL": "https://minio.storage.svc"}),
    ),
    (
        "a registry at a port that no policy lets through",
        changed(GPU, artifact__ref="oci://registry.internal:5000/models/llama" + DIGEST),
        "is at port 5000",
        changed(GPU, artifact__ref="oci://registry.internal:5000/models/llama" + DIGEST, networkPolicy__enabled=False),
    ),
    # From here on the schema refuses.
    ("an unknown key", changed(GPU, triton__replica=2), "triton: additional properties 'replica' not allowed", GPU),
    (
        "an unknown section",
        changed(GPU, gatway__x=1),
        "additional properties 'gatway' not allowed",
        changed(GPU, **{"global__x": 1}),
    ),
    ("a wrong type", changed(GPU, model__worldSize="two"), "model.worldSize: got string, want integer", GPU),
    ("an unknown runtime", changed(GPU, model__runtime="vllm"), "model.runtime: value must be one of", GPU),
    (
        "a size without unit",
        changed(GPU, triton__memory="32"),
        "triton.memory: '32' does not match",
        changed(GPU, triton__memory="32Gi"),
    ),
    (
        "no time to drain",
        changed(GPU, triton__drainSeconds=0),
        "triton.drainSeconds: minimum: got 0",
        changed(GPU, triton__drainSeconds=3),
    ),
    (
        "a name that no Service may have",
        changed(GPU, fullnameOverride="4you"),
        "fullnameOverride: '4you' does not",
        changed(GPU, fullnameOverride="for-you"),
    ),
]


@pytest.mark.parametrize(("title", "refused", "sentence", "legal"), REFUSALS, ids=[case[0] for case in REFUSALS])
def test_the_chart_refuses_and_accepts_the_nearest_legal_values(
    title: str, refused: dict[str, Any], sentence: str, legal: dict[str, Any], any_helm: Helm, tmp_path: Path
) -> None:
    with pytest.raises(CommandError) as refusal:
        render(any_helm, refused, tmp_path)

    assert sentence in refusal.value.found
    assert "\n" not in refusal.value.found
    assert "kind: " in render(any_helm, legal, tmp_path)


def test_every_refusal_of_the_templates_is_tested(helm4: Helm, tmp_path: Path) -> None:
    refusals = {
        (path.relative_to(scenarios.CHART.parent).as_posix(), number)
        for path in (scenarios.CHART / "templates").rglob("*validations.*")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if "{{- fail " in line
    }

    met = set()
    for _, refused, _, _ in REFUSALS:
        with pytest.raises(CommandError) as refusal:
            render(helm4, refused, tmp_path)
        places = re.findall(r"([\w./-]*validations\.\w+):(\d+):", "\n".join(refusal.value.tail))
        met |= {(path, int(number)) for path, number in places} & refusals

    assert met == refusals
