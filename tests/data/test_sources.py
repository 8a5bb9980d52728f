"""Every profile has a data source, and a source gives both manifests."""

import pytest
from conftest import ROOT

from stages.core.stage import InputError
from stages.data.sources import SOURCES, build_source
from stages.params.experiment import Experiment
from stages.params.profiles import Profile
from stages.params.section import read_params, validate_params


def experiment_with(**changes):
    params = read_params(ROOT / "params.yaml")
    for section, values in changes.items():
        params[section] = params[section] | values if isinstance(values, dict) else values
    return validate_params(Experiment, params)


def test_every_profile_has_a_source():
    assert set(SOURCES) == {name for name, section in experiment_with() if isinstance(section, Profile)}


def test_the_folder_source_reads_the_same_images_for_all_tasks(voc_folder):
    source = build_source(experiment_with(profile="folder", folder={"path": str(voc_folder)}))
    manifest = source.read()
    assert len(manifest.rows) == 3
    assert source.read_labeled(manifest) is manifest


def test_the_paper_source_checks_its_folders(tmp_path):
    roots = {"voc_root": str(tmp_path), "pets_root": str(tmp_path), "captions": None}
    source = build_source(experiment_with(profile="paper", paper=roots))
    with pytest.raises(InputError, match="paper.voc_root"):
        source.read()
