"""The search of the whole data set for the images nearest to some images, by the workers of a session."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np

from volgrowth.analysis.verification.samples import ImageNumbers
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.sampling.neighbours import Neighbours, SearchingWorker

# rows that one task searches: enough to be worth a task, few enough to be repeated when a worker dies
RANGE = 65_536


def search_all(
    session: Session,
    manifest: Manifest,
    asked: tuple[str, list[Any], int],
    groups: Mapping[str, ImageNumbers],
    most: int,
    doing: str,
    quiet: bool,
) -> Neighbours:
    """Find the groups nearest to some images, among all audited and held-out ones.

    Args:
        session: the driver session that the workers belong to.
        manifest: the frozen audit.
        asked: the method of `SearchingWorker` that knows the images, what names them to it, and their number.
        groups: numbers of the audited and the held-out images, by the folder of their scores.
        most: groups to find for each image, fewer if there are no more.
        doing: what the progress display calls the search.
        quiet: show no progress.
    """
    (method, names, images), ranges = asked, _ranges(manifest)
    count = sum(numbers.count for numbers in groups.values())
    found = Neighbours(np.empty((images, 0)), min(most, max(count, 1)))
    rows = sum(part.rows for part in ranges)
    progress = AuditProgress(rows, len(ranges), quiet=quiet, doing=doing, unit="images")

    def task(part: Shard) -> Task:
        def finished(answer: tuple[np.ndarray, np.ndarray]) -> tuple[()]:
            found.merge(*answer)
            progress.advance(part.rows, 0)
            return ()

        mine = groups[part.folder].of(part.start, part.stop)
        name = f"the search in rows {part.start} to {part.stop - 1} of {part.folder}"
        return Task(name, method, (names, part, mine, found.k), finished)

    run_tasks(session, SearchingWorker, map(task, ranges), len(ranges), progress)
    return found


def _ranges(manifest: Manifest) -> list[Shard]:
    """Split the audited and the held-out rows into the ranges that one task searches."""
    folders = {SCORES_FOLDER: manifest.data.rows, HOLDOUT_FOLDER: manifest.holdout.rows if manifest.holdout else 0}
    ranges = []
    for folder, rows in folders.items():
        size = min(RANGE, max(1024, ceil(rows / 16)))
        ranges += [Shard(folder, i, start, min(start + size, rows)) for i, start in enumerate(range(0, rows, size))]
    return ranges
