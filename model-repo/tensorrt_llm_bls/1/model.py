"""Triton model ``tensorrt_llm_bls``: text in, text out, streamed, over the core model ``tensorrt_llm``.

Tokens come from the core one by one, and each stream keeps its own state for turning them into text, which a step of
an ensemble cannot. Tokenising is done here too, with the same text.py: a call of ``preprocessing`` would cost a
message through shared memory for work of a fraction of a millisecond.

A thread serves each request, because the core's responses are read by blocking. One more thread looks for clients
that have gone: the core of this release cannot be told otherwise than by a second request with the same id and
``stop``, and while a request waits in the engine's queue no token comes that would wake its own thread.

Runs inside Triton: nothing but numpy, tokenizers, and text.py beside this file.
"""

import collections
import json
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))

from text import Tokenizer

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

#: Seconds between two looks for clients that have gone.
CANCELLATION_PERIOD = 0.1

#: Seconds that the iterator over a finished request's responses is kept: freeing it while others are in flight hung or
#: killed Triton 2.51 (measured: 32 streams and more; not once in 20,000 requests with 2 s).
ITERATOR_LIFE = 2.0

#: Our optional inputs that go to the core as they are, with their types there.
OPTIONS = {
    "repetition_penalty": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "min_tokens": np.int32,
    "seed": np.uint64,
}


class Refused(Exception):  # noqa: N818  (it is an answer, not a failure)
    """A request that cannot be served, in one sentence for the client."""

    def __init__(self, words, code):
        super().__init__(words)
        self.code = code


