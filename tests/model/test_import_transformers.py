"""What a role imports is what it uses, and everybody else's imports stay as they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from rayqd.model.import_transformers import import_transformers
import_transformers()
from rayqd.model.load import load_model
from transformers.models.llama.modeling_llama import LlamaForCausalLM
print(sorted({"sklearn", "scipy", "torchao"} & set(sys.modules)))
from transformers.utils import is_sklearn_available, is_torchao_available
import sklearn.metrics, torchao
print(is_sklearn_available(), is_torchao_available())
"""

PEFT = """
import sys
from rayqd.model.import_transformers import import_peft, import_transformers
import_transformers()
import_peft()
from rayqd.model.qat_lora import QATLoraLinear
print(sorted({"bitsandbytes", "torch._inductor.compile_fx"} & set(sys.modules)))
import bitsandbytes
print(bitsandbytes.nn.Linear4bit.__name__)
"""

EXPORT = """
import sys
from rayqd.model.import_transformers import import_compressed_tensors, import_transformers
import_transformers()
import_compressed_tensors()
import torch
from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA
print("torch._inductor.compile_fx" in sys.modules, torch.compile.__module__)
print(FP4_E2M1_DATA.cast_to_fp4(torch.tensor([0.3, -1.3, 2.6, 7.0])).tolist())
"""


@pytest.mark.slow
def test_models_load_without_libraries_that_others_still_have() -> None:
    pytest.importorskip("torchao")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True True"]


@pytest.mark.slow
def test_adapters_are_made_without_a_library_that_others_still_have() -> None:
    pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PEFT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "Linear4bit"]


@pytest.mark.slow
def test_exports_are_read_without_a_compiler_that_others_still_have() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", EXPORT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "False torch",
        "[0.5, -1.5, 3.0, 6.0]",
    ]  # 0.3, -1.3, 2.6, 7 to the nearest of FP4
