"""What a report shows, in order: every picture with its title, its caption and the function that draws it."""

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from pipeline.report import figures, mechanism


class Picture(NamedTuple):
    """One picture; `caption` may hold {training_tasks}, {threshold} and {error_note}."""

    name: str
    title: str
    caption: str
    draw: Callable[[dict], Figure]


class Section(NamedTuple):
    """A heading with its pictures."""

    title: str
    pictures: tuple[Picture, ...]


SECTIONS = (
    Section(
        "How well does the one policy do?",
        (
            Picture(
                "learning",
                "Return over distillation",
                "Thick line: mean over tasks (and seeds); shaded: one standard deviation over tasks; thin"
                " lines: single tasks, left out when more than two methods share a panel. Dashed and "
                "dotted lines are the references' means: a policy that adapts should end above the best "
                "task-blind teacher.",
                figures.learning,
            ),
            Picture(
                "per_task",
                "Task by task",
                "Bars: mean over seeds at the last evaluation. Lines across a bar: what each reference "
                "reaches on that very task.",
                figures.per_task,
            ),
            Picture(
                "episodes",
                "Does it adapt?",
                "Mean over tasks with one standard deviation shaded. The first episode acts on a sample "
                "from the prior, later ones on all transitions so far: a curve that rises is adaptation, "
                "a flat one is not.",
                figures.episodes,
            ),
        ),
    ),
    Section(
        "Does it know which task it is in?",
        (
            Picture(
                "reward_swap",
                "Reward-swap test",
                "The encoder sees state-actions of task j with the rewards of task i, and the nearest "
                "training posterior counts as its answer. A policy that identifies tasks by reward has a "
                "tall first bar and a low second one; the dashed line is guessing among {training_tasks} "
                "tasks.",
                mechanism.reward_swap,
            ),
            Picture(
                "posteriors",
                "Task posteriors",
                "Each mark is the posterior mean of one context, in the plane of the two largest "
                "principal components (first seed of each method), coloured by the task's parameter. "
                "Good: one tight cluster a task, with neighbouring colours side by side and unseen tasks "
                "among them.",
                mechanism.posteriors,
            ),
            Picture(
                "relabelling",
                "Relabelling",
                "Row i, column j: transitions of task j relabelled by task i's ensemble. Left, the share "
                "it is sure enough about (threshold {threshold}); then how wrong it is where it is sure, "
                "and everywhere. Dark error under a large share means confident and wrong; grey is the "
                "own task or no row. {error_note}",
                mechanism.relabelling,
            ),
        ),
    ),
    Section(
        "What it learned from",
        (
            Picture(
                "collect_curves",
                "Data collection (SAC)",
                "One panel a training task, the others in grey behind it. A task whose curve stays low "
                "gives a batch that no later stage can make up for.",
                figures.collect_curves,
            ),
            Picture(
                "bcq_curves",
                "Teachers (BCQ)",
                "One panel a training task; the dot is the checkpoint that became the teacher, the dashed"
                " line the task's SAC policy that collected the batch.",
                figures.bcq_curves,
            ),
            Picture(
                "distill_losses",
                "Distillation losses",
                "One line a seed, logarithmic where all values are positive. The triplet loss may stay "
                "near the margin though the method works: judge it by the return and the reward-swap "
                "test.",
                figures.distill_losses,
            ),
        ),
    ),
    Section(
        "What it took",
        (
            Picture(
                "cost",
                "Time and memory",
                "Wall time of each stage and the largest resident memory of one of its processes; stages "
                "may overlap, and reused artefacts cost nothing.",
                figures.cost,
            ),
        ),
    ),
)
