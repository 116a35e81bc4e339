"""A data set becomes rows with frozen identities, and a row becomes the pixels that the model sees.

`open_source` looks at what it is given (parquet files, webdataset tars, a `save_to_disk` folder, a folder of images,
here or in an object store, or an id on the Hugging Face hub) and returns a `Source`; `decode_image` turns the bytes of
one row into pixels, and `features` turns these into the measures of complexity that calibration needs.
"""

from volgrowth.sources.base import Row, Source, bytes_hash, content_id
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.opened import LeftAside, Opened
from volgrowth.sources.opening import open_source
from volgrowth.sources.pixels.decoding import BadImage, decode_image, to_unit
from volgrowth.sources.pixels.features import PNG_METHOD, encode_png, features, features_of_each

__all__ = [
    "PNG_METHOD",
    "BadImage",
    "LeftAside",
    "Listing",
    "Opened",
    "Row",
    "Source",
    "SourceFile",
    "bytes_hash",
    "content_id",
    "decode_image",
    "encode_png",
    "features",
    "features_of_each",
    "open_source",
    "to_unit",
]
