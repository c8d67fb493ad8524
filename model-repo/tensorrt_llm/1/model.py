"""One decoupled model that tokenises, generates and detokenises, for the runtimes ctranslate2 and pytorch.

One process instead of models joined by BLS: measured on 2 cores, it streams 3,250 to 3,900 tokens/s with 3 to 4 ms of
added time to first token, against 1,900 to 2,300 with 5 to 6 ms.

Threads: Triton calls ``execute``; the engine's threads call ``_emit``, which only queues; one thread turns
ids into text and sends it, all that waits for a request in one response, so that a slow reader gets
larger pieces and not a longer queue; one watches for clients that went away and keeps the gauges.
"""

import contextlib
import importlib
import json
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# Triton's stub puts only the model's folder on the path in some releases, and only its parent in others.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine import Engine, Generation, RefusedError, Sampling, Score
from gauges import Gauges
from text import TextStream, Tokenizer

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
#: Seconds between two looks at clients that went away, and two updates of the gauges.
WATCH_SECONDS = 0.05
#: Most probable tokens that a request may ask for in each place, as at OpenAI.
MOST_LOG_PROBS = 20
#: Below it the most probable token is taken: logits divided by much less overflow, and chance becomes nonsense.
COLDEST = 1e-5


class BadRequestError(Exception):
    """A request that cannot be served, with the name of Triton's error code."""

    # A name, because the stub adds TritonError to its module only after it has imported this one (2.51).
    def __init__(self, text: str, code: str = "INVALID_ARG") -> None:
        super().__init__(text)
        self.code = code


@dataclass
class News:
    """What an engine emitted for one request since the last response."""

    ids: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    last: bool = False


class Answer:
    """One request: where its text goes."""

    def __init__(
        self, sender: Any, text: TextStream, *, streamed: bool, prefix: str, counts: dict[str, int], reason: bool
    ) -> None:
        self.text = text
        self.streamed = streamed
        self.counts = counts
        """Token counts that the client asked for, by output name."""
        self.reason = reason
        """Whether the client wants to know why the answer ended."""
        self.scored: list[tuple[int, Score]] = []
        """Ids and scores that have not been sent."""
        self.done = False
        self._sender = sender
        self._unsent = [prefix] if prefix else []
        self._lock = threading.Lock()

    def send(self, response: Any, *, last: bool) -> None:
        """Send a response to the client; nothing may follow the last."""
        with self._lock:
            self.done = last
            self._sender.send(response, flags=FINAL if last else 0)

    def is_abandoned(self) -> bool:
        """Whether the client went away before the last response."""
        # Locked while asking: with the last response Triton frees what it would look at, and 2.51 dies of SIGSEGV in
        # TRITONBACKEND_ResponseFactoryIsCancelled (64 clients with short answers, watched often: within 10 s).
        with self._lock:
            return not self.done and bool(self._sender.is_cancelled())

    def add(self, ids: Sequence[int], last: bool) -> str | None:
        """Take ids; returns what to send now, None for nothing."""
        self._unsent.append(self.text.push(ids))
        if last:
            self._unsent.append(self.text.finish())
        if not (last or self.streamed):
            return None
        text = "".join(self._unsent)
        self._unsent.clear()
        return text if text or last else None


