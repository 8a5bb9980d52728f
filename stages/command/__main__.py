"""Predict with the trained models, plan a run, compare results.

vitlab predict pictures/
vitlab SUBCOMMAND --help
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stages.core.stage import InputError, stage
from stages.params.section import PARAMS

PACKAGE = Path(__file__).resolve().parents[1]


class Subcommand(NamedTuple):
    """`module` has a function `run_command(arguments, prog)`."""

    module: str
    summary: str


SUBCOMMANDS = {
    "predict": Subcommand("stages.segmentation.predict", "segment images: masks, overlays, class areas"),
    "classify": Subcommand("stages.classification.predict", "classify images: a CSV file of labels"),
    "caption": Subcommand("stages.captioning.caption_images", "caption images: one line each, or a CSV file"),
    "search": Subcommand("stages.retrieval.search", "find images by a sentence, or captions by an image"),
    "look": Subcommand("stages.attention.look", "plot attention for images, or position embeddings of ViTs"),
    "plan": Subcommand("stages.plan.__main__", "show what a run would download, compute and store"),
    "verify": Subcommand("stages.report.verify", "compare the results with the committed ones"),
    "compare": Subcommand("stages.compare.__main__", "compare the experiments of the last commit"),
}


def check_directory() -> None:
    """Raise `InputError` unless the current directory is the checkout that this code belongs to.

    Params and results are read from there. Where checkouts share a `.venv`, its `vitlab` is the code of one of them.
    """
    if not PARAMS.is_file():
        raise InputError(f"no {PARAMS} here; run it in the checkout: cd {PACKAGE.parent}")
    local = Path(PACKAGE.name)
    if local.is_dir() and not local.samefile(PACKAGE):
        raise InputError(
            f"this checkout has its own {local}, but vitlab runs {PACKAGE}; use: python -m stages.command ..."
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the subcommand that `arguments`, by default those of this process, name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        "vitlab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(title="subcommands", dest="name", metavar="SUBCOMMAND", required=True)
    for name, subcommand in SUBCOMMANDS.items():
        subparsers.add_parser(name, help=subcommand.summary, add_help=False)
    # Only the name: what follows belongs to the parser of the subcommand's own module.
    name = parser.parse_args(arguments[:1]).name
    with stage("vitlab", record=False):
        check_directory()
    # Imported only now, because torch takes seconds to import.
    module = importlib.import_module(SUBCOMMANDS[name].module)
    module.run_command(arguments[1:], f"{parser.prog} {name}")


if __name__ == "__main__":
    main()
