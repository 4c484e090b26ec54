"""Guesses at what an answer says next: how the passages, or the answer itself, went on after the same words.

Reference and prompt look-up decoding (Yang et al. 2023, arXiv:2304.04487; Saxena 2023). Knows token ids and relative
costs: neither clocks nor probabilities of the model.
"""

from collections.abc import Sequence

from engine.request import Request

__all__ = ["Continuations", "Drafter", "Drafts"]

LONG_NGRAM, SHORT_NGRAM = 4, 2
MOST_CANDIDATES = 16
LONGEST_MATCH = 16
# How often the next token is the one that followed a match of this length or more: where answers quote passages, from
# their own words on. Each answer goes on from there with what it does itself.
EXPECTED = {2: 0.4, 3: 0.5, 4: 0.65, 6: 0.75, 10: 0.85, 16: 0.9}
_CLASSES = [max((known for known in EXPECTED if known <= length), default=0) for length in range(LONGEST_MATCH + 1)]
EXPECTED_WEIGHT = 2.0  # as many observed tokens count as much
MEMORY = 0.9  # weight of an observation by the time of the next
# Time of one more row in a decode step, as a part of that of a step with one: 0.03 to 0.11 was measured. A constant,
# not what the last steps took: the same question over the same cache is to be answered in the same steps, since in
# float16 steps of other shapes round otherwise.
ROW_COST = 0.06
WORTHWHILE = 1.05  # drafts must promise this many times the tokens of a plain step in the same time


class Drafts:
    """The drafters of all requests.

    Args:
        max_tokens: the longest draft; 0 for none ever.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._drafters: dict[Request, Drafter] = {}

    def propose(self, request: Request, limit: int, decode_rows: int) -> tuple[int, ...]:
        """Guess at most `limit` tokens that follow the request's newest; none where that does not pay.

        Args:
            request: at its newest token.
            limit: room in the step and in the answer.
            decode_rows: how many requests the step decodes; each of them may get as long a draft.
        """
        limit = min(limit, self._max_tokens)
        if limit <= 0:
            return ()
        if request not in self._drafters:
            self._drafters[request] = Drafter(request.prompt.tokens)
        cost = ROW_COST * decode_rows / (1 + ROW_COST * (decode_rows - 1))
        return self._drafters[request].propose(request.output_tokens, limit, cost)

    def forget(self, request: Request) -> None:
        """Drop what is known of a request."""
        self._drafters.pop(request, None)


class Drafter:
    """Drafts for one answer: as long as its own habit of copying makes worthwhile.

    It learns from every token that follows a match, drafted or not, so it needs no trials while it is silent.

    Args:
        prompt: the prompt's tokens.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._text = Continuations(prompt)
        self._num_prompt_tokens = len(prompt)
        self._predicted: tuple[int, ...] = ()
        self._match_length = 0
        self._hits = {length: EXPECTED_WEIGHT * share for length, share in EXPECTED.items()}
        self._seen = dict.fromkeys(EXPECTED, EXPECTED_WEIGHT)

    def propose(self, answer: Sequence[int], limit: int, cost: float) -> tuple[int, ...]:
        """Guess at most `limit` tokens after the answer so far, which only ever grows.

        A token of the draft makes the step `cost` times its time longer.
        """
        new = answer[len(self._text.tokens) - self._num_prompt_tokens :]
        self._learn(new)
        self._text.extend(new)
        start, self._match_length = self._text.find()
        self._predicted = self._text.continuation(start, limit) if self._match_length else ()
        return self._predicted[: self._best_length(len(self._predicted), cost)]

    def _learn(self, tokens: Sequence[int]) -> None:
        """Compare what was predicted with what came, up to the first difference."""
        for i, (predicted, token) in enumerate(zip(self._predicted, tokens, strict=False)):
            length = _CLASSES[min(self._match_length + i, LONGEST_MATCH)]
            self._hits[length] = MEMORY * self._hits[length] + (predicted == token)
            self._seen[length] = MEMORY * self._seen[length] + 1
            if predicted != token:
                return

    def _best_length(self, limit: int, cost: float) -> int:
        """Choose the draft length that promises the most tokens in the time of a plain step."""
        best, best_rate = 0, WORTHWHILE
        tokens, certainty = 1.0, 1.0
        for n in range(1, limit + 1):
            length = _CLASSES[min(self._match_length + n - 1, LONGEST_MATCH)]
            certainty *= self._hits[length] / self._seen[length]
            if certainty <= cost:
                break  # this token and those behind it cost more than they bring
            tokens += certainty
            rate = tokens / (1 + n * cost)
            if rate > best_rate:
                best, best_rate = n, rate
        return best


class Continuations:
    """Finds the longest earlier occurrence of a text's last tokens, and what followed it.

    Args:
        tokens: the text so far; `extend` adds to it.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}  # of n-grams that something follows: where it starts
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens to the text."""
        known = self.tokens
        for token in tokens:
            end = len(known)
            for n in (SHORT_NGRAM, LONG_NGRAM):
                if end >= n:
                    self._ends.setdefault(tuple(known[end - n :]), []).append(end)
            known.append(token)

    def find(self) -> tuple[int, int]:
        """Return where the text went on after its longest match (the latest of several), and the match's length.

        The length is 0 without a match of two tokens, and no more than 16.
        """
        known = self.tokens
        ends = self._ends.get(tuple(known[-LONG_NGRAM:])) or self._ends.get(tuple(known[-SHORT_NGRAM:])) or []
        best, length = 0, 0
        for end in reversed(ends[-MOST_CANDIDATES:]):
            matched = self._match_length(end)
            if matched > length:
                best, length = end, matched
            if length == LONGEST_MATCH:
                break
        return best, length

    def continuation(self, start: int, n: int) -> tuple[int, ...]:
        """Return the n tokens from there on; where the text ends, it goes on with what was returned already."""
        period = len(self.tokens) - start
        return tuple(self.tokens[start + i % period] for i in range(n))

    def _match_length(self, end: int) -> int:
        """Count how many tokens before `end` equal the text's last ones."""
        known, length = self.tokens, 0
        while length < min(end, LONGEST_MATCH) and known[end - 1 - length] == known[-1 - length]:
            length += 1
        return length
