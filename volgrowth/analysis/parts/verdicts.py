"""What several rows share decides their verdicts: the p-value of their picture, and the rate among all pictures.

What is one image, and which p-value it has, is the rule of `analysis.distinct`. Most rows are alone in their picture:
they are counted and forgotten. Rows of the same picture are brought together by the database.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.complexity import MEASURED
from volgrowth.analysis.calibration.false_bounds import bounds_by_number, count_above
from volgrowth.analysis.calibration.held_out import Bulk, Kinds
from volgrowth.analysis.calibration.screening import Screening
from volgrowth.analysis.distinct import Pictures
from volgrowth.analysis.judging import is_flagged
from volgrowth.analysis.parts.database import Database, whole_clusters
from volgrowth.analysis.parts.judge import Judge
from volgrowth.analysis.parts.rates import Rates
from volgrowth.records import FINDINGS

Array = np.ndarray
Filled = Callable[[np.ndarray, str], np.ndarray]

_NUMBERS = ("p_value", "loss_p_value", "p_value_conformal", "evidence", "growth", "trial_score", "unscreened")
SEEN = ("row", "content", "scored", "passed", "outside_range", *_NUMBERS, *MEASURED)
"""Columns of judged rows that `Verdicts.see` reads."""
_SHARED = ("p_value", "loss_p_value", "p_value_conformal")
_SCREENED = pa.schema(
    [
        ("row", pa.int64()),
        ("cluster", pa.int64()),
        ("passed", pa.bool_()),
        ("measured", pa.bool_()),
        ("unscreened", pa.float64()),
        ("p", pa.float64()),
    ]
)


class Verdicts:
    """The verdicts of all rows of an audit, from judged rows that are seen twice, a part at a time.

    First `see` takes in every part, then `decide` brings together what belongs together, and then `findings` gives the
    findings of each part.

    Args:
        database: with the table `members` of `duplicates.group_duplicates`.
        judge: by which the rows are judged.
        kinds: compares the complexity of distinct images with that of held-out ones; None without any.
    """

    def __init__(self, database: Database, judge: Judge, kinds: Kinds | None):
        self.database, self.calibration, self.kinds = database, judge.calibration, kinds
        self.cascade = judge.screen is not None
        held_out = self.calibration is not None and self.calibration.method == "held-out"
        self.held = len(self.calibration.rows) if self.calibration and held_out else 0
        self.bulk = None
        if self.calibration and self.calibration.holdout_evidence is not None and not self.cascade:
            self.bulk = Bulk(self.calibration.holdout_evidence)
        self.above, self.trials, self.tests = np.zeros(self.held + 1, np.int64), 0, 0
        self.rates: dict[str, Rates] = {}
        self.bounds = np.ones(self.held + 1)
        numbers = ", ".join(f"{name} DOUBLE" for name in _NUMBERS)
        database.run(
            f"""CREATE TABLE tried (row BIGINT, cluster BIGINT, copies BIGINT, identical BIGINT, content UBIGINT,
                rule VARCHAR, scored BOOLEAN, judged BOOLEAN, passed BOOLEAN, {numbers})""",
            "CREATE TABLE alone (p DOUBLE, n BIGINT)",
            "CREATE TABLE loss_alone (p DOUBLE, n BIGINT)",
            """CREATE TABLE pictures (cluster BIGINT, trials BIGINT,
                cluster_p_value DOUBLE, loss_cluster_p_value DOUBLE, above BIGINT)""",
            """CREATE TABLE screened (row BIGINT, cluster BIGINT,
                passed BOOLEAN, measured BOOLEAN, unscreened DOUBLE, p DOUBLE)""",
        )

    def see(self, judged: pa.Table) -> None:
        """Take in some rows, with the columns of `judge.JUDGED`."""
        row, scored = judged["row"].to_numpy(), as_mask(judged["scored"])
        counted = scored & ~_outside(judged)
        place, members = self._members(row, "SELECT * FROM members")
        among = np.zeros(len(row), bool)
        among[place] = True
        if self.kinds is not None:
            first = judged["content"].is_valid().to_numpy()
            first[place] = members["identical"].to_numpy() == row[place]
            self.kinds.see(judged.select(list(MEASURED)).filter(pa.array(first)))
        if len(place):
            some = judged.select(["scored", "passed", *_NUMBERS]).take(pa.array(place))
            for name in ("row", "cluster", "copies", "identical", "content", "rule"):
                some = some.append_column(name, members[name])
            self.database.add("tried", some.append_column("judged", pa.array(counted[place])))
        if self.calibration:
            self._count(judged, scored & ~among, counted & ~among)

    def _count(self, judged: pa.Table, alone: Array, counted: Array) -> None:
        """Count rows that are alone in their pictures; `counted` are those among them that are judged."""
        self.tests += int(alone.sum())
        self.trials += int(counted.sum())
        for table, name in (("alone", "p_value"), ("loss_alone", "loss_p_value")):
            if judged[name].null_count < len(judged):
                values, counts = np.unique(judged[name].to_numpy()[alone], return_counts=True)
                self.database.add(table, pa.table({"p": values, "n": counts}))
        if self.held:
            conformal = judged["p_value_conformal"].to_numpy()[counted]
            self.above += np.bincount(count_above(conformal, self.held), minlength=len(self.above))
        if self.bulk is not None:
            self.bulk.see(judged["evidence"].to_numpy()[counted])
        if self.cascade:
            row, p_value, measured = judged["row"], judged["p_value"], judged["growth"].is_valid()
            columns = [row, row, judged["passed"], measured, judged["unscreened"], p_value]
            self.database.add("screened", pa.table(columns, schema=_SCREENED).filter(pa.array(counted)))

    def decide(self) -> None:
        """Combine the rows of each picture, and adjust for the number of pictures, once all rows were seen."""
        self._combine()
        if self.calibration:
            for prefix, table in (("", "alone"), ("loss_", "loss_alone")):
                self.rates[prefix] = Rates(
                    self.database.batches(
                        f"""SELECT p, sum(n)::BIGINT AS n FROM (
                            SELECT p, n FROM {table} UNION ALL
                            SELECT {prefix}cluster_p_value, 1 FROM pictures WHERE {prefix}cluster_p_value IS NOT NULL
                        ) GROUP BY p ORDER BY p DESC"""
                    ),
                    self.tests,
                )
            if self.held:
                self.bounds = bounds_by_number(self.above, self.held, self.trials)
        self.database.run(*(f"DROP TABLE {name}" for name in ("alone", "loss_alone", "pictures")))

    def _combine(self) -> None:
        """Make the table `results`: what rows that are not alone in their picture share, in order."""
        # copies of one score are one trial, for which its first row stands
        self.database.run(
            "CREATE TABLE firsts AS SELECT min(row) AS row, content, trial_score FROM tried WHERE scored GROUP BY ALL"
        )
        if self.cascade:
            self._share()
        if self.calibration:
            self._pictures()
        if self.cascade:
            self.database.run(
                """INSERT INTO screened SELECT row, cluster, passed, growth IS NOT NULL, unscreened, cluster_p_value
                FROM tried SEMI JOIN firsts USING (row) JOIN pictures USING (cluster) WHERE judged"""
            )
        # the row that stands for a picture, as `distinct.strongest_rows` chooses it
        self.database.run(
            """CREATE TABLE strongest AS SELECT cluster, min(struct_pack(
                state := CASE WHEN judged AND p_value IS NOT NULL THEN 0 WHEN p_value <= 1 THEN 1 ELSE 2 END,
                p_value := CASE WHEN judged THEN coalesce(p_value, 0) ELSE 0 END,
                evidence := -coalesce(evidence, '-infinity'::DOUBLE),
                growth := -coalesce(growth, '-infinity'::DOUBLE),
                row := row)).row AS row FROM tried GROUP BY cluster""",
            f"""CREATE TABLE results AS SELECT tried.row, cluster, copies, identical, rule,
                strongest.row = tried.row AS strongest, trials, cluster_p_value, loss_cluster_p_value, above,
                {", ".join(_SHARED)}
            FROM tried JOIN strongest USING (cluster) LEFT JOIN pictures USING (cluster) ORDER BY tried.row""",
            *(f"DROP TABLE {name}" for name in ("strongest", "firsts", "members", "tried")),
        )

    def _share(self) -> None:
        """Give all rows of a trial the p-values of its first, which alone a cascade measures."""
        columns = ", ".join(_SHARED)
        self.database.run(
            f"""CREATE TABLE trials AS SELECT firsts.content, firsts.trial_score, {columns}
            FROM firsts JOIN tried USING (row)""",
            f"""CREATE TABLE shared AS SELECT tried.* EXCLUDE ({columns}),
                {", ".join(f"trials.{name}" for name in _SHARED)}
            FROM tried LEFT JOIN trials ON tried.content = trials.content AND tried.trial_score = trials.trial_score""",
            *("DROP TABLE tried", "DROP TABLE trials", "ALTER TABLE shared RENAME TO tried"),
        )

    def _pictures(self) -> None:
        """Fill the table `pictures` with the combined p-values of pictures of several rows."""
        query = """SELECT cluster, content, trial_score, judged, p_value, loss_p_value, p_value_conformal
            FROM tried SEMI JOIN firsts USING (row) ORDER BY cluster, row"""
        for some in whole_clusters(self.database.batches(query)):
            names, cluster = np.unique(some["cluster"].to_numpy(), return_inverse=True)
            judged = as_mask(some["judged"])
            pictures = Pictures.of(cluster, some["content"].to_numpy(), some["trial_score"].to_numpy())
            _, one = np.unique(cluster, return_index=True)
            found = {"cluster": pa.array(names), "trials": pa.array(pictures.trials(judged)[one])}
            for prefix in ("", "loss_"):
                p_value = some[f"{prefix}p_value"]
                if p_value.null_count < len(p_value):
                    combined = pictures.p_values(p_value.to_numpy(), judged)[one]
                    found[f"{prefix}cluster_p_value"] = pa.array(combined)
            if self.held:
                smallest = pictures.smallest(some["p_value_conformal"].to_numpy(), judged)
                known = np.isfinite(smallest)
                above = count_above(np.where(known, smallest, 0), self.held)
                self.above += np.bincount(above[known], minlength=len(self.above))
                found["above"] = pa.array(above, mask=~known)
            self.tests += len(names)
            self.trials += int(judged.sum())
            self.database.add("pictures", pa.table(found))
        if self.bulk is not None:
            query = """SELECT evidence FROM tried SEMI JOIN (
                SELECT min(row) AS row FROM tried WHERE scored GROUP BY content
            ) USING (row) WHERE judged"""
            for some in self.database.batches(query):
                self.bulk.see(some["evidence"].to_numpy())

    def _members(self, row: Array, query: str) -> tuple[Array, pa.Table]:
        """Return the rows of a query that are among these, and their places, (k,)."""
        if not len(row):
            return np.empty(0, np.int64), self.database.table(f"{query} LIMIT 0")
        found = self.database.table(f"{query} WHERE row BETWEEN {row.min()} AND {row.max()}")
        order = np.argsort(row, kind="stable")
        return order[np.searchsorted(row[order], found["row"].to_numpy())], found

    def findings(self, judged: pa.Table) -> pa.Table:
        """Return the findings of some rows, with the columns of `records.FINDINGS`, once all is decided."""
        row, scored = judged["row"].to_numpy(), as_mask(judged["scored"])
        place, results = self._members(row, "SELECT * FROM results")

        def filled(alone: Array, name: str) -> Array:
            alone = alone.copy()
            alone[place] = results[name].to_numpy()
            return alone

        ones = np.ones(len(row), np.int64)
        known = {name: judged[name] for name in judged.column_names if name in FINDINGS.names}
        known |= {
            "cluster": pa.array(filled(row, "cluster")),
            "copies": pa.array(filled(ones, "copies").astype(np.int32)),
            "identical": pa.array(filled(row, "identical")),
            "strongest": pa.array(filled(ones.astype(bool), "strongest")),
            "duplicate_rule": _spread(results["rule"], place, len(row)),
        }
        if self.calibration:
            counted = scored & ~_outside(judged)
            trials = np.nan_to_num(filled(counted.astype(float), "trials")).astype(np.int32)
            known["trials"] = pa.array(trials, mask=~scored)
            for prefix in ("", "loss_"):
                if judged[f"{prefix}p_value"].null_count < len(row):
                    known |= self._rated(prefix, judged, scored, filled)
            if self.held:
                known |= self._bounded(judged, scored, counted, filled)
        return pa.table([known.get(f.name, pa.nulls(len(row), f.type)) for f in FINDINGS], schema=FINDINGS)

    def _rated(self, prefix: str, judged: pa.Table, scored: Array, filled: Filled) -> dict[str, pa.Array]:
        """Return the p-values and rates of some rows, by their evidence or, with a prefix, by a part of it."""
        p_value = judged[f"{prefix}p_value"].to_numpy()
        combined = np.where(scored, filled(p_value, f"{prefix}cluster_p_value"), np.nan)
        rates, name = self.rates[prefix], "precursor" if prefix else "memorized"
        q_value = rates.q_values(combined)
        columns = {
            f"{prefix}p_value": filled(p_value, f"{prefix}p_value") if self.cascade else p_value,
            f"{prefix}cluster_p_value": combined,
            f"{prefix}q_value": q_value,
            f"{prefix}q_value_by": rates.any_dependence(combined),
        }
        arrays = {column: pa.array(values, from_pandas=True) for column, values in columns.items()}
        return {**arrays, name: pa.array(is_flagged(q_value), mask=~scored)}

    def _bounded(self, judged: pa.Table, scored: Array, counted: Array, filled: Filled) -> dict[str, pa.Array]:
        """Return the conformal p-values of some rows, and the bounds on false flags, 1 where none is judged."""
        conformal = judged["p_value_conformal"].to_numpy()
        above = np.full(len(scored), np.nan)
        above[counted] = count_above(conformal[counted], self.held)
        above = filled(above, "above")
        known, bound = np.isfinite(above), np.ones(len(scored))
        bound[known] = self.bounds[above[known].astype(int)]
        if self.cascade:
            conformal = filled(conformal, "p_value_conformal")
        return {
            "p_value_conformal": pa.array(conformal, from_pandas=True),
            "false_bound": pa.array(bound.astype(np.float32), mask=~scored),
        }

    def screening(self) -> Screening | None:
        """Describe the screening of the trials within the calibration's range, by their first rows."""
        if not self.cascade:
            return None
        near = "passed OR cluster IN (SELECT cluster FROM screened WHERE measured)"
        found = self.database.table(f"SELECT * FROM screened WHERE {near} ORDER BY row")
        others = np.zeros(1 + (self.database.number("SELECT max(row) FROM screened") or 0), bool)
        for some in self.database.batches(f"SELECT row FROM screened WHERE NOT ({near})"):
            others[some["row"].to_numpy()] = True
        return Screening(
            row=found["row"].to_numpy(),
            passed=as_mask(found["passed"]),
            measured=as_mask(found["measured"]),
            flagged=is_flagged(self.rates[""].q_values(found["p"].to_numpy())),
            p_value=found["unscreened"].to_numpy(),
            picture=found["cluster"].to_numpy(),
            tests=self.tests,
            others=np.packbits(others),
        )


def _spread(values: pa.ChunkedArray, place: Array, rows: int) -> pa.Array:
    """Return a column of so many rows with the values at their places, and nulls elsewhere."""
    index = np.full(rows, -1)
    index[place] = np.arange(len(place))
    return values.combine_chunks().take(pa.array(index, mask=index < 0))


def _outside(judged: pa.Table) -> Array:
    """Return a mask of the rows that are not within the calibration's range, as far as that is known."""
    return pc.fill_null(judged["outside_range"], True).to_numpy().astype(bool)
