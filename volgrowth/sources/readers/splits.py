"""The split of a data set that a user means.

The rule is the same for every kind of data set: a name that was given must exist, a single split is taken by
itself, and several splits need a name, since auditing training and test images together answers no question.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from volgrowth.errors import DataError
from volgrowth.storage.places import Found

DEFAULT_SPLIT = "train"
"""The name that the Hugging Face tools give the rows of a data set without splits."""

_WORDS = {"train": "train training", "test": "test testing eval evaluation", "validation": "validation valid val dev"}
SPLIT_WORDS = {word: split for split, words in _WORDS.items() for word in words.split()}
"""The split that a word in a file's or folder's name stands for."""

_SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}")


def choose_split(available: Sequence[str], split: str | None, where: str) -> str:
    """Return the split that a user means.

    Args:
        available: names of the splits that the data set has.
        split: the name that the user gave, if any.
        where: name of the data set, for the message.

    Raises:
        DataError: there is no such split, or there are several and none was named.
    """
    names = ", ".join(available) or "none"
    if split is None and len(available) == 1:
        return available[0]
    if split is None:
        raise DataError(f"{where} has several splits ({names}): name the one to audit with split (--split)")
    if split not in available:
        raise DataError(f"{where} has no split {split!r}; it has: {names}. Pass one of these as split (--split)")
    return split


def files_of_split(files: Iterable[Found], split: str | None, where: str) -> Iterator[Found]:
    """Return the files whose names tell the split that a user means. The arguments are those of `choose_split`.

    Args:
        files: all files; iterated twice.

    Raises:
        DataError: `choose_split` refuses.
    """
    chosen = choose_split(sorted({split_of(file.name) for file in files}), split, where)
    return (file for file in files if split_of(file.name) == chosen)


def split_of(name: str) -> str:
    """Return the split that a file's relative name tells, as the Hugging Face tools read it, else `DEFAULT_SPLIT`.

    `test-00000-of-00002.parquet` and `test/0.parquet` belong to `test`, `art-00000-of-00002.parquet` to
    `art`, `0.parquet` to `DEFAULT_SPLIT`.
    """
    path = PurePosixPath(name)
    match = _SHARD.match(path.name)
    shard = match["split"] if match else None
    for part in reversed(path.parts):
        # Hive and Spark write a folder for each value of a column: split=test
        word = re.match(r"[a-z]*", part.lower().removeprefix("split="))
        if word and word[0] in SPLIT_WORDS:
            # `test_hard-00000-of-00001` is a split of its own.
            return shard if shard and part == path.name and shard not in SPLIT_WORDS else SPLIT_WORDS[word[0]]
    return shard or DEFAULT_SPLIT
