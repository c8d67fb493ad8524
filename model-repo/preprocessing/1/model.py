"""Triton model ``preprocessing``: a prompt and word lists to token ids, for the ensemble.

Runs inside Triton: nothing but numpy, tokenizers, and text.py beside this file.
"""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))

from text import Tokenizer


class TritonPythonModel:
    """Triton's interface of a Python model."""

    def initialize(self, args):
        """Load the tokenizer, which lies beside the model repository."""
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        self._max_input_len = int(parameters["max_input_len"])
        self._max_seq_len = int(parameters["max_seq_len"])
        self._end_ids = json.loads(parameters["end_ids"])
        self._tokenizer = Tokenizer(str(Path(args["model_repository"]).parents[1] / "tokenizer"))

    def execute(self, requests):
        """Answer each request, or refuse it alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            text = _strings(request, "QUERY")[0].decode("utf-8")
            bad_words = [word.decode("utf-8") for word in _strings(request, "BAD_WORDS_DICT")]
            stop_words = [word.decode("utf-8") for word in _strings(request, "STOP_WORDS_DICT")]
        except UnicodeDecodeError as error:
            return _refusal(f"the text is not UTF-8 ({error.reason} at byte {error.start})")
        special = pb_utils.get_input_tensor_by_name(request, "ADD_SPECIAL_TOKENS")
        ids = self._tokenizer.encode(text, add_special_tokens=special is None or bool(special.as_numpy().item()))
        if not ids:
            return _refusal("the prompt has no tokens")
        if len(ids) > self._max_input_len:
            return _refusal(f"the prompt has {len(ids)} tokens; this model takes at most {self._max_input_len}")
        wanted = int(pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy().item())
        if wanted < 1:
            return _refusal(f"max_tokens is {wanted}; it must be at least 1")
        # The engine knows one end id; the others end the answer as stop words.
        more_ends = [[id] for id in self._end_ids[1:]]
        stops = [*more_ends, *(self._tokenizer.encode(word, add_special_tokens=False) for word in stop_words)]
        bad = [self._tokenizer.encode(word, add_special_tokens=False) for word in bad_words]
        outputs = {
            "INPUT_ID": [ids],
            "REQUEST_INPUT_LEN": [[len(ids)]],
            "REQUEST_OUTPUT_LEN": [[min(wanted, self._max_seq_len - len(ids))]],
            "BAD_WORDS_IDS": [self._tokenizer.word_list(bad)],
            "STOP_WORDS_IDS": [self._tokenizer.word_list(stops)],
            # -1: no token ends the answer.
            "OUT_END_ID": [self._end_ids[:1] or [-1]],
        }
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, np.array(value, np.int32)) for name, value in outputs.items()]
        )


def _strings(request, name):
    """The byte strings of an optional input; an empty one, which old clients send for "none", does not count."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    found = [] if tensor is None else list(tensor.as_numpy().reshape(-1))
    return found if name == "QUERY" else [word for word in found if word]


def _refusal(words):
    # The code stands in the words too: a gRPC stream carries nothing else of an error.
    error = pb_utils.TritonError(f"INVALID_ARGUMENT: {words}", pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=error)
