"""Whatever the client of a store raises becomes one sentence: what failed, why in the store's words, and the fix."""

import errno
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from volgrowth.credentials import redacted
from volgrowth.errors import VolgrowthError
from volgrowth.storage.urls import EXTRAS, is_url
from volgrowth.storage.waiting import said_if_slow

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (or AWS_PROFILE)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "HF_TOKEN",
}
_NO_BUCKET = re.compile(r"The specified (bucket|container) does not exist")
# the clients' own classes, by name: their packages are optional
_REFUSED = re.compile(r"PermissionError|Credential|Token|Auth|RefreshError|SignatureDoesNotMatch")
_UNREACHABLE = re.compile(r"Connect|Timeout|ServerDisconnected|gaierror")


@contextmanager
def explained(
    kind: type[VolgrowthError], what: str, name: str, otherwise: str, passed: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise whatever a store's client raises in the block as `store_error` says it.

    Args:
        kind: class of the error that is raised.
        what: the beginning of the sentence, such as "s3://bucket/a.png cannot be read".
        name: the path or URL of which the block reads or writes.
        otherwise: the fix if the store says nothing to go by.
        passed: errors that pass as they are, unless the bucket itself is missing. Those of volgrowth always pass.
    """
    try:
        with said_if_slow(name):
            yield
    except VolgrowthError:
        raise
    except Exception as raised:  # the client of each store raises its own kinds
        error = _unanswered(raised) or raised
        if isinstance(error, passed) and not no_bucket(error):
            raise
        raise store_error(kind, what, name, error, otherwise) from None


def store_error(kind: type[VolgrowthError], what: str, name: str, error: Exception, otherwise: str) -> VolgrowthError:
    """Return an error of volgrowth that says `what (why): the fix`. The arguments are those of `explained`."""
    return kind(f"{what} ({store_reason(error)}): {_fix(error, name, otherwise)}")


def store_reason(error: BaseException) -> str:
    """Return one line, of 200 characters at most, that says why a store failed, in its own words."""
    lines = str(error).strip().splitlines() or [""]
    # botocore says what it checked, and in the next line what was wrong
    line = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    name = type(error).__name__
    said = f"{name} {line}".strip() if not line or isinstance(error, KeyError) else re.sub(r"^\[Errno \d+\] ", "", line)
    return textwrap.shorten(redacted(said).rstrip(" .:"), 200, placeholder=" ...")


def is_absent(error: BaseException) -> bool:
    """Return whether an error says that a file or folder is not there, in a bucket that is."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) and not no_bucket(error)


def _unanswered(error: Exception) -> Exception | None:
    """Return why no server answered, if a FileNotFoundError hides that, as fsspec's HTTP client does."""
    causes = (cause for cause in _chain(error.__cause__) if isinstance(cause, Exception))
    hidden = (cause for cause in causes if _UNREACHABLE.search(type(cause).__name__))
    return next(hidden, None) if isinstance(error, FileNotFoundError) else None


def no_bucket(error: BaseException) -> bool:
    """Return whether an error says that the bucket itself is missing, not a file in it."""
    return any(type(cause).__name__ == "NoSuchBucket" or _NO_BUCKET.match(str(cause)) for cause in _chain(error))


def is_of_this_disk(error: Exception) -> bool:
    """Return whether an error comes from a local file, such as a full disk, and not from a store."""
    return bool(getattr(error, "filename", None)) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _fix(error: Exception, name: str, otherwise: str) -> str:
    if not is_url(name):
        return otherwise
    protocol, _, rest = name.partition("://")
    if no_bucket(error):
        return f"create {rest.partition('/')[0]}, or correct the name"
    credentials = _CREDENTIALS.get(EXTRAS.get(protocol, protocol), "the variables that this store reads")
    kinds = " ".join(type(cause).__name__ for cause in _chain(error))
    # where the answer has no body (HEAD), S3 calls credentials that have expired a bad request
    if _REFUSED.search(kinds) or store_reason(error) == "Bad Request":
        return f"renew the credentials or ask for the right to this place; they are taken from {credentials}"
    if _UNREACHABLE.search(kinds):
        return "check the endpoint (S3: AWS_ENDPOINT_URL, hub: HF_ENDPOINT), the region and the network"
    return otherwise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
