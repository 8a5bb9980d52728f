"""Models on the Hugging Face hub, in a cache of `huggingface_hub` under the downloads folder."""

import re
from collections.abc import Sequence
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stages.core.messages import hide_credentials
from stages.core.stage import InputError, first_line

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference
COMMIT = re.compile("[0-9a-f]{40}")
CLIENT_ERRORS = (
    HTTPError,
    OSError,
    ValueError,  # an answer that is not the hub's, such as the login page of a network
    RuntimeError,  # of hf_xet
)


def download_model(
    name: str, revision: str | None, downloads: Path, patterns: Sequence[str], weights: Sequence[str] = WEIGHTS
) -> tuple[Path, str]:
    """Return the folder with the files of a model that match `patterns` and the first of `weights`, and its commit.

    A commit (40 hex digits) in the cache is used without a request. If the hub does not answer, a branch or tag is the
    commit that was downloaded before. Raises `InputError` with one line.
    """
    if revision and COMMIT.fullmatch(revision):
        snapshot = cached_snapshot(name, revision, downloads, patterns, weights)
        if snapshot:
            return snapshot, snapshot.name
    page = hide_credentials(f"{constants.ENDPOINT}/{name}")
    try:
        snapshot = _download(name, revision, downloads, patterns, weights)
    except GatedRepoError as error:
        raise InputError(f"'{name}' is gated: accept its license on {page}, then run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise InputError(f"'{name}' has no revision '{revision}' on {page}") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"'{name}': no such model on {page}") from error
    except CLIENT_ERRORS as error:
        snapshot = cached_snapshot(name, revision, downloads, patterns, weights)
        if snapshot is None:
            includes = "".join(f" --include '{pattern}'" for pattern in [*patterns, *weights])
            command = f"hf download {name} --revision {revision or 'main'}{includes} --cache-dir {downloads / 'hub'}"
            raise InputError(
                f"'{name}' could not be downloaded ({hide_credentials(first_line(error))}): "
                f"run `{command}` on a machine with a network and copy that folder here"
            ) from error
        print(f"{name}: the hub does not answer; using commit {snapshot.name}, downloaded before")
    return snapshot, snapshot.name


def cached_snapshot(
    name: str, revision: str | None, downloads: Path, patterns: Sequence[str] = (), weights: Sequence[str] = ()
) -> Path | None:
    """Return the folder of a model in the cache, without a request; None if it lacks a file that is needed."""
    try:
        # The client knows the files of the commit, and raises if an interrupted download left out a match.
        snapshot = _snapshot(name, revision, downloads, patterns, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return None if _missing_files(snapshot, patterns, weights) else snapshot


def find_weights(folder: Path, weights: Sequence[str] = WEIGHTS) -> Path:
    """Return the first of `weights` in a model's folder; raise `InputError` if there is none."""
    for filename in weights:
        if (folder / filename).is_file():
            return folder / filename
    raise InputError(f"{folder} holds no {' or '.join(weights)}")


def _download(
    name: str, revision: str | None, downloads: Path, patterns: Sequence[str], weights: Sequence[str]
) -> Path:
    """Download what is missing of a model. Raises `InputError` if the model lacks a file, else as the client does."""
    # `snapshot_download` alone would silently fall back to the cache, and would take all files of weights.
    siblings = HfApi().model_info(name, revision=revision, timeout=30).siblings or []
    filenames = [sibling.rfilename for sibling in siblings]
    best_weights = [filename for filename in weights if filename in filenames][:1]
    snapshot = _snapshot(name, revision, downloads, [*patterns, *best_weights], local_files_only=False)
    missing = _missing_files(snapshot, patterns, weights)
    if missing:
        raise InputError(f"'{name}' on the hub has no {', no '.join(missing)}")
    return snapshot


def _snapshot(
    name: str, revision: str | None, downloads: Path, patterns: Sequence[str], local_files_only: bool
) -> Path:
    cache = downloads / "hub"
    folder = snapshot_download(
        name, revision=revision, cache_dir=cache, allow_patterns=list(patterns), local_files_only=local_files_only
    )
    # The client returns an absolute path; `downloads` may be relative, so that records are the same in every clone.
    return cache / Path(folder).relative_to(cache.resolve())


def _missing_files(snapshot: Path, patterns: Sequence[str], weights: Sequence[str]) -> list[str]:
    named = [pattern for pattern in patterns if "*" not in pattern]
    missing = [filename for filename in named if not (snapshot / filename).is_file()]
    if weights and not any((snapshot / filename).is_file() for filename in weights):
        missing.append(" or ".join(weights))
    return missing


def cache_folder(name: str, downloads: Path) -> Path:
    """Return the folder of all cached commits of a model."""
    return downloads / "hub" / f"models--{name.replace('/', '--')}"
