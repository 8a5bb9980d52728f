"""Stage `train_retrieval`: the runs of Table 4. BLIP's projections as provided, trained from scratch, and finetuned."""

import argparse

from stages.core.stage import stage
from stages.params.experiment import load_experiment
from stages.params.retrieval import GridRow
from stages.retrieval.runs import train_and_record

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage("train_retrieval"):
        task = load_experiment().retrieval
        scratch = GridRow(init="scratch", **task.recipe.model_dump())
        finetuned = GridRow(init="provided", **task.finetune.model_dump())
        train_and_record("retrieval", "train_retrieval", {"provided": None, "scratch": scratch, "finetuned": finetuned})
