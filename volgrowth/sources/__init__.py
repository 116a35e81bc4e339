"""A data set becomes rows with frozen identities, and a row becomes the pixels that the model sees.

`open_source` looks at what it is given (parquet files, webdataset tars, a `save_to_disk` folder, a folder of images,
here or in an object store, or an id on the Hugging Face hub) and returns a `Source`; `decode` and `features` turn the
bytes of one row into pixels and into the measures of complexity that calibration needs.
"""

from volgrowth.sources.base import Row, Source, content_id
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.opening import open_source
from volgrowth.sources.pixels.decode import BadImage, decode, to_unit
from volgrowth.sources.pixels.features import encode_png, features
from volgrowth.storage.places import UnreachableError

__all__ = [
    "BadImage",
    "Listing",
    "Row",
    "Source",
    "SourceFile",
    "UnreachableError",
    "content_id",
    "decode",
    "encode_png",
    "features",
    "open_source",
    "to_unit",
]
