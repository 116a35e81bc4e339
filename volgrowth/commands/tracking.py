"""Results in an experiment tracker: numbers, settings and files of an audit become a run of MLflow or Weights & Biases.

The run of an audit carries the audit's digest, so that what later commands find goes into the same run. Each tracker is
imported when it is asked for.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from volgrowth.analysis.policy import list_digest
from volgrowth.audit.output.checking import wrong_list
from volgrowth.audit.output.result import REDACTED_FILE, REPORT_FILE, SUMMARY_FILE, Audit
from volgrowth.config import EXECUTION
from volgrowth.curation.lists import CURATION_FILE
from volgrowth.errors import DamagedError, OutputError, UsageError, VolgrowthError, first_line
from volgrowth.plain import plain, print_plain
from volgrowth.storage.failures import store_error

PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
"""What to install for each tracker."""
EXPERIMENT, TAG = "volgrowth", "volgrowth_audit"
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"
"""How often MLflow asks a server again, if the user does not say: its own 7 keep a finished audit waiting 5 minutes."""


@dataclass(frozen=True)
class Tracked:
    """What a tracker is given of an audit.

    Attributes:
        digest: the name of the audit among all audits.
        title: a name for people: the model and the data set.
        settings: the settings that decide scores, and what model and data were, as text.
        numbers: the numbers of the summary that are followed from run to run.
        files: local files: the summary, the report, and the list if there is one.
    """

    digest: str
    title: str
    settings: dict[str, str]
    numbers: dict[str, float]
    files: list[Path]


def check_tracker(to: str | None) -> None:
    """Raise a UsageError unless `to` is None, mlflow:URI or wandb:PROJECT, and the tracker's package is installed."""
    if to is None:
        return
    kind, _, place = to.partition(":")
    if kind not in PACKAGES or (kind == "wandb" and not place) or ":" not in to:
        raise UsageError(
            f"--log-to {to!r}: expected mlflow:URI, such as mlflow:http://127.0.0.1:5000, or mlflow: for the URI of "
            f"MLFLOW_TRACKING_URI, or wandb:PROJECT, or wandb:ENTITY/PROJECT"
        )
    try:
        import_module(kind)
    except ImportError as error:
        raise UsageError(
            f"--log-to {to}: {kind} cannot be imported ({first_line(error)}): pip install {PACKAGES[kind]}"
        ) from None


def log_audit(audit: Audit, to: str, *, redacted: bool = False) -> str:
    """Log a finished audit to an experiment tracker: its numbers, its settings, and its files as artifacts.

    The files are `summary.json`, the report, and `curation.parquet` if a list was made. A list of the audit before it
    was extended is left out, and a line on stderr says so. The report shows pictures of the training set. An audit has
    one run, which later calls go on with.

    Args:
        audit: a finished audit.
        to: `mlflow:URI`, with the URI of a tracking server or store, or `wandb:PROJECT` or `wandb:ENTITY/PROJECT`.
            `mlflow:` takes MLFLOW_TRACKING_URI. The experiment of MLflow is that of MLFLOW_EXPERIMENT_NAME, else
            "volgrowth".
        redacted: send the report without pictures, `report-redacted.html`, which `report_audit` writes.

    Returns:
        Where the run is.

    Raises:
        UsageError: `to` is none of these, or the package is not installed.
        OutputError: the tracker refused or could not be reached.
    """
    if not isinstance(audit, Audit) or not isinstance(to, str):
        wrong = f"audit is {audit!r}" if not isinstance(audit, Audit) else f"to is {to!r}"
        raise UsageError(
            f"{wrong}: expected a finished audit, as vg.open_audit returns it, and mlflow:URI or wandb:PROJECT"
        )
    check_tracker(to)
    kind, _, place = to.partition(":")
    log: Callable[[Tracked, str], str] = {"mlflow": _to_mlflow, "wandb": _to_wandb}[kind]
    with _tracked(audit, redacted) as known:
        try:
            return log(known, place)
        except Exception as error:  # each tracker raises its own kinds, and those of its HTTP library
            what = f"{audit.store.url} could not be logged to {to}"
            raise store_error(OutputError, what, to, error, "see what the tracker says, and log it again") from None


def log_if_asked(audit: Audit, to: str | None, redacted: bool = False) -> None:
    """Log an audit that a command finished, and print where, or on stderr why not: the command is done either way."""
    if to is None:
        return
    try:
        print_plain(f"logged: {plain(log_audit(audit, to, redacted=redacted))}")
    except VolgrowthError as error:
        again = f"`volgrowth report {audit.store.url} --log-to {to}`"
        print_plain(f"not logged, and all else is done: {plain(str(error))}; {plain(again)} does that", error=True)


