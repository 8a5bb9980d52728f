"""Stage `train_retrieval`: Table 4, the provided projections judged, others trained from scratch and finetuned."""

import argparse

from stages.core.stage import stage
from stages.params.experiment import load_experiment
from stages.params.retrieval import Row
from stages.retrieval.runs import run_all

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage("train_retrieval"):
        task = load_experiment().retrieval
        scratch = Row(init="scratch", **task.recipe.model_dump())
        finetuned = Row(init="provided", **task.finetune.model_dump())
        run_all("retrieval", "train_retrieval", {"provided": None, "scratch": scratch, "finetuned": finetuned})
