"""A fleet of heated rooms, and the logs that their thermostats left: `python -m examples.own_data.rooms logs.parquet`.

Rooms differ in walls, in what they hold, and in the temperature that whoever is in them likes. Nobody tells the
thermostat that temperature: it shows in how comfortable the room was rated. The log has what a building's database
would have, in its units.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

STEPS = 96
"""A day, in steps of a quarter of an hour."""
SECONDS = 86_400 / STEPS
HEATER = 2_500.0
"""W, at most."""
USUAL = 21.0
"""°C that the thermostats are set to where nobody has touched them."""


@dataclass
class Rooms:
    """N rooms side by side, each one resistance to the outside and one heat capacity."""

    loss: np.ndarray
    """Of the walls, W/K."""
    capacity: np.ndarray
    """J/K."""
    liked: np.ndarray
    """°C."""
    generator: np.random.Generator

    @classmethod
    def draw(cls, number: int, seed: int) -> "Rooms":
        """So many rooms of the town."""
        make = np.random.default_rng(seed)
        return cls(make.uniform(50, 130, number), make.uniform(2e6, 6e6, number), make.uniform(17, 25, number), make)

    def dawn(self) -> np.ndarray:
        """A new day; the observation `[N, 3]`: inside and outside in °C, sun in W/m2."""
        number = len(self.loss)
        self.weather, self.clouds = self.generator.normal(3, 4, number), self.generator.uniform(0, 1, number)
        self.inside, self.step = self.generator.normal(20, 3, number), 0
        return self.observed()

    def observed(self) -> np.ndarray:
        """What the sensors say now."""
        phase = 2 * np.pi * (self.step / STEPS - 0.25)
        outside = self.weather + 4 * np.sin(phase - 0.5)
        sun = 600 * np.maximum(np.sin(phase), 0) * self.clouds
        return np.stack([self.inside, outside, sun], 1)

    def heat(self, watts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A quarter of an hour with the heaters at `watts` `[N]`: the next observation, and the comfort `[N]`, which
        falls with every degree off what is liked, and a little with what the heat costs."""
        _, outside, sun = self.observed().T
        flow = self.loss * (outside - self.inside) + np.clip(watts, 0, HEATER) + 1.5 * sun
        self.inside = self.inside + SECONDS / self.capacity * flow + self.generator.normal(0, 0.05, len(flow))
        self.step += 1
        return self.observed(), -np.abs(self.inside - self.liked) - 0.1 * watts / 1_000


def thermostat(inside: np.ndarray, wanted: np.ndarray | float) -> np.ndarray:
    """What the thermostats do, W `[N]`: a proportional controller that knows nothing of walls and weather."""
    return np.clip(500 + 600 * (wanted - inside), 0, HEATER)


def write_logs(path: Path, rooms: int = 25, days: int = 20, seed: int = 0) -> None:
    """Log so many days of so many rooms as Parquet: people turn thermostats or are away, and heaters are imprecise."""
    fleet, make = Rooms.draw(rooms, seed), np.random.default_rng(seed + 1)
    found: dict[str, list[np.ndarray]] = {}
    for day in range(days):
        # Some are away, and their rooms grow cold.
        away = make.random(rooms) < 0.2
        observation, wanted = fleet.dawn(), np.where(away, make.uniform(5, 15, rooms), make.normal(USUAL, 2.0, rooms))
        for minute in range(0, 24 * 60, 24 * 60 // STEPS):
            wanted = np.where(make.random(rooms) < 0.03, make.normal(USUAL, 2.0, rooms), wanted)
            watts = np.clip(thermostat(observation[:, 0], wanted) + make.normal(0, 300, rooms), 0, HEATER)
            following, comfort = fleet.heat(watts)
            row = {
                "room": np.array([f"room {i:02d}" for i in range(rooms)]),
                "day": np.full(rooms, day),
                "minute": np.full(rooms, minute),
                "temp_indoor_C": observation[:, 0],
                "temp_outdoor_C": observation[:, 1],
                "sun_W_m2": observation[:, 2],
                "heater_W": watts,
                "comfort": comfort,
            }
            for name, column in row.items():
                found.setdefault(name, []).append(column)
            observation = following
    parquet.write_table(pa.table({name: np.concatenate(parts) for name, parts in found.items()}), path)


if __name__ == "__main__":
    write_logs(Path(sys.argv[1] if len(sys.argv) > 1 else "rooms.parquet"))
