"""Which tokens the model wrote for the answers that it has given, so that the next turn's prompt has the same ones.

What readers see is not always what the model wrote: labels have become numbers, a quotation may follow, and the same
text may be cut into other tokens. An answer is known by the whole conversation up to it and by whose that is, so that
nobody's answer stands in for another's.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from blake3 import blake3

from engine.tokenizer import Tokenizer
from rag.chat_format import Spoken

__all__ = ["Said", "Transcripts"]

Said = tuple[str, str]  # role and text

MAX_ANSWERS = 4096


class Transcripts:
    """Remembers the latest answers; a forgotten one is tokenised from its text.

    Args:
        max_answers: how many.
    """

    def __init__(self, max_answers: int = MAX_ANSWERS) -> None:
        self._max_answers = max_answers
        self._written: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._lock = Lock()

    def note(self, whose: Sequence[str], turns: Sequence[Said], tokens: Sequence[int]) -> None:
        """Remember the tokens of the last of these turns, an answer.

        Args:
            whose: principal, and what answered.
            turns: the conversation up to the answer.
            tokens: what the model wrote, without the token that ended it.
        """
        *_, key = _keys(whose, turns)
        with self._lock:
            self._written[key] = tuple(tokens)
            self._written.move_to_end(key)
            while len(self._written) > self._max_answers:
                self._written.popitem(last=False)

    def spoken(self, whose: Sequence[str], turns: Sequence[Said], tokenizer: Tokenizer) -> list[Spoken]:
        """Return the turns as tokens."""
        with self._lock:
            written = [self._written.get(key) for key in _keys(whose, turns)]
        return [
            Spoken(role, tokenizer.encode(text) if tokens is None else tokens)
            for (role, text), tokens in zip(turns, written, strict=True)
        ]


def _keys(whose: Sequence[str], turns: Sequence[Said]) -> list[bytes]:
    """Return a key of each turn and everything before it."""
    keys = [_digest(*(part.encode(errors="surrogatepass") for part in whose))]
    for role, text in turns:
        keys.append(_digest(keys[-1], role.encode(), text.encode(errors="surrogatepass")))
    return keys[1:]


def _digest(*fields: bytes) -> bytes:
    hasher = blake3()
    for field in fields:
        hasher.update(len(field).to_bytes(8, "little"))
        hasher.update(field)
    return hasher.digest()
