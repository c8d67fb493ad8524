"""A token source behind the engine interface, for tests: every answer is its own prompt, one id a step.

Its log probability is -1/8 of its place in the prompt; the tokens with the next ids are each less probable by 1.

With no end ids (a client's ``ignore_eos``) the prompt is repeated until ``max_tokens``. ``source.json`` in its folder
says how long a step is. It costs next to nothing, so that what is measured is everything around an engine.
"""

import json
import threading
import time
from pathlib import Path

from engine import Generation, Load, RefusedError, Score


class Engine:
    def __init__(self, folder: str, parameters: dict[str, str]) -> None:
        self._step: float = json.loads(Path(folder, "source.json").read_text())["step_seconds"]
        self._slots = int(parameters["max_batch_size"])
        self._waiting: list[Generation] = []
        self._running: list[Generation] = []
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)
        self._thread.start()

    def submit(self, generation: Generation) -> None:
        if generation.sampling.seed is not None:
            raise RefusedError("seed is not supported: there is no chance here")
        with self._lock:
            self._waiting.append(generation)

    def load(self) -> Load:
        with self._lock:
            return Load(
                waiting=len(self._waiting),
                running=len(self._running),
                slots=self._slots,
                queued_prompt_tokens=sum(len(generation.prompt) for generation in self._waiting),
                kv_used_ratio=min(1.0, len(self._running) / self._slots),
            )

    def close(self) -> None:
        self._closing = True
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            began = time.monotonic()
            with self._lock:
                while self._waiting and len(self._running) < self._slots:
                    self._running.append(self._waiting.pop(0))
                running = list(self._running)
            ended = {id(generation) for generation in running if self._advance(generation)}
            if ended:
                with self._lock:
                    self._running = [each for each in self._running if id(each) not in ended]
            time.sleep(max(0.001, self._step - (time.monotonic() - began)))

    @staticmethod
    def _advance(generation: Generation) -> bool:
        prompt, at = generation.prompt, generation.generated
        if generation.cancelled:
            generation.emit(generation, (), True)
            return True
        generation.generated += 1
        last = generation.generated >= generation.max_tokens
        last = last or (bool(generation.end_ids) and generation.generated >= len(prompt))
        id, log_prob = prompt[at % len(prompt)], -(at % len(prompt)) / 8
        top = tuple((id + other, log_prob - other) for other in range(generation.top_log_probs))
        generation.emit(generation, (id,), last, (Score(log_prob, top),) if generation.log_probs else ())
        return last