@contextmanager
def _tracked(audit: Audit, redacted: bool) -> Iterator[Tracked]:
    """Give what a tracker is given of an audit, with its files under their own names."""
    names = [SUMMARY_FILE, REDACTED_FILE if redacted else REPORT_FILE, *([CURATION_FILE] if _has_list(audit) else [])]
    frozen = audit.frozen
    title = f"{os.path.basename(frozen.model.name.rstrip('/'))} on {os.path.basename(frozen.data.name.rstrip('/'))}"
    with tempfile.TemporaryDirectory(prefix="volgrowth-") as folder:
        files = list[Path]()
        for name in names:
            if audit.store.exists(name):
                with audit.store.local_file(name) as path:
                    files.append(Path(shutil.copyfile(path, Path(folder) / name)))
        yield Tracked(list_digest(audit), title, _settings(audit), summary_numbers(audit.summary), files)


def _has_list(audit: Audit) -> bool:
    """Return whether there is a list of the audit as it is now; say on stderr what is wrong with one that is not."""
    if not audit.store.exists(CURATION_FILE):
        return False
    try:
        why = wrong_list(audit.store, audit.frozen)
    except DamagedError as error:
        why = error.why
    if why:
        again = f"run `volgrowth curate {audit.store.url}` again"
        print_plain(plain(f"{audit.store.path(CURATION_FILE)} is not logged: {why}; {again}"), error=True)
    return not why


def _settings(audit: Audit) -> dict[str, str]:
    """Return the settings that decide scores, with the full names of those of the measure, and what the inputs were."""
    frozen, found = audit.frozen, dict[str, Any]()
    for name, value in frozen.config.items():
        if name not in EXECUTION:
            found |= (
                {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
            )
    found |= {"model_hash": frozen.model.hash, "data_fingerprint": frozen.data.fingerprint}
    found |= {"config_digest": frozen.config_digest, "volgrowth": frozen.versions["volgrowth"]}
    return {name: str(value) for name, value in found.items() if value is not None}


def summary_numbers(summary: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a summary that are followed from run to run; what was not measured is left out."""
    counts, detection, proof = summary["counts"], summary["detection"] or {}, summary.get("verification") or {}
    found = {"rows": counts["rows"], "rows_scored": counts["ok"], "clusters": summary["duplicates"]["clusters"]}
    found |= {
        name: detection.get(name) for name in ("tests", "memorized", "memorized_rows", "precursors", "expected_false")
    }
    found |= {name: proof.get(name) for name in ("samples", "reproduced_images", "flagged_reproduced")}
    found |= {"caveats": len(summary.get("caveats", ())), "evaluations": summary["run"].get("evaluations")}
    return {name: float(value) for name, value in found.items() if value is not None}


def _to_mlflow(known: Tracked, place: str) -> str:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    os.environ.setdefault(*RETRIES)
    client = MlflowClient(tracking_uri=place or None)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    experiment = client.get_experiment_by_name(name)
    place_of = experiment.experiment_id if experiment else client.create_experiment(name)
    earlier = client.search_runs([place_of], f"tags.{TAG} = '{known.digest}'", max_results=1)
    run = earlier[0] if earlier else client.create_run(place_of, tags={TAG: known.digest}, run_name=known.title)
    # the settings of an audit never change, and MLflow takes each once
    new = [Param(key, value) for key, value in known.settings.items() if key not in run.data.params]
    now = time.time_ns() // 1_000_000
    metrics = [Metric(key, value, now, 0) for key, value in known.numbers.items()]
    client.log_batch(run.info.run_id, metrics=metrics, params=new)
    for path in known.files:
        client.log_artifact(run.info.run_id, str(path))
    client.set_terminated(run.info.run_id)
    return f"MLflow experiment {name}, run {run.info.run_id}"


def _to_wandb(known: Tracked, place: str) -> str:
    import wandb

    entity, _, project = place.rpartition("/")
    quiet = wandb.Settings(console="off", silent=True)
    with wandb.init(
        project=project, entity=entity or None, id=known.digest, name=known.title, resume="allow", settings=quiet
    ) as run:
        run.config.update(known.settings, allow_val_change=True)
        run.log(known.numbers)
        artifact = wandb.Artifact(f"audit-{known.digest}", type="audit")
        for path in known.files:
            artifact.add_file(str(path))
        run.log_artifact(artifact)
        return f"W&B offline, in {run.dir}" if run.offline else f"W&B {run.url}"
