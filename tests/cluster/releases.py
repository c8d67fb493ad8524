"""Install the chart as its users do, with a Helm of either major."""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scenarios
from control_plane import ControlPlane

RELEASE = "llm"
WORKLOADS = ("deployments", "statefulsets", "leaderworkersets.leaderworkerset.x-k8s.io")

#: What the API server and its controllers keep in a namespace whatever is installed there.
KEPT = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
#: What controllers derive from our objects, and take away after them, and records of what happened.
DERIVED = {"Event", "Pod", "ReplicaSet", "ControllerRevision", "Endpoints", "EndpointSlice", "Lease"}


class RefusedError(AssertionError):
    """Helm or the API server refused; the text holds what it said."""


@dataclass(frozen=True)
class Installer:
    """One Helm in one namespace."""

    helm: Path
    cluster: ControlPlane
    namespace: str

    def run(self, *words: str) -> str:
        """What helm prints. Raises :class:`RefusedError` with what it complained about."""
        command = [str(self.helm), *words, f"--namespace={self.namespace}", f"--kubeconfig={self.cluster.kubeconfig}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise RefusedError(f"{self.helm.name} {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def upgrade(self, values: Path, *options: str, **overrides: Any) -> str:
        """Install, or upgrade what is there, with a values file that ships as its head says, and changes on top."""
        with tempfile.TemporaryDirectory() as scratch:
            files = [f"--values={file}" for file in scenarios.layers(values, Path(scratch), overrides)]
            return self.run("upgrade", "--install", RELEASE, str(scenarios.CHART), *files, *options)

    def workload(self) -> dict[str, Any]:
        """The one object of the release that runs Triton."""
        [one] = self.cluster.get(",".join(WORKLOADS), f"--namespace={self.namespace}")["items"]
        return one

    def objects(self) -> set[tuple[str, str]]:
        """Kind and name of everything in the namespace that somebody put there, whatever its kind."""
        kinds = self.cluster.kubectl(
            "api-resources", "--verbs=list", "--namespaced", "--output=name", "--sort-by=name"
        ).split()
        # What is measured, not stored.
        kinds = [kind for kind in kinds if not kind.endswith(("metrics.k8s.io", ".events.k8s.io"))]
        items = self.cluster.get(",".join(kinds), f"--namespace={self.namespace}", "--ignore-not-found")["items"]
        names = {(item["kind"], item["metadata"]["name"]) for item in items if item["kind"] not in DERIVED}
        return names - KEPT


def values_file(name: str) -> Path:
    """A values file that ships, by its name without ending."""
    [found] = [path for path in scenarios.values_files() if path.stem == name]
    return found
