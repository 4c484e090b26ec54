"""Text to tokens and back, whole and token by token; chat templates; end tokens; stop strings; damaged folders."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import make_tokenizer
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence, Strip
from tokenizers.models import BPE

from engine.errors import ModelFileError, PromptError
from engine.tokenizer import Detokenizer, StopStrings, Tokenizer

REPLACEMENT = "\ufffd"
SCRIPTS = "aB 9\n\t.,<|>é\u0301\u0308ñ漢字仮한글ไทยहिन्दीعربى😀👩🏽‍🚀🇩🇪\u200d\ufe0f\U0001f9ff€ß\u00a0\u2028\U0010fffd"
# SmolLM2's vocabulary has no token for these bytes, so a few control characters and unassigned planes are lost
UNKNOWN_BYTES = set(b"\x04\x06\x13\x14\x16\x1d\xf1\xf2")
known = st.characters(codec="utf-8").filter(lambda character: not UNKNOWN_BYTES & set(character.encode()))
texts = st.one_of(st.text(alphabet=known, max_size=60), st.text(alphabet=SCRIPTS, max_size=60))


@pytest.fixture(scope="module")
def smol(smollm2) -> Tokenizer:
    return Tokenizer(smollm2)


@pytest.fixture(scope="module")
def fallback(tmp_path_factory) -> Tokenizer:
    """A tokenizer as Llama 2 and Mistral have it: spaces as U+2581, unknown characters as single bytes."""
    folder = tmp_path_factory.mktemp("fallback")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for piece in ["\u2581", *"abcdefghij.", "ab", "abc", "\u2581a"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [("a", "b"), ("ab", "c"), ("\u2581", "a")]
    tokenizer = FastTokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    from tokenizers.normalizers import Prepend
    from tokenizers.normalizers import Replace as ReplaceText
    from tokenizers.normalizers import Sequence as Normalizers

    tokenizer.normalizer = Normalizers([Prepend("\u2581"), ReplaceText(" ", "\u2581")])
    tokenizer.decoder = Sequence([Replace("\u2581", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def pieces(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in token_ids), detokenizer.flush()]


@pytest.mark.model
@settings(max_examples=300, deadline=None)
@given(text=texts)
@example(text="👩🏽‍🚀 e\u0301 漢 " * 3)
@example(text=REPLACEMENT)
@example(text=f"a{REPLACEMENT}{REPLACEMENT}b")
@example(text=" leading and trailing ")
def test_streamed_text_is_the_whole_text(smol, text):
    token_ids = smol.encode(text)
    parts = pieces(smol, token_ids)
    assert "".join(parts) == smol.decode(token_ids) == text
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in part for part in parts)


@pytest.mark.model
@settings(max_examples=300, deadline=None)
@given(text=texts, data=st.data())
def test_text_cut_anywhere(smol, text, data):
    """Cut in mid character the end is U+FFFD, and nothing before it is."""
    token_ids = smol.encode(text.replace(REPLACEMENT, ""))
    token_ids = token_ids[: data.draw(st.integers(0, len(token_ids)))]
    *parts, last = pieces(smol, token_ids)
    assert "".join(parts) + last == smol.decode(token_ids)
    assert not any(REPLACEMENT in part for part in parts)
    assert last.strip(REPLACEMENT) == "" or REPLACEMENT in last


@pytest.mark.model
@settings(max_examples=300, deadline=None)
@given(token_ids=st.lists(st.integers(0, 49151), max_size=40))
def test_any_tokens_stream_to_what_they_decode_to(smol, token_ids):
    """A model may sample anything: torn characters, control tokens."""
    assert "".join(pieces(smol, token_ids)) == smol.decode(token_ids)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="abc. ef漢😀é", max_size=30))
def test_byte_fallback_streams_too(fallback, text):
    token_ids = fallback.encode(text)
    parts = pieces(fallback, token_ids)
    assert "".join(parts) == fallback.decode(token_ids) == text
    assert not any(REPLACEMENT in part for part in parts)


@pytest.mark.model
@pytest.mark.parametrize("text", ["😀", "漢字", "👩🏽‍🚀"])
def test_a_character_comes_only_when_it_is_whole(smol, text):
    token_ids = smol.encode(text)
    assert len(token_ids) > len(text), "the test needs characters of several tokens"
    shown = [part for part in pieces(smol, token_ids) if part]
    assert "".join(shown) == text
    assert all(character in text for part in shown for character in part)


@pytest.mark.model
@settings(max_examples=100, deadline=None)
@given(text=texts, marker=st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>"]))
def test_control_tokens_in_foreign_text_are_plain_text(smol, text, marker):
    control = smol.encode(marker, special_tokens=True)
    assert len(control) == 1
    quoted = f"{text}{marker}{text}"
    token_ids = smol.encode(quoted)
    assert not set(control) & set(token_ids)
    assert smol.decode(token_ids, skip_special_tokens=False) == quoted
    assert smol.encode_batch([quoted, text]) == [token_ids, smol.encode(text)]


@pytest.mark.model
def test_chat_is_what_transformers_renders(smollm2, smol):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2)
    question = {"role": "user", "content": "What is <b>é</b>?\n\n'quoted' {{ jinja }}"}
    conversations = [
        [question],
        [{"role": "system", "content": "Be brief."}, question],
        [question, {"role": "assistant", "content": "A letter."}, {"role": "user", "content": "Which?"}],
    ]
    for messages in conversations:
        for add in (True, False):
            expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
            rendered = smol.render_chat(messages, add_generation_prompt=add)
            assert rendered == expected
            assert smol.encode(rendered, special_tokens=True) == theirs(expected, add_special_tokens=False).input_ids


@pytest.fixture
def folder(tmp_path) -> Path:
    make_tokenizer(tmp_path)
    return tmp_path


def write(folder: Path, name: str, value: object) -> Path:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return folder


MESSAGES = [{"role": "user", "content": "hello"}]


def test_no_chat_template(folder):
    with pytest.raises(PromptError, match="no chat template"):
        Tokenizer(folder).render_chat(MESSAGES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}", "refuses"),
        ("{{ messages[0]['content'] + 5 }}", "refuses"),
        ("{{ messages[3]['content']['x'] }}", "refuses"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_a_template_that_refuses(folder, template, message):
    write(folder, "chat_template.jinja", template)
    with pytest.raises(PromptError, match=message):
        Tokenizer(folder).render_chat(MESSAGES)


def test_where_a_template_comes_from(folder):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}named"}]
    config = {"chat_template": named, "bos_token": {"content": "<s>"}}
    assert Tokenizer(write(folder, "tokenizer_config.json", config)).render_chat(MESSAGES) == "<s>named"
    loop = "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}{{ eos_token }}"
    write(folder, "chat_template.jinja", loop)
    assert Tokenizer(folder).render_chat(MESSAGES * 2) == "hello"


def test_a_template_has_what_transformers_gives_it(folder):
    from transformers.utils.chat_template_utils import render_jinja_template

    body = "  {% if true %}\n{{ m | tojson }} {{ m | tojson(indent=2) }}\n  {% endif %}\n"
    template = "{% for m in messages %}\n" + body + "{% endfor %}"
    messages = [{"role": "user", "content": "<é> & 'x'"}]
    ours = Tokenizer(write(folder, "chat_template.jinja", template)).render_chat(messages)
    theirs, _ = render_jinja_template([messages], chat_template=template)
    assert ours == theirs[0]
    clock = "{{ strftime_now('%Y') }}"
    assert Tokenizer(write(folder, "chat_template.jinja", clock)).render_chat(messages).isdigit()


def test_end_tokens(folder):
    assert Tokenizer(folder).eos_token_ids == frozenset()
    write(folder, "tokenizer_config.json", {"eos_token": {"content": "t7"}})
    assert Tokenizer(folder).eos_token_ids == {7}
    write(folder, "config.json", {"eos_token_id": 5})
    assert Tokenizer(folder).eos_token_ids == {5}
    write(folder, "generation_config.json", {"eos_token_id": None})
    assert Tokenizer(folder).eos_token_ids == {5}
    write(folder, "generation_config.json", {"eos_token_id": [3, 4]})
    assert Tokenizer(folder).eos_token_ids == {3, 4}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", ""),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"version": "1.0"}'),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", '"x"'),
        ("generation_config.json", '{"eos_token_id": "two"}'),
        ("config.json", "nonsense"),
    ],
)
def test_damaged_files_are_named(folder, name, content):
    write(folder, name, content)
    with pytest.raises(ModelFileError, match=name):
        Tokenizer(folder)


def test_files_that_are_not_text_are_named(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja"):
        Tokenizer(folder)


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path / "nowhere")


def test_truncation_and_padding_in_the_file_are_switched_off(folder):
    raw = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    raw.enable_truncation(3)
    raw.enable_padding(length=8)
    raw.save(str(folder / "tokenizer.json"))
    assert Tokenizer(folder).encode("t1 t2 t3 t4 t5") == [1, 2, 3, 4, 5]
    assert Tokenizer(folder).encode("t1") == [1]


def test_fingerprint_is_of_the_tokenizer_alone(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("copy")
    shutil.copy(folder / "tokenizer.json", other)
    write(other, "tokenizer_config.json", {"eos_token": "t1"})
    assert Tokenizer(folder).fingerprint == Tokenizer(other).fingerprint
    make_tokenizer(other, 50)
    assert Tokenizer(folder).fingerprint != Tokenizer(other).fingerprint


def naive_stop(text: str, stops: list[str]) -> str:
    """Add one character after the other; end when the text ends with a stop string, before the longest that fits."""
    for end in range(1, len(text) + 1):
        reached = [stop for stop in stops if text[:end].endswith(stop)]
        if reached:
            return text[: end - max(map(len, reached))]
    return text


@settings(max_examples=500, deadline=None)
@given(
    parts=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=3),
)
@example(parts=["abc", "d"], stops=["abcd", "bc"])
@example(parts=["abcd"], stops=["abcd", "bc"])
@example(parts=["ab", "", "abc"], stops=["abc"])
def test_stop_strings_equal_a_naive_reading(parts, stops):
    strings, shown, stopped = StopStrings(stops), "", False
    for part in parts:
        new, stopped = strings.push(part)
        shown += new
        if stopped:
            break
    shown += strings.flush()
    text = "".join(parts)
    assert shown == naive_stop(text, stops)
    assert stopped == any(stop in text for stop in stops)


@settings(max_examples=500, deadline=None)
@given(
    parts=st.lists(st.tuples(st.text(alphabet="abx", max_size=4), st.booleans()), max_size=12),
    stops=st.lists(st.text(alphabet="abx", min_size=1, max_size=5), max_size=3),
)
@example(parts=[("xab", False), ("x", True)], stops=["ab", "xabab"])
@example(parts=[("xab", False), ("", True)], stops=["ab", "xabab"])
def test_a_stop_string_counts_by_the_part_that_completes_it(parts, stops):
    strings, shown, stopped = StopStrings(stops), "", False
    text = ""
    for part, armed in parts:
        new, stopped = strings.push(part, armed=armed)
        shown, before, text = shown + new, len(text), text + part
        ends = range(before + 1, len(text) + 1) if armed else ()
        reached = next((end for end in ends if text[:end].endswith(tuple(stops))), None)
        assert stopped == (reached is not None)
        if reached is not None:
            longest = max(len(stop) for stop in stops if text[:reached].endswith(stop))
            assert shown == text[: reached - longest]
            return
    assert shown + strings.flush() == text


def test_only_what_could_become_a_stop_string_is_held_back():
    strings = StopStrings(["END"])
    assert strings.push("the E") == ("the ", False)
    assert strings.push("N") == ("", False)
    assert strings.push("E") == ("EN", False)
    assert strings.push("NDing") == ("", True)
    assert strings.flush() == ""
