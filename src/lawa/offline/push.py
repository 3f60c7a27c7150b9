"""An output to the hub, by huggingface_hub. No torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lawa.errors import LawaError, require


def push(directory: Path, repo: str, *, branch: str | None = None, private: bool | None = None, title: str) -> str:
    """Upload every file of the published `directory` to the model ORG/NAME in one commit; the commit's address.

    branch   made where there is none; default: main
    private  a repo that has to be made is

    Raises LawaError where huggingface_hub is not installed, and for whatever the hub refuses; `directory` stays.
    """
    hub: Any = require("huggingface_hub", extra="hub")
    errors: Any = importlib.import_module("huggingface_hub.errors")
    client = hub.HfApi()
    try:
        client.create_repo(repo, private=private, exist_ok=True)
        if branch is not None:
            client.create_branch(repo, branch=branch, exist_ok=True)
        done = client.upload_folder(repo_id=repo, folder_path=directory, revision=branch, commit_message=title)
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalTokenNotFoundError, OSError) as failed:
        raise _refused(directory, repo, failed) from None
    except Exception as failed:
        if not type(failed).__module__.startswith("httpx"):
            raise
        raise _refused(directory, repo, failed) from None
    return str(done.commit_url)


def _refused(directory: Path, repo: str, failed: Exception) -> LawaError:
    why = str(failed).strip().partition("\n")[0][:200] or type(failed).__name__
    return LawaError(
        f"{directory} is whole, and was not uploaded to {repo} ({why}); are you logged in (hf auth login) and may you "
        f"write there? Then: hf upload {repo} {directory}"
    )
