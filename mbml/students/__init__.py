"""The multi-task policies that teachers are distilled into. One file and one line here per student."""

from __future__ import annotations

import torch

from mbml.registry import Entry, Registry
from mbml.rows import RowLayout
from mbml.students.acting import ActingStudent
from mbml.students.base import STUDENT_PRESETS, Student, StudentConfig
from mbml.students.generative import GenerativeStudent

STUDENTS: Registry[Entry] = Registry(
    "student",
    Entry("generative", "generates, perturbs and chooses among candidates, as in the paper", GenerativeStudent),
    Entry("acting", "one network imitates the action that the teacher takes", ActingStudent),
)


def make_student(config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> Student:
    """The student that `config` names, on the generator's device."""
    return STUDENTS[config.kind].make(config, layout, generator)


__all__ = ["STUDENTS", "STUDENT_PRESETS", "Student", "StudentConfig", "make_student"]
