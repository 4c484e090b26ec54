"""Completions with the real `openai` client."""

from collections.abc import Iterator

import openai
import pytest
from openai_helpers import BARE, DOCS, Api, openai_api

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with openai_api(tmp_path_factory.mktemp("openai")) as api:
        yield api
        api.running.check()


def complete(api: Api, **fields):
    return api.client.completions.create(**({"model": BARE, "prompt": PROMPT, "max_tokens": 12} | fields))


def test_a_prompt_in_every_form(api: Api) -> None:
    tokens = api.running.service.components.tokenizer().encode_prompt(PROMPT)
    text = complete(api)
    (choice,) = text.choices
    assert choice.finish_reason == "length"
    assert text.usage.prompt_tokens == len(tokens)
    assert text.usage.completion_tokens == 12
    assert complete(api, prompt=tokens).choices[0].text == choice.text
    several = complete(api, prompt=[PROMPT, "And then"], n=2)
    assert [item.index for item in several.choices] == [0, 1, 2, 3]
    assert [item.text for item in several.choices[:2]] == [choice.text] * 2
    assert several.usage.prompt_tokens == len(tokens) + len("And then")
    assert several.usage.completion_tokens == 48
    of_tokens = complete(api, prompt=[tokens, tokens])
    assert [item.text for item in of_tokens.choices] == [choice.text] * 2


def test_what_was_asked_before_is_cached(api: Api) -> None:
    prompt = "A prompt that is some blocks long, so that it can be found again. " * 2
    assert complete(api, prompt=prompt).usage.prompt_tokens_details.cached_tokens == 0
    assert complete(api, prompt=prompt).usage.prompt_tokens_details.cached_tokens > 100


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_says_the_same(api: Api, echo: bool) -> None:
    fields = {"prompt": [PROMPT, "And then"], "n": 2, "temperature": 1.0, "seed": 7, "echo": echo}
    whole = complete(api, **fields)
    texts, ends = [""] * 4, {}
    for chunk in complete(api, **fields, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0] != texts[1], "each of several completions has a seed of its own"
    assert [text.startswith(PROMPT) for text in texts[:2]] == [echo, echo]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunk.usage.completion_tokens == whole.usage.completion_tokens


def test_log_probabilities(api: Api) -> None:
    logprobs = complete(api, logprobs=3).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 12
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values()), "greedy: the likeliest token is chosen"
    streamed = complete(api, logprobs=3, stream=True)
    parts = [choice.logprobs for chunk in streamed for choice in chunk.choices if choice.logprobs]
    assert [token for part in parts for token in part.tokens] == logprobs.tokens
    assert [offset for part in parts for offset in part.text_offset] == logprobs.text_offset


def test_control_tokens_are_read_in_prompts(api: Api) -> None:
    assert complete(api, prompt="<|im_start|>user").usage.prompt_tokens == 1 + len("user")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": DOCS}, None),
        ({"echo": True, "logprobs": 1}, None),
        ({"suffix": "the end"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [10**6]}, None),
        ({"prompt": ""}, None),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_what_cannot_be_completed(api: Api, fields: dict, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        complete(api, **fields)
    if param is not None:
        assert error.value.param.split(".")[0] == param
