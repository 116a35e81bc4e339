r"""Groups of near duplicates, each within a radius of one of its images.

Two images are alike when their perceptual hashes differ in at most `RADIUS` of 64 bits and their brightness and
contrast agree (`Light`); flat images, whose hash means nothing, are alike to none. To join whatever is alike would
chain unlike images into one group. Groups are those of the leader algorithm instead (Hartigan, Clustering Algorithms,
1975, chapter 3): images come in order, and each joins the first leader that it is alike to, or else becomes one. First
come the images that most rows look like exactly, which a model is most likely to have learnt and which copies most
likely were made from; content hashes break ties, so that groups do not depend on the order of rows.

`RADIUS` is small because hashes of small images are weak. Within it are, of images that were brightened by 8 grey
levels, given noise of 4, or saved as JPEG, 92% or more of photographs at 128 pixels and 75% or more of digits at 8 (but
only 60% at 64 pixels of patches that are half sky); 1% of 1,797 different digits are alike to another one. At a radius
of 4 it is 96%, 95%, 67% and 7%: that would drop different images to catch a few more copies, and to miss a copy costs
less. Of images moved by two pixels most are missed at either, and all mirrored ones.
tests/analysis/test_duplicates.py measures this.

Search. Images of one hash and one light are one look, and are searched for once. A hash is cut into `BANDS` =
`RADIUS` + 2 bands; of two that differ in `RADIUS` bits at least two bands are equal, so that candidates are looks with
equal keys, a key being two bands. Bits are dealt to bands by how evenly they split the looks, so that keys tell them
apart where hashes do at all. The looks of a key that more than `MANY` share are told apart by the same rule once more:
the bits outside the key are cut into bands, and two of them are added to the key. So the candidates of a look are
bounded, unless 48 bits of very many hashes agree. A database joins the looks by their keys, out of core, and keeps the
pairs that are alike and no candidates; leaders are decided from these pairs in order, some at a time. In memory there
is one byte for each look that is alike to another one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.complexity import FLAT
from volgrowth.analysis.embeddings import Embeddings
from volgrowth.analysis.parts.database import Database, open_database

RADIUS = 2
BANDS = RADIUS + 2
BITS = 64
MANY = 1024
BY_HASH, BY_EMBEDDING = "hash", "embedding"
"""What brought a row into its group: equal pixels or alike hashes, or an embedding that is near to the leader's."""
SAMPLE = 2**16
"""Looks by which bits are dealt to bands."""

# Brightness and contrast of pixels in [-1, 1] are rounded to steps of `STEP`; images up to `STEPS_APART` steps apart
# are alike. Images of one hash and one rounded light cannot be told apart, so that they are searched for once.
STEP = 0.05
STEPS_APART = 2

STRUCTURE = 2**63 - 1
"""The bits of a perceptual hash that stand for structure: an image of one colour has none of them. The first bit is the
mean's, which is 0 only where all is black."""

SEEN = pa.schema(
    [
        ("row", pa.int64()),
        ("content", pa.uint64()),
        ("phash", pa.uint64()),
        ("brightness", pa.int16()),
        ("contrast", pa.int16()),
    ]
)
"""What is seen of each row: hashes of its pixels and of its look, and its light; null where there is none."""


@dataclass(frozen=True)
class Light:
    """Light of n images, in steps of `STEP`.

    Attributes:
        brightness: mean of each image's pixels, (n,) int8.
        contrast: standard deviation of each image's pixels, (n,) int8.
    """

    brightness: np.ndarray
    contrast: np.ndarray

    @classmethod
    def of(cls, scores: pa.Table) -> "Light":
        """Return the light of all rows of a table of scores; every row must have an image."""
        values = scores["mean"].to_numpy(), np.sqrt(scores["variance"].to_numpy())
        return cls(*(np.round(value / STEP).astype(np.int8) for value in values))

    def __getitem__(self, chosen: np.ndarray | slice) -> "Light":
        return Light(self.brightness[chosen], self.contrast[chosen])

    def agrees(self, other: "Light") -> np.ndarray:
        """Compare each image with the one in the same place, or with the only one; return a mask, (n,)."""
        apart = np.maximum(abs(self.brightness - other.brightness), abs(self.contrast - other.contrast))
        return apart <= STEPS_APART


