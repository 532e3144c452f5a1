"""What a trial's process runs. What is large is imported here, once, by the process that others are forked of."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import AutoConfig

from rayqd.survey.architectures import causal_architectures, class_name, default_config
from rayqd.survey.row import Row, Verdict
from rayqd.survey.trial import run_trial


def write_row(name: str, scratch: Path, file: Path) -> None:
    """Try the architecture, or the directory, called `name` and write its row to `file`."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(null, stream.fileno())
    torch.set_num_threads(1)
    is_type = name in causal_architectures()
    row = Row(architecture=name, class_name=class_name(name) if is_type else "", verdict=Verdict.FAILED)
    run_trial(lambda: default_config(name) if is_type else AutoConfig.from_pretrained(name), row, scratch).write(file)
