"""A test engine behind the engine interface: it replays recorded ids, some at a time, for all its requests at once.

Its folder holds ``recorded.json``: seconds of a step, and for each prompt (ids) what happens to it:

- ``ids``: the answer, handed on in portions of 1 to 3 ids;
- ``together``: wait until so many requests of this kind are there, and run them all at the same time;
- ``fails_after``: hand on so many ids, then fail;
- ``refused``: refuse it in these words; ``raises``: break while it is submitted.
"""

import json
import random
import threading
import time
from pathlib import Path
from typing import Any

from engine import Generation, Load, RefusedError, Score


class Engine:
    def __init__(self, folder: str, parameters: dict[str, str]) -> None:
        recorded = json.loads(Path(folder, "recorded.json").read_text(encoding="utf-8"))
        self._step: float = recorded["step_seconds"]
        self._answers: dict[tuple[int, ...], dict[str, Any]] = {
            tuple(answer["prompt"]): answer for answer in recorded["answers"]
        }
        self._slots = int(parameters["max_batch_size"])
        self._waiting: list[Generation] = []
        self._running: dict[Generation, list[int]] = {}
        """What is left of each answer."""
        self._lock = threading.Lock()
        self._closing = False
        self._chance = random.Random(5)
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._thread.start()

    def submit(self, generation: Generation) -> None:
        answer = self._answers.get(tuple(generation.prompt))
        if answer is None:
            raise RefusedError("the prompt was not recorded")
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        if "raises" in answer:
            raise RuntimeError(answer["raises"])
        with self._lock:
            self._waiting.append(generation)

    def load(self) -> Load:
        with self._lock:
            waiting, running = list(self._waiting), list(self._running)
        return Load(
            waiting=len(waiting),
            running=len(running),
            slots=self._slots,
            queued_prompt_tokens=sum(len(generation.prompt) for generation in waiting),
            kv_used_ratio=min(1.0, len(running) / self._slots),
        )

    def close(self) -> None:
        self._closing = True
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._admit()
            for generation in list(self._running):
                self._advance(generation)
            time.sleep(self._step)

    def _admit(self) -> None:
        with self._lock:
            # One that is cancelled while it waits is let in at once, and ends at its first step.
            here = sum("together" in self._record(each) for each in self._waiting if not each.cancelled)
            for generation in list(self._waiting):
                wanted = self._record(generation).get("together", 0)
                if generation.cancelled or (wanted <= here and len(self._running) < self._slots):
                    self._waiting.remove(generation)
                    self._running[generation] = list(self._record(generation)["ids"])

    def _advance(self, generation: Generation) -> None:
        left = self._running[generation]
        count = min(self._chance.randint(1, 3), generation.max_tokens - generation.generated)
        fails_after = self._record(generation).get("fails_after")
        if fails_after is not None:
            count = min(count, fails_after - generation.generated)
        ids = left[:count]
        del left[:count]
        # Exact in 32 bits, and another one at each place.
        scores = [
            Score(-place / 8, tuple((id + other, -place / 8 - other) for other in range(generation.top_log_probs)))
            for place, id in enumerate(ids, generation.generated)
            if generation.log_probs
        ]
        end = next((at for at, id in enumerate(ids) if id in generation.end_ids), None)
        if generation.cancelled:
            end = 0
        if end is not None:
            ids, scores = ids[:end], scores[:end]
        generation.generated += len(ids)
        if fails_after == generation.generated:
            generation.error = "the engine failed: on purpose"
        last = end is not None or not left or generation.generated >= generation.max_tokens or bool(generation.error)
        if last:
            with self._lock:
                del self._running[generation]
        generation.emit(generation, ids, last, scores)

    def _record(self, generation: Generation) -> dict[str, Any]:
        return self._answers[tuple(generation.prompt)]
