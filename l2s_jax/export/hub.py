"""A finished folder onto the Hugging Face Hub.

Lives here: the name of the repository, the upload. Not here: the folder (`export/hf.py`), logging
in: who may write is decided by the Hub's own login (`hf auth login`, HF_TOKEN), which this never
reads.
"""

import pathlib

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
"""What an earlier export may have left in the repository: two sets of weights are one too many."""


def check_repository(repo: str) -> None:
    """Refuses a name that the Hub would refuse, before anything is written."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--push {repo}: {error} Give owner/name.") from None
    if "/" not in repo:
        raise ValueError(f"--push {repo}: whose? Give owner/name.")


def address(repo: str) -> str:
    """Where a repository is."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def push_folder(folder: pathlib.Path, repo: str) -> None:
    """Uploads a finished folder as one commit; a repeated upload sends what is missing.

    One commit, and therefore `create_commit`: `upload_folder` may cut a slow upload into several,
    between which others would download half a model.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        adds = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        stale = _stale(api.list_repo_files(repo), {add.path_in_repo for add in adds})
        api.create_commit(repo, operations=[*stale, *adds], commit_message="Export by l2s_jax")
    except Exception as error:  # whatever went wrong over there, here the folder is complete
        raise ValueError(
            f"--push {repo}: the upload failed ({type(error).__name__}: {error}). The folder"
            f" {folder} is complete; log in with `hf auth login` if that is what is missing, and"
            f' run `hf upload {repo} {folder} . --delete "model*.safetensors*"`.'
        ) from error


def _stale(there: list[str], ours: set[str]) -> list:
    """Deletions of weights that an earlier export left and this one does not replace."""
    from huggingface_hub import CommitOperationDelete

    old = [name for name in there if any(pathlib.PurePath(name).match(kind) for kind in WEIGHTS)]
    return [CommitOperationDelete(name) for name in old if name not in ours and "/" not in name]
