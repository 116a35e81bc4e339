"""A curated data set is removed again by its receipt.

`undo_list` removes a folder only if this account wrote its receipt and if nothing lies in it but the files of the
receipt, as they were written. Links are not followed, and pipes are not opened.
"""

import os
import stat
from pathlib import Path, PurePath

from volgrowth.curation.receipts import (
    RECEIPT,
    Receipt,
    files_below,
    not_as_written,
    refuse_strange,
    seal_file,
)
from volgrowth.curation.stages import open_target
from volgrowth.curation.stored import undo_stored
from volgrowth.errors import OutputError
from volgrowth.storage.failures import store_reason
from volgrowth.storage.made_here import made_here
from volgrowth.storage.store import Store
from volgrowth.storage.whole import hidden_name


def undo_list(destination: str, *, trust_output: bool = False) -> Receipt:
    """Remove a data set that `apply_list` wrote, if nothing in it has changed since.

    Args:
        destination: its folder, or the URL of its prefix in an object store.
        trust_output: remove it although another account, or another machine, wrote it.

    Returns:
        The receipt of what was removed.

    Raises:
        OutputError: the folder is a link or has no receipt, this account did not write it, or something in it has
            changed; nothing is removed then.
    """
    target = open_target(destination)
    if isinstance(target, Store):
        return undo_stored(target, trust_output)
    folder = target
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link to {os.readlink(folder)}: name the folder itself; nothing was removed")
    receipt = Receipt.read(folder)
    refuse_strange(f"{folder}", RECEIPT, trust_output or made_here(receipt.content))
    try:
        _refuse_others(folder, receipt)
        hidden = hidden_name(folder)
        os.rename(folder, hidden)
    except OSError as error:
        raise OutputError(f"{folder} cannot be read ({store_reason(error)}): nothing was removed") from None
    _remove(hidden, receipt)
    return receipt


def _refuse_others(folder: Path, receipt: Receipt) -> None:
    """Raise an OutputError if a folder holds anything but its receipt and the files of that, as they were written."""
    expected = {*receipt.files, RECEIPT}
    folders = {f"{parent}/" for name in expected for parent in PurePath(name).parents} - {"./"}
    found = set(files_below(folder))
    for name in sorted(expected | found):
        if name not in found:
            change = "missing"
        elif name.endswith("/"):
            change = "" if name in folders else "not of its writing"
        elif name not in expected or not stat.S_ISREG((folder / name).lstat().st_mode):
            change = "not of its writing"
        else:
            change = "" if name == RECEIPT or seal_file(folder / name) == receipt.files[name] else "changed"
        if change:
            raise not_as_written(f"{folder}", name, change)


def _remove(folder: Path, receipt: Receipt) -> None:
    """Remove the files of a receipt, and the folders that are empty then."""
    try:
        for name in (*receipt.files, RECEIPT):
            os.unlink(folder / name)
        for name in sorted((name for name in files_below(folder) if name.endswith("/")), key=len, reverse=True):
            os.rmdir(folder / name)
        os.rmdir(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} still holds something ({store_reason(error)}), which came while the files of the receipt were "
            "removed: take out what you need and remove the folder yourself"
        ) from None
