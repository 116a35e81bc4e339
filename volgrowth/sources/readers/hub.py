"""Data sets on the Hugging Face hub as rows."""

from pathlib import Path
from typing import Any

from volgrowth.errors import DataError
from volgrowth.sources.base import Request
from volgrowth.sources.listing import Listing
from volgrowth.sources.readers.splits import choose_split
from volgrowth.sources.readers.tables.saved import DatasetSource
from volgrowth.sources.readers.tables.table_columns import shown_names
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
        self.where, self.configuration, self.place = request.data, request.configuration, LocalPlace(Path())
        self.split = request.split or ""
        loaded = self.load()
        if not request.split:
            self.split = choose_split(list(loaded), None, self.where)
            loaded = loaded[self.split]
        if listing is None and request.configuration is None:
            used = loaded.info.config_name
            others = [name for name in self._configurations() if name != used]
            why = f"{used!r} is the one that the data set names as its default; data_config takes another"
            self.leave_aside("configuration", len(others), why, others[0] if others else "")
        self._open(loaded, request, listing)

    def load(self) -> Any:
        from datasets import load_dataset  # a second to import, and only some data sets need it

        try:
            return load_dataset(self.where, self.configuration, split=self.split or None)
        except Exception as error:
            # Loaders, HTTP clients and caches each raise what they like; all of it means the same here.
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> DataError:
        """Return what to say of a data set that could not be loaded."""
        # a hub that did not answer, or does not know the name, would be waited for a second time
        names = [] if isinstance(error, ConnectionError | FileNotFoundError) else self._configurations()
        option = "data_config (--set data_config=NAME; of held-out images holdout_config)"
        if self.configuration is None and len(names) > 1 and self._default() is None:
            said = f"has several configurations ({shown_names(names)}): name the one to audit with {option}"
        elif self.configuration is not None and names and self.configuration not in names:
            said = f"has no configuration {self.configuration!r}; it has: {shown_names(names)}. Pass one as {option}"
        else:
            said = (
                f"is neither a path here ({Path.cwd()}) nor a data set that could be loaded from the Hugging Face hub: "
                f"{store_reason(error)}. Check the name, the split and the network, or pass a local path"
            )
        return DataError(f"{self.where} {said}")

    def _configurations(self) -> list[str]:
        """Return the names of the data set's configurations; none if they cannot be told."""
        from datasets import get_dataset_config_names

        try:
            return get_dataset_config_names(self.where)
        except Exception:  # it only explains; loaders, HTTP clients and caches each raise what they like
            return []

    def _default(self) -> str | None:
        """Return the configuration that is taken without a name, if the data set tells one."""
        from datasets import get_dataset_default_config_name

        try:
            return get_dataset_default_config_name(self.where)
        except Exception:  # as above
            return None
