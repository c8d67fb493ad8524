"""What Prometheus reads on the metrics port: the names of the design, section 4, and token and request counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from engineroom.gateway.refusals import REASONS

#: Seconds. An objective needs a bound at its own value, and some on either side: TTFT 200 and 500 ms, ITL 50 ms.
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120)
ITL_BUCKETS = (
    0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05, 0.055, 0.06, 0.07, 0.08, 0.1, 0.15, 0.2,
    0.3, 0.5, 1, 2, 5,
)  # fmt: skip
E2E_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600)
QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)


# One series more for each counter, which nothing reads: a restart shows in the counter itself.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        prefix = "engineroom_gateway"
        self.ttft = Histogram(
            f"{prefix}_ttft_seconds",
            "From a request's arrival to its first token",
            buckets=TTFT_BUCKETS,
            registry=registry,
        )
        self.itl = Histogram(
            f"{prefix}_itl_seconds", "Between two tokens of an answer", buckets=ITL_BUCKETS, registry=registry
        )
        self.e2e = Histogram(
            f"{prefix}_e2e_seconds",
            "From a request's arrival to the end of a whole answer",
            buckets=E2E_BUCKETS,
            registry=registry,
        )
        self.queue = Histogram(
            f"{prefix}_queue_seconds", "Wait for a slot of the engine", buckets=QUEUE_BUCKETS, registry=registry
        )
        self.waiting = Gauge(
            f"{prefix}_requests_waiting", "Requests that wait for a slot in the gateway", registry=registry
        )
        self.running = Gauge(
            f"{prefix}_requests_running", "Requests that were forwarded to the engine", registry=registry
        )
        self.queued_tokens = Gauge(
            f"{prefix}_queued_prompt_tokens", "Prompt tokens of the requests that wait", registry=registry
        )
        self.slots = Gauge(f"{prefix}_slots", "Requests that are forwarded at most", registry=registry)
        self.draining = Gauge(f"{prefix}_draining", "1 after SIGTERM", registry=registry)
        self.tasks = Gauge(
            f"{prefix}_tasks", "Tasks of the event loop; they follow the requests in flight", registry=registry
        )
        self.rejected = Counter(
            f"{prefix}_rejected",
            "Requests that ended without their whole answer, by reason",
            ["reason"],
            registry=registry,
        )
        for reason in REASONS:
            self.rejected.labels(reason)
        self.abandoned = Counter(
            f"{prefix}_abandoned", "Requests whose client went away before the end of its answer", registry=registry
        )
        self.requests = Counter(
            f"{prefix}_requests", "Requests by endpoint and HTTP status", ["endpoint", "status"], registry=registry
        )
        self.prompt_tokens = Counter(
            f"{prefix}_prompt_tokens", "Tokens of the prompts that were forwarded", registry=registry
        )
        self.generated_tokens = Counter(f"{prefix}_generated_tokens", "Tokens of the answers", registry=registry)
