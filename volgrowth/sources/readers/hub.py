"""Data sets on the Hugging Face hub as rows."""

from pathlib import Path
from typing import Any

from volgrowth.errors import DataError
from volgrowth.sources.base import Request
from volgrowth.sources.listing import Listing
from volgrowth.sources.readers.saved import DatasetSource
from volgrowth.sources.readers.splits import choose_split
from volgrowth.storage.places import LocalPlace


class HubSource(DatasetSource):
    """What `datasets.load_dataset` finds under a name: an id on the hub, or a folder it has a loader for.

    Workers load it again under the same name, each machine from its own cache.

    Raises:
        DataError: the name cannot be loaded, holds no rows, or columns and splits as in `choose_columns` and
            `choose_split`.
    """

    kind = "hub"

    def __init__(self, request: Request, listing: Listing | None = None) -> None:
        self.where, self.place = request.data, LocalPlace(Path())
        self.split = request.split or ""
        loaded = self._load()
        if not request.split:
            self.split = choose_split(list(loaded), None, self.where)
            loaded = loaded[self.split]
        self._open(loaded, request, listing)

    def _load(self) -> Any:
        from datasets import load_dataset  # a second to import, and only some data sets need it

        try:
            return load_dataset(self.where, split=self.split or None)
        except Exception as error:
            # Loaders, HTTP clients and caches each raise what they like; all of it means the same here.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DataError(
                f"{self.where} is neither a path here ({Path.cwd()}) nor a data set that could be loaded "
                f"from the Hugging Face hub: {reason}. Check the name, the split and the network, "
                "or pass a local path"
            ) from None
