"""A stand-in for TensorRT-LLM's C++ backend, for tests only: it speaks that backend's tensors and replays recorded ids.

What it copies of the C++ backend: decoupled; with ``streaming`` one response for each token, else one for all; ids in
``output_ids`` [1, 1, n] with ``sequence_length`` [1, 1]; the last response carries the final flag itself; end ids and
the ids of stop words are part of the answer; a second request with the same id and ``stop`` ends the first.
"""

import json
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
        self._answers = {tuple(each["prompt"]): each["answer"] for each in recorded["answers"]}
        self._step = recorded["step_seconds"]
        self._errors = recorded["errors"]
        self._stopped = set()

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            if _value(request, "stop", False):
                self._stopped.add(request.request_id())
                sender.send(flags=FINAL)
                continue
            threading.Thread(target=self._generate, args=(request, sender), daemon=True).start()

    def _generate(self, request, sender):
        length = int(_value(request, "input_lengths", 0))
        prompt = tuple(_array(request, "input_ids").reshape(-1)[:length].tolist())
        end_id, budget = int(_value(request, "end_id", -1)), int(_value(request, "request_output_len", 0))
        words = _words(_array(request, "stop_words_list"))
        streaming, name = bool(_value(request, "streaming", False)), request.request_id()
        if prompt not in self._answers:
            words = self._errors.get(",".join(map(str, prompt)), "the prompt was not recorded")
            error = pb_utils.TritonError(words, pb_utils.TritonError.NOT_FOUND)
            sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
            return
        made = []
        recorded = self._answers[prompt][:budget]
        for index, id in enumerate(recorded):
            time.sleep(self._step)
            made.append(id)
            gone = name in self._stopped or sender.is_cancelled()
            last = (
                index + 1 == len(recorded) or id == end_id or gone or any(made[-len(word) :] == word for word in words)
            )
            if streaming or last:
                sender.send(_response([id] if streaming else made), flags=FINAL if last else 0)
            if last:
                if gone:
                    print(f"stand-in: request stopped after {len(made)} tokens", flush=True)
                return


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


def _response(ids):
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("output_ids", np.array([[ids]], np.int32)),
            pb_utils.Tensor("sequence_length", np.array([[len(ids)]], np.int32)),
        ]
    )
