"""Text to token ids and back: the one piece of code for it, copied beside every ``model.py`` that needs it.

Runs inside Triton's Python, so it imports nothing but ``tokenizers`` and the standard library.

The hard part is :class:`TextStream`. It gives a growing answer piece by piece, and the pieces together are the
one-shot decoding of the same ids, byte for byte, whatever the ids are and however they are cut into pushes.
``tokenizers.decoders.DecodeStream`` (0.23) does not do that: it has no end, so that a tail of U+FFFD is lost, and it
raises "Invalid prefix encountered" where a run of byte-fallback tokens goes on as broken UTF-8.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: Ids that stay behind as left context of the next ones. A UTF-8 sequence has at most 4 bytes and every id stands for
#: at least one, so that decoding from 4 ids back on has found its step again, wherever a character was cut.
_CONTEXT = 6

_DROPPED, _TEXT, _BYTE = range(3)


class Tokenizer:
    """A checkpoint's tokenizer, from the ``tokenizer.json`` in ``folder``."""

    def __init__(self, folder: str) -> None:
        path = Path(folder, "tokenizer.json")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no tokenizer.json")
        source = path.read_text(encoding="utf-8")
        self._tokenizer = tokenizers.Tokenizer.from_str(source)
        # Some checkpoints save their training settings: a prompt must be neither cut nor padded silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = {id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._byte_fallback = '"ByteFallback"' in json.dumps(json.loads(source).get("decoder"))
        self._kinds: dict[int, int] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of ``text``. ``add_special_tokens``: put BOS and the like around it, as the tokenizer prescribes.

        A rendered chat template holds its special tokens as text; encode it with False, or BOS stands there twice.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole answer."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def stream(self, stop_words: Sequence[str] = (), skip_special_tokens: bool = True) -> "TextStream":
        """A decoder for one growing answer, which ends before the first of ``stop_words``."""
        return TextStream(self, stop_words, skip_special_tokens)

    def word_ids(self, words: Iterable[str]) -> tuple[list[int], list[int]]:
        """TensorRT-LLM's form of a list of stop or bad words; see :meth:`word_list`."""
        return self.word_list(self.encode(word, add_special_tokens=False) for word in words)

    @staticmethod
    def word_list(words: Iterable[Sequence[int]]) -> tuple[list[int], list[int]]:
        """Words that are ids already, in TensorRT-LLM's form: two rows of one length, for a tensor of shape [2, n].

        The first row holds the ids of all words, one after the other, the second where each word ends,
        filled up with -1.
        """
        ids: list[int] = []
        ends: list[int] = []
        for word in words:
            if word:
                ids += word
                ends.append(len(ids))
        return ids, ends + [-1] * (len(ids) - len(ends))

    def token_id(self, token: str) -> int | None:
        """The id of one token, such as ``</s>``; None where the vocabulary lacks it."""
        id: int | None = self._tokenizer.token_to_id(token)
        return id

    def _kind(self, id: int, skip_special_tokens: bool) -> int:
        """What ``id`` is to a decoder: nothing at all, text, or a single byte that waits for others."""
        if skip_special_tokens and id in self._special:
            return _DROPPED
        kind = self._kinds.get(id)
        if kind is None:
            token = self._tokenizer.id_to_token(id)
            kind = _DROPPED if token is None else _BYTE if self._byte_fallback and _is_byte(token) else _TEXT
            self._kinds[id] = kind
        return kind


