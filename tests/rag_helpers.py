"""What the tests of rag share: a byte tokenizer with a chat format, a tiny random model, and a way to run the CLI."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from engine.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LIGHTHOUSE = "The lighthouse of Orrin was built in 1874. Its lamp is lit every evening by Mara Venn."
HARBOUR = "The harbour of Orrin freezes in January. Ships wait for the ice to break in the bay of Tull."


def make_tokenizer(folder: Path, template: str = CHATML) -> Tokenizer:
    """A byte tokenizer with the control tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = ByteLevel()
    fast.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


def make_chat_model(folder: Path, *, max_position_embeddings: int = 4096, layers: int = 2) -> Path:
    """A tiny random Llama that reads bytes; what it writes is noise, where it reads is real."""
    import torch
    from safetensors.torch import save_file

    make_tokenizer(folder)
    torch.manual_seed(0)
    hidden, inner, vocabulary = 32, 48, 258
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in (f"model.layers.{number}." for number in range(layers)):
        shapes |= {f"{layer}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (hidden // 2, hidden) for name in "kv"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (hidden, inner)}
    tensors = {name: torch.ones(s) if len(s) == 1 else 0.1 * torch.randn(s) for name, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Stderr as running text, without the frame that usage errors are drawn in."""
        return " ".join("".join(" " if c in "│╭╮╰╯─" else c for c in self.err).split())


def run_cli(capsys: pytest.CaptureFixture[str], arguments: Sequence[str | Path]) -> Ran:
    """Run `rag` in this process."""
    from rag.cli.main import main

    root = logging.getLogger()
    handlers, level, argv = list(root.handlers), root.level, sys.argv
    sys.argv = ["rag", *map(str, arguments)]
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
    captured = capsys.readouterr()
    return Ran(code, captured.out, captured.err)
