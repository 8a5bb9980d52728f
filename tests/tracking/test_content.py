"""What an MLflow run shows of its record: tags, params and the dataset."""

import json

import pytest
from mlflow import MlflowClient
from sample_runs import build_run, enter_project, write_runs

from stages.data import manifest as manifests
from stages.data.manifest import LABELED, MANIFEST, Manifest, Row
from stages.tracking import dataset
from stages.tracking.content import milliseconds, open_run
from stages.tracking.registration import register
from stages.tracking.store import connect, store_uri


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    enter_project(tmp_path, monkeypatch)
    dataset._current_datasets.cache_clear()
    yield tmp_path
    dataset._current_datasets.cache_clear()


def registered(run):
    write_runs(run)
    return MlflowClient(store_uri()).get_run(register([run]).loc[run.identity, "run_id"])


def write_manifest(path=MANIFEST, source="/pictures/mine"):
    rows = [Row("a", "train", "a.png"), Row("b", "train", "b.png"), Row("c", "val", "c.png")]
    manifests.write_manifest(Manifest(tuple(rows), source, ("sky", "sea"), license="CC0"), path)
    return manifests.manifest_hash(path)


def test_params_and_inputs_have_their_own_namespaces():
    run = build_run(params={"lr": 0.1, "weights": "a param"}, inputs={"weights": "a hash", "backbone": "vit"})
    assert registered(run).data.params == {
        "lr": "0.1",
        "weights": "a param",
        "inputs/weights": "a hash",
        "inputs/backbone": "vit",
    }


def test_tags_name_profile_stage_source_seed_and_experiment(monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-oaks")
    tags = registered(build_run(seed=2, stage="train_head@linear-2", params={"profile": "embedded"})).data.tags
    expected = {
        "name": "linear",
        "seed": "2",
        "profile": "embedded",
        "dvc.stage": "train_head@linear-2",
        "dvc.experiment": "puffy-oaks",
        "mlflow.source.name": "stages/segmentation/train_head.py",
        "mlflow.source.type": "LOCAL",
    }
    assert expected.items() <= tags.items()


def test_only_a_live_run_names_its_machine():
    machine = {"device": "cuda", "gpu": "NVIDIA H100", "cpu": "EPYC", "threads": "8"}
    client = connect()
    live = client.get_run(open_run(client, build_run(), milliseconds(), machine))
    assert machine.items() <= live.data.tags.items()
    assert not machine.keys() & registered(build_run()).data.tags.keys()


@pytest.mark.parametrize("path", [MANIFEST, LABELED])
def test_the_dataset_is_the_manifest_with_that_hash(path):
    digest = write_manifest(path)
    (used,) = registered(build_run(inputs={"manifest": digest})).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("mine", digest[:8])
    assert json.loads(used.dataset.source) == {"uri": str(path)}
    assert json.loads(used.dataset.profile) == {"num_rows": 3, "train": 2, "val": 1, "license": "CC0"}
    columns = json.loads(used.dataset.schema)["mlflow_colspec"]
    assert [column["name"] for column in columns] == manifests.SCHEMA.names


def test_a_manifest_that_this_machine_has_no_more_is_named_without_its_content():
    write_manifest()
    (used,) = registered(build_run(inputs={"manifest": "0123456789", "source": "data/scenes"})).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.dataset.profile) == ("scenes", "01234567", None)


def test_a_record_without_a_manifest_has_no_dataset():
    assert not registered(build_run(inputs={"backbone": "vit"})).inputs.dataset_inputs


def test_the_final_metrics_end_with_the_run():
    run = registered(build_run())
    (metric,) = MlflowClient(store_uri()).get_metric_history(run.info.run_id, "miou")
    assert metric.timestamp == run.info.end_time
