"""The ways in: what is let in, for how long an answer may stream, and how sessions keep to their pod."""

from collections.abc import Callable
from typing import Any

import pytest
from rendered import one

Render = Callable[..., list[dict[str, Any]]]
HASH = {"header": "X-Session-Id", "bound": 140}
GATEWAY = {"kind": "gateway-api", "parentRefs": [{"name": "public"}]}


def paths(ingress: dict[str, Any]) -> list[tuple[str, str]]:
    return [(path["path"], path["pathType"]) for path in ingress["spec"]["rules"][0]["http"]["paths"]]


def test_only_the_openai_api_is_let_in_where_there_is_a_gateway(render: Render) -> None:
    assert paths(one(render("h100", ingress={"kind": "ingress"}), "Ingress")) == [("/v1", "Prefix")]


def test_without_a_gateway_only_triton_s_paths_of_the_client_model_are_let_in(render: Render) -> None:
    found = paths(one(render("h100", ingress={"kind": "ingress"}, gateway={"enabled": False}), "Ingress"))

    model = "/v2/models/tensorrt_llm_bls"
    assert found == [
        (f"{model}{path}", "Exact") for path in ("", "/config", "/ready", "/infer", "/generate", "/generate_stream")
    ]


def test_haproxy_hashes_within_a_bound(render: Render) -> None:
    values = {"kind": "ingress", "controller": "haproxy", "hash": HASH, "timeoutSeconds": 900}
    annotations = one(render("h100", ingress=values), "Ingress")["metadata"]["annotations"]

    assert annotations == {
        "haproxy.org/load-balance": "hdr(X-Session-Id)",
        "haproxy.org/backend-config-snippet": "hash-type consistent\nhash-balance-factor 140",
        "haproxy.org/timeout-server": "900s",
        "haproxy.org/timeout-tunnel": "900s",
    }


def test_nginx_streams_unbuffered_and_hashes_the_same_header(render: Render) -> None:
    values = {"kind": "ingress", "controller": "nginx", "hash": HASH, "basicAuthSecret": "users"}
    annotations = one(render("h100", ingress=values), "Ingress")["metadata"]["annotations"]

    nginx = "nginx.ingress.kubernetes.io"
    assert annotations == {
        f"{nginx}/proxy-buffering": "off",
        f"{nginx}/proxy-request-buffering": "off",
        f"{nginx}/proxy-read-timeout": "3600",
        f"{nginx}/proxy-send-timeout": "3600",
        f"{nginx}/proxy-body-size": "8m",
        f"{nginx}/upstream-hash-by": "$http_x_session_id",
        f"{nginx}/auth-type": "basic",
        f"{nginx}/auth-secret": "users",
    }


def test_the_user_s_own_annotations_win(render: Render) -> None:
    own = {"nginx.ingress.kubernetes.io/proxy-body-size": "1g", "cert-manager.io/cluster-issuer": "ours"}
    values = {"kind": "ingress", "controller": "nginx", "annotations": own}
    annotations = one(render("h100", ingress=values), "Ingress")["metadata"]["annotations"]

    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "1g"
    assert annotations["cert-manager.io/cluster-issuer"] == "ours"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"


def test_an_ingress_without_host_and_controller_is_plain(render: Render) -> None:
    ingress = one(render("h100", ingress={"kind": "ingress"}), "Ingress")

    assert "annotations" not in ingress["metadata"]
    assert "host" not in ingress["spec"]["rules"][0]
    assert "tls" not in ingress["spec"]


@pytest.mark.parametrize(("gateway", "port"), [(True, 9000), (False, 8000)])
def test_a_route_leads_to_the_gateway_or_to_triton(gateway: bool, port: int, render: Render) -> None:
    route = one(render("h100", ingress=GATEWAY, gateway={"enabled": gateway}), "HTTPRoute")

    [rule] = route["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "llm-engineroom", "port": port}]
    assert rule["timeouts"] == {"request": "3600s", "backendRequest": "3600s"}
    assert "hostnames" not in route["spec"]


def test_grpc_is_a_route_of_inference_calls_only(render: Render) -> None:
    route = one(render("h100", ingress={**GATEWAY, "grpc": True}), "GRPCRoute")

    [rule] = route["spec"]["rules"]
    methods = {match["method"]["method"] for match in rule["matches"]}
    assert {"ModelInfer", "ModelStreamInfer"} <= methods
    assert all(match["method"]["service"] == "inference.GRPCInferenceService" for match in rule["matches"])
    assert rule["backendRefs"][0]["port"] == 8001
    assert not any(item["kind"] == "GRPCRoute" for item in render("h100", ingress=GATEWAY))


def test_ingress_controllers_pass_the_network_policy_only_where_there_is_a_way_in(render: Render) -> None:
    def sources(**values: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = one(render("h100", **values), "NetworkPolicy", "-triton")["spec"]["ingress"][0]
        return found["from"]

    namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}
    assert namespace in sources(ingress={"kind": "ingress"})
    assert namespace not in sources()
