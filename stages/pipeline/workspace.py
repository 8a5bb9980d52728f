"""A copy of the pipeline in a folder of its own: its code as it is now, without data, results and runs."""

import os
import shutil
import sys
from pathlib import Path

# What `dvc repro` reads. Copied, not cloned: changes that are not committed come along, and a zip has no git.
CODE = ("stages", "dvc.yaml", "params.yaml", ".dvc/config", ".dvc/plots", ".dvc/.gitignore", ".dvcignore", ".gitignore")
# With the lock, DVC takes the shipped checkpoints as finished. The user's own images, next to the first README, stay
# where they are. With the second, the report's stage finds the folder also if no backbones are compared.
DATA = ("dvc.lock", "data/checkpoints", "data/folder/README.md", "reports/runs/backbones/README.md")
IGNORED = shutil.ignore_patterns("__pycache__", "*.tmp")


def copy_pipeline(source: Path, target: Path) -> None:
    """Copy the pipeline to the folder `target`, which DVC then uses without git. What `source` lacks is left out."""
    for name in CODE + DATA:
        path = source / name
        copied = target / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copied, ignore=IGNORED)
        elif path.exists():
            shutil.copy(path, copied)
    (target / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")


def clean_environment() -> dict[str, str]:
    """This process's environment with its Python first, and without what leads DVC, MLflow or git out of the copy.

    Such as the address of a shared MLflow server, which must not get these runs.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["DVC_NO_ANALYTICS"] = "1"
    return environment
