"""From what a request says about sampling to what the engine takes."""

import json

from engine.config import SamplingParams
from engine.grammar import Grammar, JsonObject, JsonSchema
from rag.schemas.sampling import JsonObjectFormat, JsonSchemaFormat, ResponseFormat, Sampling

__all__ = ["sampling_params"]


def sampling_params(sampling: Sampling, max_tokens: int) -> SamplingParams:
    """Make the engine's parameters.

    Raises:
        ConfigError: values that contradict each other.
    """
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
        stop=tuple(sampling.stop),
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias={int(token): bias for token, bias in sampling.logit_bias.items()},
        logprobs=sampling.logprobs,
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        grammar=_grammar(sampling.response_format),
    )


def _grammar(wanted: ResponseFormat | None) -> Grammar | None:
    if isinstance(wanted, JsonSchemaFormat):
        return JsonSchema(json.dumps(wanted.json_schema.schema_))
    return JsonObject() if isinstance(wanted, JsonObjectFormat) else None
