"""`volgrowth curate`: make or read a list of what to do with each row, keep it, and apply it to a copy of the data."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from volgrowth.analysis.caveats import loss_unbounded, outdated_proof
from volgrowth.analysis.deciding import Curation
from volgrowth.analysis.judging import JudgedAudit
from volgrowth.analysis.policy import CURATION, CurationPolicy, list_digest
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.result import Audit, open_audit, open_stored
from volgrowth.commands.id_files import read_ids
from volgrowth.curation.applying import apply_list, check_destination
from volgrowth.curation.lists import CURATION_FILE, new_list, open_list
from volgrowth.curation.receipts import Receipt
from volgrowth.curation.undoing import undo_list
from volgrowth.errors import UsageError
from volgrowth.storage.store import Store


def curate_audit(
    output: str,
    policy: CurationPolicy | None = None,
    *,
    list_path: str | None = None,
    destination: str | None = None,
    indices: bool = False,
    trust_output: bool = False,
) -> tuple[pa.Table, Receipt | None]:
    """Make or read a curation list, keep it in the audit as `curation.parquet`, and apply it if `destination` is given.

    Args:
        output: folder or URL of a finished audit.
        policy: the policy that makes the list; without one the list is read from `list_path`.
        list_path: a .parquet or .csv file: written if there is a policy, else read.
        destination: a new folder, or the URL of an empty prefix, for the data set that the list describes; see
            `volgrowth curate --apply`.
        indices: write row numbers for `datasets` to `destination` instead of a copy of the rows.
        trust_output: copy the data set that the output names although another account, or another machine, made the
            audit.

    Returns:
        The list, one row per image of the audit, and the receipt of what was written to `destination` (None without).

    Raises:
        UsageError: neither a policy nor a list is given, or a list or destination makes no sense.
        OutputError: there is no finished audit, a file or folder is in the way, the list is of another audit, or the
            data set of another account's audit is to be copied and `trust_output` is not given.
        DataError: the audited data set is not what it was.
    """
    curated = write_curation(output, policy, list_path, destination, indices, trust_output)
    return Store(output).read_table(CURATION_FILE), curated.receipt


@dataclass(frozen=True)
class Curated:
    """What became of a list.

    Attributes:
        actions: number of rows of each action.
        notes: sentences to know beside the numbers: how many of the chosen images are innocent, at most, unless the
            policy is by the rate, and which memorized images a policy by the rate may miss.
        receipt: of the data set that the list was applied to; None if it was not applied.
    """

    actions: Counter[str]
    notes: tuple[str, ...]
    receipt: Receipt | None


def write_curation(
    output: str,
    policy: CurationPolicy | None,
    list_path: str | None,
    destination: str | None,
    indices: bool = False,
    trust_output: bool = False,
) -> Curated:
    """Do what `curate_audit` does, a shard's rows at a time, without returning the list; the arguments are the same."""
    open_audit(output)  # refused before the output is locked, if it holds no finished audit
    with driving(Store(output)) as lock:
        audit = open_stored(lock.fenced(), trust_output)
        if destination is not None:
            check_destination(audit, destination, indices)
            audit.refuse_if_strange("copying the data")
        actions, notes = _keep_list(audit, policy, list_path)
        if destination is None:
            return Curated(actions, notes, None)
        rows = (pa.Table.from_batches([batch]) for batch in audit.store.read_batches(CURATION_FILE))
        return Curated(actions, notes, apply_list(audit, rows, destination, indices=indices))


