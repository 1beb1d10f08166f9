"""Per-task learners whose policies teach the student: the contract is in `contract`, each kind in a file of its own."""

from collections.abc import Mapping
from typing import Any

import torch

from mbml.nets import StackedMLP
from mbml.registry import Registry
from mbml.teachers import bcq, iql, td3_bc
from mbml.teachers.contract import TeacherEntry, TeacherLearner, Teachers

__all__ = ["TEACHERS", "TeacherEntry", "TeacherLearner", "Teachers", "load", "of_shapes"]

TEACHERS: Registry[TeacherEntry] = Registry("teacher", bcq.ENTRY, iql.ENTRY, td3_bc.ENTRY)


def of_shapes(shapes: Mapping[str, Any], tasks: int, generator: torch.Generator) -> Teachers:
    """So many new teachers of `Teachers.shapes`."""
    parts: dict[str, Any] = dict(shapes)
    parts |= {n: StackedMLP(tasks, s, generator=generator) for n, s in shapes.items() if isinstance(s, list)}
    return TEACHERS[parts["kind"]].policies(**parts)


def load(state: Mapping[str, Any]) -> Teachers:
    """Teachers of any kind from their `state_dict`; raises UnknownName for a kind that is not registered."""
    return TEACHERS[state["kind"]].policies.load(state)
