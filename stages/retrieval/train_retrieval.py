"""Stage `train_retrieval`: the runs of Table 4. BLIP's projections as provided, trained from scratch, and finetuned."""

import argparse

from stages.core.stage import stage
from stages.params.experiment import load_experiment
from stages.retrieval.runs import train_and_record

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage("train_retrieval"):
        train_and_record("retrieval", "train_retrieval", load_experiment().retrieval.table4)