def has_look(scores: pa.Table) -> np.ndarray:
    """Return a mask of the rows whose perceptual hash means something: they have an image, and it is not flat.

    The variance alone does not show an image of one colour, since it counts how far apart the channels are.
    """
    return as_mask(pc.and_(pc.greater(_structure(scores), 0), pc.greater(scores["variance"], FLAT)))


def is_flat(scores: pa.Table) -> np.ndarray:
    """Return a mask of the rows with an image of one colour, or nearly: its pixels differ by half a grey level or less.

    In colour the variance does not show it (see `has_look`): there the hash has no structure, neighbouring pixels
    hardly differ, and none much. Structure alone would take even gradients for it, and colours of one brightness.
    """
    plain = pc.and_(pc.equal(_structure(scores), 0), pc.equal(scores["edge_density"], 0))
    plain = pc.and_(plain, pc.less(scores["total_variation"], FLAT**0.5))
    return as_mask(pc.or_kleene(plain, pc.less_equal(scores["variance"], FLAT)))


def _structure(scores: pa.Table) -> pa.ChunkedArray:
    """Return the bits of structure of each row's perceptual hash."""
    return pc.bit_wise_and(scores["phash"], pa.scalar(STRUCTURE, pa.uint64()))


def looks_of(scores: pa.Table) -> pa.Table:
    """Return the columns of `SEEN` of rows of scores, with row, phash, content_hash, mean and variance."""
    look = has_look(scores)
    some = scores.select(["phash", "mean", "variance"]).filter(pa.array(look))
    light, place = Light.of(some), pa.array(np.cumsum(look) - 1, mask=~look)
    columns = [
        some["phash"].combine_chunks(),
        pa.array(light.brightness, pa.int16()),
        pa.array(light.contrast, pa.int16()),
    ]
    spread = [column.take(place) for column in columns]
    return pa.table([scores["row"], scores["content_hash"], *spread], schema=SEEN)


