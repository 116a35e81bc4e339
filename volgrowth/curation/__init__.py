"""Curation lists as files, and data sets made of the rows that they keep.

`analysis.policy` decides what the list says. Here it is written and read, applied to a copy of the data set in
whatever form that lives, and undone.
"""

from volgrowth.curation.applying import apply_list
from volgrowth.curation.lists import CURATION_FILE, read_list
from volgrowth.curation.receipts import Receipt
from volgrowth.curation.undoing import undo_list

__all__ = ["CURATION_FILE", "Receipt", "apply_list", "read_list", "undo_list"]
