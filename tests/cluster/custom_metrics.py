"""A small API server for custom metrics, of the tests' own: what prometheus-adapter is to the HPA controller.

It serves ``custom.metrics.k8s.io/v1beta2`` with the numbers that a test sets, behind the real API server, which
aggregates it. prometheus-adapter itself cannot be built from its module; its rules are tested with Prometheus.
"""

import base64
import collections
import datetime
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from control_plane import ControlPlane

GROUP, VERSION = "custom.metrics.k8s.io", "v1beta2"
NAMESPACE, SERVICE = "kube-system", "custom-metrics"


class CustomMetrics:
    """Start with ``with CustomMetrics(cluster) as metrics``, then set ``metrics[namespace, service, name] = value``."""

    def __init__(self, cluster: ControlPlane) -> None:
        self._cluster = cluster
        self._values: dict[tuple[str, str, str], float] = {}
        self.answered: collections.Counter[tuple[str, str, str]] = collections.Counter()
        """How often each was asked for and given."""

    def __setitem__(self, key: tuple[str, str, str], value: float) -> None:
        self._values[key] = value

    def __enter__(self) -> "CustomMetrics":
        certificate, key = self._cluster.certify("custom-metrics", f"{SERVICE}.{NAMESPACE}.svc")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._cluster.apply(self._registration(self._server.server_port))
        self._cluster.wait_for("the aggregation of custom metrics", self._is_available)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.kubectl("delete", "apiservice", f"{VERSION}.{GROUP}", "--ignore-not-found")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _is_available(self) -> bool:
        status = self._cluster.get("apiservice", f"{VERSION}.{GROUP}").get("status", {})
        return any(
            (condition["type"], condition["status"]) == ("Available", "True")
            for condition in status.get("conditions", [])
        )

    def _registration(self, port: int) -> list[dict[str, Any]]:
        # An external name, because no endpoint of a Service may be a loopback address.
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": SERVICE, "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        }
        authority = self._cluster.authority.cert_pem.bytes()
        api = {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": {
                "group": GROUP,
                "version": VERSION,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": base64.b64encode(authority).decode(),
                "service": {"namespace": NAMESPACE, "name": SERVICE, "port": port},
            },
        }
        # As prometheus-adapter's chart does it: the controller may read custom metrics.
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "custom-metrics"},
            "rules": [{"apiGroups": [GROUP], "resources": ["*"], "verbs": ["*"]}],
        }
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "custom-metrics"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "custom-metrics"},
            "subjects": [
                {"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": "kube-system"},
            ],
        }
        return [service, api, role, binding]

    def _answer(self, path: str) -> dict[str, Any] | None:
        """The answer for a path; None for 404."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts == ["apis", GROUP, VERSION]:
            kind = {"name": "services/*", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{GROUP}/{VERSION}",
                "resources": [{**kind, "singularName": ""}],
            }
        match parts:
            case ["apis", _, _, "namespaces", namespace, "services", service, metric]:
                key = (namespace, service, metric)
                if key not in self._values:
                    return None
                self.answered[key] += 1
                return self._value_list(*key, self._values[key])
        return None

    def _value_list(self, namespace: str, service: str, metric: str, value: float) -> dict[str, Any]:
        item = {
            "describedObject": {"kind": "Service", "namespace": namespace, "name": service, "apiVersion": "/v1"},
            "metric": {"name": metric},
            "timestamp": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            # A quantity in thousandths, as prometheus-adapter rounds it.
            "value": f"{round(value * 1000)}m",
        }
        return {"kind": "MetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": [item]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer = metrics._answer(self.path)
                missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
                body = json.dumps(missing if answer is None else answer).encode()
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: the HPA controller asks every second."""

        return Handler
