"""Where the analysis reads the rows of an audit: in parts, as often as it needs them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from volgrowth.analysis.parts.judge import ANALYSED, REFERENCE, Judge, ScoreTable


class JudgedRows(Protocol):
    """Gives all judged rows, some at a time, as often as it is called: the columns that are asked for, or more."""

    def __call__(self, columns: Sequence[str] | None = None) -> Iterable[pa.Table]: ...


class Rows(ABC):
    """The audited rows of an audit, with the rows of a reference audit beside them.

    Attributes:
        count: number of the rows.
    """

    count: int

    @abstractmethod
    def scores(self) -> Iterator[pa.Table]:
        """Yield the scores of all rows, some at a time, with the columns of `survey.SURVEYED`."""

    @abstractmethod
    def some(self, rows: np.ndarray) -> ScoreTable:
        """Return the scores of some rows, sorted ones."""

    @abstractmethod
    def judged(self, judge: Judge) -> JudgedRows:
        """Judge all rows."""


class RowsInMemory(Rows):
    """Rows of a table.

    Args:
        scores: of all rows, with the columns of `judge.ANALYSED`.
        reference: scores of the same rows under a reference model.
    """

    def __init__(self, scores: pa.Table, reference: pa.Table | None):
        self._scores, self._reference = scores, reference
        self.count = len(scores)

    def scores(self) -> Iterator[pa.Table]:
        yield self._scores

    def some(self, rows: np.ndarray) -> ScoreTable:
        mask = pa.array(np.isin(self._scores["row"].to_numpy(), rows))
        columns = [name for name in ANALYSED if name != "image_id"]  # ids may be more than Arrow filters at once
        reference = None if self._reference is None else self._reference.select(list(REFERENCE)).filter(mask)
        return ScoreTable(self._scores.select(columns).filter(mask), reference)

    def judged(self, judge: Judge) -> JudgedRows:
        judged = judge.judge(self._scores, self._reference)
        return lambda columns=None: [judged]
