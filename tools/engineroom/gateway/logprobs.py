"""Log probabilities of tokens in OpenAI's two forms: one for chats, an older one for completions."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from engineroom.gateway.upstream import Scored

#: OpenAI's and vLLM's number for "as good as impossible": JSON has no infinities.
_LEAST = -9999.0


class TokenTexts:
    """What single tokens stand for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = "" if tokenizer.decoder is None else tokenizer.decoder.__getstate__().decode()
        self._byte_level = '"ByteLevel"' in decoder
        self._byte_fallback = '"ByteFallback"' in decoder
        self._bytes_of_characters = _bytes_of_characters()
        # Added tokens stand in the text as they are written.
        self._known = {id: token.content.encode() for id, token in tokenizer.get_added_tokens_decoder().items()}

    def __getitem__(self, id: int) -> bytes:
        """The bytes of a token: part of a character, a character, or many. Together they are the answer's text, before
        which SentencePiece tokenizers may have a space more.
        """
        found = self._known.get(id)
        if found is None:
            found = self._known[id] = self._look_up(id)
        return found

    def _look_up(self, id: int) -> bytes:
        token = self._tokenizer.id_to_token(id)
        if token is None:
            return b""
        if self._byte_level:
            characters = [self._bytes_of_characters.get(character) for character in token]
            return bytes([byte for byte in characters if byte is not None])
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x"):
            return bytes.fromhex(token[3:5])
        if "▁" in token:  # SentencePiece's space
            return token.replace("▁", " ").encode()
        text: str = self._tokenizer.decode([id], skip_special_tokens=False)
        return text.encode()


class Logprobs:
    """Words the log probabilities of one request's answers."""

    def __init__(self, texts: TokenTexts, *, chat: bool, top: int) -> None:
        """``top``: how many of the most probable tokens are named in each place."""
        self._texts, self._chat, self._top = texts, chat, top
        self._offsets: dict[int, int] = {}
        """Characters of each answer so far, by its index."""

    def of(self, index: int, scored: Sequence[Scored]) -> dict[str, Any]:
        """The value of ``logprobs`` for the next tokens of the answer ``index``."""
        if self._chat:
            return {"content": [self._entry(each) for each in scored], "refusal": None}
        tokens = [self._texts[each.id] for each in scored]
        offset, offsets = self._offsets.get(index, 0), []
        for token in tokens:
            offsets.append(offset)
            offset += sum(byte & 0xC0 != 0x80 for byte in token)  # the first byte of a character
        self._offsets[index] = offset
        return {
            "tokens": [_label(token) for token in tokens],
            "token_logprobs": [_finite(each.log_prob) for each in scored],
            "top_logprobs": [self._named(each) for each in scored] if self._top else None,
            "text_offset": offsets,
        }

    def _named(self, scored: Scored) -> dict[str, float]:
        # The chosen token too, as at OpenAI, where it is not among the most probable.
        pairs = [*self._best(scored), (scored.id, scored.log_prob)]
        return {_label(self._texts[id]): _finite(log_prob) for id, log_prob in pairs}

    def _entry(self, scored: Scored) -> dict[str, Any]:
        best = [self._described(id, log_prob) for id, log_prob in self._best(scored)]
        return self._described(scored.id, scored.log_prob) | {"top_logprobs": best}

    def _described(self, id: int, log_prob: float) -> dict[str, Any]:
        data = self._texts[id]
        return {"token": data.decode("utf-8", "replace"), "logprob": _finite(log_prob), "bytes": list(data)}

    def _best(self, scored: Scored) -> Sequence[tuple[int, float]]:
        # One, of a greedy answer, is not asked for upstream: it is the chosen one.
        return scored.top[: self._top] or ([(scored.id, scored.log_prob)] if self._top else ())


def _label(data: bytes) -> str:
    """A token in the older form, which has no place for bytes: what is no text is shown as OpenAI shows it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(log_prob: float) -> float:
    return log_prob if log_prob > _LEAST else _LEAST


def _bytes_of_characters() -> dict[str, int]:
    """What byte-level tokenizers mean by the characters of their vocabulary (GPT-2's ``bytes_to_unicode``)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
