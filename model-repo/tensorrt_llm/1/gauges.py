"""The engine's load on Triton's own /metrics."""

from typing import Any, ClassVar

import triton_python_backend_utils as pb_utils


class Gauges:
    """One gauge for each figure of a load, under the names that the chart's recording rules read."""

    NAMES: ClassVar = {
        "engineroom_requests_waiting": ("waiting", "Requests that wait for a slot of the engine"),
        "engineroom_requests_running": ("running", "Requests that generate tokens"),
        "engineroom_requests_slots": ("slots", "Requests that can generate at the same time"),
        "engineroom_queued_prompt_tokens": ("queued_prompt_tokens", "Prompt tokens of the requests that wait"),
        "engineroom_kv_used_ratio": ("kv_used_ratio", "Share of the KV cache that running requests use, 0 to 1"),
    }

    def __init__(self, model: str) -> None:
        # The families must outlive their metrics, so both are kept.
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.GAUGE)
            for name, (_, text) in self.NAMES.items()
        }
        self._metrics = {name: family.Metric(labels={"model": model}) for name, family in self._families.items()}
        self._shown: dict[str, float] = {}

    def show(self, load: Any) -> None:
        """Set every gauge that changed."""
        for name, (attribute, _) in self.NAMES.items():
            value = float(getattr(load, attribute))
            if self._shown.get(name) != value:
                self._metrics[name].set(value)
                self._shown[name] = value
