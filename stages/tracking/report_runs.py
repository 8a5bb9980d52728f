"""The runs that a report shows: they get what it has made of them, a tag, and one parent per table."""

import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from stages.core.messages import join_names
from stages.core.runs import Run
from stages.tracking.attachments import attach_captions, attach_files, attach_model
from stages.tracking.content import DVC_EXPERIMENT, PROFILE, failed_on_error, log_metrics, open_run
from stages.tracking.store import connect, errors_as_warning, experiment_id, find_finished, id_query, search_runs

REPORT = "report"  # a tag: where the newest report shows the run, such as `Table 5`
GROUP = "vitlab.group"  # a tag of a parent: a hash of the identities of its children
ROWS = "rows/"  # starts the names of a parent's metrics that are of one row of its table


@dataclass(frozen=True)
class Group:
    """The runs of one task that a report shows, by MLflow run ID, and the tables that it makes of them.

    `title` is that of the tables, such as `Table 5`; `files` are theirs, and `text` is their markdown. `metric` is the
    name of the metric that the tables show, and `rows` are its means over the seeds by row.
    """

    title: str
    runs: dict[str, Run]
    files: list[Path] = field(default_factory=list)
    text: str = ""
    metric: str = ""
    rows: dict[str, float] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return next(iter(self.runs.values())).task

    @property
    def identity(self) -> str:
        """SHA-256 of the identities of its runs: a repeated pipeline run has the same groups."""
        identities = sorted(run.identity for run in self.runs.values())
        return hashlib.sha256("".join(identities).encode()).hexdigest()


def show_in_report(groups: list[Group], figures: dict[str, list[Path]], profile: str) -> None:
    """Attach figures, by run ID, tables and models; put every group under a parent; tag the runs of this report.

    What a run has already is not added again. A run belongs to the parent of the newest report that shows it. Runs of
    the same profile and DVC experiment that the report does not show any more lose the tag.
    """
    with errors_as_warning("figures, models and groups not added"):
        client = connect()
        stored = _read_runs([run_id for group in groups for run_id in group.runs])
        problems = {}
        report_run_ids = set(stored)
        for group in groups:
            for run_id, run in group.runs.items():
                if run_id in figures:
                    attach_files(client, stored[run_id], figures[run_id], "figures")
                if run.task == "captioning":
                    attach_captions(client, stored[run_id], run)
                problem = attach_model(client, stored[run_id], run)
                if problem:
                    problems[run.key] = problem
            parent_id = _parent(client, group, [stored[run_id] for run_id in group.runs])
            report_run_ids.add(parent_id)
            for run_id in group.runs:
                _set_tags(client, stored[run_id], {MLFLOW_PARENT_RUN_ID: parent_id, REPORT: group.title})
        if problems:
            print(f"MLflow: no model of {join_names(list(problems))}: {next(iter(problems.values()))}", file=sys.stderr)
        _untag_outdated(client, report_run_ids, profile)


def _read_runs(run_ids: list[str]) -> dict[str, MlflowRun]:
    """The runs with these IDs, in the same order."""
    by_id = {run.info.run_id: run for run in search_runs(id_query(run_ids), output_format="list")}
    return {run_id: by_id[run_id] for run_id in run_ids}


def _parent(client: MlflowClient, group: Group, children: list[MlflowRun]) -> str:
    """The ID of a group's parent, which is created if no run of the same pipeline run has made it."""
    experiment = experiment_id(client, group.task)
    parent = find_finished(client, experiment, GROUP, group.identity) or _create_parent(client, group, children)
    attach_files(client, parent, group.files, "tables")
    tags = {REPORT: group.title}
    if len(group.text) <= MAX_TAG_VAL_LENGTH:
        tags[MLFLOW_RUN_NOTE] = group.text
    _set_tags(client, parent, tags)
    return parent.info.run_id


def _create_parent(client: MlflowClient, group: Group, children: list[MlflowRun]) -> MlflowRun:
    """A run with what the runs of a group have in common, and the numbers of their table; it lasts as long as they."""
    runs = list(group.runs.values())
    summary = Run(
        task=group.task,
        name=group.title,
        stage="report",
        params=_shared([run.params for run in runs]),
        inputs=_shared([run.inputs for run in runs]),
        metrics={},
    )
    end_time = max(child.info.end_time for child in children)
    run_id = open_run(client, summary, min(child.info.start_time for child in children))
    with failed_on_error(client, run_id):
        metrics = {group.metric: max(group.rows.values())} if group.rows else {}  # MLflow's page has the same order
        metrics |= {f"{ROWS}{name}": value for name, value in group.rows.items()}
        log_metrics(client, run_id, [Metric(key, value, end_time, 0) for key, value in metrics.items()])
        client.set_tag(run_id, GROUP, group.identity)
        client.set_terminated(run_id, "FINISHED", end_time)
    return client.get_run(run_id)


def _shared(dicts: list[dict]) -> dict:
    """The items that all of `dicts` have."""
    common = dict(dicts[0])
    for values in dicts[1:]:
        common = {key: value for key, value in common.items() if key in values and values[key] == value}
    return common


def _set_tags(client: MlflowClient, stored: MlflowRun, tags: dict[str, str]) -> None:
    """Set the tags of a run that it does not have."""
    changed = [RunTag(key, value) for key, value in tags.items() if stored.data.tags.get(key) != value]
    if changed:
        client.log_batch(stored.info.run_id, tags=changed)


def _untag_outdated(client: MlflowClient, report_run_ids: set[str], profile: str) -> None:
    """Take the tag from the runs of this profile and DVC experiment that are not in the report."""
    query = f"tags.{REPORT} LIKE '%' and tags.{PROFILE} = '{profile}'"
    for run in search_runs(query, output_format="list"):
        same_experiment = run.data.tags.get(DVC_EXPERIMENT) == os.environ.get("DVC_EXP_NAME")
        if same_experiment and run.info.run_id not in report_run_ids:
            client.delete_tag(run.info.run_id, REPORT)
