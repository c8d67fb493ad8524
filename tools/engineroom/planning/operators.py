"""What one GPU computes in one engine step: the operators of its layers, with their arithmetic and their traffic.

An engine step takes some prompts whole (or a chunk of one) and one token of every running answer. Matrix products see
all of these tokens together; attention over prompts and over running answers is computed apart. Only sizes are here:
how long an operator takes is for an :class:`~engineroom.planning.estimator.OperatorTimes` to say.
"""

from dataclasses import dataclass, replace

from engineroom.checkpoint.shape import ModelShape
from engineroom.gpus import GpuClass, Precision
from engineroom.planning.memory import KV_BYTES, WEIGHT_BYTES

#: The type in which weights of a type are multiplied. Types of weights only (TensorRT-LLM's int8 here is not
#: SmoothQuant) are widened to 16 bit first.
ARITHMETIC: dict[Precision, Precision] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "fp8": "fp8",
    "nvfp4": "nvfp4",
    "int8": "bfloat16",
    "int4": "bfloat16",
    "int4_awq": "bfloat16",
    "w4a8_awq": "fp8",
}

#: Bytes of one activation between operators: they stay 16-bit.
ACTIVATION = 2


@dataclass(frozen=True)
class Gemm:
    """A linear layer: tokens × ``k`` values in, tokens × ``n`` out, ``count`` times in a step."""

    n: int
    k: int
    precision: Precision
    count: int
    quantized_input: bool = False
    """The operator before it wrote its input in the low precision already."""

    def flops(self, tokens: float) -> float:
        """Floating point operations of all ``count``."""
        return 2.0 * self.n * self.k * tokens * self.count

    def traffic(self, tokens: float) -> float:
        """Bytes read and written in the GPU's memory."""
        return self.count * (self.n * self.k * _bytes(self.precision) + ACTIVATION * tokens * (self.n + self.k))

    @property
    def arithmetic(self) -> Precision:
        """The type in which it multiplies."""
        return ARITHMETIC[self.precision]


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture layer: each token passes through ``chosen`` of ``experts`` gated MLPs."""

    hidden: int
    intermediate: int
    """Of one expert, before it is split."""
    experts: int
    chosen: int
    tensor: int
    """Ranks that split each expert."""
    parallel: int
    """Ranks over which the experts are spread."""
    precision: Precision
    count: int

    def flops(self, tokens: float) -> float:
        """Floating point operations of all ``count`` on one rank, the load spread evenly."""
        share = self.tensor * self.parallel
        return self.count * 6.0 * self.hidden * self.intermediate * self.chosen * tokens / share

    def traffic(self, tokens: float) -> float:
        """Bytes: the weights of the experts that any token chose (their expected number), and activations."""
        here = self.experts / self.parallel
        touched = here * (1 - float((1 - self.chosen / self.experts) ** max(tokens, 1.0)))
        weights = 3 * self.hidden * self.intermediate / self.tensor * _bytes(self.precision)
        return self.count * (touched * weights + 2.0 * ACTIVATION * tokens * self.chosen * self.hidden / self.parallel)

    @property
    def arithmetic(self) -> Precision:
        """The type in which it multiplies."""
        return ARITHMETIC[self.precision]


@dataclass(frozen=True)
class Elementwise:
    """Norms, activation functions, residuals: as many bytes a token as they read and write."""

    bytes_per_token: int
    count: int
    arithmetic: Precision = "bfloat16"

    def flops(self, tokens: float) -> float:
        """Not what bounds it."""
        return 0.0

    def traffic(self, tokens: float) -> float:
        """Bytes read and written."""
        return float(self.count * self.bytes_per_token * tokens)


TokenOperator = Gemm | Experts | Elementwise


@dataclass(frozen=True)
class Attention:
    """Attention over the KV cache, grouped-query (one KV head serves ``heads / kv_heads`` query heads), of one rank."""

    heads: int
    kv_heads: int
    head_dim: int
    kv_dtype: str
    """Key of :data:`~engineroom.planning.memory.KV_BYTES`."""
    arithmetic: Precision
    """The type in which prompts are multiplied; running answers are bound by reading the cache."""
    count: int
    window: int = 0
    """Tokens that a token looks back at most; 0: all."""
    latent: int = 0
    """Multi-head latent attention: values of the one vector that the cache holds for a token and all heads."""

    def seen(self, length: float) -> float:
        """Of ``length`` tokens, those that the last one attends to."""
        return min(length, self.window) if self.window else length

    def prefill_flops(self, prompts: float, length: float) -> float:
        """Scores and weighted sums of prompts of ``length`` tokens, the upper triangle left out."""
        window = self.seen(length)
        pairs = length * window - window * (window - 1) / 2
        return self.count * 4.0 * self.heads * self.head_dim * prompts * pairs

    def prefill_traffic(self, prompts: float, length: float) -> float:
        """Queries, keys, values and results of prompts."""
        values = 2 * self.heads * self.head_dim + (self.latent or 2 * self.kv_heads * self.head_dim)
        return self.count * ACTIVATION * values * prompts * length

    def decode_flops(self, sequences: float, context: float) -> float:
        """One token of each sequence against its context; latent attention multiplies with compressed vectors."""
        return self.count * 4.0 * self.heads * (self.latent or self.head_dim) * sequences * self.seen(context)

    def decode_traffic(self, sequences: float, context: float) -> float:
        """Bytes of the KV cache that are read, the queries and the results."""
        values = self.latent or 2 * self.kv_heads * self.head_dim
        cache_bytes = values * self.seen(context) * KV_BYTES[self.kv_dtype]
        return self.count * sequences * (cache_bytes + 2 * ACTIVATION * self.heads * self.head_dim)


@dataclass(frozen=True)
class AllReduce:
    """The sum of the ranks' partial results, ``hidden`` 16-bit values a token, ``count`` times in a step."""

    hidden: int
    ranks: int
    count: int


