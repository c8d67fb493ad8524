"""GPU memory of one rank, from a model's shape: weights, buffers, and what is left for keys and values.

The formulas are those of TensorRT-LLM's memory page (docs/source/legacy/reference/memory.md); what it leaves
open (buffers, CUDA, NCCL) is fitted to no engine of ours, but checked against the logs of others, on the large side.
All sizes are Python integers: no shape that ``config.json`` may legally hold overflows.
"""

from dataclasses import dataclass

from engineroom.checkpoint.shape import ModelShape
from engineroom.gpus import GIB, Precision, Runtime
from engineroom.planning.parameters import (
    embedding_parameters,
    norm_parameters,
    replicated_parameters,
    routed_parameters,
    router_parameters,
)
from engineroom.planning.plan import Build, Memory, PlannedLimits

MIB = 1 << 20

#: Tokens in one block of the paged KV cache: the default of TensorRT-LLM 1.2, and what we build engines with.
TOKENS_PER_BLOCK = 32

#: Bytes of one key or value.
KV_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "int8": 1}

#: Bytes of 10,000 weights of a linear layer: whole numbers, so that sizes stay exact. int4 and nvfp4 carry scales of
#: 0.03 to 0.06 bytes a weight (nvfp4: one byte for each 16 weights).
WEIGHT_BYTES: dict[Precision, int] = {
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

#: See overhead_bytes.
_CUDA = GIB * 4 // 5
_NCCL = (392 + 128) * MIB

#: Workspaces of cuBLAS and the plugins, for the smallest models; assumed.
_LEAST_CONTEXT = 256 * MIB


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

    The layers of the fullest stage, shared out over tp, but for what every rank holds whole: KV heads where there are
    more ranks than heads, latent attention's compressions, norms and routers. The embedding (whole on each rank of
    the first stage: we build without ``--use_parallel_embedding``) and the output head (split over tp, in the last
    stage) stay 16-bit on GPUs, as do norms and routers. TensorRT engines hold a tied head as a second copy; that is
    assumed, and errs on the large side. CTranslate2 quantises the embedding too, with a float32 scale for each row.
    """
    embedding = embedding_parameters(shape)
    ends = embedding * (1 if shape.tie_embeddings else 2)
    if runtime == "ctranslate2":
        values = max(ends, parameters)
        scales = -(-4 * values // shape.hidden_size) if precision == "int8" else 0
        return -(-values * WEIGHT_BYTES[precision] // 10000) + scales
    stage = -(-shape.layers // pp)
    body = max(0, parameters - ends)
    routed = min(body, routed_parameters(shape))
    sparse = shape.experts.layers if shape.experts else 0
    busiest = -(-routed * min(sparse, stage) // max(1, sparse))  # a stage may hold sparse layers only
    shared = -(-((body - routed) * stage) // shape.layers) + busiest
    whole = min(shared, stage * replicated_parameters(shape, tp))
    plain = min(whole, stage * (norm_parameters(shape) + router_parameters(shape)))
    quantised = -(-(shared - whole) // tp) + whole - plain
    once = shape.tie_embeddings and runtime == "pytorch" and pp == 1
    first, last = 2 * embedding, 0 if once else -(-2 * embedding // tp)
    at_the_ends = first + last if pp == 1 else max(first, last)
    return -(-quantised * WEIGHT_BYTES[precision] // 10000) + 2 * plain + at_the_ends


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

    GPU: for each packed token 80 bytes a hidden value, of which tensor parallelism splits 64, and with experts one
    16-bit copy for each that is active. Logged execution contexts: 75.6 bytes (Llama-3.1-8B, 128,000 tokens,
    37,812.51 MiB: TensorRT-LLM issue 3636) and 76.8 (Qwen2-1.5B, 8,192 tokens, 921.51 MiB). The runtime's and
    the decoder's buffers: six floats for each logit of a batch, and the token ids of all sequences.
    CPU: float32 hidden states and MLP values of a step, attention scores of the longest prompt.
    """
    shape, limits = load.shape, load.limits
    logits = limits.max_batch_size * shape.vocab_size * 4
    if load.runtime == "ctranslate2":
        step = limits.max_num_tokens * (4 * shape.hidden_size + 2 * shape.intermediate_size) * 4
        scores = shape.heads * limits.max_input_len**2 * 4
        return step + scores + logits
    ids = limits.max_batch_size * limits.max_seq_len * 4
    copies = 2 * shape.experts.active if shape.experts else 0
    context = limits.max_num_tokens * shape.hidden_size * (16 + copies + -(-64 // tp))
    return max(_LEAST_CONTEXT, context) + 6 * logits + ids


def overhead_bytes(weights: int, *, runtime: Runtime, world_size: int) -> int:
    """What CUDA, the libraries and NCCL take of one GPU besides weights and activations.

    0.8 GiB: of 8.62 GiB in use in TensorRT-LLM's memory page 774 MiB are neither engine nor context nor buffers; a
    bare CUDA context takes 527 MiB (measured on H100 and H200). 1 % of the weights: logged engines are 0.3 and 0.5 %
    larger than their weights. Several ranks: 392 MiB for NCCL (aiconfigurator 0.12.0) and 128 MiB for the all-reduce.
    """
    if runtime == "ctranslate2":
        return _CPU_OVERHEAD
    return weights // 100 + _CUDA + (0 if world_size == 1 else _NCCL)


def build_memory(load: Load, weights: int, *, calibrated: bool, world_size: int, workers: int) -> Build:
    """What building takes; ``weights`` is the fullest rank's, ``workers`` the ranks that are compiled at once.

    Host: converting holds the 16-bit model, compiling twice the weights of each rank at work (TensorRT-LLM issues
    102, 538, 743). GPU: the rank's weights and activations (keys and values are not allocated while building,
    memory.md); ModelOpt calibrates with 3 bytes for each weight over all GPUs (70B to FP8: more than 210 GB, issue
    1849). Disk: the checkpoint, the converted one and the engine.
    """
    stored, result = 2 * load.parameters, weights * world_size
    if load.runtime == "pytorch":  # the checkpoint is linked, or copied where it cannot be
        return Build(host_bytes=GIB, gpu_bytes=0, disk_bytes=2 * stored)
    if load.runtime == "ctranslate2":
        shape = load.shape
        widest = 4 * max(embedding_parameters(shape), load.parameters // shape.layers)
        return Build(host_bytes=result + 2 * widest + GIB // 2, gpu_bytes=0, disk_bytes=stored + result)
    gpu = weights + buffer_bytes(load, tp=1) + _CUDA
    if calibrated:
        gpu = max(gpu, -(-3 * load.parameters // world_size))
    return Build(
        host_bytes=max(stored, 2 * weights * workers) + 4 * GIB,
        gpu_bytes=gpu,
        disk_bytes=stored + 2 * result,
    )


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
