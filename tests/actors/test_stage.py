"""Keys and edges follow from a specification."""

from dataclasses import dataclass, replace

import pytest

import actors.stages  # noqa: F401
from actors.stage import STAGES, Job, Ref, Stage
from mbml.settings import later
from tests.pipeline.workers import Add, job


def test_a_key_changes_with_the_specification_the_inputs_and_the_version_and_with_nothing_else(monkeypatch):
    one = job("one")
    key = job("two", one).ref
    assert Job(job("two", one).spec, "another name", num_cpus=7).ref == key
    assert job("two", one, number=2).ref != key
    assert job("two").ref != key
    assert job("two", job("one", number=5)).ref != key
    stage = STAGES[Add]
    monkeypatch.setitem(STAGES, Add, Stage(stage.name, stage.version + 1, stage.make))
    assert job("two", one).ref.key != key.key


def test_a_field_that_came_later_decides_only_where_something_else_is_said():
    @dataclass(frozen=True)
    class Before:
        steps: int = 3

    @dataclass(frozen=True)
    class After(Before):
        share: float = later(0.0)

    def key(settings):
        return Job(Add("a", settings={"deep": settings}), "a").ref

    assert key(After()) == key(Before())
    assert key(After(share=0.5)) != key(Before())
    assert key(After(steps=4)) == key(Before(steps=4)) != key(Before())


def test_edges_are_found_anywhere_in_a_specification():
    spec = Add(
        "a", inputs=(Ref("add", "x"), Ref("add", "y")), settings={"deep": [replace(Add("b"), inputs=(Ref("c", "z"),))]}
    )
    assert Job(spec, "a").inputs == (Ref("add", "x"), Ref("add", "y"), Ref("c", "z"))


def test_a_family_from_outside_is_in_the_key_with_its_source(monkeypatch):
    from actors.stages.relabel import Relabel
    from mbml import envs
    from mbml.relabel import RelabelConfig

    spec = Relabel("umaze_goal", (0, 1), RelabelConfig(), {}, 0, ())
    before = Job(spec, "relabel").ref

    class Outside:
        fingerprint = "1234"

    monkeypatch.setattr(envs, "get", lambda name: Outside())
    assert Job(spec, "relabel").ref != before


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_every_stage_says_what_it_leaves(stage):
    assert stage.version >= 1
    assert (stage.make.__doc__ or "").startswith("Leaves")
