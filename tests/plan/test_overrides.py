"""Params are changed by dotted key, one or all names of a section."""

import pytest

from stages.core.stage import InputError
from stages.plan.overrides import apply_overrides, set_param


def test_a_star_changes_every_name():
    params = {"grid": {"a": {"epochs": 8, "lr": 1}, "b": {"epochs": 5}}}
    set_param(params, "grid.*.epochs", 2)
    assert params == {"grid": {"a": {"epochs": 2, "lr": 1}, "b": {"epochs": 2}}}


def test_overrides_are_yaml():
    params = {"heads": {}}
    apply_overrides(params, ["heads.mine={kind: linear}", "seed=2"])
    assert params == {"heads": {"mine": {"kind": "linear"}}, "seed": 2}


def test_keys_are_added_and_removed_as_by_hydra():
    params = {"heads": {"a": {"kind": "linear"}, "b": {"kind": "linear"}}}
    apply_overrides(params, ["+heads.mine={kind: linear}", "~heads.a"])
    assert list(params["heads"]) == ["b", "mine"]
    with pytest.raises(InputError, match="params.yaml has no key 'heads.a'"):
        apply_overrides(params, ["~heads.a"])


@pytest.mark.parametrize("key", ["nowhere.a", "seed.a", "*.a", "nowhere.*.a"])
def test_a_key_of_no_section_is_named(key):
    with pytest.raises(InputError, match="params.yaml has no key") as raised:
        set_param({"seed": 1}, key, 2)
    assert key in str(raised.value)