class TritonPythonModel:
    """The model that Triton loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load tokenizer and engine from the tree that this model lies in."""
        # The engine answers on its own threads; they must not wait 5 ms for this interpreter's turn.
        sys.setswitchinterval(0.0005)
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._batched = config.get("max_batch_size", 0) > 0
        self._name = args["model_name"]
        self._max_input_len = int(parameters["max_input_len"])
        self._max_seq_len = int(parameters["max_seq_len"])
        self._max_queue_size = int(parameters["max_queue_size"])
        self._end_ids = frozenset(json.loads(parameters["end_ids"]))
        tree = Path(args["model_repository"]).resolve().parent.parent
        self._tokenizer = Tokenizer(str(tree / "tokenizer"))
        engine_class = importlib.import_module(parameters["engine"]).Engine
        self._engine: Engine = engine_class(str(tree / "engine"), parameters)
        self._answers: dict[Generation, Answer] = {}
        self._outbox: queue.SimpleQueue[tuple[Generation, Sequence[int], bool, Sequence[Score]] | None]
        self._outbox = queue.SimpleQueue()
        self._gauges = Gauges(self._name)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_all, name="sender", daemon=True),
            threading.Thread(target=self._watch, name="watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests; the answers come through their senders."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                generation, answer = self._read(request, sender)
            except Exception as error:
                sender.send(_error_of(error), flags=FINAL)
                continue
            self._answers[generation] = answer
            try:
                self._engine.submit(generation)
            except Exception as error:
                del self._answers[generation]
                answer.send(_error_of(error), last=True)

    def finalize(self) -> None:
        """Let running answers end, then free the engine.

        Triton 2.51 does not count streams as requests in flight, but was seen to call this only after their last
        response; a release that calls it sooner must not cut them. ``--exit-timeout-secs`` bounds the wait.
        """
        while self._answers:
            time.sleep(WATCH_SECONDS)
        self._engine.close()
        self._stop.set()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join()

    def _read(self, request: Any, sender: Any) -> tuple[Generation, Answer]:
        """What a request asks for, and where its text will go. Raises :class:`BadRequestError`."""
        inputs = Inputs(request)
        text, special = inputs.required("text_input"), inputs.get("add_special_tokens", True)
        prompt = self._tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=bool(special))
        if not prompt:
            raise BadRequestError("text_input has no tokens")
        if len(prompt) > self._max_input_len:
            raise BadRequestError(f"the prompt has {len(prompt)} tokens, but max_input_len is {self._max_input_len}")
        max_tokens = int(inputs.required("max_tokens"))
        if max_tokens < 1:
            raise BadRequestError(f"max_tokens is {max_tokens}, but it should be at least 1")
        min_tokens = int(inputs.get("min_tokens", 0))
        if not 0 <= min_tokens <= max_tokens:
            raise BadRequestError(f"min_tokens is {min_tokens}, but it should be from 0 to max_tokens, {max_tokens}")
        # What would not fit is cut, as TensorRT-LLM does it, not refused: clients ask for a round number.
        max_tokens = min(max_tokens, self._max_seq_len - len(prompt))
        load = self._engine.load()
        # The sum, because requests that came together wait for a moment although slots are free.
        if load.waiting + load.running >= load.slots + self._max_queue_size:
            raise BadRequestError(
                f"the queue is full ({load.waiting} requests wait, {load.running} run); try again later",
                "UNAVAILABLE",
            )
        top_log_probs = int(inputs.get("top_log_probs", 0))
        if not 0 <= top_log_probs <= MOST_LOG_PROBS:
            raise BadRequestError(f"top_log_probs is {top_log_probs}, but it should be from 0 to {MOST_LOG_PROBS}")
        end_id = inputs.get("end_id", None)
        generation = Generation(
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=_sampling(inputs),
            # A negative one means, as in TensorRT-LLM: go on to max_tokens.
            end_ids=self._end_ids if end_id is None else frozenset({int(end_id)} if end_id >= 0 else ()),
            emit=self._emit,
            min_tokens=min(min_tokens, max_tokens),
            log_probs=bool(inputs.get("return_log_probs", False)) or top_log_probs > 0,
            top_log_probs=top_log_probs,
        )
        words = [word.decode("utf-8", "replace") for word in inputs.all("stop_words")]
        counts = {
            name: value
            for name, value in (("num_input_tokens", len(prompt)), ("num_output_tokens", 0))
            if inputs.get(f"return_{name}", False)
        }
        answer = Answer(
            sender,
            self._tokenizer.stream(words),
            streamed=bool(inputs.get("stream", False)),
            prefix="" if inputs.get("exclude_input_in_output", True) else text.decode("utf-8", "replace"),
            counts=counts,
            reason=bool(inputs.get("return_finish_reason", False)),
        )
        return generation, answer

    def _emit(self, generation: Generation, ids: Sequence[int], last: bool, scores: Sequence[Score] = ()) -> None:
        self._outbox.put((generation, ids, last, scores))

    def _send_all(self) -> None:
        """Send what the engine emitted until the model is unloaded, several steps in one response when behind."""
        while (item := self._outbox.get()) is not None:
            pending: dict[Generation, News] = {}
            while item is not None:
                generation, ids, last, scores = item
                news = pending.get(generation)
                if news is None:
                    news = pending[generation] = News()
                news.ids.extend(ids)
                news.scores.extend(scores)
                news.last = last
                try:
                    item = self._outbox.get_nowait()
                except queue.Empty:
                    break
            for generation, news in pending.items():
                answer = self._answers[generation]
                try:
                    self._send(generation, answer, news)
                except Exception as error:  # the other answers must not fall silent with this one
                    generation.cancelled = True
                    if not answer.done:
                        with contextlib.suppress(Exception):  # it was the sending that failed
                            answer.send(_error_of(error), last=True)
                if news.last:
                    # Not before its last response: a model without answers is unloaded.
                    del self._answers[generation]
            if item is None:
                return

    def _send(self, generation: Generation, answer: Answer, news: News) -> None:
        if answer.done:
            return
        if generation.error:
            answer.send(_error(generation.error, "INTERNAL"), last=True)
            return
        if generation.log_probs:
            answer.scored += zip(news.ids, news.scores, strict=True)
        ended = news.last or bool(answer.text.stopped)
        text = answer.add(news.ids, ended)
        if answer.text.stopped and not ended:
            ended, text = True, (text or "") + (answer.add((), True) or "")
        if ended:
            # The engine goes on until it hears of it at its next step; a stop word in the text is our knowledge.
            generation.cancelled = True
        if text is not None:
            answer.send(self._response(generation, answer, text, ended), last=ended)

    def _response(self, generation: Generation, answer: Answer, text: str, last: bool) -> Any:
        shape = (1, 1) if self._batched else (1,)
        tensors = [pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_).reshape(shape))]
        for name, value in answer.counts.items():
            count = generation.generated if name == "num_output_tokens" else value
            tensors.append(pb_utils.Tensor(name, np.array([count], dtype=np.int32).reshape(shape)))
        if last and answer.reason:
            cut = generation.generated >= generation.max_tokens and not answer.text.stopped
            reason = np.array([b"length" if cut else b"stop"], dtype=np.object_)
            tensors.append(pb_utils.Tensor("finish_reason", reason.reshape(shape)))
        if answer.scored:
            tensors += _score_tensors(answer.scored, (1,) if self._batched else ())
            answer.scored.clear()
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _watch(self) -> None:
        """Cancel what nobody reads any more, and show the load."""
        while not self._stop.wait(WATCH_SECONDS):
            for generation, answer in list(self._answers.items()):
                if not generation.cancelled and answer.is_abandoned():
                    generation.cancelled = True
            self._gauges.show(self._engine.load())


