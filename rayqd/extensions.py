"""Code from outside of rayqd, named in a setting by its import path: `package.module:name`.

The module is looked for where Python looks, and in the working directory. Ray's workers look where the driver does; on
another machine the module must be installed, or lie under the same path.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rayqd.errors import ConfigError

IMPORT_PATH = r"^([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)$"  # the pattern of a setting that takes one
_IMPORT_PATH = re.compile(IMPORT_PATH)


def is_import_path(text: str) -> bool:
    """Return whether `text` has the form `package.module:name`, which no file name or URL of ours has."""
    return _IMPORT_PATH.fullmatch(text) is not None


def load_extension(path: str, setting: str) -> Callable[..., Any]:
    """Import the callable that `path` names, the value of `setting`; raise ConfigError, in one line, if that fails."""
    match = _IMPORT_PATH.fullmatch(path)
    if match is None:
        raise ConfigError(f"{setting}={path} is no import path: write package.module:name, with one colon")
    module, name = _import(match[1], f"{setting}={path}"), match[2]
    if not hasattr(module, name):
        raise ConfigError(f"{setting}={path}: {module.__name__} has no {name}{_suggestion(module, name)}")
    extension = getattr(module, name)
    if not callable(extension):
        raise ConfigError(f"{setting}={path} is of type {type(extension).__name__}, which cannot be called")
    return extension


def check_signature(
    extension: Callable[..., Any], path: str, setting: str, arguments: Sequence[str], keywords: Sequence[str] = ()
) -> None:
    """Raise ConfigError unless `extension` can be called with these positional `arguments` and `keywords`."""
    try:
        signature = inspect.signature(extension)
    except ValueError:  # some functions written in C have none that Python knows of
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        call = ", ".join([*arguments, *(f"{keyword}=..." for keyword in keywords)])
        name = path.rpartition(":")[2]
        raise ConfigError(f"{setting}={path} is called as {name}({call}), but {error}: it has {signature}") from None


def source_digest(extension: Callable[..., Any]) -> str | None:
    """Return the SHA-256 of the file that defines `extension`, in hexadecimal; None where there is no such file."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(extension))
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
    except (TypeError, OSError):
        return None


def _import(name: str, said: str) -> ModuleType:
    """Import module `name`; `said` begins the message of what goes wrong."""
    here = str(Path.cwd())
    if here not in sys.path:  # a console script's directory is there instead; last, so that nothing is shadowed
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f"{said}: there is no module {missing}: install it, or put its directory on PYTHONPATH"
            ) from None
        raise ConfigError(f"{said}: {name} imports {missing or error}, which is not installed") from error
    except Exception as error:  # somebody else's code may raise anything
        reason = " ".join(str(error).split())
        raise ConfigError(f"{said}: importing {name} raises {type(error).__name__}: {reason}") from error


def _suggestion(module: ModuleType, name: str) -> str:
    public = [known for known, value in vars(module).items() if not known.startswith("_") and callable(value)]
    nearest = difflib.get_close_matches(name, public, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