def duplicate_clusters(scores: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Group near duplicates.

    Args:
        scores: with the columns row, phash, content_hash, mean and variance of `records.SCORES`.

    Returns:
        For each row the smallest row of its group, (rows,), and the number of rows in the group, (rows,). Identical
        images are in one group; a row without an image is a group of its own.
    """
    with open_database(len(scores)) as database:
        create_seen(database)
        database.add("seen", looks_of(scores))
        group_duplicates(database)
        members = database.table("SELECT row, cluster, copies FROM members")
    cluster, copies = scores["row"].to_numpy().copy(), np.ones(len(scores), np.int64)
    order = np.argsort(cluster, kind="stable")
    place = order[np.searchsorted(cluster[order], members["row"].to_numpy())]
    cluster[place], copies[place] = members["cluster"].to_numpy(), members["copies"].to_numpy()
    return cluster, copies


def create_seen(database: Database) -> None:
    """Create the empty table `seen`, with the columns of `SEEN`, and `scored`, whether a row has a score."""
    database.run(
        """CREATE TABLE seen (row BIGINT, scored BOOLEAN, content UBIGINT, phash UBIGINT,
            brightness SMALLINT, contrast SMALLINT)"""
    )


def group_duplicates(database: Database, embeddings: Embeddings | None = None) -> None:
    """Make the table `members` from `seen`: the rows of the groups of several rows, in order.

    Its columns are row, content, identical: the smallest row with the same pixels, cluster: the smallest row of the
    group, copies: the number of its rows, and rule: what brought the row into the group.

    Args:
        database: with the table `seen`.
        embeddings: of the rows; groups that are alike by them become one.
    """
    database.run(
        """CREATE TABLE images AS
        SELECT content, min(row) AS first, count(*) AS rows, -- of one content there is one look
            min(phash) AS phash, min(brightness) AS brightness, min(contrast) AS contrast
        FROM seen WHERE content IS NOT NULL GROUP BY content""",
        """CREATE TABLE looks AS
        SELECT min(content) AS one, count(*) AS images, sum(rows)::BIGINT AS rows, phash, brightness, contrast
        FROM images WHERE phash IS NOT NULL GROUP BY phash, brightness, contrast""",
    )
    _find_leaders(database)
    # an image belongs to its look, which is named by its first content, and that to its leader
    database.run(
        """CREATE TABLE shared AS SELECT images.content, looks.one FROM images
        JOIN looks USING (phash, brightness, contrast) WHERE looks.images > 1""",
        f"""CREATE TABLE hashed AS
        SELECT images.content, images.first, images.rows, coalesce(led.leader, shared.one, images.content) AS picture
        FROM images LEFT JOIN shared ON shared.content = images.content
        LEFT JOIN led ON led.one = coalesce(shared.one, images.content)
        WHERE {embeddings is not None} OR images.rows > 1 OR shared.one IS NOT NULL OR led.leader IS NOT NULL
            OR images.content IN (SELECT leader FROM led)""",
        "CREATE TABLE merged (picture UBIGINT, leader UBIGINT)",
    )
    if embeddings is not None:
        _merge(database, embeddings)
    database.run(
        f"""CREATE TABLE grouped AS
        WITH named AS (
            SELECT content, first, rows, coalesce(merged.leader, picture) AS picture,
                CASE WHEN merged.leader IS NULL THEN '{BY_HASH}' ELSE '{BY_EMBEDDING}' END AS rule
            FROM hashed LEFT JOIN merged USING (picture)
        )
        SELECT content, first, rule, min(first) OVER (PARTITION BY picture) AS cluster,
            (sum(rows) OVER (PARTITION BY picture))::BIGINT AS copies FROM named
        QUALIFY copies > 1""",
        """CREATE TABLE members AS
        SELECT seen.row, seen.content, grouped.first AS identical, grouped.cluster, grouped.copies, grouped.rule
        FROM seen JOIN grouped USING (content) ORDER BY seen.row""",
        *(f"DROP TABLE {name}" for name in ("images", "looks", "led", "shared", "hashed", "merged", "grouped")),
    )


def _merge(database: Database, embeddings: Embeddings) -> None:
    """Fill the table `merged`: `leader`, the picture that leads the picture `picture` by their embeddings."""
    database.run(
        """CREATE TABLE items AS SELECT picture, sum(rows)::BIGINT AS rows,
            min(first) FILTER (content = picture) AS row FROM hashed GROUP BY picture""",
        "CREATE TABLE found (late BIGINT, leader BIGINT)",
    )
    order = (some["row"].to_numpy() for some in database.batches("SELECT row FROM items ORDER BY rows DESC, picture"))
    for late, leader in embeddings.join(order):
        database.add("found", pa.table({"late": late, "leader": leader}))
    database.run(
        """INSERT INTO merged SELECT late.picture, leader.picture FROM found
        JOIN items late ON late.row = found.late JOIN items leader ON leader.row = found.leader""",
        *(f"DROP TABLE {name}" for name in ("items", "found")),
    )


def _find_leaders(database: Database) -> None:
    """Make the table `led` from `looks`: `leader`, the look that leads the look `one`, where that is another one."""
    database.run("CREATE TABLE led (one UBIGINT, leader UBIGINT)", "CREATE TABLE pairs (one UBIGINT, other UBIGINT)")
    for key in _keys(database):
        _join_alike(database, key)
    count = database.number("SELECT count(*) FROM pairs")
    if count:
        database.run(
            """CREATE TABLE ranked AS SELECT one, row_number() OVER (ORDER BY rows DESC, one) - 1 AS rank FROM looks
            SEMI JOIN (SELECT one FROM pairs UNION ALL SELECT other FROM pairs) USING (one)""",
            "CREATE TABLE found (late BIGINT, leader BIGINT)",
        )
        for late, leader in _led(database):
            database.add("found", pa.table({"late": late, "leader": leader}))
        database.run(
            """INSERT INTO led SELECT late.one, leader.one FROM found
            JOIN ranked late ON late.rank = found.late JOIN ranked leader ON leader.rank = found.leader""",
            *(f"DROP TABLE {name}" for name in ("ranked", "found")),
        )
    database.run("DROP TABLE pairs")


def _keys(database: Database) -> Iterator[list[int]]:
    """Yield the bits of each key: of every pair of bands."""
    sample = database.table(f"SELECT phash FROM looks ORDER BY one LIMIT {SAMPLE}")["phash"].to_numpy()
    share = np.array([np.mean(sample >> np.uint64(bit) & np.uint64(1)) if len(sample) else 0 for bit in range(BITS)])
    yield from _pairs_of_bands(np.argsort(abs(share - 0.5), kind="stable").tolist())


def _pairs_of_bands(bits: list[int]) -> Iterator[list[int]]:
    """Deal bits to bands, and yield the bits of every pair of bands."""
    for one, other in combinations([bits[band::BANDS] for band in range(BANDS)], 2):
        yield [*one, *other]


def _join_alike(database: Database, bits: list[int]) -> None:
    """Add to `pairs` the looks that are alike and have equal keys, a key being these bits of the hash."""
    key = f"(phash & {_mask(bits)}::UBIGINT)"
    database.run(
        f"CREATE TABLE keys AS SELECT {key} AS key, count(*) AS looks FROM looks GROUP BY ALL HAVING looks > 1"
    )
    _join(database, key, f"looks <= {MANY}")
    if database.number(f"SELECT count(*) FROM keys WHERE looks > {MANY}"):
        others = [bit for bit in range(BITS) if bit not in bits]
        for more in _pairs_of_bands(others):
            _join(database, f"(phash & {_mask([*bits, *more])}::UBIGINT)", f"looks > {MANY}", key)
    database.run("DROP TABLE keys")


def _join(database: Database, key: str, which: str, coarse: str | None = None) -> None:
    """Compare the looks that agree in `key`, of those whose coarser key is among `which` keys."""
    database.run(
        f"""INSERT INTO pairs
        WITH keyed AS (
            SELECT {key} AS key, one, phash, brightness, contrast FROM looks
            WHERE {coarse or key} IN (SELECT key FROM keys WHERE {which})
        )
        SELECT a.one, b.one FROM keyed a JOIN keyed b ON a.key = b.key AND a.one < b.one
        WHERE bit_count(xor(a.phash, b.phash)) <= {RADIUS}
            AND abs(a.brightness - b.brightness) <= {STEPS_APART} AND abs(a.contrast - b.contrast) <= {STEPS_APART}"""
    )


def _mask(bits: list[int]) -> int:
    return sum(1 << bit for bit in bits)


def _led(database: Database) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ranks of looks that do not lead, and of their leaders, from the pairs that are alike, in order."""
    leads = np.ones(database.number("SELECT count(*) FROM ranked"), bool)
    kept = np.empty((2, 0), np.int64)
    for batch in database.batches(
        """SELECT least(a.rank, b.rank) AS early, greatest(a.rank, b.rank) AS late FROM pairs
        JOIN ranked a ON a.one = pairs.one JOIN ranked b ON b.one = pairs.other ORDER BY late"""
    ):
        pairs = np.concatenate([kept, np.stack([batch["early"].to_numpy(), batch["late"].to_numpy()])], axis=1)
        whole = pairs[1] < pairs[1, -1]  # more pairs of the last look may follow
        kept = pairs[:, ~whole]
        yield _decide(pairs[:, whole], leads)
    yield _decide(kept, leads)


def _decide(pairs: np.ndarray, leads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decide the later looks of some pairs, all of theirs, when what comes before them is decided in `leads`."""
    early, late = pairs[:, leads[pairs[0]]]
    names, local = np.unique([early, late], return_inverse=True)
    leader = names[_first_leaders(len(names), *local.reshape(2, -1))]
    led = leader != names
    leads[names[led]] = False
    return names[led], leader[led]


def _first_leaders(count: int, early: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Return each image's leader, (count,), from all pairs that are alike.

    An image leads if no image before it that it is alike to leads. They are decided in rounds: an image that waits for
    no other leads, and an image that is alike to a leader does not.
    """
    leads, undecided = np.zeros(count, bool), np.ones(count, bool)
    one, two = early, late
    while undecided.any():
        waits = np.zeros(count, bool)
        waits[two] = True
        leads |= undecided & ~waits
        undecided &= waits
        undecided[two[leads[one]]] = False
        open_ = undecided[one] & undecided[two]
        one, two = one[open_], two[open_]
    leader = np.arange(count)
    led = leads[early]
    np.minimum.at(leader, late[led], early[led])
    return leader
