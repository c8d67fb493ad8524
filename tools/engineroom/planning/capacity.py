"""How many requests a replica holds at once."""

from dataclasses import replace

from engineroom.planning.memory import Load, plan_memory

#: What TensorRT-LLM builds for unless told otherwise (trtllm-build --help, 1.2): requests, and tokens in a step.
DEFAULT_BATCH = 2048
DEFAULT_TOKENS = 8192
#: Smaller budgets of tokens leave more memory to the KV cache, where that is what lacks.
SMALL_TOKENS = (2048, 512)


def most_requests(load: Load, *, tp: int, pp: int, tokens_each: int, most: int) -> int:
    """How many requests of ``tokens_each`` tokens fit at once, and no more than ``most``.

    Logits and token ids of the batch take memory too, so the largest batch is searched.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        limits = load.limits.model_copy(update={"max_batch_size": middle})
        memory, tokens = plan_memory(replace(load, limits=limits), tp=tp, pp=pp)
        if memory.total <= memory.visible and tokens >= middle * tokens_each:
            low = middle
        else:
            high = middle - 1
    return low
