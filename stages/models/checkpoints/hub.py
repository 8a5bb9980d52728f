"""Models on the Hugging Face hub, each commit of one in a folder of its own."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from stages.core.atomic import write_text
from stages.core.stage import InputError, first_line

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that a model has
PARTIAL = "partial.txt"  # in a folder while it is filled
COMMIT = re.compile("[0-9a-f]{40}")


def download_model(
    name: str, revision: str | None, downloads: Path, wanted: Sequence[str], weights: Sequence[str] = WEIGHTS
) -> tuple[Path, str]:
    """A folder with the files of `name` that match the patterns `wanted`, and the first of `weights`; and its commit.

    What was brought before is used without asking where `revision` is a commit, and where the hub does not answer.
    Raises `InputError` with one line.
    """
    repository, asked = downloads / "hub" / name.replace("/", "--"), revision or "main"
    last = repository / f"{asked.replace('/', '--')}.txt"  # the commit that a branch or a tag was
    commit = last.read_text().strip() if last.is_file() else asked
    kept = repository / commit
    there = _is_whole(kept, wanted, weights)
    if there and COMMIT.fullmatch(asked):
        return kept, asked
    try:
        info = HfApi().model_info(name, revision=revision, timeout=30)
        needed = _needed(name, [one.rfilename for one in info.siblings], wanted, weights)
        folder = repository / info.sha
        write_text(folder / PARTIAL, "downloading\n")
        snapshot_download(name, revision=info.sha, local_dir=folder, allow_patterns=needed)
        lost = [one for one in needed if not (folder / one).is_file()]  # the client may give up without a word
        if lost:
            raise OSError(f"{', '.join(lost)} did not arrive")
    except GatedRepoError as fault:
        raise InputError(f"'{name}' wants its license accepted on {_page(name)}, then `hf auth login`") from fault
    except RevisionNotFoundError as fault:
        raise InputError(f"'{name}' has no revision '{asked}' on {_page(name)}") from fault
    except RepositoryNotFoundError as fault:
        raise InputError(f"'{name}': no such model on {_page(name)}") from fault
    except (
        HTTPError,
        OSError,
        RuntimeError,
        ValueError,
    ) as fault:  # the last two: hf_xet's, and an answer's that is none
        if there:
            print(f"{name}: the hub does not answer; used as it was brought before, at {commit}")
            return kept, commit
        parts = ", ".join([*([" or ".join(weights)] if weights else []), *wanted])
        raise InputError(
            f"'{name}' could not be fetched ({first_line(fault)}): download {parts} of {_page(name)} at revision "
            f"{asked} where there is a network, and put them into {repository / asked.replace('/', '--')}"
        ) from fault
    (folder / PARTIAL).unlink()
    if not COMMIT.fullmatch(asked):
        write_text(last, f"{info.sha}\n")
    return folder, info.sha


def find_weights(folder: Path, weights: Sequence[str] = WEIGHTS) -> Path:
    """The file of weights in a model's folder, the first of `weights`; raises `InputError` for none."""
    for name in weights:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} holds no {' or '.join(weights)}")


def _needed(name: str, files: list[str], wanted: Sequence[str], weights: Sequence[str]) -> list[str]:
    """Which of a model's files to bring; raises `InputError` where it lacks one."""
    chosen = next(([one] for one in weights if one in files), [])
    if weights and not chosen:
        raise InputError(f"'{name}' on the hub has no {' or '.join(weights)}")
    for one in wanted:
        if "*" not in one and one not in files:
            raise InputError(f"'{name}' on the hub has no {one}")
    return chosen + [file for file in files if any(fnmatch(file, one) for one in wanted)]


def _is_whole(folder: Path, wanted: Sequence[str], weights: Sequence[str]) -> bool:
    """Whether all that is asked for is there, by whatever hand."""
    if not folder.is_dir() or (folder / PARTIAL).exists():
        return False
    files = [file.name for file in folder.iterdir()]
    named = all(one in files for one in wanted if "*" not in one)
    return named and (not weights or any(one in files for one in weights))


def _page(name: str) -> str:
    return f"{constants.ENDPOINT}/{name}"
