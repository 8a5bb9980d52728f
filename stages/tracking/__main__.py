"""Register every record in `reports/runs` in MLflow, as `make ui` does."""

from stages.core.messages import hide_credentials
from stages.core.runs import RUNS, read_run
from stages.core.skipped import skip_reason
from stages.tracking.registration import register
from stages.tracking.store import store_uri


def main() -> None:
    paths = [path for path in sorted(RUNS.glob("*/*.json")) if not skip_reason(path)]
    registered = register([read_run(path.parent.name, path.stem) for path in paths]) if paths else None
    count = 0 if registered is None else len(registered)
    print(hide_credentials(f"{count} of {len(paths)} runs are in {store_uri()}"))


if __name__ == "__main__":
    main()
