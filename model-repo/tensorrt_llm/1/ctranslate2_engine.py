"""CTranslate2 behind the engine interface: batches that join what waits, on the processor.

CTranslate2 has no in-flight batching: ``generate_batch`` takes a batch and runs it to its end, and in a
batch of prompts of different lengths only the shortest is read in one pass; the rest of the longer ones
is fed one token a step. So waiting requests are put together by prompt length into small batches
("cohorts"), and several cohorts run at once, each on a worker of its own; a request that ends leaves its
cohort, and the next cohort starts as soon as a worker is free. Measured on 2 cores with SmolLM2-135M int8 and
32 prompts of 30 to 115 tokens: one batch of 32 on one worker with 2 threads 78 tokens/s; cohorts of 8 on
4 workers with 1 thread 153 tokens/s, with a median time to first token of 3.2 instead of 7.9 s.
"""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import Generation, Load, RefusedError, Sampling, Score

#: Cohorts that run at the same time. More shorten the wait of a newcomer, and split the processor more finely.
WORKERS = 4
#: Largest cohort. Steps of 8 and of 32 differ little in tokens/s here, but much in time to first token.
COHORT = 16
#: Prompts of one cohort differ by at most this many tokens: each token of difference costs the longer ones a step.
SPREAD = 16
#: Requests that arrive together are batched together: a newcomer waits until nobody has followed for so long, but no
#: longer than the second number (seconds). Clients that a front end serves come 1 to 2 ms apart, and who misses the
#: cohort waits for all of it. While others run, a step takes some 50 ms, and a wait of 20 loses less than a small
#: cohort does: 32 clients in a closed loop had 390 tokens/s with these, 310 with 1 and 4 ms. The same just after a
#: cohort, whose clients may all come again.
ALONE, BESIDE = (0.004, 0.02), (0.02, 0.1)
#: Seconds between two looks for a free slot, room in the KV cache, or a client that went away: nobody announces them.
RECHECK = 0.01


