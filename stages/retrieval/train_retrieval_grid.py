"""Stage `train_retrieval_grid`: the runs of Table 5, one per row of `retrieval.grid`."""

import argparse

from stages.core.stage import stage
from stages.params.experiment import load_experiment
from stages.retrieval.runs import train_and_record

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage("train_retrieval_grid"):
        train_and_record("retrieval_grid", "train_retrieval_grid", load_experiment().retrieval.grid)
