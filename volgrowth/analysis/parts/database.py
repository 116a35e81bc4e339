"""A database for what does not fit into memory: DuckDB with bounded memory, which sorts, groups and joins on disk.

Its files lie in a temporary folder and are gone when it is closed. For few rows it has no files.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import psutil
import pyarrow as pa

from volgrowth.errors import OutputError, first_line
from volgrowth.signals import uninterrupted

if TYPE_CHECKING:
    import duckdb

FEW = 200_000
"""Rows up to which everything is kept in memory."""
MEMORY, THREADS = 160, 1
"""MiB that the database may use before it goes on on disk, and its threads, each of which takes some more beside."""
ROW_BYTES = 160
"""Bytes of temporary files for each row: 80 are taken where one row in ten is a copy, 130 where every row has one."""
BATCH = 2**17
"""Rows that are read from the database at once."""

A = TypeVar("A")


class Database:
    """Tables of a temporary database.

    A query that finds no way to go on on disk is begun again with twice the memory: nothing is left of its first try.

    Args:
        connection: to DuckDB.
        task: what it is for.
        memory: MiB that it may use.
    """

    def __init__(self, connection: "duckdb.DuckDBPyConnection", task: str, memory: int):
        self.connection, self.task, self.memory = connection, task, memory

    def run(self, *statements: str) -> None:
        """Execute SQL statements."""
        for statement in statements:
            self._done(partial(self.connection.execute, statement))

    def add(self, name: str, rows: pa.Table) -> None:
        """Append rows to a table; the columns of both have the same names."""
        if len(rows):
            self.connection.register("added", rows)
            self.run(f"INSERT INTO {name} BY NAME SELECT * FROM added")
            self.connection.unregister("added")

    def table(self, query: str) -> pa.Table:
        """Return the result of a query that is known to be small."""
        return self._done(lambda: self.connection.sql(query).to_arrow_table())

    def number(self, query: str) -> Any:
        """Return the only value of a query."""
        ((value,),) = self._done(lambda: self.connection.execute(query).fetchall())
        return value

    def batches(self, query: str) -> Iterator[pa.Table]:
        """Yield the result of a query in its order, some rows at a time; the database may be used in between."""
        # a query sorts before it has a first row: what comes after that needs no more memory
        reader = self._done(lambda: self.connection.cursor().sql(query).to_arrow_reader(BATCH))
        for batch in reader:
            yield pa.Table.from_batches([batch])

    def _done(self, work: Callable[[], A]) -> A:
        """Return what some work returns, begun again with twice the memory for as long as that is too little.

        Raises:
            OutputError: the machine has no more memory, or the disk no more room.
        """
        import duckdb

        while True:
            try:
                return work()
            except duckdb.IOException as error:
                folder = tempfile.gettempdir()
                raise OutputError(
                    f"the {self.task} cannot go on with its temporary files in {folder} ({first_line(error)}): make "
                    f"room there, or set TMPDIR to a folder with more; what is scored stays"
                ) from None
            except duckdb.OutOfMemoryException:
                if self.memory > psutil.virtual_memory().available >> 20:
                    raise OutputError(
                        f"the {self.task} needs more than {self.memory:,} MiB of memory for its database, and this "
                        "machine has no more: run the same again on one with more; what is scored stays"
                    ) from None
                self.memory *= 2
                self.connection.execute(f"SET memory_limit = '{self.memory}MiB'")


@contextmanager
def open_database(rows: int, task: str = "analysis") -> Iterator[Database]:
    """Open an empty database for a task that concerns so many rows, and remove it at the end.

    Raises:
        OutputError: the disk has no room for it.
    """
    with uninterrupted():  # an exception in the midst of its import aborts the process
        import duckdb  # a tenth of a second to import, and only an analysis needs it

    settings: dict[str, Any] = {
        "threads": THREADS,
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
    }
    if rows <= FEW:
        with duckdb.connect(config=settings) as connection:
            yield Database(connection, task, MEMORY)
        return
    check_room(rows, task)
    with tempfile.TemporaryDirectory(prefix="volgrowth-") as folder:
        settings |= {"memory_limit": f"{MEMORY}MiB", "temp_directory": folder}
        with duckdb.connect(f"{folder}/rows.duckdb", config=settings) as connection:
            yield Database(connection, task, MEMORY)


def check_room(rows: int, task: str = "analysis") -> None:
    """Check that the disk has room for the temporary files of so many rows.

    Raises:
        OutputError: it has not.
    """
    folder, needed = tempfile.gettempdir(), rows * ROW_BYTES
    free = shutil.disk_usage(folder).free
    if rows > FEW and free < needed:
        raise OutputError(
            f"the {task} of {rows:,} rows takes up to {needed:,} bytes of temporary files, and {folder} has room for "
            f"{free:,}: make room there, or set TMPDIR to a folder with more; what is scored stays"
        )


def whole_clusters(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield rows that are in order of their clusters so that none is divided."""
    held: pa.Table | None = None
    for some in batches:
        held = some if held is None else pa.concat_tables([held, some])
        cluster = held["cluster"].to_numpy()
        whole = int(np.searchsorted(cluster, cluster[-1]))
        if whole:
            yield held.slice(0, whole)
            held = held.slice(whole)
    if held is not None:
        yield held
