"""Settings of the whole, composed from those of the parts: defaults, then `PREREAD_` variables, then what is passed.

A nested setting's variable has two underscores, such as `PREREAD_ENGINE__BLOCK_SIZE`. A variable that names no setting
is an error, not a silence.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from engine.config import EngineConfig
from engine.errors import ConfigError
from rag.errors import ConfigurationError
from rag.model_hub import default_models_dir
from rag.prompt_template import PromptTemplate
from retriever.config import CollectionSettings, RetrieverConfig, SplitSettings
from retriever.errors import SettingsError

__all__ = ["AnswerSettings", "EngineSettings", "RagConfig", "RetrieverSettings", "ServerSettings", "load_config"]

PREFIX = "PREREAD_"
DELIMITER = "__"


def _default_data_dir() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("preread"))


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSettings(_Group):
    """What `EngineConfig` takes, with its own defaults, and what is kept on disk for the engine.

    Attributes:
        kv_store_bytes: disk space for the KV of passages; 0 keeps none, and None takes a tenth of what is free, at most
            8 GiB.
        precompute_when_idle: a server that has nothing to do reads passages ahead of the questions, best ones first.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    kv_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    weights: Literal["auto", "full", "int8"] = "auto"
    device: str = "cpu"
    backend: str = "auto"
    block_size: int = Field(default=16, ge=1)
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    max_num_seqs: int = Field(default=16, ge=1)
    max_num_batched_tokens: int = Field(default=1024, ge=1)
    max_slowdown: float = Field(default=3.0, ge=1)
    max_draft_tokens: int = Field(default=16, ge=0)
    max_num_waiting: int = Field(default=1024, ge=1)
    max_share_waiting: int | None = Field(default=256, ge=1)
    max_model_len: int | None = Field(default=None, ge=1)
    eviction: str = "lru"
    kv_store_bytes: int | None = Field(default=None, ge=0)
    precompute_when_idle: bool = True

    def build(self) -> EngineConfig:
        """Make the engine's own configuration."""
        return EngineConfig(**self.model_dump(exclude={"kv_store_bytes", "precompute_when_idle"}))


class RetrieverSettings(_Group):
    """How documents are cut, embedded and indexed.

    Attributes:
        passage_tokens: budget of one passage's text, in tokens of the language model; label and heading come on top.
        overlap_tokens: tokens that neighbouring passages of a section share at most.
        index_factory: FAISS factory string of new collections.
        index_parameters: FAISS run-time parameters; empty means sensible values.
        index_device: auto, cpu or gpu.
        max_document_bytes: larger files are skipped and reported; so are those with more text.
        extract_seconds: what takes longer to read is skipped and reported.
        extract_memory_bytes: the same for what takes more memory.
    """

    passage_tokens: int = 256
    overlap_tokens: int = 0
    index_factory: str = "Flat"
    index_parameters: str = ""
    index_device: Literal["auto", "cpu", "gpu"] = "auto"
    max_document_bytes: int = Field(default=64 * 2**20, ge=1)
    extract_seconds: float = Field(default=60.0, ge=1)
    extract_memory_bytes: int = Field(default=2**30, ge=2**24)

    def build(self) -> RetrieverConfig:
        """Make the retriever's own configuration."""
        split = SplitSettings(self.passage_tokens, self.overlap_tokens)
        return RetrieverConfig(
            CollectionSettings(split, self.index_factory, self.index_parameters),
            max_document_bytes=self.max_document_bytes,
            extract_seconds=self.extract_seconds,
            extract_memory_bytes=self.extract_memory_bytes,
            index_device=self.index_device,
        )


class AnswerSettings(_Group):
    """How questions are answered where the request does not say.

    Attributes:
        max_tokens: length of a generated answer at most.
        extractive: quote the best sentence when the model's answer cites nothing.
        stop_repetition: end an answer that starts to repeat itself.
        order_epsilon: passages whose scores differ by no more than this are put in a fixed order, so that
            near ties give the same prompt and hit the cache.
        reuse: `exact` takes only KV that a full computation would give as well, `chunk` also takes that of passages in
            another order (an error without a certificate for model and template), `auto` does so where there is one.
        order: `score` keeps the best passage first, `cache` puts the passages in the order that hits the cache best.
        prefetch: read the KV of candidates from the disk while the search goes on.
        speculate: an engine that has nothing to do computes the prompt of the candidates while the search goes on; pays
            where the second stage of a search takes long and seldom changes what the first one has found.
    """

    max_tokens: int = Field(default=128, ge=1)
    extractive: bool = True
    stop_repetition: bool = True
    order_epsilon: float = Field(default=0.0, ge=0)
    reuse: Literal["auto", "exact", "chunk"] = "auto"
    order: Literal["score", "cache"] = "score"
    prefetch: bool = True
    speculate: bool = False


