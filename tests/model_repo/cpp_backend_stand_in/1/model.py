"""A stand-in for TensorRT-LLM's C++ backend, for tests only: it speaks that backend's tensors and replays recorded ids.

What it copies of the C++ backend: decoupled; with ``streaming`` one response for each token, else one for all; ids in
``output_ids`` [1, 1, n] with ``sequence_length`` [1, 1]; the last response carries the final flag itself; end ids and
the ids of stop words are part of the answer; a second request with the same id and ``stop`` ends the first; with
``return_log_probs`` each response has ``output_log_probs`` [1, 1, n] of the whole answer so far (or of its own ids, as
a later release might do it, where the recorded answer says ``own_log_probs``).
"""

import json
import queue
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        recorded = json.loads((folder / "recorded.json").read_text())
        self._answers = {tuple(each["prompt"]): each for each in recorded["answers"]}
        self._errors = recorded["errors"]
        self._step = recorded["step_seconds"]
        self._waiting = queue.SimpleQueue()
        # One thread sends everything, as in the C++ backend.
        self._loop = threading.Thread(target=self._run, daemon=True)
        self._loop.start()

    def execute(self, requests):
        for request in requests:
            self._waiting.put(Running(request))

    def finalize(self):
        self._waiting.put(None)
        self._loop.join()

    def _run(self):
        live = {}
        while True:
            while not self._waiting.empty() or not live:
                new = self._waiting.get()
                if new is None:
                    return
                if new.stop:
                    new.sender.send(flags=FINAL)
                    if new.name in live:
                        live[new.name].gone = True
                elif new.prompt not in self._answers:
                    words = self._errors.get(",".join(map(str, new.prompt)), "the prompt was not recorded")
                    error = pb_utils.TritonError(words, pb_utils.TritonError.NOT_FOUND)
                    new.sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
                else:
                    new.recorded = self._answers[new.prompt]["answer"][: new.budget]
                    new.own_log_probs = self._answers[new.prompt]["own_log_probs"]
                    live[new.name or id(new)] = new
            time.sleep(self._step)
            live = {name: running for name, running in live.items() if not running.advance()}


class Running:
    """One request that generates."""

    def __init__(self, request):
        self.sender = request.get_response_sender()
        self.name = request.request_id()
        self.stop = bool(_value(request, "stop", False))
        length = int(_value(request, "input_lengths", 0))
        self.prompt = tuple(_array(request, "input_ids").reshape(-1)[:length].tolist())
        self.budget = int(_value(request, "request_output_len", 0))
        self.end_id = int(_value(request, "end_id", -1))
        self.words = _words(_array(request, "stop_words_list"))
        self.streaming = bool(_value(request, "streaming", False))
        self.log_probs = bool(_value(request, "return_log_probs", False))
        self.gone = False
        self.made = []

    def advance(self):
        """Generate one token; True when it was the last."""
        id = self.recorded[len(self.made)]
        self.made.append(id)
        gone = self.gone or self.sender.is_cancelled()
        last = (
            gone
            or len(self.made) == len(self.recorded)
            or id == self.end_id
            or any(self.made[-len(word) :] == word for word in self.words)
        )
        if self.streaming or last:
            self.sender.send(self._response([id] if self.streaming else self.made), flags=FINAL if last else 0)
        if gone:
            print(f"stand-in: request stopped after {len(self.made)} tokens", flush=True)
        return last

    def _response(self, ids):
        tensors = [
            pb_utils.Tensor("output_ids", np.array([[ids]], np.int32)),
            pb_utils.Tensor("sequence_length", np.array([[len(ids)]], np.int32)),
        ]
        if self.log_probs:
            # Exact in 32 bits, and another one at each place.
            known = [-place / 8 for place in range(len(self.made))]
            known = known[-len(ids) :] if self.own_log_probs else known
            tensors.append(pb_utils.Tensor("output_log_probs", np.array([[known]], np.float32)))
        return pb_utils.InferenceResponse(tensors)


def _array(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return np.zeros((1, 2, 0), np.int32) if tensor is None else tensor.as_numpy()


def _value(request, name, default):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().item()


def _words(array):
    ids, ends = array.reshape(2, -1).tolist()
    words, begin = [], 0
    for end in ends:
        if end > 0:
            words.append(ids[begin:end])
            begin = end
    return words
