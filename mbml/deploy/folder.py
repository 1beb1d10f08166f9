"""A policy as a folder: weights, description, model card; written whole, read without running any code in it.

policy.safetensors       networks, as `ContextPolicy.save` wrote them
policy.json              everything else, see `mbml.deploy.description`; lists the SHA-256 of the other files
familiarity.safetensors  what says how unfamiliar an entity is
update.onnx, act.onnx    the same policy for other runtimes
README.md                a card for people, made of policy.json
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mbml.deploy.description import (
    ACT,
    CARD,
    DESCRIPTION,
    FAMILIARITY,
    POLICY,
    UPDATE,
    Description,
    Inference,
    read_description,
)
from mbml.deploy.familiarity import Familiarity, TaskModels
from mbml.deploy.graphs import check_possible, write_graphs
from mbml.policy import ContextPolicy, PolicyError
from mbml.serialise import replacing_folder, sha256_of

_FILES = {POLICY, DESCRIPTION, FAMILIARITY, UPDATE, ACT, CARD}


def inference_of(policy: ContextPolicy, *, untold: bool) -> Inference:
    """How a policy infers and acts, read off its networks."""
    encoder = policy.encoder
    return Inference(
        policy=policy.kind,
        encoder=encoder.kind,
        embedding_size=encoder.embedding_size,
        statistics_size=encoder.statistics(torch.zeros(1, policy.layout.context_size)).shape[-1],
        temperature=encoder.temperature,
        renewed_every=policy.renewed_every,
        arbitrated=policy.arbitrated,
        untold=untold and encoder.weighed > 0,
        noise_shape=list(policy.noise_shape),
    )


def versions() -> dict[str, str]:
    """Versions of this project, Python and torch."""
    try:
        own = version("mbml")
    except PackageNotFoundError:  # a checkout that is not installed
        own = "source"
    return {"mbml": own, "python": platform.python_version(), "torch": str(torch.__version__)}


def read_folder(folder: Path) -> tuple[Description, ContextPolicy, Familiarity | None]:
    """Description, policy and, where it has task models, familiarity; raises PolicyError where it is not whole."""
    description = read_description(folder / DESCRIPTION)
    for name in (POLICY, *([FAMILIARITY] if description.familiarity else [])):
        if not (folder / name).is_file():
            raise PolicyError(f"{folder / name} is missing, so {folder} is no whole policy.")
        if sha256_of(folder / name) != description.files.get(name):  # pyright: ignore[reportArgumentType]
            raise PolicyError(f"{folder / name} has another SHA-256 than {DESCRIPTION} says: it is changed or damaged.")
    policy = ContextPolicy.load(folder / POLICY)
    told = description.observation.size, description.action.size
    if told != (sizes := (policy.layout.observation_size, policy.layout.action_size)):
        raise PolicyError(
            f"{folder / DESCRIPTION} has observations and actions of {told} numbers, {POLICY} of {sizes}."
        )
    if description.inference != (found := inference_of(policy, untold=description.inference.untold)):
        differ = [name for name in vars(found) if getattr(found, name) != getattr(description.inference, name)]
        raise PolicyError(f"{folder / DESCRIPTION} and {POLICY} differ in {', '.join(differ)}.")
    familiarity = None
    if description.familiarity:
        models = TaskModels.load(folder / FAMILIARITY, policy.layout, len(description.tasks))
        familiarity = Familiarity(models, description.familiarity)
    if description.inference.untold:
        told, weighed = len(description.tasks), policy.encoder.weighed
        if told != weighed:
            raise PolicyError(f"{folder / DESCRIPTION} has {told} training tasks, {POLICY} weighs {weighed}.")
    return description, policy, familiarity


def write_folder(
    folder: Path,
    weights: Path,
    description: Description,
    familiarity: Familiarity | None = None,
    *,
    graphs: bool = True,
) -> Description:
    """Write a policy's folder: whole, or not at all; an older policy there is replaced.

    Args:
        folder: where; must not hold anything but a policy.
        weights: a file of `ContextPolicy.save`.
        description: `files`, `familiarity` and `onnx` are filled in here.
        familiarity: what `fit_familiarity` made of the training tasks' rows, in the network's units; without it the
            policy cannot say what is unfamiliar.
        graphs: write the ONNX graphs; raises PolicyError where the packages for it are missing.

    Raises PolicyError where the folder holds something else, or for what cannot be written.
    """
    check_replaceable(folder)
    if graphs:
        check_possible()
    policy = ContextPolicy.load(weights)
    with replacing_folder(folder) as made:
        shutil.copyfile(weights, made / POLICY)
        if familiarity is not None:
            familiarity.models.save(made / FAMILIARITY)
            description = replace(description, familiarity=familiarity.calibration)
        if graphs:
            description = replace(description, onnx=write_graphs(made, policy, description, familiarity))
        files = {file.name: sha256_of(file) for file in sorted(made.iterdir())}
        description = replace(description, files=files)
        description.write(made / DESCRIPTION)
        (made / CARD).write_text(card(description), encoding="utf-8")
        read_folder(made)  # what cannot be read is not handed over
    return description


def check_replaceable(folder: Path) -> None:
    """Raise PolicyError for a place that holds anything but a policy."""
    if folder.is_dir():
        others = sorted(file.name for file in folder.iterdir() if file.name not in _FILES)
        if others:
            raise PolicyError(f"{folder} holds {others[0]}, which is no part of a policy; choose another folder.")
    elif folder.exists() or folder.is_symlink():
        raise PolicyError(f"{folder} is no folder; choose another.")


def card(description: Description) -> str:
    """The model card, Markdown."""
    import jinja2  # here, because loading a policy does not need it

    loader = jinja2.PackageLoader("mbml.deploy", ".")
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.get_template("card.md.j2").render(policy=description)
