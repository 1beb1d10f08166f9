"""The policy that users load: NumPy in, NumPy out, one entity or a fleet, whose state survives a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypedDict, Unpack

import numpy as np
import torch

from mbml.deploy.description import Affine, Description
from mbml.deploy.familiarity import Familiarity, GuardedEncoder
from mbml.deploy.folder import read_folder
from mbml.policy import ContextAgent, ContextPolicy, PolicyError, in_short
from mbml.seeding import seed_of

Which = Sequence[int] | np.ndarray | None
_FORMAT = "mbml policy state 1"


class Settings(TypedDict, total=False):
    """How a policy acts; see `AdaptivePolicy.load`."""

    entities: int | None
    deterministic: bool
    seed: int
    renewed_every: int | None
    fallback: Literal["untold"] | None
    threshold: float


class Belief(NamedTuple):
    """What is believed of one entity, or with an axis more of n."""

    mean: np.ndarray
    """Of the task embedding `[Z]`."""
    variance: np.ndarray
    """Of each of its dimensions `[Z]`; 0 where the encoder does not doubt."""
    tasks: np.ndarray | None
    """Weight of every training task `[K]`, in the order of `description.tasks`; None where what was learned does not
    weigh tasks, or weighs others than these."""
    untold: Any
    """Weight of none of them, a float: 1 before anything was seen, then 0. None likewise."""


class AdaptivePolicy:
    """Acts for one entity, or for n in lock-step, and learns from what it observes which task each is in.

    Arrays are in the user's units (`description`) and of any type of real numbers; lists do as well. For one entity
    they are `[d]` and scalars, for a fleet `[n, d]` and `[n]`; with `which`, of the entities at those positions alone.
    """

    def __init__(
        self,
        policy: ContextPolicy,
        description: Description,
        familiarity: Familiarity | None = None,
        *,
        entities: int | None = None,
        deterministic: bool = False,
        seed: int = 0,
        renewed_every: int | None = None,
        fallback: Literal["untold"] | None = None,
        threshold: float = 0.99,
    ) -> None:
        """See `load`."""
        self.description, self._policy, self._familiarity = description, policy, familiarity
        self._single = entities is None
        number = 1 if entities is None else _count("entities", entities)
        self._seed, self._draws, self._generator = _count("seed", seed), 0, torch.Generator()
        self._encoder = policy.encoder
        if fallback not in (None, "untold"):
            raise PolicyError(f'fallback is {fallback!r}; it should be None or "untold".')
        if not (isinstance(threshold, Real) and 0 <= threshold <= 1):
            raise PolicyError(f"threshold is {threshold!r}; it should be an unfamiliarity from 0 to 1.")
        if fallback and not (familiarity and description.inference.untold):
            lacks = "was never taught what to do untold" if familiarity else "was written without task models"
            raise PolicyError(f'fallback is "untold", but this policy {lacks}; give None.')
        if familiarity is not None:
            self._encoder = GuardedEncoder(policy.encoder, familiarity, threshold if fallback else None)
        every = None if renewed_every is None else _count("renewed_every", renewed_every)
        self._settings = {"encoder": self._encoder, "renewed_every": every, "deterministic": deterministic}
        with self._or_as_before(number):
            self._agent = self._fresh(number)

    @classmethod
    def load(cls, folder: str | Path, **settings: Unpack[Settings]) -> Self:
        """The policy in a folder that `python -m pipeline run` or `export-policy` wrote. No code in it is run.

        Args:
            folder: with policy.json and policy.safetensors.
            entities: None for one entity whose arrays have no axis of entities; else how many there are at first, 0
                or more.
            deterministic: act under the mean of the belief and on the same noise always, so that the same history
                gives the same action; otherwise both are drawn, as while it was evaluated.
            seed: of what is drawn.
            renewed_every: steps after which z is formed anew; 0: at the beginning of each episode alone; None: as
                while it was evaluated.
            fallback: "untold" acts as if nothing had been seen of an entity whose unfamiliarity is above `threshold`
                when z is formed; None never does.
            threshold: an unfamiliarity from 0 to 1.

        Raises:
            PolicyError: the folder holds no whole policy, or a setting does not fit it.
        """
        if not isinstance(folder, str | Path):
            raise PolicyError(f"folder is {folder!r}; it should be the path of a policy's folder.")
        description, policy, familiarity = read_folder(Path(folder))
        return cls(policy, description, familiarity, **settings)

    @property
    def entities(self) -> int:
        """How many there are."""
        return self._agent.tasks

    def act(self, observation: Any, which: Which = None) -> np.ndarray:
        """Actions `[d_a]` or `[n, d_a]`, float32, within their bounds; begins an episode where the last one ended."""
        index = self._positions(which)
        space = self.description.observation
        seen = self._taken("observation", observation, len(index), space.affine, space.size)
        self._reseed()
        acted = self._agent.act(seen, index).numpy()
        action = self.description.action
        clipped = np.clip(action.affine.to_user(acted), *action.bounds)
        return clipped[0] if self._single else clipped

    def observe(
        self,
        observation: Any,
        action: Any,
        reward: Any,
        next_observation: Any,
        terminated: Any = False,
        truncated: Any = False,
        which: Which = None,
    ) -> None:
        """Learn from one transition of every entity; where it is `terminated`, or `truncated` by a limit of yours, the
        next action begins a new episode of the same entity.

        `action` is the one that was really carried out, whoever chose it. Raises PolicyError, and has learned nothing,
        for other shapes, or for numbers so large that nothing can be inferred from them.
        """
        index, about = self._positions(which), self.description
        number, seen = len(index), about.observation
        batch = (
            self._taken("observation", observation, number, seen.affine, seen.size),
            self._taken("action", action, number, about.action.affine, about.action.size),
            self._taken("next_observation", next_observation, number, seen.affine, seen.size),
            self._taken("reward", reward, number, about.reward.affine),
        )
        ends = self._flags("terminated", terminated, number) | self._flags("truncated", truncated, number)
        paid = np.asarray(reward, np.float32).reshape(number)  # episodes are compared as the user pays them
        self._agent.observe(*batch, which=index, paid=torch.from_numpy(paid))
        if ends.any():
            self._begin(index[ends])

    def begin_episode(self, which: Which = None) -> None:
        """Begin a new episode of the same entities, as after a transition that was `truncated`."""
        self._begin(self._positions(which))

    def reset(self, which: Which = None) -> None:
        """Forget everything about the entities: they are new ones."""
        index = self._positions(which)
        state = self._agent.state_dict()
        for name, value in self._fresh(len(index)).state_dict().items():
            state[name][index] = value
        self._agent.load_state_dict(state)

    def add(self, number: int = 1, state: Mapping[str, Any] | str | bytes | None = None) -> list[int]:
        """Add so many new entities, or those of a `state` that this or another process gave; their positions."""
        self._refuse_single("add")
        before, number = self.entities, _count("number", number)
        with self._or_as_before(number):
            fresh = self._fresh(number).state_dict() if state is None else self._read(state)[1]
            self._hold({name: torch.cat([own, fresh[name]]) for name, own in self._agent.state_dict().items()})
        return list(range(before, self.entities))

    def remove(self, which: Which) -> None:
        """Take entities away; those behind them move up."""
        self._refuse_single("remove")
        kept = torch.ones(self.entities, dtype=torch.bool)
        kept[self._positions(which)] = False
        self._hold({name: own[kept] for name, own in self._agent.state_dict().items()})

    @property
    def belief(self) -> Belief:
        """What is believed now, from everything observed since `reset`; z follows it when it is formed anew."""
        encoder, how = self._policy.encoder, self.description.inference
        own = self._agent.statistics()[:, : how.statistics_size]
        with torch.no_grad():
            mean, variance = encoder.belief(own)
            # Only what is taught untold has an embedding of each training task; other mixtures find their own.
            weights = encoder.weights(own) if how.untold else None
        tasks, untold = (None, None) if weights is None else (weights[:, :-1], weights[:, -1])
        parts = [None if part is None else part.numpy().copy() for part in (mean, variance, tasks, untold)]
        found = parts if not self._single else [None if part is None else part[0] for part in parts]
        return Belief(*found)  # pyright: ignore[reportArgumentType]

    @property
    def unfamiliarity(self) -> Any:
        """From 0 (or nothing seen) to 1: the share of stretches of training data, judged by the other tasks, that fit
        better than what was observed since `reset` fits its best training task. A float, or `[n]`.

        Raises PolicyError where the folder has no task models.
        """
        if not isinstance(self._encoder, GuardedEncoder):
            raise PolicyError("This policy was written without task models, so it cannot say what is unfamiliar.")
        misfits = self._encoder.split(self._agent.statistics())[1]
        found = self._encoder.familiarity.unfamiliarity(misfits).numpy()
        return float(found[0]) if self._single else found

    def state(self, which: Which = None) -> dict[str, Any]:
        """Everything known of the entities, and what is drawn next, as JSON: who restores it acts on alike."""
        index = self._positions(which)
        entities = {name: value[index].tolist() for name, value in self._agent.state_dict().items()}
        header = {"format": _FORMAT, "policy": self.description.files["policy.safetensors"]}
        return header | {"seed": self._seed, "draws": self._draws, "entities": entities}

    def state_bytes(self, which: Which = None) -> bytes:
        """The same as bytes."""
        return json.dumps(self.state(which), separators=(",", ":"), allow_nan=False).encode()

    def restore(self, state: Mapping[str, Any] | str | bytes) -> None:
        """Replace all entities by those of a state of the same policy; raises PolicyError for anything else."""
        (seed, draws), entities = self._read(state)
        if self._single and len(entities["z"]) != 1:
            raise PolicyError(
                f"The state has {len(entities['z'])} entities, and this policy acts for one; load it again."
            )
        self._hold(entities)
        self._seed, self._draws = seed, draws

    def _read(self, state: Mapping[str, Any] | str | bytes) -> tuple[tuple[int, int], dict[str, torch.Tensor]]:
        """Seed and draws of a state, and the tensors of its entities, checked."""
        found = _parsed(state)
        if found["policy"] != self.description.files["policy.safetensors"]:
            raise PolicyError("This is the state of another policy: its policy.safetensors has another SHA-256.")
        numbers = _count("the state's seed", found["seed"]), _count("the state's draws", found["draws"])
        known = self._agent.state_dict().items()
        entities = {name: _column(name, found["entities"], own) for name, own in known}
        if len({len(value) for value in entities.values()}) > 1:
            raise PolicyError("The state is damaged: its lists should have an entry for each entity.")
        return numbers, entities

    def _fresh(self, number: int) -> ContextAgent:
        self._reseed()
        return ContextAgent(self._policy, self._generator, number, **self._settings)

    @contextmanager
    def _or_as_before(self, number: int) -> Iterator[None]:
        """Where there is no memory for so many entities: PolicyError, and nothing was drawn."""
        draws = self._draws
        try:
            yield
        except (RuntimeError, MemoryError) as error:  # the former is torch's
            self._draws = draws
            raise PolicyError(f"There is no memory for {number} entities; take fewer.") from error

    def _hold(self, state: Mapping[str, torch.Tensor]) -> None:
        agent = ContextAgent(self._policy, self._generator, len(state["z"]), **self._settings)
        agent.load_state_dict(state)
        self._agent = agent

    def _begin(self, index: torch.Tensor) -> None:
        chosen = torch.zeros(self.entities, dtype=torch.bool)
        chosen[index] = True
        self._reseed()
        self._agent.begin_episode(chosen)

    def _reseed(self) -> None:
        """Before anything is drawn: so that two numbers are the whole state of the generator."""
        self._generator.manual_seed(seed_of(self._seed, "policy", self._draws))
        self._draws += 1

    def _refuse_single(self, what: str) -> None:
        if self._single:
            raise PolicyError(f"{what}() needs a fleet; load the policy with entities=1 or more.")

    def _positions(self, which: Which) -> torch.Tensor:
        if which is None:
            return torch.arange(self.entities)
        self._refuse_single("which")
        wanted = f"it should be a list of positions from 0 to {self.entities - 1}, each once"
        index = _array("which", which, wanted)
        inside = index.ndim == 1 and (index.size == 0 or index.dtype.kind in "iu")
        if not inside or len(set(index.tolist())) < len(index) or ((index < 0) | (index >= self.entities)).any():
            raise PolicyError(f"which is {which}; {wanted}.")
        return torch.from_numpy(index.astype(np.int64))

    def _taken(self, name: str, value: Any, number: int, scaling: Affine, *sizes: int) -> torch.Tensor:
        """A user's array as the network's `[number, *sizes]`; raises PolicyError for what does not fit."""
        wanted = sizes if self._single else (number, *sizes)
        array = _array(name, value, f"its shape should be {wanted}")
        if array.dtype.kind not in "fiub":
            raise PolicyError(f"{name} is of type {array.dtype}; it should be real numbers of shape {wanted}.")
        if array.shape != wanted:
            of = "" if self._single else ", a row for each entity" if sizes else ", one for each entity"
            raise PolicyError(f"{name} has shape {array.shape}; it should be {wanted}{of}.")
        array = array.astype(np.float64)
        with np.errstate(over="ignore"):
            scaled = scaling.to_network(array).reshape(number, *sizes)
        if not np.isfinite(scaled).all():
            place = np.argwhere(~np.isfinite(scaled.reshape(wanted)))[0].tolist()
            raise PolicyError(f"{name} has a value at {place} that is not finite, or too large; all should be finite.")
        return torch.from_numpy(scaled)

    def _flags(self, name: str, value: Any, number: int) -> torch.Tensor:
        wanted = "one flag" if self._single else f"a flag for each of {number} entities"
        array = _array(name, value, f"it should be {wanted}")
        if array.dtype.kind not in "biu" or array.shape not in ((), (number,)) or (self._single and array.ndim):
            raise PolicyError(f"{name} is {array.dtype} of shape {array.shape}; it should be {wanted}.")
        return torch.from_numpy(np.broadcast_to(array.astype(bool), (number,)).copy())


def _count(name: str, value: Any) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and abs(int(value)) >= 2**63:  # whose digits may be too many to print
        raise PolicyError(f"{name} is too large; it should be 0, 1, 2, ..., below 2^63.")
    if not whole or value < 0:
        raise PolicyError(f"{name} is {value!r}; it should be 0, 1, 2, ...")
    return int(value)


def _array(name: str, value: Any, wanted: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # lists of unequal length, tensors on another device
        raise PolicyError(f"{name} is no array of numbers ({in_short(error)}); {wanted}.") from None


def _parsed(state: Mapping[str, Any] | str | bytes) -> Mapping[str, Any]:
    """A state with all its parts, whatever they hold; raises PolicyError for anything else."""
    right = "give what state() or state_bytes() returned"
    try:
        found = json.loads(state) if isinstance(state, str | bytes) else state
    except (ValueError, RecursionError):
        raise PolicyError(f"This is no state of a policy, for it cannot be read as JSON; {right}.") from None
    if not isinstance(found, Mapping):
        raise PolicyError(f"This is no state of a policy but a {type(found).__name__}; {right}.")
    if found.get("format") != _FORMAT:
        raise PolicyError(f"This is no state of a policy: its format is {found.get('format')!r}, not {_FORMAT!r}.")
    for part in ("policy", "seed", "draws", "entities"):
        if part not in found:
            raise PolicyError(f"The state is damaged: it has no {part}; {right}.")
    return found


_NUMBERS = {torch.bool: "of true and false", torch.long: "whole numbers", torch.float32: "finite numbers"}


def _column(name: str, entities: Any, own: torch.Tensor) -> torch.Tensor:
    """What a state says of its entities under that name, as a tensor like `own` but for its length."""
    try:
        value = torch.tensor(entities[name])
    except Exception:  # whatever a stranger's state brings about: nothing of it was run
        value = torch.empty(())  # which fits nowhere
    value = value if value.numel() else own.new_empty(0, *own.shape[1:])
    fits = value.ndim == own.ndim and value.shape[1:] == own.shape[1:] and torch.can_cast(value.dtype, own.dtype)
    if not fits or not bool(value.isfinite().all()):
        wanted = f"{' x '.join(map(str, own.shape[1:])) or 1} {_NUMBERS[own.dtype]}"
        raise PolicyError(f"The state is damaged: {name} should have {wanted} for each entity.")
    return value.to(own.dtype)
