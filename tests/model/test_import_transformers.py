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


@pytest.mark.slow
def test_models_load_without_libraries_that_others_still_have() -> None:
    pytest.importorskip("torchao")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True True"]
