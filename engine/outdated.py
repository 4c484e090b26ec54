"""Which prompts were made before something that they may hold was deleted. Knows namespaces and counts of changes."""

from collections import OrderedDict

from engine.errors import OutdatedPromptError

__all__ = ["MOST_NAMESPACES", "OldestStates"]

MOST_NAMESPACES = 4096  # a prompt is submitted long before so many others lose something


class OldestStates:
    """The oldest state of each namespace of which a prompt may still be.

    Only those of the namespaces that lost something last are known, so that deleted ones do not fill the memory.
    """

    def __init__(self) -> None:
        self._oldest: OrderedDict[str, int] = OrderedDict()

    def raise_to(self, namespace: str, state: int) -> None:
        """Refuse from now on what was made of an earlier state of a namespace than this."""
        self._oldest[namespace] = max(state, self._oldest.get(namespace, state))
        self._oldest.move_to_end(namespace)
        if len(self._oldest) > MOST_NAMESPACES:
            self._oldest.popitem(last=False)

    def check(self, namespace: str, state: int | None) -> None:
        """Accept what was made of a state of a namespace; None is of none.

        Raises:
            OutdatedPromptError: that state has ended.
        """
        if state is not None and state < self._oldest.get(namespace, state):
            raise OutdatedPromptError("something that the prompt may hold was deleted; make it anew from what is left")
