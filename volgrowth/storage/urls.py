"""A path or a URL (`s3://`, `gs://`, `az://`, `hf://`) becomes a file system of fsspec.

Endpoint, region and credentials come from the environment variables that the clients of each store read themselves
(for S3: `AWS_ENDPOINT_URL`, `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, ..., profiles and instance roles). A user name
and a password in a URL of S3 or HTTP, and a signature in one of HTTP, go to the client and nowhere else: see
`volgrowth.credentials`.

The retry rule of the whole package: a request is repeated by the store's client and by nothing else. For S3 that is
three attempts (`AWS_MAX_ATTEMPTS`), each of five seconds to connect and 15 of silence, and five times as many where the
store asks to slow down or breaks a connection off (s3fs around botocore). The error that is left is said in one
sentence (`volgrowth.storage.failures`); it ends the command or the engine's task, and both can be repeated.
"""

import base64
import copy
import os
from typing import Any

import fsspec

from volgrowth.credentials import credentials_of, hide, with_query

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""The extra of volgrowth that installs the client, by protocol."""

HTTP_SECONDS = 30.0
"""Seconds that an HTTP server may be silent before a request fails; a request is made twice at most."""

# One request for a whole object: ranges fetched side by side can come from two versions of it, and parts still on
# their way outlive the upload that was given up.
_S3: dict[str, Any] = {"max_concurrency": 1, "config_kwargs": {"retries": {"mode": "standard"}}}
_OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3, "s3a": _S3}
_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "HF_", "FSSPEC_")

_environments: dict[str, int] = {}


def is_url(name: str) -> bool:
    """Return whether a name is a URL, and not a local path or an id of the Hugging Face hub."""
    return "://" in name


def filesystem(name: str) -> tuple[Any, str]:
    """Return the file system of a path or URL, which caches no listing, and the path in it.

    Args:
        name: a local path, relative or with `~` if it is so, or a URL.

    Returns:
        The file system of fsspec, and the path there without a slash at its end: absolute on a local disk,
        `bucket/key` in an object store.

    Raises:
        ValueError: no such protocol, its package is missing, or its client takes no credentials from a URL.
    """
    if not is_url(name):
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(name))
    name = hide(name)
    protocol = name.partition("://")[0]
    try:
        _forget_old_environment(protocol)
        if protocol in ("s3", "s3a"):
            _wait_once()
        files, path = fsspec.core.url_to_fs(name, **_options(protocol, _credentials(name, protocol)))
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        fix = f"pip install 'volgrowth[{extra}]'" if extra else "install the package that reads it"
        raise ValueError(f"{protocol}:// needs a package that is not installed ({error}): {fix}") from None
    return files, with_query(path.rstrip("/"))


def _options(protocol: str, credentials: dict[str, Any]) -> dict[str, Any]:
    """Return what a file system is made with: credentials come first, then the user's fsspec configuration."""
    if protocol == "file":
        return {}
    if protocol in ("http", "https"):
        import aiohttp  # the client of this protocol, which others do without

        # its own limit is of the whole answer, 300 seconds, however large the file is
        limits = aiohttp.ClientTimeout(total=None, sock_connect=HTTP_SECONDS, sock_read=HTTP_SECONDS)
        configured = {"client_kwargs": {"timeout": limits}, **fsspec.config.conf.get(protocol, {})}
        client = {**configured["client_kwargs"], **credentials.get("client_kwargs", {})}
        return {**configured, "client_kwargs": client}
    # a copy, since botocore writes into the settings that it is given
    ours = copy.deepcopy(_OPTIONS.get(protocol, {}))
    return {"use_listings_cache": False, **ours, **fsspec.config.conf.get(protocol, {}), **credentials}


def _credentials(name: str, protocol: str) -> dict[str, Any]:
    """Return what the client is made with for the user name and password that a URL held."""
    known = credentials_of(name)
    if known is None:
        return {}
    if known.user is not None and protocol in ("s3", "s3a"):
        return {"key": known.user, "secret": known.password}
    if protocol not in ("http", "https"):
        raise ValueError(
            f"{protocol}:// takes no user name, key or signature in its URL: leave it out, and set the environment "
            f"variables of the store's client"
        )
    if known.user is None:
        return {}
    basic = base64.b64encode(f"{known.user}:{known.password}".encode()).decode()
    return {"client_kwargs": {"headers": {"Authorization": f"Basic {basic}"}}}


def _wait_once() -> None:
    """Have s3fs not repeat a request that was not answered in time, since botocore did: 75 waits were 19 minutes."""
    import botocore.exceptions as raised  # type: ignore[import-untyped]
    import s3fs.core  # type: ignore[import-untyped]

    known = s3fs.core.S3_RETRYABLE_ERRORS
    if raised.HTTPClientError in known:  # the class of timeouts, too
        broken_off = (raised.ConnectionClosedError, raised.EndpointConnectionError, raised.SSLError)
        s3fs.core.S3_RETRYABLE_ERRORS = (*(kind for kind in known if kind is not raised.HTTPClientError), *broken_off)


def _forget_old_environment(protocol: str) -> None:
    """Have a new file system made after credentials changed: fsspec reuses one, with those that it once read."""
    now = hash(frozenset((name, value) for name, value in os.environ.items() if name.startswith(_VARIABLES)))
    if _environments.setdefault(protocol, now) != now:
        _environments[protocol] = now
        fsspec.get_filesystem_class(protocol).clear_instance_cache()
