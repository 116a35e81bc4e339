"""Where files lie: a local path, or a URL (`s3://`, `gs://`, `az://`, `hf://`) through the file system that fsspec has.

Endpoint, region and credentials come from the environment variables that the clients of each store read themselves
(for S3: `AWS_ENDPOINT_URL`, `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, ..., profiles and instance roles).
"""

import copy
import os
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import fsspec

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}

# One request for a whole object: ranges fetched side by side can come from two versions of it, and parts still on
# their way outlive the upload that was given up. Three attempts of five seconds each to connect (AWS_MAX_ATTEMPTS);
# an answer that says to slow down is heeded five times as often (s3fs around botocore).
S3 = {"max_concurrency": 1, "config_kwargs": {"retries": {"mode": "standard"}}}
OPTIONS: dict[str, dict[str, Any]] = {"s3": S3, "s3a": S3}

VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "HF_", "FSSPEC_")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (or AWS_PROFILE)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "HF_TOKEN",
}
NO_BUCKET = re.compile(r"The specified (bucket|container) does not exist")
# the clients' own classes, by name: their packages are optional
REFUSED = re.compile(r"PermissionError|Credential|Token|Auth|RefreshError|SignatureDoesNotMatch")
UNREACHABLE = re.compile(r"Connect|Timeout|ServerDisconnected|gaierror")

_environments: dict[str, int] = {}


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
        _forget_old_environment(protocol)
        files, path = fsspec.core.url_to_fs(name, **_options(protocol))
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        fix = f"pip install 'volgrowth[{extra}]'" if extra else "install the package that reads it"
        raise ValueError(f"{protocol}:// needs a package that is not here ({error}): {fix}") from None
    return files, path.rstrip("/")


def _options(protocol: str) -> dict[str, Any]:
    """What a file system is made with; what the user's own fsspec configuration says comes first."""
    if protocol == "file":
        return {}
    # a copy, since botocore writes into the settings that it is given
    ours = copy.deepcopy(OPTIONS.get(protocol, {}))
    return {"use_listings_cache": False, **ours, **fsspec.config.conf.get(protocol, {})}


def _forget_old_environment(protocol: str) -> None:
    """Fsspec reuses a file system, with the credentials it once read: after new ones were set a new one is made."""
    now = hash(frozenset((name, value) for name, value in os.environ.items() if name.startswith(VARIABLES)))
    if _environments.setdefault(protocol, now) != now:
        _environments[protocol] = now
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


def reason(error: BaseException) -> str:
    """An error of a store in one line, in the words of the store."""
    lines = str(error).strip().splitlines() or [""]
    # botocore says what it checked, and in the next line what was wrong
    line = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    name = type(error).__name__
    said = f"{name} {line}".strip() if not line or isinstance(error, KeyError) else re.sub(r"^\[Errno \d+\] ", "", line)
    return textwrap.shorten(said.rstrip(" .:"), 200, placeholder=" ...")


def fix(error: BaseException, name: str, otherwise: str) -> str:
    """What to do about an error of the store at `name`; `otherwise` where the store says nothing to go by."""
    if not is_url(name):
        return otherwise
    if no_bucket(error):
        return f"create {name.partition('://')[2].partition('/')[0]}, or correct the name"
    protocol = name.partition("://")[0]
    credentials = CREDENTIALS.get(EXTRAS.get(protocol, protocol), "the variables that this store reads")
    kinds = " ".join(type(cause).__name__ for cause in _chain(error))
    # where the answer has no body (HEAD), S3 calls credentials that have expired a bad request
    if REFUSED.search(kinds) or reason(error) == "Bad Request":
        return f"renew the credentials or ask for the right to this place; they are taken from {credentials}"
    if UNREACHABLE.search(kinds):
        return "check the endpoint (for S3: AWS_ENDPOINT_URL), the region and the network"
    return otherwise


def no_bucket(error: BaseException) -> bool:
    """Whether what is missing is the bucket itself, not a file in it."""
    return any(type(cause).__name__ == "NoSuchBucket" or NO_BUCKET.match(str(cause)) for cause in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
