"""A language model small enough to make on the spot, and rollouts for it."""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # nothing here is large, and pytest-xdist keeps the cores busy
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["RAY_AUTH_MODE"] = "disabled"  # read once a process; else it depends on whether this machine has a token
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of an example's
settings.load_profile("untimed")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest and mostly waits, so that what is short fills the cores until the end."""
    weights = {"ray": 4, "vllm": 2, "slow": 1}
    items.sort(key=lambda item: -sum(weights.get(mark.name, 0) for mark in item.iter_markers()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the run cost, its processes included: on a busy machine the wall time says little."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in used)
    terminalreporter.write_line(f"{seconds:.0f} s of CPU time, without what Ray's daemons started")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End without the interpreter's own end where engines ran: once, after Ray and vLLM in one process, it crashed.

    Everything is reported by now. vLLM and Ray run in processes of their own outside the tests.
    """
    status = getattr(config, "rayqd_exit_status", None)
    if status is not None and "vllm" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the status for `pytest_unconfigure`; xdist's workers end as ever, since they report it by themselves."""
    if not hasattr(session.config, "workerinput"):
        session.config.rayqd_exit_status = int(exitstatus)  # pyright: ignore[reportAttributeAccessIssue]


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama, 128 wide, with a character tokenizer, as a checkpoint directory."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tiny-model")
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    special = ["<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<unk>", *special, *characters])}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=special,
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4)  # a random model this small is all but uniform otherwise
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty prompts and answers."""
    file = tmp_path_factory.mktemp("tiny-data") / "rows.jsonl"
    rows = [{"prompt": f"Say {chr(97 + i % 26) * 5}!", "completion": f"{chr(97 + i % 26) * 9} {i}."} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def tiny_config(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Any:
    """A function that makes a Config for the tiny model; keywords are sections."""
    from rayqd.config import Config

    def make(**sections: Any) -> Config:
        base: dict[str, Any] = {
            "name": "tiny",
            "runs_dir": tmp_path / "runs",
            "model": {"name": str(tiny_model)},
            "quant": {"group_size": 64, "init": "rtn"},
            "adapter": {"rank": 4},
            "data": {"source": str(tiny_data), "max_length": 128, "min_room": 8},
            "eval": {"num_rows": 4},
            "distill": {"lmbda": 0.5, "beta": 0.5},
            "rollout": {"min_new_tokens": 4, "max_new_tokens": 12, "max_concurrent": 8},
            "learner": {"steps": 4, "batch_size": 4, "lr": 1e-3},
            "checkpoint": {"every": 2},
        }
        for key, value in sections.items():
            base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
        return Config.model_validate(base)

    return make


@pytest.fixture(scope="session")
def make_rollouts() -> Any:
    """A function that makes random rollouts of the given (prompt, completion) lengths."""
    from rayqd.types import Rollout

    def make(*lengths: tuple[int, int], vocab_size: int = 128, seed: int = 0) -> list[Rollout]:
        random = np.random.default_rng(seed)
        return [
            Rollout(
                step=0,
                index=i,
                on_policy=False,
                prompt_ids=random.integers(3, vocab_size, p, dtype=np.int32),
                completion_ids=random.integers(3, vocab_size, c, dtype=np.int32),
                policy_version=None,
            )
            for i, (p, c) in enumerate(lengths)
        ]

    return make
