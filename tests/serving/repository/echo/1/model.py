"""A model for the tests of `serve` and `ask`: repeats the words of its prompt, slowly, with the client model's tensors.

The prompt `facts` is answered with what the model was given beside the prompt, so that a test sees what arrived.
"""

import importlib.util
import json
import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        self.delay = float(config["parameters"]["delay_ms"]["string_value"]) / 1000
        self.streams: list[threading.Thread] = []
        if "fail" in config["parameters"]:
            raise RuntimeError(config["parameters"]["fail"]["string_value"])

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            stream = threading.Thread(target=self.answer, args=(request, request.get_response_sender()))
            stream.start()
            self.streams.append(stream)

    def finalize(self) -> None:
        for stream in self.streams:
            stream.join()

    def answer(self, request: Any, sender: Any) -> None:
        values: dict[str, Any] = {}
        for tensor in request.inputs():
            value = tensor.as_numpy()
            assert value.ndim == 2 if self.batched else value.ndim == 1, (tensor.name(), value.shape)
            values[tensor.name()] = [x.decode() if isinstance(x, bytes) else x.item() for x in value.reshape(-1)]
        (prompt,), (limit,) = values["text_input"], values["max_tokens"]
        words = prompt.split(" ")
        if len(words) > 1000:
            error = pb_utils.TritonError(
                f"INVALID_ARGUMENT: the prompt has {len(words)} tokens, the model takes 1000",
                pb_utils.TritonError.INVALID_ARG,
            )
            self.send(sender, [], error)
            return
        if prompt == "facts":
            values["engineroom_importable"] = importlib.util.find_spec("engineroom") is not None
            words = [json.dumps(values, sort_keys=True)]
        for number, word in enumerate(words[:limit]):
            if sender.is_cancelled():
                pb_utils.Logger.log_info(f"echo: cancelled after {number} words")
                break
            time.sleep(self.delay)
            text = np.array([[word + " "]] if self.batched else [word + " "], dtype=object)
            self.send(sender, [pb_utils.Tensor("text_output", text)])
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def send(self, sender: Any, tensors: list[Any], error: Any = None) -> None:
        response = pb_utils.InferenceResponse(output_tensors=tensors, error=error)
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if error else 0
        sender.send(response, flags=final)
