"""Results: the runs of a name, one per seed, with their final metrics as a DataFrame."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stages.core.runs import Run


@dataclass(frozen=True)
class Result:
    """A row of a table: runs that differ in their seed only.

    `frame` has one row per run, in the same order, and one column per metric: numbers as the store or the records hold
    them. `run_ids` are MLflow's, None where metrics come from the records.
    """

    runs: tuple[Run, ...]
    frame: pd.DataFrame
    run_ids: tuple[str | None, ...]

    @property
    def name(self) -> str:
        """The name that the runs share, their key in params.yaml."""
        return self.run.name

    @property
    def run(self) -> Run:
        """The run of the first seed, whose curves, masks and captions figures show."""
        return self.runs[0]

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the seeds, by metric."""
        return self.frame.mean().dropna().to_dict()

    @property
    def predictions(self) -> Path:
        """The first run's predictions on the validation images (parquet)."""
        return Path(self.run.artifacts["predictions"])