class ServerSettings(_Group):
    """How `rag serve` treats its clients.

    Attributes:
        allowed_hosts: names, with commas between, by which requests may call the server besides `localhost` and the
            address that it listens on; `*` is any. Without one, a server that listens for this machine alone takes no
            other name, and one that others can reach takes any.
        max_body_bytes: larger uploads of documents are refused.
        max_json_bytes: the same for all other request bodies, which are read by one thread for everybody.
        body_seconds: a request body may take so long, and a second more for each 32 KiB of it.
        ping_seconds: a streamed answer sends a comment after so long a silence.
        answer_seconds: an answer that is not complete after so long is ended; clients may ask for less with the header
            X-Timeout-Seconds.
        send_seconds: a client that takes nothing of its answer for so long is let go.
        stall_seconds: a step of the engine that takes longer hangs: the server then says that it does not live.
        shutdown_seconds: answers that run when the server is stopped may take so long to end.
        require_keys: refuse requests without an API key even before there is a first one.
        open_metrics: `/metrics` needs no key where keys are on.
        questions_per_minute: of one key that has no limit of its own; None is any number.
        tokens_per_day: prompt and answer tokens of one key between two midnights UTC; None is any number.
        max_files: documents in one request.
        allow_url_fetch: clients may name URLs of documents, which the server fetches: only from the internet, never
            from its own network.
        url_seconds: fetching one document may take so long.
        max_jobs: so many jobs may wait and run at once; of one key a quarter of them.
        price_book: a TOML file that says what tokens cost; see `rag.prices`.
        log_format: of what the server logs: `json` is one object a line, and one for every answer and request.
        log_questions: the text of questions goes to log and traces; otherwise it goes nowhere.
        tracing: make OpenTelemetry spans of every answer; the variables `OTEL_*` say where they go.
        logged_retrievals: of so many answers the ids of the passages that were read are kept, for `rag usage patterns`.
        shadow_rate: share of the answers over reused KV that are looked at again in full while nobody waits; where they
            drift further than the certificate says, reuse falls back to exact.
    """

    allowed_hosts: str = ""
    max_body_bytes: int = Field(default=128 * 2**20, ge=1)
    max_json_bytes: int = Field(default=2 * 2**20, ge=1)
    body_seconds: float = Field(default=30.0, gt=0)
    ping_seconds: float = Field(default=15.0, gt=0)
    answer_seconds: float = Field(default=600.0, gt=0)
    send_seconds: float = Field(default=60.0, gt=0)
    stall_seconds: float = Field(default=120.0, gt=0)
    shutdown_seconds: float = Field(default=5.0, ge=0)
    require_keys: bool = False
    open_metrics: bool = False
    questions_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_day: int | None = Field(default=None, ge=1)
    max_files: int = Field(default=1000, ge=1)
    allow_url_fetch: bool = False
    url_seconds: float = Field(default=30.0, gt=0)
    max_jobs: int = Field(default=100, ge=1)
    price_book: Path | None = None
    log_format: Literal["text", "json"] = "text"
    log_questions: bool = False
    tracing: bool = False
    logged_retrievals: int = Field(default=100_000, ge=0)
    shadow_rate: float = Field(default=0.02, ge=0, le=1)


class RagConfig(BaseSettings):
    """Everything that can be set.

    Attributes:
        data_dir: where documents and indexes are kept.
        models_dir: where pulled models are kept.
        model: language model: a pulled name or a folder.
        embedder: the same for the embedder.
        top_k: passages to retrieve.
        api_key: sent by commands that a running server does; without one, the token in its data directory is.
        host: address that `rag serve` listens on.
        port: its port.
        engine: see `EngineSettings`.
        retriever: see `RetrieverSettings`.
        answer: see `AnswerSettings`.
        server: see `ServerSettings`.
        prompt: see `PromptTemplate`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        extra="forbid",
        env_ignore_empty=True,
        frozen=True,
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Field(default_factory=_default_data_dir)
    models_dir: Path = Field(default_factory=default_models_dir)
    model: str = "smollm2-135m"
    embedder: str = "minilm"
    top_k: int = Field(default=4, ge=1, le=100)
    api_key: SecretStr | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    engine: EngineSettings = EngineSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    answer: AnswerSettings = AnswerSettings()
    server: ServerSettings = ServerSettings()
    prompt: PromptTemplate = PromptTemplate()

    @field_validator("data_dir", "models_dir", mode="after")
    @classmethod
    def _expand(cls, path: Path) -> Path:
        return path.expanduser().absolute()


def load_config(**given: Any) -> RagConfig:
    """Read the settings; what is None counts as not given.

    Raises:
        ConfigurationError: a setting is unknown, ambiguous or has a value that cannot work; the message names it.
    """
    _check_environment(os.environ)
    try:
        config = RagConfig(**{name: value for name, value in given.items() if value is not None})
        config.engine.build()
        config.retriever.build()
    except ValidationError as error:
        raise ConfigurationError(_describe(error)) from error
    except (ConfigError, SettingsError) as error:
        raise ConfigurationError(str(error)) from error
    return config


def _variables(model: type[BaseModel], prefix: str) -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += _variables(kind, f"{prefix}{name.upper()}{DELIMITER}")
        else:
            names.append(f"{prefix}{name.upper()}")
    return names


def _check_environment(environ: Mapping[str, str]) -> None:
    """Refuse variables that would be ignored, or that set one thing twice."""
    known = _variables(RagConfig, PREFIX)
    seen: dict[str, str] = {}
    for variable in environ:
        name = variable.upper()
        if not name.startswith(PREFIX):
            continue
        if name in seen:
            raise ConfigurationError(f"{seen[name]} and {variable} both set {name}; remove one of them")
        seen[name] = variable
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(known)}"
            raise ConfigurationError(f"the environment variable {variable} names no setting; {hint}")


def _describe(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        variable = PREFIX + DELIMITER.join(str(part) for part in item["loc"]).upper()
        parts.append(f"setting {field} ({variable}) is {item['input']!r}: {item['msg']}")
    return "; ".join(parts)
