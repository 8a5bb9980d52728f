"""Every row of a table is trained with every seed, and each run has a record, weights and predictions of its own."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from stages.core.runs import read_run
from stages.core.stage import InputError
from stages.params.experiment import load_experiment
from stages.params.retrieval import GridRow
from stages.retrieval import runs
from stages.retrieval.dataset import ValPairs
from stages.retrieval.projections import Projections
from stages.retrieval.search import find_weights
from stages.retrieval.training import TrainPairs

PAIRS = 30
TRAINING = {"weight_decay": 0.0, "temperature": 0.1, "epochs": 2, "batch_size": 8}
ROWS = {
    "provided": None,
    "scratch": GridRow(init="scratch", lr=0.01, **TRAINING),
    "finetuned": GridRow(init="provided", lr=0.001, **TRAINING),
}


class RandomData:
    """The interface of `RetrievalData` on random states in float64, with provided projections of its own."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        texts = torch.randn(PAIRS, 6, generator=generator, dtype=torch.float64)
        images = texts @ torch.randn(6, 10, generator=generator, dtype=torch.float64)
        image_ids = [f"val_{index}" for index in range(PAIRS)]
        self.pairs = TrainPairs(images[None], texts)
        self.val = ValPairs(image_ids, [f"caption {index}" for index in range(PAIRS)], images, texts)
        self.metadata = dict.fromkeys(runs.INPUTS, "x")

    def provided_projections(self):
        return self.random_projections(0)

    def random_projections(self, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Projections(10, 6, 4).double()


@pytest.fixture
def train_with(tmp_path, monkeypatch):
    """Train the rows with the given seeds, in an empty folder."""
    experiment = load_experiment(ROOT / "params.yaml")
    compute = experiment.compute.model_copy(update={"live": False})
    experiment = experiment.model_copy(update={"compute": compute})
    monkeypatch.setattr(runs, "RetrievalData", lambda experiment, manifest: RandomData())
    monkeypatch.setattr(runs.manifests, "read_manifest", lambda: None)

    def run(seeds, rows=ROWS):
        folder = tmp_path / "-".join(map(str, seeds))
        folder.mkdir()
        monkeypatch.chdir(folder)
        retrieval = experiment.retrieval.model_copy(update={"seeds": seeds})
        changed = experiment.model_copy(update={"retrieval": retrieval})
        monkeypatch.setattr(runs, "load_experiment", lambda: changed)
        runs.train_and_record("retrieval", "train_retrieval", rows)
        return folder

    return run


def weights(folder, key):
    return load_file(folder / f"data/models/retrieval/{key}.safetensors")


def test_every_run_has_files_of_its_own(train_with):
    folder = train_with([1, 5])
    keys = {"provided", "scratch-seed1", "scratch-seed5", "finetuned-seed1", "finetuned-seed5"}
    for pattern in ("reports/runs/retrieval/*", "data/models/retrieval/*", "data/predictions/retrieval/*"):
        assert {path.stem for path in folder.glob(pattern)} == keys
    for key in keys:
        run = read_run("retrieval", key)
        assert run.key == key
        assert run.artifacts["weights"] == f"data/models/retrieval/{key}.safetensors"
        ranks = pq.read_table(run.artifacts["predictions"]).column("image_to_text_rank").to_numpy()
        assert run.metrics["image_to_text_r_at_1"] == pytest.approx(100 * (ranks == 1).mean())
        assert (run.params["base_seed"], run.params["augment_probability"]) == (1, 0.5)


def test_a_run_without_training_has_no_seed(train_with):
    train_with([1, 5])
    provided = read_run("retrieval", "provided")
    assert (provided.seed, provided.history) == (None, [])
    assert "seed" not in provided.params
    scratch = read_run("retrieval", "scratch-seed5")
    assert (scratch.seed, scratch.params["seed"]) == (5, 5)
    assert [epoch["epoch"] for epoch in scratch.history] == [1, 2]


def test_a_run_does_not_depend_on_the_other_seeds(train_with):
    together = train_with([1, 2, 3])
    alone = train_with([2])
    for name in ("scratch", "finetuned"):
        expected = weights(alone, f"{name}-seed2")
        for key, weight in weights(together, f"{name}-seed2").items():
            # Rounding in float64, about 1e-16 of the largest value in each of a few steps.
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-12 * float(expected[key].abs().max()))


def test_seeds_differ_in_initial_weights_and_in_order(train_with):
    folder = train_with([1, 2])
    # A finetuned run starts from the same weights with every seed, and sees the images in another order.
    for name in ("scratch", "finetuned"):
        first, second = (weights(folder, f"{name}-seed{seed}")["vision_proj.weight"] for seed in (1, 2))
        assert not torch.equal(first, second)
    history = [json.dumps(read_run("retrieval", f"finetuned-seed{seed}").history) for seed in (1, 2)]
    assert history[0] != history[1]


def test_search_takes_a_run_with_its_seed_or_the_first_seed(train_with):
    train_with([5, 1])
    seeds = [5, 1]
    assert find_weights("finetuned", seeds).stem == "finetuned-seed5"
    assert find_weights("finetuned-seed1", seeds).stem == "finetuned-seed1"
    assert find_weights("retrieval/provided", seeds).stem == "provided"
    with pytest.raises(InputError, match="no run 'tuned'; choose from finetuned, provided, scratch"):
        find_weights("tuned", seeds)


def test_a_diverged_run_is_named_with_its_params(train_with):
    rows = {"finetuned": GridRow.model_construct(init="provided", lr=1e300, **{**TRAINING, "weight_decay": 0.5})}
    with pytest.raises(InputError, match=r"^retrieval\.finetune: training diverged in epoch 1; lr = 1e\+300"):
        train_with([1, 2], rows)


def test_a_batch_larger_than_the_training_images_is_named(train_with):
    rows = {"scratch": ROWS["scratch"].model_copy(update={"batch_size": 31})}
    with pytest.raises(InputError, match=r"^retrieval\.batch_size = 31: at most 30, the training images"):
        train_with([1], rows)
