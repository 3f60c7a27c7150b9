"""An output to the hub, by huggingface_hub. No torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lawa.checkpoints import hub
from lawa.errors import LawaError, UsageError, require

# What an average that was there before may have had, and whoever loads the repo might still take.
_OLDER = ["*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "weights/*"]


def check(repo: str) -> None:
    """Raise UsageError for what is not ORG/NAME, and LawaError where nobody is logged in. Asks nobody."""
    named = hub.parse(repo)
    if named is None or named.revision is not None:
        raise UsageError(f"push_to_hub={repo!r} must be ORG/NAME, the name of a model on the hub")
    if _client().get_token() is None:
        raise LawaError(f"nobody is logged in to the hub, to upload to {repo}; log in (hf auth login), or set HF_TOKEN")


def reserve(repo: str, *, private: bool | None = None) -> None:
    """Make the model ORG/NAME where there is none, `private` or not; LawaError where the hub refuses."""
    client = _client().HfApi()
    with _sentences(
        lambda why: (
            f"{repo} cannot be made on the hub ({why}); may you write there? Log in (hf auth login), or name "
            "another --push-to-hub"
        )
    ):
        client.create_repo(repo, private=private, exist_ok=True)


def push(directory: Path, repo: str, *, branch: str | None = None, title: str) -> str:
    """Upload every file of the published `directory` to the model ORG/NAME in one commit; the commit's address.

    Weights that were there before and are not among them are removed.

    branch  made where there is none; default: main

    Raises LawaError where huggingface_hub is not installed, and for whatever the hub refuses; `directory` stays.
    """
    client = _client().HfApi()
    with _sentences(
        lambda why: (
            f"{directory} is whole, and was not uploaded to {repo} ({why}); are you logged in (hf auth login) "
            f"and may you write there? Then: hf upload {repo} {directory}"
        )
    ):
        if branch is not None:
            client.create_branch(repo, branch=branch, exist_ok=True)
        done = client.upload_folder(
            repo_id=repo, folder_path=directory, revision=branch, commit_message=title, delete_patterns=_OLDER
        )
    return str(done.commit_url)


@contextmanager
def _sentences(refused: Callable[[str], str]) -> Iterator[None]:
    """What the hub, or the way to it, raises as a sentence that says why."""
    errors: Any = importlib.import_module("huggingface_hub.errors")
    known = (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalTokenNotFoundError, OSError)
    try:
        yield
    except Exception as failed:
        if not isinstance(failed, known) and not type(failed).__module__.startswith("httpx"):
            raise
        why = str(failed).strip().partition("\n")[0][:200] or type(failed).__name__
        raise LawaError(refused(why)) from None


def _client() -> Any:
    return require("huggingface_hub", extra="hub")
