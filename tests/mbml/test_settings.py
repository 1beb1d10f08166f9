"""Configurations: bounds with the dotted path of the field, changes by dotted path; and names in a registry."""

import pytest

from mbml.collect import CollectConfig
from mbml.registry import Entry, Registry, UnknownName
from mbml.settings import ConfigError, changed, check_fields
from mbml.warmstart import WarmStartConfig


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("steps", 0, "steps is 0; it should be greater than or equal to 1"),
        ("sac.discount", 1.5, "sac.discount is 1.5; it should be less than or equal to 1"),
        ("sac.critic_hidden", (8, 0), r"sac.critic_hidden is \(8, 0\); it should be greater than or equal to 1"),
        ("sac.critic_initialisation", "he", "sac.critic_initialisation is 'he'; it should be 'rlkit' or 'torch'"),
        ("sac.learning_rate", float("inf"), "sac.learning_rate is inf; it should be a finite number"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_path_and_what_would_be_right(path, value, words):
    with pytest.raises(ConfigError, match=words):
        check_fields(changed(CollectConfig(), {path: value}))


def test_changes_reach_nested_fields_and_leave_the_original():
    config = WarmStartConfig()
    other = changed(config, {"online.sac.tau": 0.5, "snapshot": 7})
    assert (other.online.sac.tau, other.snapshot) == (0.5, 7)
    assert changed(other, {"online.sac.tau": config.online.sac.tau, "snapshot": 0}) == config


@pytest.mark.parametrize(("path", "part"), [("online.sack.tau", "sack"), ("snapshot.step", "step")])
def test_a_path_that_leads_nowhere_is_refused_with_the_part_that_is_wrong(path, part):
    with pytest.raises(KeyError, match=part):
        changed(WarmStartConfig(), {path: 1})


def test_a_registry_keeps_its_order_and_names_the_valid_choices():
    registry = Registry("fruit", *(Entry(name, "", dict) for name in ("pear", "apple")))
    assert list(registry) == ["pear", "apple"]
    assert registry["apple"].name == "apple"
    assert "fig" not in registry
    with pytest.raises(UnknownName, match="There is no fruit 'fig'; choose one of pear, apple"):
        registry["fig"]