class TritonPythonModel:
    """Triton's interface of a Python model."""

    def initialize(self, args):
        """Load the tokenizer, which lies beside the model repository, and begin to look for cancelled requests."""
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        self._max_input_len = int(parameters["max_input_len"])
        self._max_seq_len = int(parameters["max_seq_len"])
        self._max_streams = int(parameters["max_streams"])
        self._end_ids = json.loads(parameters["end_ids"])
        self._core = parameters["tensorrt_llm_model_name"]
        self._tokenizer = Tokenizer(str(Path(args["model_repository"]).parents[1] / "tokenizer"))
        self._live: set[Any] = set()
        self._changed = threading.Condition()
        self._finished: collections.deque[Any] = collections.deque()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="cancellations", daemon=True)
        self._watcher.start()

    def execute(self, requests):
        """Start a thread for each request and return at once: a decoupled model answers when it likes."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                stream = Stream(self, request, sender)
                with self._changed:
                    if len(self._live) >= self._max_streams:
                        raise Refused(
                            f"{len(self._live)} requests are in flight already", pb_utils.TritonError.UNAVAILABLE
                        )
                    self._live.add(stream)
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()
            except Refused as refusal:
                _fail(sender, str(refusal), refusal.code)

    def finalize(self):
        """Wait for what is in flight; Triton calls this when all requests have been answered or its time is over."""
        with self._changed:
            self._changed.wait_for(lambda: not self._live, timeout=30)
        self._closing.set()
        self._watcher.join()

    def _serve(self, stream):
        try:
            stream.run()
        finally:
            with self._changed:
                self._live.discard(stream)
                self._changed.notify_all()

    def _watch(self):
        while not self._closing.wait(CANCELLATION_PERIOD):
            with self._changed:
                live = list(self._live)
            for stream in live:
                stream.stop_if_cancelled()
            now = time.monotonic()
            while self._finished and self._finished[0][0] < now - ITERATOR_LIFE:
                self._finished.popleft()


class Stream:
    """One request on its way through the core."""

    def __init__(self, model, request, sender):
        self._model = model
        self._sender = sender
        # The client's own id may be used twice at the same time; the core must not mix them up.
        self._id = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._answered = False
        self._core_done = False
        self._stop_sent = False
        self._parse(request)

    def _parse(self, request):
        model = self._model
        try:
            prompt = _values(request, "text_input")[0].decode("utf-8")
            stop_words = [word.decode("utf-8") for word in _values(request, "stop_words") if word]
            bad_words = [word.decode("utf-8") for word in _values(request, "bad_words") if word]
        except UnicodeDecodeError as error:
            raise _invalid(f"the text is not UTF-8 ({error.reason} at byte {error.start})") from None
        tokenizer = model._tokenizer
        ids = tokenizer.encode(prompt, add_special_tokens=bool(_value(request, "add_special_tokens", True)))
        max_tokens = int(_value(request, "max_tokens", 0))
        if not ids:
            raise _invalid("the prompt has no tokens")
        if len(ids) > model._max_input_len:
            raise _invalid(f"the prompt has {len(ids)} tokens; this model takes at most {model._max_input_len}")
        if max_tokens < 1:
            raise _invalid(f"max_tokens is {max_tokens}; it must be at least 1")

        self._streaming = bool(_value(request, "stream", False))
        self._want_input_count = bool(_value(request, "return_num_input_tokens", False))
        self._want_output_count = bool(_value(request, "return_num_output_tokens", False))
        self._want_reason = bool(_value(request, "return_finish_reason", False))
        self._want_log_probs = bool(_value(request, "return_log_probs", False))
        self._scored: list[tuple[int, float]] = []  # ids and log probabilities that have not been sent
        self._prompt_tokens = len(ids)
        self._pieces = [] if _value(request, "exclude_input_in_output", True) else [prompt]
        end_id = _value(request, "end_id", None)
        self._end_ids = model._end_ids if end_id is None else [int(end_id)]
        self._text = tokenizer.stream(stop_words)
        # Prompt and answer share the model's context, so a generous max_tokens is cut, as TensorRT-LLM does itself.
        self._max_tokens = min(max_tokens, model._max_seq_len - len(ids))
        self._required = [
            _tensor("input_ids", [ids], np.int32),
            _tensor("input_lengths", [[len(ids)]], np.int32),
            _tensor("request_output_len", [[self._max_tokens]], np.int32),
        ]
        self._options = [_tensor("streaming", [[self._streaming]], np.bool_)]
        if self._want_log_probs:
            self._options.append(_tensor("return_log_probs", [[True]], np.bool_))
        if self._end_ids:
            self._options.append(_tensor("end_id", [self._end_ids[:1]], np.int32))
        # The engine knows one end id; the others end the answer as stop words. Words are stopped at twice: by their
        # ids in the engine, which saves steps, and in the text below, which is exact inside tokens too.
        stops = [*([id] for id in self._end_ids[1:]), *(tokenizer.encode(word, False) for word in stop_words)]
        for name, words in (
            ("stop_words_list", stops),
            ("bad_words_list", [tokenizer.encode(word, False) for word in bad_words]),
        ):
            if any(words):
                self._options.append(_tensor(name, [tokenizer.word_list(words)], np.int32))
        for name, datatype in OPTIONS.items():
            value = _value(request, name, None)
            if value is not None:
                self._options.append(_tensor(name, [[value]], datatype))
        self._options += _sampling(request)

    def run(self):
        """Generate to the end, or to the stop word, and answer; an error of the core is handed on with its code."""
        tokens, ended, failure = 0, False, None
        try:
            responses = self._call([*self._required, *self._options])
            for response in responses:
                if response.has_error():
                    failure = failure or response.error()
                    continue
                if ended or failure:
                    continue  # what was under way when the core was told to stop
                ids, ended = self._ids(response)
                if self._want_log_probs:
                    self._scored += zip(ids, _log_probs(response, len(ids), tokens), strict=True)
                tokens += len(ids)
                piece = self._text.push(ids)
                if piece:
                    self._pieces.append(piece)
                ended = ended or self._text.stopped
                if ended:
                    # The answer is complete: the client need not wait until the core has noticed.
                    self._finish(tokens)
                    if self._text.stopped:
                        self._stop()  # the engine knows the ids of the end, but not the text
                elif piece and self._streaming:
                    self._sender.send(self._response(self._unsent(), self._score_tensors()))
            self._model._finished.append((time.monotonic(), responses))
        except pb_utils.TritonModelException as error:
            failure = pb_utils.TritonError(str(error))
        except Exception as error:  # a bug must not leave the client waiting
            failure = pb_utils.TritonError(f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._core_done = True
        if self._answered:
            return
        if failure is not None:
            self._fail(failure.message(), _code_of(failure))
        elif self._stop_sent:
            self._fail("the request was cancelled", pb_utils.TritonError.CANCELLED)
        else:
            self._finish(tokens)

    def stop_if_cancelled(self):
        """Called now and then by the watcher."""
        with self._lock:
            # Held while asking: after the last response Triton has freed what it would look at (2.51 dies of SIGSEGV
            # in TRITONBACKEND_ResponseFactoryIsCancelled; seen within 200 requests of 64 clients).
            if self._answered or self._core_done or self._stop_sent or not self._sender.is_cancelled():
                return
        self._stop()

    def _stop(self):
        """Tell the core that nobody wants more. It answers the first request with its last response."""
        with self._lock:
            if self._core_done or self._stop_sent:
                return
            self._stop_sent = True
        try:
            answer = self._call([*self._required, _tensor("stop", [[True]], np.bool_)])
            collections.deque(answer, maxlen=0)
            self._model._finished.append((time.monotonic(), answer))
        except pb_utils.TritonModelException as error:
            pb_utils.Logger.log_warn(f"cannot stop a request: {error}")

    def _call(self, inputs):
        return pb_utils.InferenceRequest(
            model_name=self._model._core,
            request_id=self._id,
            inputs=inputs,
            requested_output_names=["output_ids", "sequence_length", *["output_log_probs"] * self._want_log_probs],
        ).exec(decoupled=True)

    def _ids(self, response):
        """New ids of the one beam, up to an end id, and whether there was one."""
        ids = pb_utils.get_output_tensor_by_name(response, "output_ids")
        if ids is None:
            return [], False  # an empty last response
        length = pb_utils.get_output_tensor_by_name(response, "sequence_length")
        found = ids.as_numpy()[0, 0, : int(length.as_numpy()[0, 0])].tolist()
        for index, id in enumerate(found):
            if id in self._end_ids:
                return found[:index], True
        return found, False

    def _score_tensors(self):
        """``output_ids`` and ``output_log_probs`` [1, tokens] of what has not been sent, as the core has them."""
        if not self._scored:
            return []
        ids, log_probs = zip(*self._scored, strict=True)
        self._scored.clear()
        return [
            _tensor("output_ids", [[ids]], np.int32),
            _tensor("output_log_probs", [[log_probs]], np.float32),
        ]

    def _unsent(self):
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    def _finish(self, tokens):
        """The last response: what is left of the text, and the counts that were asked for."""
        self._pieces.append(self._text.finish())
        text = self._unsent()
        more = self._score_tensors()
        if self._want_input_count:
            more.append(_tensor("num_input_tokens", [[self._prompt_tokens]], np.int32))
        if self._want_output_count:
            more.append(_tensor("num_output_tokens", [[tokens]], np.int32))
        if self._want_reason:
            cut = tokens >= self._max_tokens and not self._text.stopped
            more.append(_tensor("finish_reason", [[b"length" if cut else b"stop"]], np.object_))
        last = self._response(text, more) if text or more or not self._streaming else None
        with self._lock:
            self._answered = True
            if last is None:
                self._sender.send(flags=FINAL)
            else:
                self._sender.send(last, flags=FINAL)

    def _fail(self, words, code):
        with self._lock:
            self._answered = True
            _fail(self._sender, words, code)

    def _response(self, text, more=()):
        output = np.array([[text.encode("utf-8")]], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", output), *more])


def _log_probs(response, count, before):
    """Log probabilities of the ``count`` new tokens of the one beam, ``before`` of which had come before."""
    tensor = pb_utils.get_output_tensor_by_name(response, "output_log_probs")
    found = [] if tensor is None else tensor.as_numpy().reshape(-1).tolist()
    # While it streams, TensorRT-LLM's executor repeats those of all earlier tokens (llmRequest.h), and may have some of
    # later ones; a release that sends the new ones alone is understood too.
    found = found[before:] if len(found) >= before + count else found
    if len(found) < count:
        raise RuntimeError(f"the core sent {len(found)} log probabilities for {count} tokens")
    return found[:count]


def _values(request, name):
    """All elements of an input; none where it is absent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return [] if tensor is None else list(tensor.as_numpy().reshape(-1))


