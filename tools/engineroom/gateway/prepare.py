"""From the body of a request to prompts for the model: template, token counts, sampling, limits."""

import contextlib
import time
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from engineroom.errors import CheckpointError, EngineroomError, InputError
from engineroom.gateway.logprobs import TokenTexts
from engineroom.gateway.refusals import Refusal, bad_request, unsupported
from engineroom.gateway.schema import Body, ChatBody, TextBody, parameter_of
from engineroom.gateway.settings import Served
from engineroom.serving.answer import Prompt
from engineroom.serving.chat import render_chat

#: To render a chat of one word; templates of today take some 0.1 ms.
QUICK_SECONDS = 0.01
#: Below it the most probable token is taken, as the model itself does it.
_COLDEST = 1e-5

#: Tensors without which an answer is the same.
_DISPENSABLE = {"stream", "return_num_input_tokens", "return_num_output_tokens", "return_finish_reason"}


@dataclass(frozen=True)
class Question:
    """One prompt, to be answered once."""

    prompt: Prompt
    tokens: int
    """Of the prompt."""


class Preparer:
    """Makes questions of bodies. Everything here computes; it is called in a thread."""

    def __init__(self, served: Served) -> None:
        """Load the tokenizer. Raises CheckpointError where that fails."""
        self._served = served
        try:
            self._tokenizer = Tokenizer.from_file(str(served.tokenizer_file))
        except Exception as error:  # the library raises bare ones
            raise CheckpointError(f"it cannot be read ({error})", where=str(served.tokenizer_file)) from None
        # Some checkpoints save their training settings, which would hide how long a prompt is.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.texts = TokenTexts(self._tokenizer)
        """What single tokens stand for."""
        self._longest_token = max((len(token.encode()) for token in self._tokenizer.get_vocab()), default=1)
        began = time.perf_counter()
        for _ in range(2):
            # The first loads and compiles what the first request would wait for: measured, 0.2 s.
            began = time.perf_counter()
            with contextlib.suppress(EngineroomError):
                render_chat(served.record, [{"role": "user", "content": "Hello"}])
        self.is_quick = time.perf_counter() - began < QUICK_SECONDS
        """Whether the template takes no time to speak of; one that does is better rendered in a thread."""

    def questions(self, body: Body, inputs: frozenset[str]) -> list[Question]:
        """One for each answer that ``body`` wants, in the order of their indices.

        ``inputs`` are the served model's. Raises :class:`Refusal`.
        """
        if isinstance(body, ChatBody):
            texts, field = [self._chat(body)], "messages"
        else:
            assert isinstance(body, TextBody)
            texts, field = list(body.prompt), "prompt"
        made = []
        for text in texts:
            tokens = self._count(text, field, special=field == "prompt")
            room = self._served.record.model.max_seq_len - tokens
            asked = Prompt(text, max_tokens=min(body.length or room, room), count_tokens=True, finish_reason=True)
            prompt = self._sampled(body, asked)
            if field == "messages":
                # The template wrote the special tokens.
                prompt = replace(prompt, add_special_tokens=False)
            _check_honoured(prompt, inputs, body)
            # A model without seed gives as many different answers as are asked for; with one, equal ones.
            for choice in range(body.n):
                seed = None if prompt.seed is None else (prompt.seed + choice) % 2**64
                made.append(Question(replace(prompt, seed=seed), tokens))
        return made

    def _chat(self, body: ChatBody) -> str:
        if self._served.record.model.chat_template is None:
            raise unsupported("messages", "the model has no chat template; send a prompt to /v1/completions")
        try:
            return render_chat(self._served.record, [message.as_dict() for message in body.messages])
        except InputError as error:
            if isinstance(error, CheckpointError):
                raise Refusal(500, f"the model's chat template {error.found}", reason="upstream_error") from None
            raise bad_request(f"the model's chat template {error.found}", param="messages") from None

    def _count(self, text: str, field: str, *, special: bool) -> int:
        most = self._served.record.model.max_input_len
        # No tokenizer makes fewer tokens than that of it: a book need not be read to be refused.
        surely = -(-len(text) // self._longest_token)
        tokens = surely if surely > most else len(self._tokenizer.encode(text, add_special_tokens=special).ids)
        if tokens > most:
            about = "at least " if surely > most else ""
            raise bad_request(
                f"the prompt has {about}{tokens:,} tokens, but this model takes at most {most:,}",
                param=field,
                code="context_length_exceeded",
            )
        if tokens == 0:
            raise bad_request(f"{field}: the prompt has no tokens", param=field, code="invalid_value")
        return tokens

    def _sampled(self, body: Body, prompt: Prompt) -> Prompt:
        served = self._served
        temperature = served.temperature if body.temperature is None else body.temperature
        top_p = served.top_p if body.top_p is None else body.top_p
        top_k = served.top_k if body.top_k is None else max(0, body.top_k)
        greedy = temperature < _COLDEST or top_p == 0 or top_k == 1
        top = body.alternatives
        if body.min_tokens > prompt.max_tokens:
            raise bad_request(
                f"min_tokens: {body.min_tokens} is more than the answer may have, {prompt.max_tokens}",
                param="min_tokens",
                code="invalid_value",
            )
        return replace(
            prompt,
            temperature=None if greedy else temperature,
            top_p=None if greedy else top_p,
            top_k=1 if greedy else top_k or None,
            seed=None if body.seed is None else body.seed % 2**64,
            stop_words=tuple(word for word in body.stop if word),
            presence_penalty=body.presence_penalty or None,
            frequency_penalty=body.frequency_penalty or None,
            repetition_penalty=None if body.repetition_penalty == 1 else body.repetition_penalty,
            min_tokens=body.min_tokens or None,
            end_id=-1 if body.ignore_eos else None,
            log_probs=None if top is None else True,
            # The most probable token of a greedy answer is the chosen one: no runtime need tell it.
            top_log_probs=None if not top or (greedy and top == 1) else top,
        )


def _check_honoured(prompt: Prompt, inputs: frozenset[str], body: Body) -> None:
    for name, _, _ in prompt.tensors():
        if name not in inputs and name not in _DISPENSABLE:
            if name == "top_log_probs":
                raise unsupported(
                    "top_logprobs" if isinstance(body, ChatBody) else "logprobs",
                    "the runtime of the served model tells the chosen tokens' probabilities only; ask for 0 others "
                    "(or for 1 with temperature 0: then it is the chosen one)",
                )
            raise unsupported(parameter_of(name), "the runtime of the served model takes none")
