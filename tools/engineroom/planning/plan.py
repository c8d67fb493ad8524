"""``plan.json``: what one replica is, what it needs, and what it can hold."""

from typing import Literal

from pydantic import Field

from engineroom.checkpoint.shape import ModelShape
from engineroom.documents import Document, Strict
from engineroom.gpus import Precision, Runtime
from engineroom.recipe import Slo, Traffic

FILE = "plan.json"


class Memory(Strict):
    """GPU memory of one rank, bytes (host memory for the class ``cpu``)."""

    weights: int
    kv: int
    """What is left for the paged KV cache."""
    activations: int
    overhead: int
    """CUDA context, libraries, NCCL buffers, and 1 % of the weights (the host program, for the class ``cpu``)."""
    total: int
    """weights + kv + activations + overhead."""
    visible: int
    """What a process can use of one GPU of the class."""


class PlannedLimits(Strict):
    """The limits that the engine is built for, tokens and requests."""

    max_batch_size: int = Field(ge=1)
    max_input_len: int = Field(ge=1)
    max_output_len: int = Field(ge=1)
    max_seq_len: int = Field(ge=2)
    max_num_tokens: int = Field(ge=1)


class Performance(Strict):
    """What an estimator predicts of one replica, at its estimated speed."""

    prefill_tokens_per_second: float
    """Prompt tokens read a second, prompts only, in steps as full as the limits allow."""
    decode_ms: list[tuple[int, int, float]]
    """(batch, context tokens, milliseconds per step) without prompts."""
    ttft_ms: float
    """95th percentile at the traffic and the planned replicas; without a traffic the mean with a full batch."""
    itl_ms: float
    """The same of the time between two tokens."""
    tokens_per_second: float
    """Of answers, the most that the replica gives."""
    band: tuple[float, float]
    """The true speed lies between these shares of the estimated one."""
    source: str
    """Who says so, and how sure that is."""
    at: str
    """The load for which TTFT and ITL are given, in words."""
    traffic: Traffic | None = None
    """The recipe's, for which replicas were sized."""
    slo: Slo | None = None
    verdict: Literal["feasible", "uncertain", "missed"] | None = None
    """Whether the SLO is kept at the pessimistic end of the band; None without traffic and slo."""
    reason: str = ""
    """Why it is not feasible."""


class Pod(Strict):
    """What one pod asks Kubernetes for."""

    cpu: int
    memory_bytes: int
    shm_bytes: int
    ephemeral_bytes: int
    """Disk for the pulled artifact."""
    load_seconds: int
    """Pessimistic time from container start to ready, for the startup probe."""
    drain_seconds: int | None
    """Longest time that running answers need; None until an estimator exists for the case."""


class Build(Strict):
    """What building the engine takes, at worst."""

    host_bytes: int
    """Memory of the machine that builds."""
    gpu_bytes: int
    """Of each GPU that builds; 0 where none is needed."""
    disk_bytes: int
    """Checkpoint, intermediate checkpoint and engine together."""


class Plan(Document):
    """One replica, planned."""

    model: ModelShape
    parameters: int
    """Number of weights, from the safetensors headers (computed from the shape where there are none)."""
    active_parameters: int | None = None
    """Those that one token passes through: fewer where a router picks experts. None in older plans."""
    gpu: str
    runtime: Runtime
    precision: Precision
    kv_dtype: str
    """Type of the values in the KV cache: float16, bfloat16, float32, fp8 or int8."""
    kv_bytes_per_token: int
    """Over all ranks."""
    tp: int = Field(ge=1)
    pp: int = Field(ge=1)
    ep: int = Field(default=1, ge=1)
    """Of the tp ranks, how many groups share out whole experts (``moe_ep_size``); tp / ep ranks split each expert."""
    replicas: int = Field(default=1, ge=1)
    memory: Memory
    kv_tokens: int
    """Tokens that the KV cache of one replica holds, over all ranks."""
    limits: PlannedLimits
    performance: Performance | None = None
    pod: Pod
    build: Build | None = None
    notes: list[str] = Field(default_factory=list)
    """What a reader should know of this plan, one sentence each."""
    price: float | None = None
    """US dollars an hour for the GPUs of one replica, on demand; None where no price of the class is known."""

    @property
    def world_size(self) -> int:
        """GPUs (ranks) of one replica."""
        return self.tp * self.pp