def _keep_list(
    audit: Audit, policy: CurationPolicy | None, list_path: str | None
) -> tuple[Counter[str], tuple[str, ...]]:
    """Make or read the list, and keep it in the audit. Returns the number of rows of each action, and the notes."""
    bound, missed = None, list[str | None]()
    if policy is not None:
        curation = Curation(JudgedAudit(audit, audit.summary.get("verification")), policy)
        bound = curation.bound_innocent(audit.summary["detection"])
        if policy.by == "fdr":
            missed = [outdated_proof(audit.summary), loss_unbounded(audit.summary, policy.limit)]
        tables, how = curation.tables(list_digest(audit)), f"{policy.by} {policy.limit:g}, {policy.action}"
    elif list_path is not None:
        tables, how = open_list(audit, list_path).tables(), "as read from a file"
    else:
        raise UsageError(
            "neither a policy nor a list: give one of --fdr, --top-k and --max-score, or a list that exists as --list"
        )
    said = {"schema_version": str(audit.frozen.schema_version), "policy": how, **({"bound": bound} if bound else {})}
    actions = Counter[str]()
    with ExitStack() as files:
        writers: list[Any] = [files.enter_context(audit.store.table_writer(CURATION_FILE, CURATION, said))]
        if policy is not None and list_path is not None:  # published first: it may be refused
            writers.append(files.enter_context(new_list(list_path, said)))
        for table in tables:
            actions.update(table["action"].to_pylist())
            for writer in writers:
                writer.write(table)
    return actions, tuple(said for said in (bound, *missed) if said)


def policy_of_options(
    limits: dict[str, float | None], action: str | None, allow: Path | None, opt_out: Path | None
) -> CurationPolicy | None:
    """Return the policy that the options of `volgrowth curate` describe, None if they describe none.

    Args:
        limits: the values of `fdr`, `top_k` and `max_score`, of which at most one may be given.
        action: drop, dedupe or downweight.
        allow, opt_out: text files with an image id or a source on each line.

    Raises:
        UsageError: options contradict each other, or a file cannot be read.
    """
    given = {name: value for name, value in limits.items() if value is not None}
    options: dict[str, Any] = {"action": action, "allow": allow, "opt_out": opt_out}
    options = {name: value for name, value in options.items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"{' and '.join(map(_flag, given))} were given: expected one of them")
    if options and not given:
        raise UsageError(
            f"{_flag(next(iter(options)))} needs --fdr, --top-k or --max-score beside it; --top-k 0 flags nothing"
        )
    for name in options.keys() & {"allow", "opt_out"}:
        options[name] = read_ids(options[name], _flag(name))
    return next((CurationPolicy(by=by, limit=limit, **options) for by, limit in given.items()), None)  # type: ignore[arg-type]


def curation_lines(output: str, list_path: str | None, curated: Curated, destination: str | None) -> list[str]:
    """Return what `volgrowth curate` prints: rows of each action, a bound on innocent images, what was written."""
    actions, applied = curated.actions, curated.receipt
    said = ", ".join(f"{name} {actions[name]:,}" for name in ("drop", "downweight", "review", "keep"))
    file = list_path or output.rstrip("/") + "/" + CURATION_FILE
    lines = [f"{said} of {actions.total():,} rows; list: {file}"]
    lines += curated.notes
    if applied:
        lines.append(f"{applied.rows:,} rows in {destination}; volgrowth curate --undo {destination} removes it")
    return lines


def undo_curation(folder: str, trust_output: bool = False) -> str:
    """Remove a folder that `curate_audit` wrote, and return a sentence about what is gone.

    Args:
        folder: the folder, or the URL of the prefix.
        trust_output: remove it although another account, or another machine, wrote it.

    Raises:
        OutputError: it was not written by `curate_audit`, or something in it has changed since.
    """
    gone = undo_list(folder, trust_output=trust_output)
    return f"removed {folder} ({gone.rows:,} rows, {len(gone.files):,} files); {gone.data} was not changed"


def refuse_beside_undo(given: dict[str, Any]) -> None:
    """Raise a UsageError if anything but --trust-output is among the values of the options beside --undo."""
    for name, value in given.items():
        if name not in ("undo", "trust_output") and value is not None and value is not False:
            raise UsageError(f"--undo takes nothing beside it, and {name.strip('_')} was {value}: leave that out")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
