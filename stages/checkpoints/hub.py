"""Models on the Hugging Face hub, each brought to a folder of its own at one revision."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from stages.stage import InputError
from stages.writing import write_text

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that a model has
MARK = "revision.txt"  # in a folder that is whole: what was asked for, and the commit that it was


def fetch_model(
    name: str, revision: str | None, downloads: Path, wanted: Sequence[str], weights: Sequence[str] = WEIGHTS
) -> tuple[Path, str]:
    """A folder with the files of `name` that match the patterns `wanted`, and the first of `weights`; and its commit.

    What was brought before is used without asking where `revision` is a commit, and where the hub does not answer.
    Raises `InputError` with one line.
    """
    folder, asked = downloads / "hub" / name.replace("/", "--"), revision or "main"
    before, commit = _kept(folder)
    if commit == asked:
        return folder, commit
    try:
        info = HfApi().model_info(name, revision=revision, timeout=30)
        files = [one.rfilename for one in info.siblings]
        chosen = next(([one] for one in weights if one in files), [])
        if weights and not chosen:
            raise InputError(f"'{name}' on the hub has no {' or '.join(weights)}")
        needed = chosen + [one for one in files if any(fnmatch(one, pattern) for pattern in wanted)]
        snapshot_download(name, revision=info.sha, local_dir=folder, allow_patterns=needed)
    except GatedRepoError as fault:
        raise InputError(f"'{name}' wants its licence accepted on {_page(name)}, then `hf auth login`") from fault
    except RevisionNotFoundError as fault:
        raise InputError(f"'{name}' has no revision '{asked}' on {_page(name)}") from fault
    except RepositoryNotFoundError as fault:
        raise InputError(f"'{name}': no such model on {_page(name)}") from fault
    except (HTTPError, OSError) as fault:
        if before == asked:
            print(f"{name}: the hub does not answer; used as it was brought before, at {commit}")
            return folder, commit
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        parts = ", ".join([" or ".join(weights), *wanted]) if weights else ", ".join(wanted)
        raise InputError(
            f"'{name}' could not be fetched ({reason}): download {parts} of {_page(name)} at revision {asked} where "
            f"there is a network, put them into {folder}, and '{asked} COMMIT' into {MARK} beside them"
        ) from fault
    write_text(folder / MARK, f"{asked} {info.sha}\n")
    return folder, info.sha


def weights_in(folder: Path) -> Path:
    """The file of weights in a model's folder; raises `InputError` for none."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} holds no {' or '.join(WEIGHTS)}")


def _kept(folder: Path) -> tuple[str | None, str | None]:
    """What was asked for when the folder was filled, and the commit."""
    mark = folder / MARK
    asked, _, commit = mark.read_text().strip().partition(" ") if mark.is_file() else ("", "", "")
    return asked or None, commit or None


def _page(name: str) -> str:
    return f"{constants.ENDPOINT}/{name}"
