"""A peer behind an OpenAI-compatible API that takes token ids as prompts (vLLM, llama.cpp's server, SGLang, ours)."""

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rag.bench.peers.errors import PeerError

if TYPE_CHECKING:
    import httpx

__all__ = ["UrlPeer"]

TIMEOUT_SECONDS = 600.0


class UrlPeer:
    """A contestant: times `POST /v1/completions`, the network's time included.

    Args:
        url: of the server, with or without `/v1`.
        client: to ask with (tests).

    Raises:
        PeerError: it does not answer, or serves no model.
    """

    def __init__(self, url: str, client: "httpx.Client | None" = None) -> None:
        import httpx

        self.name = url
        base = url.rstrip("/").removesuffix("/v1")
        self._client = client or httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False)
        self._completions = f"{base}/v1/completions"
        models = self._call("GET", f"{base}/v1/models").get("data") or []
        if not models:
            raise PeerError(f"{url} serves no model")
        self._model = str(models[0]["id"])
        self.version = ""
        self.detail = f"model {self._model}, over HTTP"

    def first_token(self, prompt: Sequence[int], cached: int) -> float:
        """Return the seconds of a completion of one token; the cached tokens were sent alone before."""
        if cached:
            self._complete([prompt[:cached]], 1)
        return self._complete([prompt], 1)

    def decode(self, prompts: Sequence[Sequence[int]], cached: int, steps: int) -> float:
        """Return the seconds a step: answers of 1 + `steps` tokens less answers of 1, over `steps`."""
        del cached  # whole prompts are sent three times: a server with a prefix cache has them
        self._complete(prompts, 1)
        return (self._complete(prompts, 1 + steps) - self._complete(prompts, 1)) / steps

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _complete(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        body = {
            "model": self._model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        began = perf_counter()
        answer = self._call("POST", self._completions, body)
        seconds = perf_counter() - began
        wanted = tokens * len(prompts)
        found = (answer.get("usage") or {}).get("completion_tokens", wanted)
        if found != wanted:
            raise PeerError(f"{self.name} gave {found} tokens instead of {wanted}: it stops at end tokens")
        return seconds

    def _call(self, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        import httpx

        try:
            response = self._client.request(method, url, json=body)
        except httpx.HTTPError as error:
            raise PeerError(f"{self.name} does not answer: {error}") from error
        if response.is_error:
            raise PeerError(f"{self.name} answers {response.status_code}: {' '.join(response.text.split())[:200]}")
        answer: dict[str, Any] = response.json()
        return answer
