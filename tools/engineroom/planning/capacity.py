"""How many requests a replica holds at once: by the planner's careful accounting, and by what is to be expected."""

from dataclasses import dataclass, replace

from engineroom.planning.memory import Load, kv_bytes_per_token_and_rank, kv_pool_tokens, plan_memory

#: What TensorRT-LLM builds for unless told otherwise (trtllm-build --help, 1.2): requests, and tokens in a step.
DEFAULT_BATCH = 2048
DEFAULT_TOKENS = 8192
#: A smaller budget of tokens leaves more memory to the KV cache, where that is what lacks.
SMALL_TOKENS = 2048


@dataclass(frozen=True)
class Capacity:
    """Requests that a replica holds."""

    careful: int
    """By the plan's accounting, which errs on the large side everywhere: what may be promised."""
    expected: int
    """With nothing set aside against surprises: what estimates of speed assume."""


def capacity(load: Load, *, tp: int, pp: int, tokens_each: int, most: int) -> Capacity:
    """How many requests of ``tokens_each`` tokens fit at once, and no more than ``most``.

    Logits and token ids of the batch take memory too, so the largest batch is searched.
    """
    return Capacity(
        careful=_largest(load, tp, pp, tokens_each, most, careful=True),
        expected=_largest(load, tp, pp, tokens_each, most, careful=False),
    )


def _largest(load: Load, tp: int, pp: int, tokens_each: int, most: int, *, careful: bool) -> int:
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if _holds(load, tp, pp, middle, careful=careful) >= middle * tokens_each:
            low = middle
        else:
            high = middle - 1
    return low


def _holds(load: Load, tp: int, pp: int, batch: int, *, careful: bool) -> int:
    """Tokens in the KV cache of a replica that is built for ``batch`` requests."""
    built = replace(load, limits=load.limits.model_copy(update={"max_batch_size": batch}))
    memory, tokens = plan_memory(built, tp=tp, pp=pp)
    if careful:
        return tokens
    # plan_memory sets a twentieth of the weights aside (alignment, allocator); engines show that they do without.
    spare = memory.weights // 20
    fixed = memory.weights + memory.activations + memory.overhead - spare
    pool = int(max(0, memory.visible - fixed) * load.fraction)
    return kv_pool_tokens(pool, kv_bytes_per_token_and_rank(load.shape, load.kv_dtype, tp=tp, pp=pp))