class TextStream:
    """One answer, decoded while it grows. Not for use from two threads at once.

    ``push`` gives complete text only. Held back are: half a character; with SentencePiece tokenizers a run of
    byte-fallback tokens until it ends (``decode`` takes such a run as text only if all of it is UTF-8, so nothing can
    be said before); and what may be the beginning of a stop word.

    The cost of a push does not grow with the answer: only the last few ids are decoded again.
    """

    def __init__(self, tokenizer: Tokenizer, stop_words: Sequence[str], skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._sent = 0  # characters of decode(self._ids) that went on to the stop words
        self._run = 0  # trailing ids that are byte-fallback tokens
        self._stop = _StopWords(stop_words)

    @property
    def stopped(self) -> bool:
        """A stop word was found: the text has ended before it, and nothing more will come."""
        return self._stop.found

    def push(self, ids: Iterable[int]) -> str:
        """Take the next ids; returns the text that is certain now, which may be empty."""
        if self.stopped:
            return ""
        pieces: list[str] = []
        waiting = 0  # ids since the last decoding
        for id in ids:
            kind = self._tokenizer._kind(id, self._skip)
            if kind == _DROPPED:
                continue
            # Not only at the end: what stands before a run of bytes is certain, and a long push must not cost
            # more than many short ones.
            if waiting and not self._run and (kind == _BYTE or waiting >= 4 * _CONTEXT):
                pieces.append(self._advance())
                waiting = 0
                if self._stop.found:
                    return "".join(pieces)
            self._ids.append(id)
            self._run = self._run + 1 if kind == _BYTE else 0
            waiting += 1
        if waiting and not self._run:
            pieces.append(self._advance())
        return "".join(pieces)

    def finish(self) -> str:
        """The answer is over: everything that was held back, as the one-shot decoding shows it."""
        if self.stopped:
            return ""
        text = self._tokenizer.decode(self._ids, self._skip)[self._sent :]
        self._ids, self._sent, self._run = [], 0, 0
        return self._stop.push(text) + self._stop.finish()

    def _advance(self) -> str:
        """Decode the last few ids again and give what is new; called outside of byte-fallback runs only."""
        text = self._tokenizer.decode(self._ids, self._skip)
        # A character that still lacks bytes shows as exactly one U+FFFD at the end; all before it is settled.
        settled = len(text) - text.endswith(REPLACEMENT)
        fresh = text[self._sent : settled]
        self._sent = max(settled, self._sent)
        if len(self._ids) > 2 * _CONTEXT:
            self._forget(len(text))
        return self._stop.push(fresh)

    def _forget(self, length: int) -> None:
        """Drop ids that cannot matter any more. ``length``: of the text of all ids."""
        cut = len(self._ids) - _CONTEXT
        if self._tokenizer._byte_fallback:
            while cut and self._tokenizer._kind(self._ids[cut - 1], self._skip) == _BYTE:
                cut -= 1  # never between two bytes of one run
        unsent = length - self._sent
        self._ids = self._ids[cut:]
        # Counted from the end: the beginning of the shorter text may differ (a stripped space, half a character).
        self._sent = len(self._tokenizer.decode(self._ids, self._skip)) - unsent


class _StopWords:
    """Ends a text before the first stop word that is completed in it; of two completed at once, before the longer.

    One Knuth-Morris-Pratt automaton for each word: constant work per character, however the text is cut.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.found = False
        self._words = [word for word in words if word]
        self._fails = [_failures(word) for word in self._words]
        self._matched = [0] * len(self._words)  # characters of each word that the text ends with
        self._held = ""

    def push(self, text: str) -> str:
        if not self._words:
            return text
        text, start = self._held + text, len(self._held)
        for position in range(start, len(text)):
            longest = 0
            for index, word in enumerate(self._words):
                matched, character = self._matched[index], text[position]
                while matched and word[matched] != character:
                    matched = self._fails[index][matched - 1]
                matched += word[matched] == character
                if matched == len(word):
                    longest = max(longest, matched)
                    matched = self._fails[index][matched - 1]
                self._matched[index] = matched
            if longest:
                self.found, self._held = True, ""
                return text[: position + 1 - longest]
        certain = len(text) - max(self._matched)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        rest, self._held = self._held, ""
        return rest


def _failures(word: str) -> list[int]:
    """For each prefix of ``word``: the length of its longest proper prefix that is its suffix too."""
    fails, matched = [0] * len(word), 0
    for index in range(1, len(word)):
        while matched and word[index] != word[matched]:
            matched = fails[matched - 1]
        matched += word[index] == word[matched]
        fails[index] = matched
    return fails


def _is_byte(token: str) -> bool:
    """Whether the ByteFallback decoder takes ``token`` for a byte: ``<0x00>`` to ``<0xFF>``."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return False
    try:
        return int(token[3:5], 16) >= 0
    except ValueError:
        return False
