"""The rule of token-exactness (DESIGN section 8), against transformers' own float32 model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

RELATIVE_GAP = 1e-5


@dataclass
class Exactness:
    """Checks answers token by token: each must be the argmax of transformers given the tokens before it.

    A differing token counts as equal only where transformers' own top-2 gap is below 1e-5 of the logit range; such
    cases are counted.
    """

    model: torch.nn.Module
    tokens: int = 0
    near_ties: int = 0

    def __post_init__(self) -> None:
        self._verified: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        key = (tuple(prompt), tuple(answer))
        if key not in self._verified:
            self._verified[key] = self._count_near_ties(list(prompt), list(answer))
        self.tokens += len(answer)
        self.near_ties += self._verified[key]

    def _count_near_ties(self, prompt: list[int], answer: list[int]) -> int:
        with torch.inference_mode():
            logits = self.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        best = logits.argmax(-1).tolist()
        near_ties = 0
        for i, (ours, theirs) in enumerate(zip(answer, best, strict=True)):
            if ours == theirs:
                continue
            row = logits[i]
            gap, spread = (row[theirs] - row[ours]).item(), (row.max() - row.min()).item()
            assert gap < RELATIVE_GAP * spread, (
                f"answer token {i} is {ours}, transformers' is {theirs} (gap {gap:.3g} of a range of {spread:.3g})"
            )
            near_ties += 1
        return near_ties

    def __str__(self) -> str:
        return f"{self.tokens} tokens exact, {self.near_ties} of them near-ties"
