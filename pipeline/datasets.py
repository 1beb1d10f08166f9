"""Commands about the folder of a dataset."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from mbml.data import Dataset, validate
from mbml.export import FORMATS
from pipeline.config import ConfigError, folder_here

Log = Callable[[str], None]


@dataclass(frozen=True)
class Validate:
    """Check a dataset folder: schema, checksums, episodes."""

    dataset: tyro.conf.Positional[str]
    """The folder: <store>/collect/<key>/dataset."""

    def __call__(self, log: Log) -> int:
        validate(self.dataset)
        print(f"{self.dataset} is a valid dataset.")
        return 0


@dataclass(frozen=True)
class Export:
    """Write a dataset's batches for other programs, in the scale that they were logged in."""

    dataset: tyro.conf.Positional[str]
    """The dataset's folder: <store>/collect/<key>/dataset."""
    folder: tyro.conf.Positional[str]
    """Where the files go, one file or dataset per task."""
    format: Literal["parquet", "minari"] = "parquet"
    """Parquet in the columns that RLlib's offline algorithms read, rows in random order; or Minari datasets, for which
    the folder is the place that MINARI_DATASETS_PATH names."""

    def __call__(self, log: Log) -> int:
        dataset, folder = Dataset.open(self.dataset), folder_here(self.folder, option="folder")
        if folder.resolve().is_relative_to(Path(self.dataset).resolve()):
            raise ConfigError(f"{self.folder} is in the dataset's own folder; choose another one for the export.")
        for task in dataset.task_indices:
            FORMATS[self.format](dataset, task, folder)
        print(f"{len(dataset.task_indices)} tasks as {self.format}: {self.folder}")
        return 0
