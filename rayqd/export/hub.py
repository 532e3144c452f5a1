"""An export as a repository on a model hub, uploaded by huggingface_hub, which finds the token and keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from rayqd.errors import ConfigError, StorageError
from rayqd.export.destination import check_export


def check_push(repo_id: str) -> None:
    """Raise ConfigError at a name that no repository can have, or without a token; StorageError where it is refused.

    To be asked before anything is loaded: it tells what an upload would find out at the very end.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"flag --push={repo_id}: must be NAME or OWNER/NAME, as a model hub calls it") from error
    if get_token() is None:
        raise ConfigError(
            f"flag --push={repo_id}: there is no token for the hub: run `hf auth login`, or set HF_TOKEN to one that "
            "may write"
        )
    with _in_one_line(repo_id):
        HfApi().whoami()


def push(directory: Path, repo_id: str, *, is_private: bool = True) -> str:
    """Upload the files of an export, its card included, as one commit; returns the repository's address.

    A repository that is not there is made, private unless told; one that is there keeps who may see it. Raises
    StorageError where the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    check_export(directory)
    api = HfApi()
    with _in_one_line(repo_id):
        url = api.create_repo(repo_id, private=is_private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=directory, commit_message="Upload 4-bit model", repo_type="model"
        )
    return str(url)


@contextmanager
def _in_one_line(repo_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into StorageError, without the request, which holds the token."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = (base for base in HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "OSError"))
    unreachable = cast("tuple[type[Exception], ...]", tuple(bases))
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise StorageError(
                f"the hub does not let this token write {repo_id} ({status}): use one that may write there, or another "
                "name"
            ) from None
        raise StorageError(f"the hub did not take {repo_id} ({status}); the export stays where it is") from None
    except unreachable as error:
        raise StorageError(
            f"the hub could not be reached for {repo_id} ({type(error).__name__}): check the network; the export stays "
            "where it is"
        ) from None
