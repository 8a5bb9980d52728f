"""Stage `check_params`: validate all of `params.yaml`. The output is always the same, for stages that depend on it."""

from pathlib import Path

from stages.core.atomic import write_text
from stages.core.stage import stage
from stages.params.experiment import load_experiment
from stages.params.section import PARAMS

OUTPUT = Path("data/valid_params.txt")


def main() -> None:
    load_experiment()
    write_text(OUTPUT, f"{PARAMS} is valid\n")
    print(f"{PARAMS} is valid")


if __name__ == "__main__":
    with stage("check_params", record=False):
        main()
