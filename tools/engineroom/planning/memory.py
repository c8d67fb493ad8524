"""GPU memory of one rank, from a model's shape: weights, buffers, and what is left for keys and values.

The formulas are those of TensorRT-LLM's memory page (docs/source/legacy/reference/memory.md); what it leaves
open (buffers, CUDA, NCCL) is a heuristic of ours that errs on the large side. Nothing here was measured on a GPU.
All sizes are Python integers: no shape that ``config.json`` may legally hold overflows.
"""

from dataclasses import dataclass

from engineroom.checkpoint.shape import ModelShape
from engineroom.gpus import GIB, Precision, Runtime
from engineroom.planning.plan import Memory, PlannedLimits

MIB = 1 << 20

#: Tokens in one block of the paged KV cache: the default of TensorRT-LLM 1.2, and what we build engines with.
TOKENS_PER_BLOCK = 32

#: Bytes of one key or value.
KV_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "int8": 1}

#: Bytes of 10,000 weights of a linear layer. int4 and nvfp4 carry scales of 0.03 to 0.06 bytes a weight
#: (nvfp4: one byte for each 16 weights).
_BYTES_PER_10000: dict[Precision, int] = {
    "float32": 40000,
    "bfloat16": 20000,
    "float16": 20000,
    "fp8": 10000,
    "int8": 10000,
    "nvfp4": 5625,
    "int4": 5300,
    "int4_awq": 5300,
    "w4a8_awq": 5300,
}

#: Triton with one Python model, its shared memory included; assumed, not measured.
_CPU_OVERHEAD = 768 * MIB


@dataclass(frozen=True)
class Load:
    """All that the memory of a rank depends on, besides how the model is split."""

    shape: ModelShape
    parameters: int
    runtime: Runtime
    precision: Precision
    kv_dtype: str
    """Key of :data:`KV_BYTES`."""
    limits: PlannedLimits
    fraction: float
    """Share of the memory left after weights and buffers that the KV cache takes."""
    visible: int
    """Memory of one GPU (class ``cpu``: of the host) that a process can use, bytes."""


def weight_bytes(
    shape: ModelShape, parameters: int, *, runtime: Runtime, precision: Precision, tp: int = 1, pp: int = 1
) -> int:
    """Weights on the rank that holds most of them, bytes.

    Parameters × bytes ÷ (tp × pp) for the layers; the embedding (whole on each rank of the first stage: we build
    without ``--use_parallel_embedding``) and the output head (split over tp, in the last stage) stay 16-bit on
    GPUs. TensorRT engines hold a tied head as a second copy; that is assumed, and errs on the large side.
    CTranslate2 quantises the embedding too and keeps one float32 scale for each row.
    """
    embedding = shape.vocab_size * shape.hidden_size
    body = max(0, parameters - embedding * (1 if shape.tie_embeddings else 2))
    if runtime == "ctranslate2":
        values = body + embedding * (1 if shape.tie_embeddings else 2)
        scales = -(-4 * values // shape.hidden_size) if precision == "int8" else 0
        return -(-values * _BYTES_PER_10000[precision] // 10000) + scales
    shared = shape.tie_embeddings and runtime == "pytorch" and pp == 1
    first, last = 2 * embedding, 0 if shared else -(-2 * embedding // tp)
    ends = first + last if pp == 1 else max(first, last)
    return -(-body * _BYTES_PER_10000[precision] // (10000 * tp * pp)) + ends


def kv_bytes_per_token_and_rank(shape: ModelShape, kv_dtype: str, *, tp: int = 1, pp: int = 1) -> int:
    """layers/pp × values of a layer × bytes: what one token occupies on one rank, sliding windows left aside."""
    return -(-shape.layers // pp) * shape.kv_values_per_layer(tp=tp) * KV_BYTES[kv_dtype]


def kv_pool_tokens(pool_bytes: int, bytes_per_token: int, *, tokens_per_block: int = TOKENS_PER_BLOCK) -> int:
    """Tokens that a KV pool holds, in whole blocks.

    TensorRT-LLM rounds the last block up (its log: 0.9 × 70.48 GiB holds 259840 tokens of 256 KiB); we round down.
    """
    blocks = max(0, pool_bytes) // (bytes_per_token * tokens_per_block)
    return blocks * tokens_per_block


def buffer_bytes(load: Load, *, tp: int = 1) -> int:
    """Activations and buffers of one rank, bytes; independent of pp (each stage holds full-size activations).

    GPU: max_num_tokens × hidden × 40 bytes ÷ tp, at least 1 GiB; logits in float32 and the token ids of all
    sequences on top. CPU: float32 hidden states and MLP values of a step, attention scores of the longest prompt.
    """
    shape, limits = load.shape, load.limits
    logits = limits.max_batch_size * shape.vocab_size * 4
    if load.runtime == "ctranslate2":
        step = limits.max_num_tokens * (4 * shape.hidden_size + 2 * shape.intermediate_size) * 4
        scores = shape.heads * limits.max_input_len**2 * 4
        return step + scores + logits
    ids = limits.max_batch_size * limits.max_seq_len * 4
    return max(GIB, -(-limits.max_num_tokens * shape.hidden_size * 40 // tp)) + logits + ids


def overhead_bytes(weights: int, *, runtime: Runtime, world_size: int) -> int:
    """5 % of the weights (alignment, allocator), 0.5 GiB for CUDA, another 0.5 GiB for NCCL with several ranks."""
    if runtime == "ctranslate2":
        return _CPU_OVERHEAD
    return weights // 20 + (GIB // 2 if world_size == 1 else GIB)


def plan_memory(load: Load, *, tp: int = 1, pp: int = 1) -> tuple[Memory, int]:
    """Memory of the fullest rank, and the tokens that the KV cache of the whole replica holds.

    The KV pool is a share of what is left *after* weights and buffers. CTranslate2 allocates keys and values
    as it needs them, so for it the pool is at most what the limits allow to be in use.
    """
    weights = weight_bytes(load.shape, load.parameters, runtime=load.runtime, precision=load.precision, tp=tp, pp=pp)
    activations = buffer_bytes(load, tp=tp)
    overhead = overhead_bytes(weights, runtime=load.runtime, world_size=tp * pp)
    left = max(0, load.visible - weights - activations - overhead)
    pool = int(left * load.fraction)
    per_token = kv_bytes_per_token_and_rank(load.shape, load.kv_dtype, tp=tp, pp=pp)
    if load.runtime == "ctranslate2":
        pool = min(pool, load.limits.max_batch_size * load.limits.max_seq_len * per_token)
    memory = Memory(
        weights=weights,
        kv=pool,
        activations=activations,
        overhead=overhead,
        total=weights + pool + activations + overhead,
        visible=load.visible,
    )
    block = 1 if load.runtime == "ctranslate2" else TOKENS_PER_BLOCK
    return memory, kv_pool_tokens(pool, per_token, tokens_per_block=block)
