"""Where files lie: a local path, or a URL (`s3://`, `gs://`, `az://`, `hf://`) through the file system that fsspec has.

Endpoint, region and credentials come from the environment variables that the clients of each store read themselves
(for S3: `AWS_ENDPOINT_URL`, `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, ..., profiles and instance roles).
"""

import os
from typing import Any

import fsspec

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}


def is_url(name: str) -> bool:
    """Whether a name is a URL, not a path here or an id."""
    return "://" in name


def filesystem(name: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, which caches no listing, and the path in it.

    Raises:
        ValueError: no such protocol, or its package is missing.
    """
    if not is_url(name):
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(name))
    protocol = name.partition("://")[0]
    try:
        files, path = fsspec.core.url_to_fs(name, **({} if protocol == "file" else {"use_listings_cache": False}))
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        fix = f"pip install 'volgrowth[{extra}]'" if extra else "install the package that reads it"
        raise ValueError(f"{protocol}:// needs a package that is not here ({error}): {fix}") from None
    return files, path.rstrip("/")


def reason(error: BaseException) -> str:
    """An error of a store in one line, with what to look at where a store only says no."""
    line = (str(error).strip().splitlines() or [""])[0]
    name = type(error).__name__
    return line if line and not isinstance(error, KeyError) else f"{name} {line}".strip()