class Engine:
    """See the module's docstring. Thread-safe."""

    def __init__(self, folder: str, parameters: dict[str, str]) -> None:
        # Idle OpenMP threads must sleep, not spin: with more workers than cores they would steal from the busy ones.
        os.environ.setdefault("KMP_BLOCKTIME", "0")
        import ctranslate2

        threads = int(parameters.get("threads", "0")) or len(os.sched_getaffinity(0))
        self._generator = ctranslate2.Generator(
            folder,
            device="cpu",
            compute_type=parameters.get("compute_type", "default"),
            inter_threads=WORKERS,
            # A step is limited by memory, not by arithmetic: a quarter of the cores for each worker loses little
            # for one request alone and keeps all cores busy with four.
            intra_threads=max(1, threads // WORKERS),
            max_queued_batches=-1,
        )
        # CTranslate2 takes token strings, the tokenizer gives ids.
        self._tokens: list[str] = json.loads(Path(folder, "vocabulary.json").read_text(encoding="utf-8"))
        self._slots = int(parameters["max_batch_size"])
        self._kv_tokens = int(parameters["kv_tokens"])
        self._waiting: deque[Generation] = deque()
        self._cohorts: set[_Cohort] = set()
        self._changed = threading.Condition()
        self._crowded_until = 0.0
        self._closing = False
        self._scheduler = threading.Thread(target=self._schedule, name="scheduler", daemon=True)
        self._scheduler.start()

    def submit(self, generation: Generation) -> None:
        """Queue one request."""
        if generation.sampling.seed is not None:
            raise RefusedError("seed is not supported: CTranslate2 has one random state for all requests")
        if max(generation.prompt, default=0) >= len(self._tokens):
            raise RefusedError("the prompt holds a token id outside the model's vocabulary")
        if len(generation.prompt) + generation.max_tokens > self._kv_tokens:
            raise RefusedError(
                f"prompt and max_tokens need {len(generation.prompt) + generation.max_tokens} tokens of KV cache, "
                f"but there is room for {self._kv_tokens}"
            )
        with self._changed:
            self._waiting.append(generation)
            self._changed.notify()

    def load(self) -> Load:
        """How much waits and runs now."""
        with self._changed:
            waiting = list(self._waiting)
            running = [generation for cohort in self._cohorts for generation in cohort.alive()]
        used = sum(len(generation.prompt) + generation.generated for generation in running)
        return Load(
            waiting=len(waiting),
            running=len(running),
            slots=self._slots,
            queued_prompt_tokens=sum(len(generation.prompt) for generation in waiting),
            kv_used_ratio=min(1.0, used / self._kv_tokens),
        )

    def close(self) -> None:
        """End what waits, and what runs at its next step; wait for it, and free the model."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._scheduler.join()
        while self._waiting:
            generation = self._waiting.popleft()
            generation.emit(generation, (), True)
        for cohort in list(self._cohorts):
            for generation in cohort.alive():
                generation.cancelled = True
            cohort.wait()
        self._generator.unload_model()

    def _schedule(self) -> None:
        with self._changed:
            while not self._closing:
                self._drop_cancelled()
                cohorts: list[list[Generation]] = []
                if self._waiting and len(self._cohorts) < WORKERS:
                    self._gather()
                    cohorts = self._admit()
                    for generations in cohorts:
                        cohort = _Cohort(generations, self._end)
                        self._cohorts.add(cohort)
                        cohort.start(self._generator, self._tokens)
                if not cohorts:
                    self._changed.wait(RECHECK if self._waiting else None)

    def _drop_cancelled(self) -> None:
        """End what nobody waits for any more, wherever it stands in the queue."""
        for generation in [each for each in self._waiting if each.cancelled]:
            self._waiting.remove(generation)
            generation.emit(generation, (), True)

    def _gather(self) -> None:
        """Wait, holding the condition, until arrivals pause."""
        now = last = time.monotonic()
        quiet, longest = BESIDE if self._cohorts or now < self._crowded_until else ALONE
        arrived = len(self._waiting)
        while (left := min(now + longest, last + quiet) - time.monotonic()) > 0:
            # Also the end of a cohort wakes it.
            self._changed.wait(left)
            if len(self._waiting) != arrived:
                arrived, last = len(self._waiting), time.monotonic()

    def _admit(self) -> list[list[Generation]]:
        """Take what fits from the queue, oldest first, and put it into cohorts for the free workers."""
        running = [generation for cohort in self._cohorts for generation in cohort.alive()]
        slots = self._slots - len(running)
        kv = self._kv_tokens - sum(len(generation.prompt) + generation.max_tokens for generation in running)
        taken: list[Generation] = []
        while self._waiting:
            first = self._waiting[0]
            need = len(first.prompt) + first.max_tokens
            if len(taken) >= slots or need > kv:
                break
            taken.append(self._waiting.popleft())
            kv -= need
        cohorts = make_cohorts(taken, free=WORKERS - len(self._cohorts))
        chosen = {id(generation) for cohort in cohorts for generation in cohort}
        # What found no worker keeps its place at the head of the queue.
        self._waiting.extendleft(reversed([generation for generation in taken if id(generation) not in chosen]))
        return cohorts

    def _end(self, cohort: "_Cohort") -> None:
        with self._changed:
            if len(cohort.members) > 1:
                self._crowded_until = time.monotonic() + BESIDE[1]
            self._cohorts.discard(cohort)
            self._changed.notify()


def make_cohorts(generations: list[Generation], *, free: int) -> list[list[Generation]]:
    """Divide requests into at most ``free`` cohorts of equal options and near prompt lengths, oldest first.

    Spread and size give way when there are not enough workers: a slow step beats waiting for a whole answer.
    """
    spread, size = SPREAD, COHORT
    while True:
        cohorts: list[list[Generation]] = []
        for generation in sorted(generations, key=lambda each: (_options(each), len(each.prompt))):
            last = cohorts[-1] if cohorts else None
            if (
                last
                and _options(last[0]) == _options(generation)
                and len(last) < size
                and len(generation.prompt) - len(last[0].prompt) <= spread
            ):
                last.append(generation)
            else:
                cohorts.append([generation])
        kinds = len({_options(generation) for generation in generations})
        if len(cohorts) <= free or len(cohorts) == kinds:
            break
        spread, size = spread * 2, size * 2
    arrival = {id(generation): place for place, generation in enumerate(generations)}
    cohorts.sort(key=lambda cohort: min(arrival[id(generation)] for generation in cohort))
    return cohorts[:free]


def _options(generation: Generation) -> tuple[object, ...]:
    """What ``generate_batch`` takes once for a whole batch."""
    sampling: Sampling = generation.sampling
    return (
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.repetition_penalty,
        generation.min_tokens,
        generation.log_probs,
        tuple(sorted(generation.end_ids)),
    )


class _Cohort:
    """One running ``generate_batch``."""

    def __init__(self, generations: list[Generation], ended: "Callable[[_Cohort], None]") -> None:
        self.members = generations
        self._open = set(range(len(generations)))
        self._ended = ended
        self._thread: threading.Thread | None = None

    def alive(self) -> list[Generation]:
        """Requests that still generate."""
        return [self.members[index] for index in tuple(self._open)]

    def start(self, generator: Any, tokens: list[str]) -> None:
        """Begin on a free worker; returns at once."""
        self._thread = threading.Thread(target=self._run, args=(generator, tokens), name="cohort", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the batch is over."""
        if self._thread:
            self._thread.join()

    def _step(self, step: Any) -> bool:
        """One token of one request; True ends that request. Called by CTranslate2's worker, so it must be quick."""
        index: int = step.batch_id
        if index not in self._open:
            return True
        generation = self.members[index]
        token: int = step.token_id
        if generation.cancelled or token in generation.end_ids:
            self._close(index, ())
            return True
        generation.generated += 1
        scores = (Score(step.log_prob),) if generation.log_probs else ()
        if generation.generated >= generation.max_tokens or step.is_last:
            self._close(index, (token,), scores)
            return True
        generation.emit(generation, (token,), False, scores)
        return False

    def _close(self, index: int, ids: tuple[int, ...], scores: tuple[Score, ...] = ()) -> None:
        self._open.discard(index)
        generation = self.members[index]
        generation.emit(generation, ids, True, scores)

    def _run(self, generator: Any, tokens: list[str]) -> None:
        try:
            for result in self._generate(generator, tokens):
                result.result()
        except Exception as error:  # whatever it is, every request of the cohort must hear of it
            for generation in self.alive():
                generation.error = f"the engine failed: {error}"
        finally:
            for index in tuple(self._open):
                self._close(index, ())
            self._ended(self)

    def _generate(self, generator: Any, tokens: list[str]) -> list[Any]:
        first = self.members[0]
        sampling = first.sampling
        results: list[Any] = generator.generate_batch(
            [[tokens[id] for id in generation.prompt] for generation in self.members],
            asynchronous=True,
            include_prompt_in_result=False,
            max_length=max(generation.max_tokens for generation in self.members),
            min_length=first.min_tokens,
            # None would mean the model's own end. One beyond the vocabulary can never come.
            end_token=[id for id in sorted(first.end_ids) if id < len(tokens)],
            sampling_topk=min(sampling.top_k, len(tokens)),
            sampling_topp=sampling.top_p,
            sampling_temperature=sampling.temperature,
            repetition_penalty=sampling.repetition_penalty,
            # Of the chosen tokens only: with `return_logits_vocab` it keeps every step's logits to the end of the batch
            # (4.8.5; 200 KB a token with a vocabulary of 49,152).
            return_scores=first.log_probs,
            callback=self._step,
        )
        return results
