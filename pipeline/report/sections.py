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
                "comparison",
                "Unseen tasks with intervals",
                "Interquartile mean over all seeds and unseen tasks at the last epoch, with a 95 % bootstrap "
                "interval: over the seeds within each task, or over the tasks where a method has one seed. "
                "Vertical lines: means of the references.",
                figures.comparison,
            ),
            Picture(
                "learning",
                "Return over distillation",
                "Thick line: mean over tasks (and seeds); shaded: one standard deviation over tasks; thin"
                " lines: single tasks, left out when more than two methods share a panel. With more than "
                "three methods the shade is over seeds instead: a 95 % bootstrap interval from three seeds "
                "on, lowest to highest for two, none for one. Dashed and "
                "dotted lines are the references' means: a policy that adapts should end above the best "
                "task-blind teacher.",
                figures.learning,
            ),
            Picture(
                "per_task",
                "Task by task",
                "Bars: mean over seeds at the last evaluation. Lines across a bar: what each reference "
                "reaches on that very task. With more than three methods, a map of the same means instead: "
                "methods and references as rows, tasks as columns.",
                figures.per_task,
            ),
            Picture(
                "episodes",
                "Does it adapt?",
                "Mean over tasks with one standard deviation shaded (with more than three methods, the interval "
                "over seeds as above). The first episode acts on a sample "
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
                "tasks. Bars and diamonds: mean over seeds.",
                mechanism.reward_swap,
            ),
            Picture(
                "identification",
                "Tasks identified from own rollouts",
                "Share of the training tasks that the posterior of the policy's own transitions names, by the "
                "nearest training posterior, after each episode. Line: mean over seeds; shaded: lowest to "
                "highest seed. High with contexts from the batch (the diamonds above) but low here: the policy "
                "does not visit what would tell the tasks apart.",
                mechanism.identification,
            ),
            Picture(
                "foreign_contexts",
                "Right rewards from the wrong place",
                "z comes from transitions of another task that carry the unseen task's true rewards: of the "
                "nearest training task (filled) and of the farthest (open). A policy that reads the rewards "
                "does equally well with both; one that reads the places falls from the filled to the open mark.",
                mechanism.foreign_contexts,
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
                "One line a seed (with more than three methods, the mean over seeds), logarithmic where all "
                "values are positive; learners of another kind have losses of their own. The triplet loss may stay "
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
