"""Triton model ``postprocessing``: the ids of a whole answer to text, for the ensemble.

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
        parameters = json.loads(args["model_config"])["parameters"]
        self._end_ids = set(json.loads(parameters["end_ids"]["string_value"]))
        self._tokenizer = Tokenizer(str(Path(args["model_repository"]).parents[1] / "tokenizer"))

    def execute(self, requests):
        """Answer each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        # [batch, beams, tokens] and [batch, beams]; the model's batches have one member.
        ids = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        texts = [self._text(beam[:length].tolist()) for beam, length in zip(ids[0], lengths[0].tolist(), strict=True)]
        output = np.array([[text.encode("utf-8") for text in texts]], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", output)])

    def _text(self, ids):
        end = next((index for index, id in enumerate(ids) if id in self._end_ids), len(ids))
        return self._tokenizer.decode(ids[:end])