@dataclass(frozen=True)
class RankWork:
    """All operators of one pipeline stage on one of its tensor-parallel ranks."""

    tokens: tuple[TokenOperator, ...]
    """Computed for every token of the step."""
    logits: Gemm
    """Computed for the last token of each sequence."""
    attention: tuple[Attention, ...]
    all_reduce: AllReduce | None
    hop_values: int
    """16-bit values a token that go to the next stage; 0 with one stage."""


def rank_work(
    shape: ModelShape, precision: Precision, kv_dtype: str, gpu_sm: int, *, tp: int = 1, pp: int = 1, ep: int = 1
) -> RankWork:
    """The operators of a stage of ``layers / pp`` layers on one of ``tp`` ranks, ``ep`` of which share out the experts.

    The stage is the last one, which also computes the logits: the pipeline goes at its pace.
    Prompts are multiplied in fp8 where weights and cache are fp8 and the GPU has it (use_fp8_context_fmha).
    """
    hidden, layers = shape.hidden_size, -(-shape.layers // pp)
    sparse = min(layers, -(-shape.experts.layers // pp)) if shape.experts else 0
    fp8 = precision in ("fp8", "nvfp4", "w4a8_awq") and kv_dtype == "fp8" and gpu_sm >= 89
    # A norm and the residual, each read and written; Gemma has twice as many norms.
    norm = Elementwise(2 * shape.norms * ACTIVATION * hidden, 2 * layers)
    operators: list[TokenOperator] = [norm, *_projections(shape, precision, layers, tp)]
    if layers > sparse:
        operators += _mlp(shape, precision, shape.intermediate_size, layers - sparse, tp)
    if shape.experts and sparse:
        experts = shape.experts
        operators.append(Gemm(experts.count, hidden, "bfloat16", sparse))
        operators.append(
            Experts(
                hidden,
                experts.intermediate_size,
                experts.count,
                experts.active,
                max(1, tp // ep),
                ep,
                precision,
                sparse,
            )
        )
        if experts.shared_intermediate_size:
            operators += _mlp(shape, precision, experts.shared_intermediate_size, sparse, tp)
    return RankWork(
        tokens=tuple(operators),
        logits=Gemm(-(-shape.vocab_size // tp), hidden, "bfloat16", 1),
        attention=_attention(shape, kv_dtype, "fp8" if fp8 else "bfloat16", layers, tp),
        all_reduce=AllReduce(hidden, tp, 2 * layers + 1) if tp > 1 else None,
        hop_values=hidden if pp > 1 else 0,
    )


def _projections(shape: ModelShape, precision: Precision, layers: int, tp: int) -> list[TokenOperator]:
    hidden, heads = shape.hidden_size, shape.heads // tp
    if (latent := shape.latent) is None:
        kv_heads, dim = max(1, -(-shape.kv_heads // tp)), shape.head_dim
        return [
            Gemm((heads + 2 * kv_heads) * dim, hidden, precision, layers),
            Gemm(hidden, heads * dim, precision, layers, quantized_input=True),
        ]
    # Down-projections are whole on each rank; those from the compressed vectors are split by heads. The two small
    # products that move queries into and results out of the compressed space are one of the same size.
    head, rank = latent.nope_dim + latent.rope_dim, latent.query_rank
    down = latent.kv_rank + latent.rope_dim
    query = (
        [Gemm(down + heads * head, hidden, precision, layers)]
        if rank is None
        else [Gemm(down + rank, hidden, precision, layers), Gemm(heads * head, rank, precision, layers)]
    )
    return [
        *query,
        Gemm(heads * (latent.nope_dim + latent.value_dim), latent.kv_rank, "bfloat16", layers),
        Gemm(hidden, heads * latent.value_dim, precision, layers, quantized_input=True),
    ]


def _mlp(shape: ModelShape, precision: Precision, intermediate: int, layers: int, tp: int) -> list[TokenOperator]:
    inner, up = -(-intermediate // tp), 2 if shape.gated_mlp else 1
    return [
        Gemm(up * inner, shape.hidden_size, precision, layers),
        Elementwise((up + 1) * ACTIVATION * inner, layers),
        Gemm(shape.hidden_size, inner, precision, layers, quantized_input=True),
    ]


def _attention(shape: ModelShape, kv_dtype: str, arithmetic: Precision, layers: int, tp: int) -> tuple[Attention, ...]:
    heads = shape.heads // tp
    if shape.latent:
        width = shape.latent.kv_rank + shape.latent.rope_dim
        return (Attention(heads, heads, shape.head_dim, kv_dtype, arithmetic, layers, latent=width),)
    whole = Attention(heads, max(1, -(-shape.kv_heads // tp)), shape.head_dim, kv_dtype, arithmetic, layers)
    window = shape.sliding_window
    if window is None:
        return (whole,)
    short = round(layers * len(window.layers) / shape.layers)
    kinds = [replace(whole, count=layers - short), replace(whole, count=short, window=window.tokens)]
    return tuple(kind for kind in kinds if kind.count)


def roofline_seconds(gpu: GpuClass, arithmetic: Precision, flops: float, traffic: float) -> float:
    """The time that no program can beat: arithmetic at the data sheet's rate, or memory at its bandwidth.

    A type that the GPU does not multiply in is computed in 16 bit.
    """
    rate = gpu.tflops.get(arithmetic) or gpu.tflops.get("bfloat16") or gpu.tflops.get("float16") or 1.0
    return max(flops / (rate * 1e12), traffic / (gpu.bandwidth_gbs * 1e9))


def _bytes(precision: Precision) -> float:
    """Of one weight of a linear layer, scales included."""
    return WEIGHT_BYTES[precision] / 10000
