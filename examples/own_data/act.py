"""The policy in rooms that nobody has logged: `python -m examples.own_data.act fleet/policy picture.png`.

Beside it stand the thermostat at its usual temperature, and the same policy when it is told nothing of what happened:
that is the best single teacher of the logs.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.own_data.rooms import STEPS, USUAL, Rooms, thermostat
from mbml import AdaptivePolicy

DAYS = 3
Act = Callable[[np.ndarray], np.ndarray]
Hear = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool], None]


def live(
    rooms: Rooms, act: Act, hear: Hear = lambda *transition: None, days: int = DAYS
) -> tuple[np.ndarray, np.ndarray]:
    """Comfort and temperature inside, both `[days, steps, N]`, of rooms heated by `act`."""
    comfort, inside = [], []
    for _ in range(days):
        observation = rooms.dawn()
        for step in range(STEPS):
            watts = act(observation)
            following, felt = rooms.heat(watts)
            hear(observation, watts, felt, following, step == STEPS - 1)
            comfort.append(felt)
            inside.append(rooms.inside)
            observation = following
    return tuple(np.array(part).reshape(days, STEPS, -1) for part in (comfort, inside))  # pyright: ignore[reportReturnType]


def compare(folder: Path, number: int = 30, seed: int = 1_000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Comfort and temperature of the same new rooms in the same weather, by who heats them."""
    adapting = AdaptivePolicy.load(folder, entities=number)
    blind = AdaptivePolicy.load(folder, entities=number)

    def hear(observation: np.ndarray, watts: np.ndarray, felt: np.ndarray, following: np.ndarray, last: bool) -> None:
        adapting.observe(observation, watts[:, None], felt, following, terminated=False, truncated=last)

    return {
        "policy": live(Rooms.draw(number, seed), lambda o: adapting.act(o)[:, 0], hear),
        "told nothing": live(Rooms.draw(number, seed), lambda o: blind.act(o)[:, 0]),
        "thermostat": live(Rooms.draw(number, seed), lambda o: thermostat(o[:, 0], USUAL)),
    }


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over rooms `[N]` with its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (9_999, len(values))).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def draw(found: dict[str, tuple[np.ndarray, np.ndarray]], liked: np.ndarray, file: Path) -> None:
    """How far each way of heating is off what is liked, hour by hour, and four rooms."""
    made = Figure(figsize=(9, 5), layout="constrained")
    grid, hours = made.add_gridspec(2, 4), np.arange(DAYS * STEPS) * 24 / STEPS
    axes = made.add_subplot(grid[0, :])
    for name, (_, inside) in found.items():
        axes.plot(hours, np.abs(inside - liked).mean(2).ravel(), label=name)
    axes.set(xlabel="hours in a room that nobody has logged", ylabel="degrees off")
    axes.legend()
    for room in range(4):
        axes = made.add_subplot(grid[1, room])
        for inside in (inside for _, inside in found.values()):
            axes.plot(hours, inside[:, :, room].ravel(), linewidth=0.8)
        axes.axhline(liked[room], color="#333333", linestyle=":")
        axes.set(xlabel="hours", title=f"likes {liked[room]:.1f} °C")
    FigureCanvasAgg(made).print_png(file)


def main(folder: Path, file: Path) -> None:
    """Compare, print and draw."""
    found = compare(folder)
    mean = {name: comfort.mean((0, 1)) for name, (comfort, _) in found.items()}
    print(json.dumps({name: interval(values) for name, values in mean.items()}))
    for other in ("told nothing", "thermostat"):
        value, low, high = interval(mean["policy"] - mean[other])
        print(f"policy less {other}: {value:.2f} (95 % {low:.2f} to {high:.2f}) comfort a step")
    draw(found, Rooms.draw(len(mean["policy"]), 1_000).liked, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "rooms.png"))