def _value(request, name, default):
    """The one element of an input."""
    values = _values(request, name)
    return values[0] if values else default


def _sampling(request):
    """Greedy unless the client asks for chance: with a temperature, top_k other than 1, or top_p.

    TensorRT-LLM takes a temperature alone for greedy (its top_k and top_p are 0 then); the other runtimes do not, and
    clients should not have to know where their request lands.
    """
    temperature, top_k, top_p = (_value(request, name, None) for name in ("temperature", "top_k", "top_p"))
    for name, value, fits in (
        ("temperature", temperature, lambda number: 0 <= number <= 100),
        ("top_k", top_k, lambda number: number >= 0),
        ("top_p", top_p, lambda number: 0 <= number <= 1),
    ):
        if value is not None and not fits(value):
            raise _invalid(f"{name} is {value}, which is out of its range")
    if temperature == 0 or top_k == 1 or (temperature is None and top_k is None and top_p is None):
        return [_tensor("runtime_top_k", [[1]], np.int32)]
    made = [
        _tensor("temperature", [[1.0 if temperature is None else temperature]], np.float32),
        _tensor("runtime_top_p", [[top_p or 1.0]], np.float32),
    ]
    return [*made, _tensor("runtime_top_k", [[top_k]], np.int32)] if top_k else made


def _tensor(name, value, datatype):
    return pb_utils.Tensor(name, np.array(value, datatype))


def _invalid(words):
    return Refused(words, pb_utils.TritonError.INVALID_ARG)


def _code_of(failure):
    """The code of the core's error. BLS of this release calls every error internal, also "come again later"."""
    full = "maximum queue size" in failure.message().lower()
    return pb_utils.TritonError.UNAVAILABLE if full else failure.code()


def _fail(sender, words, code):
    # The code stands in the words too: a gRPC stream carries nothing else of an error.
    names = {
        pb_utils.TritonError.INVALID_ARG: "INVALID_ARGUMENT",
        pb_utils.TritonError.UNAVAILABLE: "UNAVAILABLE",
        pb_utils.TritonError.CANCELLED: "CANCELLED",
        pb_utils.TritonError.NOT_FOUND: "NOT_FOUND",
    }
    error = pb_utils.TritonError(f"{names.get(code, 'INTERNAL')}: {words}", code)
    sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
