"""Data sets on the Hugging Face hub as rows."""

from pathlib import Path
from typing import Any

from volgrowth.errors import DataError
from volgrowth.sources.base import Request
from volgrowth.sources.listing import Listing
from volgrowth.sources.readers.saved import DatasetSource
from volgrowth.sources.readers.splits import choose_split
from volgrowth.storage.failures import store_reason
from volgrowth.storage.places import LocalPlace


class HubSource(DatasetSource):
    """The data set that `datasets.load_dataset` finds under a name: an id on the hub, or a folder it has a loader for.

    Workers load it again under the same name, each machine from its own cache.

    Args:
        request: the name, the split and the columns.
        listing: the listing of this data set when it was opened before.

    Raises:
        DataError: the name cannot be loaded or holds no rows, or `choose_columns` or `choose_split` refuses.
    """

    kind = "hub"
    unit = "arrow file"

    def __init__(self, request: Request, listing: Listing | None = None) -> None:
        self.where, self.place = request.data, LocalPlace(Path())
        self.split = request.split or ""
        loaded = self.load()
        if not request.split:
            self.split = choose_split(list(loaded), None, self.where)
            loaded = loaded[self.split]
        self._open(loaded, request, listing)

    def load(self) -> Any:
        from datasets import load_dataset  # a second to import, and only some data sets need it

        try:
            return load_dataset(self.where, split=self.split or None)
        except Exception as error:
            # Loaders, HTTP clients and caches each raise what they like; all of it means the same here.
            raise DataError(
                f"{self.where} is neither a path here ({Path.cwd()}) nor a data set that could be loaded from the "
                f"Hugging Face hub: {store_reason(error)}. Check the name, the split and the network, or pass a local "
                "path"
            ) from None
