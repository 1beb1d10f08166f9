"""The multi-task policies that teachers are distilled into. One file and one line here per student."""

from __future__ import annotations

import torch

from mbml.registry import Entry, Registry
from mbml.rows import RowLayout
from mbml.students import acting, generative
from mbml.students.contract import STUDENT_PRESETS, Student, StudentConfig

__all__ = ["STUDENTS", "STUDENT_PRESETS", "Student", "StudentConfig", "make_student"]

STUDENTS: Registry[Entry] = Registry("student", generative.ENTRY, acting.ENTRY)


def make_student(config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> Student:
    """The student that `config` names, on the generator's device."""
    return STUDENTS[config.kind].make(config, layout, generator)
