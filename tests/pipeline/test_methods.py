"""Changes of a configuration by dotted path."""

import pytest

from mbml.methods import METHODS, Variant
from mbml.settings import changed
from pipeline.config import RunConfig


def test_a_change_reaches_its_field_and_leaves_the_original_alone():
    config = RunConfig("umaze_goal")
    other = changed(config, {"distill.student.encoder.embedding_size": 3, "seed": 7})
    assert (other.distill.student.encoder.embedding_size, other.seed) == (3, 7)
    assert (config.distill.student.encoder.embedding_size, config.seed) == (20, 0)
    assert other.distill.margin == config.distill.margin
    assert other.collect is config.collect


@pytest.mark.parametrize("path", ["margin", "distill.margn", "distill.margin.x", ""])
def test_a_path_that_is_no_field_is_an_error(path):
    with pytest.raises(KeyError):
        changed(RunConfig("umaze_goal"), {path: 1})


def test_a_variant_overrides_its_method():
    variant = Variant("mine", "no_ensemble", {"models.reward.members": 2, "distill.margin": 4.0})
    assert variant.all_changes() == {
        "models.reward.members": 2,
        "models.next_observation.members": 1,
        "distill.margin": 4.0,
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_possible_change_of_the_configuration(method):
    config = RunConfig("umaze_goal")
    changes = METHODS[method].changes
    other = changed(config, changes)
    assert (other != config) == bool(changes)
    assert hasattr(config, METHODS[method].learner)
