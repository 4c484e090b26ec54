"""Text to token ids and back, and the model's chat template.

Uses the `tokenizers` library and Jinja directly: transformers is not imported at run time.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from blake3 import blake3
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from engine.errors import ModelFileError, PromptError

__all__ = ["REPLACEMENT", "Detokenizer", "StopStrings", "Tokenizer"]

REPLACEMENT = "\ufffd"


class Tokenizer:
    """The tokenizer of a model folder.

    Args:
        folder: holds `tokenizer.json`, and where the model has them `tokenizer_config.json`, `chat_template.jinja`
            and `generation_config.json`.

    Raises:
        ModelFileError: no usable `tokenizer.json`.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelFileError(f"{folder} has no tokenizer.json; pull or convert the model again")
        raw = path.read_bytes()
        try:
            self._with_special = FastTokenizer.from_buffer(raw)
            self._plain = FastTokenizer.from_buffer(raw)
        except Exception as error:
            raise ModelFileError(f"{path} cannot be read: {error}; pull or convert the model again") from error
        for tokenizer in (self._with_special, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._plain.encode_special_tokens = True
        self._config = _read_json(folder / "tokenizer_config.json")
        self._chat_template = _chat_template(folder, self._config)
        self.fingerprint = blake3(raw).hexdigest()[:16]
        self.eos_token_ids = self._eos_token_ids(folder)

    def to_json(self) -> str:
        """Return it in the form of `tokenizer.json`."""
        return str(self._with_special.to_str())

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Turn text into token ids; nothing is added before or after.

        Args:
            text: any text.
            special_tokens: read control tokens such as `<|im_start|>` as such. Leave it off for text that is not
                our own, so that a document cannot end the turn that quotes it.
        """
        tokenizer = self._with_special if special_tokens else self._plain
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Turn a whole prompt into token ids: control tokens are read, and what the model expects to begin is added."""
        return list(self._with_special.encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn many texts that are not our own into token ids."""
        return [list(e.ids) for e in self._plain.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Turn token ids into text."""
        return str(self._plain.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Render messages (`role`, `content`) with the model's chat template.

        Raises:
            PromptError: the model has no chat template, or it refuses the messages.
        """
        if self._chat_template is None:
            raise PromptError("this model has no chat template; use an instruction-tuned model or plain text prompts")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda fmt: datetime.now(UTC).strftime(fmt)
        environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
        variables = {name: self._token_text(name) for name in ("bos_token", "eos_token")}
        try:
            template = environment.from_string(self._chat_template)
            return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
        except (TemplateError, TypeError, ValueError) as error:
            raise PromptError(f"the model's chat template refuses these messages: {error}") from error

    def _token_text(self, name: str) -> str:
        value = self._config.get(name) or ""
        return str(value["content"]) if isinstance(value, dict) else str(value)

    def _eos_token_ids(self, folder: Path) -> frozenset[int]:
        """The tokens that end an answer: generation config first, then model config, then the tokenizer's own."""
        for name in ("generation_config.json", "config.json"):
            value = _read_json(folder / name).get("eos_token_id")
            if value is None:
                continue
            token_ids = value if isinstance(value, list) else [value]
            if not all(isinstance(token_id, int) for token_id in token_ids):
                raise ModelFileError(f"{folder / name}: eos_token_id {value!r} is no token id; pull the model again")
            return frozenset(token_ids)
        token = self._plain.token_to_id(self._token_text("eos_token"))
        return frozenset() if token is None else frozenset([token])


class Detokenizer:
    """Turns tokens into text one by one and never splits a character (the two-offset method of vLLM and TGI)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._prefix = 0
        self._read = 0

    def push(self, token: int) -> str:
        """Add a token and return the text that is certain now."""
        self._tokens.append(token)
        text = self._new_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._prefix, self._read = self._read, len(self._tokens)
        return text

    def flush(self) -> str:
        """Return what is left; an unfinished character becomes U+FFFD."""
        text = self._new_text()
        self._prefix = self._read = len(self._tokens)
        return text

    def _new_text(self) -> str:
        known = self._tokenizer.decode(self._tokens[self._prefix : self._read])
        return self._tokenizer.decode(self._tokens[self._prefix :])[len(known) :]


class StopStrings:
    """Ends a text before the first stop string, holding back what could become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str, *, armed: bool = True) -> tuple[str, bool]:
        """Add text; return what may be shown, and whether a stop string has been reached.

        One that this text completes while not `armed` does not count.
        """
        held, known = self._held + text, len(self._held)
        found = [
            (at + len(stop), at)
            for stop in self._stop
            if armed and (at := held.find(stop, max(known - len(stop) + 1, 0))) >= 0
        ]
        if found:
            self._held = ""
            _, start = min(found)  # the first to be complete, so that the result does not depend on how text arrives
            return held[:start], True
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """Return what was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of the text that begins the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Read the template from its own file (newer models) or the tokenizer's config."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise ModelFileError(f"{path} is not UTF-8 text: {error}; pull or convert the model again") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        return named.get("default")
    return template


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON: {error}; pull or convert the model again") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object; pull or convert the model again")
    return value


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
