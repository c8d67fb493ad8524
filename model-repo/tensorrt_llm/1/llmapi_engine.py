"""TensorRT-LLM's LLM API (PyTorch backend) behind the engine interface. Experimental.

Written from the API's documentation for TensorRT-LLM 1.2.1, and never run by us: the package installs only
inside NVIDIA's images. It batches in flight by itself, so that this module only translates.
"""

import asyncio
import threading
from typing import Any

from engine import Generation, Load, Score


class Engine:
    """See the module's docstring. Thread-safe."""

    def __init__(self, folder: str, parameters: dict[str, str]) -> None:
        from tensorrt_llm import LLM
        from tensorrt_llm.llmapi import KvCacheConfig

        self._slots = int(parameters["max_batch_size"])
        self._kv_tokens = int(parameters["kv_tokens"])
        self._llm: Any = LLM(
            model=folder,
            skip_tokenizer_init=True,
            tensor_parallel_size=int(parameters.get("tensor_parallel_size", "1")),
            pipeline_parallel_size=int(parameters.get("pipeline_parallel_size", "1")),
            moe_expert_parallel_size=int(parameters.get("moe_expert_parallel_size", "1")),
            max_batch_size=self._slots,
            max_input_len=int(parameters["max_input_len"]),
            max_seq_len=int(parameters["max_seq_len"]),
            max_num_tokens=int(parameters["max_num_tokens"]),
            kv_cache_config=KvCacheConfig(
                free_gpu_memory_fraction=float(parameters["kv_cache_free_gpu_mem_fraction"]),
                dtype=parameters.get("kv_dtype", "auto"),
            ),
        )
        self._open: set[Generation] = set()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llmapi", daemon=True)
        self._thread.start()

    def submit(self, generation: Generation) -> None:
        """Queue one request."""
        with self._lock:
            self._open.add(generation)
        asyncio.run_coroutine_threadsafe(self._run(generation), self._loop)

    def load(self) -> Load:
        """How much waits and runs now: a request runs from its first token on."""
        with self._lock:
            open_ = list(self._open)
        running = [generation for generation in open_ if generation.generated]
        waiting = [generation for generation in open_ if not generation.generated]
        used = sum(len(generation.prompt) + generation.generated for generation in running)
        return Load(
            waiting=len(waiting),
            running=len(running),
            slots=self._slots,
            queued_prompt_tokens=sum(len(generation.prompt) for generation in waiting),
            kv_used_ratio=min(1.0, used / self._kv_tokens),
        )

    def close(self) -> None:
        """End all requests and give back the GPU."""
        for generation in list(self._open):
            generation.cancelled = True
        self._llm.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _run(self, generation: Generation) -> None:
        from tensorrt_llm import SamplingParams

        sampling = generation.sampling
        try:
            output = self._llm.generate_async(
                generation.prompt,
                SamplingParams(
                    max_tokens=generation.max_tokens,
                    min_tokens=generation.min_tokens or None,
                    temperature=sampling.temperature,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    repetition_penalty=sampling.repetition_penalty,
                    seed=sampling.seed,
                    stop_token_ids=sorted(generation.end_ids),
                    end_id=min(generation.end_ids, default=-1),
                    detokenize=False,
                    # None: no log probabilities; 0: of the chosen token only.
                    logprobs=generation.top_log_probs if generation.log_probs else None,
                ),
                streaming=True,
            )
            async for step in output:
                if generation.cancelled:
                    output.abort()
                    break
                new = step.outputs[0]
                ids = [id for id in new.token_ids_diff if id not in generation.end_ids]
                scores = _scores(ids, new.logprobs_diff, generation.top_log_probs) if generation.log_probs else []
                generation.generated += len(ids)
                if ids:
                    generation.emit(generation, ids, False, scores)
        except Exception as error:  # whatever it is, the client must hear of it
            generation.error = f"the engine failed: {error}"
        finally:
            with self._lock:
                self._open.discard(generation)
            generation.emit(generation, (), True)


def _scores(ids: list[int], found: list[dict[int, Any]], count: int) -> list[Score]:
    """Of the LLM API's log probabilities: for each token those of the ``count`` most probable and of the chosen one."""
    # An end id, which is the last where there is one, has a place in `found` but none in `ids`.
    if len(found) < len(ids):
        raise RuntimeError(f"there are {len(found)} log probabilities for {len(ids)} tokens")
    made = []
    for id, place in zip(ids, found, strict=False):
        best = sorted(((other, entry.logprob) for other, entry in place.items()), key=lambda pair: -pair[1])
        made.append(Score(place[id].logprob, tuple(best[:count])))
    return made