class Inputs:
    """The input tensors of one request, as Python values."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def all(self, name: str) -> list[Any]:
        """Every value of an input; empty when it is not there."""
        tensor = pb_utils.get_input_tensor_by_name(self._request, name)
        return [] if tensor is None else list(tensor.as_numpy().reshape(-1))

    def get(self, name: str, default: Any) -> Any:
        """The one value of an optional input."""
        values = self.all(name)
        if len(values) > 1:
            raise BadRequestError(f"{name} holds {len(values)} values; send one request for each prompt")
        return values[0] if values else default

    def required(self, name: str) -> Any:
        """The one value of an input that must be there."""
        value = self.get(name, None)
        if value is None:
            raise BadRequestError(f"{name} is missing")
        return value


def _score_tensors(scored: list[tuple[int, Score]], batch: tuple[int, ...]) -> list[Any]:
    """``output_ids`` and ``output_log_probs`` [1, tokens], as TensorRT-LLM has them with one beam; where more than the
    chosen tokens were asked for, ``top_ids`` and ``top_log_probs`` [tokens, how many].
    """
    ids, scores = zip(*scored, strict=True)
    chosen, top = (*batch, 1, -1), (*batch, len(ids), -1)
    tensors = [
        ("output_ids", np.array(ids, np.int32).reshape(chosen)),
        ("output_log_probs", np.array([score.log_prob for score in scores], np.float32).reshape(chosen)),
    ]
    if scores[0].top:
        tensors += [
            ("top_ids", np.array([[id for id, _ in score.top] for score in scores], np.int32).reshape(top)),
            ("top_log_probs", np.array([[each for _, each in score.top] for score in scores], np.float32).reshape(top)),
        ]
    return [pb_utils.Tensor(name, values) for name, values in tensors]


def _error(text: str, code: str) -> Any:
    # The code stands in the words too: a gRPC stream carries nothing else of an error.
    name = {"INVALID_ARG": "INVALID_ARGUMENT"}.get(code, code)
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(f"{name}: {text}", getattr(pb_utils.TritonError, code))
    )


def _error_of(error: Exception) -> Any:
    """The response for a request that cannot be served, or that broke something."""
    if isinstance(error, BadRequestError | RefusedError):
        return _error(str(error), getattr(error, "code", "INVALID_ARG"))
    return _error(f"the request failed: {type(error).__name__}: {error}", "INTERNAL")


def _sampling(inputs: Inputs) -> Sampling:
    """Greedy unless the client asks for chance: with a temperature, top_k other than 1, or top_p."""
    temperature, top_k, top_p = inputs.get("temperature", None), inputs.get("top_k", None), inputs.get("top_p", None)
    penalty, seed = float(inputs.get("repetition_penalty", 1.0)), inputs.get("seed", None)
    for name, value, fits in (
        ("temperature", temperature, lambda number: 0 <= number <= 100),
        ("top_k", top_k, lambda number: number >= 0),
        ("top_p", top_p, lambda number: 0 <= number <= 1),
        ("repetition_penalty", penalty, lambda number: 0 < number <= 100),
    ):
        if value is not None and not fits(value):
            raise BadRequestError(f"{name} is {value}, which is out of its range")
    cold = temperature is not None and temperature < COLDEST
    if cold or top_k == 1 or (temperature is None and top_k is None and top_p is None):
        return Sampling(repetition_penalty=penalty, seed=None if seed is None else int(seed))
    return Sampling(
        temperature=1.0 if temperature is None else float(temperature),
        top_k=0 if top_k is None else int(top_k),
        top_p=1.0 if not top_p else float(top_p),
        repetition_penalty=penalty,
        seed=None if seed is None else int(seed),
    )
