"""Uploading an export to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import HFValidationError, validate_repo_id

# Answers of the hub, and no answer: the errors of the library's own HTTP client have no base that is documented.
_REFUSALS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    *(kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind is not Exception),
)


def check_name(name: str) -> None:
    """ValueError if ``name`` is not ``owner/name``, before hours of work are lost on it."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"push={name}: {error}") from error
    if "/" not in name:
        raise ValueError(f"push={name}: give the owner too, owner/name")


def push(folder: Path, name: str, *, private: bool, dry_run: bool) -> str:
    """Upload the files of ``folder`` as ``name``, in one commit. A new repository is made ``private`` or public.

    Returns:
        The address of the model, or with ``dry_run`` the files with their sizes.

    Raises:
        ValueError: the hub refuses (no token, no right to write, no connection).
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if dry_run:
        lines = [f"  {path.relative_to(folder)!s:<40} {path.stat().st_size / 2**20:>10.2f} MiB" for path in files]
        return "\n".join([f"would be uploaded to {name} ({'private' if private else 'public'} if new):", *lines])
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of qa-train")
    except _REFUSALS as error:
        told = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{folder} is complete, but the hub refused it ({told}): run `hf auth login` with a write "
            f"token, then `hf upload {name} {folder}`"
        ) from error
    return f"uploaded to {name}"
