"""Keys of the HTTP API. There is no open mode: with no key configured, no request is let in."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping

from starlette.requests import Request

from serving.web import Problem


class Keys:
    """Accepted keys, kept as digests: what is compared has one length, and no key can be printed."""

    def __init__(self, keys: str, setting: str) -> None:
        """`keys` is comma-separated; `setting` is the environment variable to name in a refusal."""
        self._digests = [_digest(key.strip().encode()) for key in keys.split(",") if key.strip()]
        self.setting = setting

    def accepts(self, key: str) -> bool:
        """In constant time over all keys: every one is compared, whichever matches. `key` is a header's value, as latin-1."""
        digest = _digest(key.encode("latin-1", errors="xmlcharrefreplace"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises a 401 `Problem` unless a request with these headers (names in lower case) carries one of the keys."""
        presented = presented_key(headers)
        if presented is None or not self.accepts(presented):
            what = "no key in the request" if presented is None else "the key is not accepted here"
            raise Problem(
                401,
                what,
                f"send `Authorization: Bearer KEY` or `X-API-Key: KEY` with one of the keys in {self.setting}",
                headers={"WWW-Authenticate": 'Bearer realm="headrace", Basic realm="headrace", charset="UTF-8"'},
            )

    def __repr__(self) -> str:
        return f"Keys({len(self._digests)} from {self.setting})"


def require(keys: Keys) -> Callable[[Request], None]:
    """`keys.check` as a FastAPI dependency."""

    def check(request: Request) -> None:
        keys.check(request.headers)

    return check


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The key of a request: a bearer token, `X-API-Key`, or the password of Basic: a browser can send that to /docs."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip() or None
        case "basic":
            return _basic_password(credentials.strip())
        case _:
            return headers.get("x-api-key") or None


def _basic_password(credentials: str) -> str | None:
    try:
        decoded = base64.b64decode(credentials, validate=True).decode("latin-1")
    except (binascii.Error, ValueError):
        return None
    return decoded.partition(":")[2] or None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
