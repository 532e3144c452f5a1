"""A checkpoint of a known shape with random weights and a tokenizer of its own, made once a machine.

    python -m rayqd.bench.head_to_head.random_checkpoint SHAPE DTYPE DIRECTORY

A process of its own makes it: on a GPU, whose memory is free again before anything is measured.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rayqd.errors import ModelError
from rayqd.files import replace_directory
from rayqd.model.source import cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def random_checkpoint(shape: str, dtype: str) -> Path:
    """Return the directory of the checkpoint, in the cache. Raises ModelError with the last line of what went wrong."""
    target = cache_dir() / "models" / f"random-{shape}-{dtype}"
    if not target.exists():
        command = [sys.executable, "-m", __name__, shape, dtype, str(target)]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if made.returncode:
            raise ModelError(f"no random {shape} was made: {made.stdout.strip().rpartition(chr(10))[2]}")
    return target


def write_random_checkpoint(shape: str, dtype: str, directory: Path) -> None:
    """Write a model of one of SHAPES to `directory`, unless another process does so first."""
    from rayqd.bench.shapes import SHAPES, random_model

    model = random_model(shape, dtype)
    tokenizer = byte_tokenizer(SHAPES[shape].vocab_size)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    with replace_directory(directory, concurrent=True) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte, whose other ids stand for words that no text has.

    A random model writes all ids, and each can be decoded.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"word{number}" for number in range(len(words), vocab_size)]
    core = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = _CHATML
    return tokenizer


if __name__ == "__main__":
    write_random_checkpoint(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
