"""Where compilers keep what they made: with rayqd's other caches, so that the next run finds it."""

from __future__ import annotations

import os

from rayqd.model.source import cache_dir

# By variable, the directory in rayqd's cache. torch's own default is in /tmp, which a restart empties.
_DIRECTORIES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "VLLM_CACHE_ROOT": "vllm",
}


def keep_compiled_code() -> None:
    """Have this process's compilers use those directories, unless its environment names others.

    To be called before anything is compiled, and before vLLM is imported.
    """
    for variable, name in _DIRECTORIES.items():
        os.environ.setdefault(variable, str(cache_dir() / "compiled" / name))
