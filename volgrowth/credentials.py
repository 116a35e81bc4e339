"""User names, keys and signatures in URLs: taken out before a URL is stored or printed, and given to the client.

`hide` returns the URL that everything else sees, and remembers in this process what it took out; `credentials_of` gives
that to `volgrowth.storage.urls`. `redacted` blots out what an error of some client may still quote.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote

_USER = re.compile(r"^(https?|ftp)://([^/\s@?#]+)@")
# keys of S3 have slashes, and a bucket has no port
_BUCKET_USER = re.compile(r"^(\w[\w+.-]*)://([^/\s:@]+:[^@\s]*)@")
_QUERY = re.compile(
    r"(?i)[?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|signature|sig|"
    r"(?:access_?|auth_?|id_?)?token|api_?key|key|secret|password|passwd|pwd)=[^&\s'\"<>)]*"
)
_QUOTED = re.compile(
    r"((?:https?|ftp)://)[^/\s@'\"]+@|((?!https?:|ftp:)\b\w[\w+.-]*://)[^/\s:@'\"]+:[^@\s'\"]*@", re.IGNORECASE
)
_WITHOUT_PORT = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")
SHORTEST = 6
"""Secrets of fewer characters are not searched for in other texts, which may hold them by chance."""


@dataclass(frozen=True)
class Credentials:
    """What a URL held beside the name of a file.

    Attributes:
        user: user name or key id; None without one.
        password: password or secret key.
        query: the query, of which a part is a signature or a token; None without one.
    """

    user: str | None = None
    password: str = ""
    query: str | None = None

    @property
    def secrets(self) -> list[str]:
        """The parts that no text may show, the longest first."""
        values = [self.user or "", self.password, *(part.partition("=")[2] for part in (self.query or "").split("&"))]
        return sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)


_known: dict[str, Credentials] = {}


def hide(name: str) -> str:
    """Return a URL without user name, password and signature, which are remembered; any other name as it is."""
    if "://" not in name:
        return name
    protocol = name.partition("://")[0]
    found = _USER.match(name) or (_BUCKET_USER.match(name) if protocol in _WITHOUT_PORT else None)
    if found:
        name = f"{found[1]}://{name[found.end() :]}"
        user, _, password = found[2].partition(":")
        remember({_server(name): Credentials(unquote(user), unquote(password))})
    address, mark, query = name.partition("?")
    if mark and _QUERY.search(f"?{query}"):
        remember({address: Credentials(query=query)})
        return address
    return name


def credentials_of(url: str) -> Credentials | None:
    """Return what `hide` took out of a URL, of its query first, or out of another one of the same server."""
    return _known.get(url) or _known.get(_server(url))


def with_query(url: str) -> str:
    """Return a URL with the query that `hide` took out of it."""
    known = _known.get(url)
    return f"{url}?{known.query}" if known and known.query else url


def known_credentials() -> dict[str, Credentials]:
    """Return all that is remembered here, for `remember` in another process."""
    return dict(_known)


def remember(known: dict[str, Credentials]) -> None:
    """Take in what another process remembers."""
    _known.update(known)


def redacted(text: str) -> str:
    """Return a text in which no URL shows its user name, password or signature."""
    if "://" not in text and not _known:
        return text
    for secret in {secret for known in _known.values() for secret in known.secrets}:
        text = text.replace(secret, "***")
    text = _QUOTED.sub(lambda match: f"{match[1] or match[2]}***@", text)
    return _QUERY.sub(lambda match: f"{match[0].partition('=')[0]}=***", text)


def _server(url: str) -> str:
    protocol, _, rest = url.partition("://")
    return f"{protocol}://{rest.partition('/')[0]}"
