"""Rules of thumb that guides give, beside what a plan computes: a large difference is worth a second look."""

from dataclasses import dataclass

from engineroom.gpus import GIB, GpuClass
from engineroom.planning.memory import WEIGHT_BYTES
from engineroom.planning.plan import Plan

#: Parallel range reads from S3 into local memory: Llama-3-8B in 4.24 s on a g5.12xlarge (run-ai/runai-model-streamer,
#: docs/src/benchmarks.md); local NVMe is no slower.
FAST_DISK = int(3.51 * GIB)


@dataclass(frozen=True)
class Rule:
    """One rule and what this plan says instead."""

    subject: str
    rule: str
    computed: str

    def __str__(self) -> str:
        return f"{self.rule}; computed: {self.computed}"


def rules_of_thumb(plan: Plan, gpu: GpuClass) -> list[Rule]:
    """The usual rules for a model on GPUs; empty for the class ``cpu``, for which there are none."""
    if gpu.is_cpu:
        return []
    size = plan.parameters * WEIGHT_BYTES[plan.precision] // 10000
    memory, ranks = plan.memory, plan.world_size
    here = min(ranks, gpu.gpus_per_node)
    thumb = -(-3 * size // 2)
    needed = ranks * (memory.total - memory.kv) + plan.kv_bytes_per_token * plan.limits.max_seq_len
    artifact = plan.pod.ephemeral_bytes * 10 // 11
    rules = [
        Rule(
            "GPU memory",
            f"1.5 × model size = {_gib(thumb)} GiB",
            f"{_gib(needed)} GiB for one full sequence, {_gib(ranks * memory.total)} of {_gib(ranks * memory.visible)}"
            " GiB taken",
        ),
        Rule(
            "CPU cores", f"4-8 a GPU = {4 * here}-{8 * here}", f"{plan.pod.cpu}: 8 for the first GPU, 4 for each more"
        ),
        Rule(
            "loading",
            f"from NVMe: {max(1, artifact // FAST_DISK):,} s at 3.5 GiB/s",
            f"{plan.pod.load_seconds:,} s planned, for a cold network disk of 125 MB/s",
        ),
    ]
    computed = "none of it: a replica stays on one node"
    if ranks > gpu.gpus_per_node:
        # Between stages passes one hidden vector of 16 bits a token.
        step = 2 * plan.model.hidden_size * plan.limits.max_num_tokens
        computed = f"{step / 1.25e9 * 1000:,.0f} ms for each step of {plan.limits.max_num_tokens:,} tokens at that rate"
        if gpu.node_gbs:
            computed += f", {step / (gpu.node_gbs * 1e9) * 1000:,.1f} ms at the {gpu.node_gbs:g} GB/s of the class"
    rules.append(Rule("network", "10 Gbit/s between nodes", computed))
    return rules


def _gib(size: int) -> str:
    tenths = size * 10 // GIB
    return f"{tenths // 10:,}.{tenths % 10}"
