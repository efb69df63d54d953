"""Files from the network: https only, from known hosts only, and no more than was asked for."""

import asyncio
import codecs
import hashlib
import json
import math
import os
import random
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from netrc import NetrcParseError
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from . import Unavailable

if TYPE_CHECKING:  # half of a second, and needless for what is cached
    import httpx

USER_AGENT = "async-sqlmodel-docs/1 (reads documentation once per version and caches it)"

CONNECT, READ, TOTAL = 10.0, 30.0, 60.0
"""Seconds: to connect, for the next bytes, for one `get` with all its hops and retries. The last
is no setting of httpx, whose read timeout starts anew with every byte that comes."""
REDIRECTS = 5
RETRIES, PAUSE = 2, 0.5
"""More attempts, and seconds before the first of them, at most."""
PATIENCE = 20.0
"""Seconds of a Retry-After that are worth waiting for."""
REST, LONGEST_REST = 1_800.0, 86_400.0
"""Seconds for which a host is left alone after a 429 that does not say, and at most."""
RESTING = "resting-hosts.json"
GZIP = 31  # to zlib: with gzip's header and checksum


class Missing(Unavailable):
    """The server says that it has no such file."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a server sent, complete and checked."""

    url: str
    """After redirects."""
    content: bytes


@dataclass(frozen=True, slots=True)
class _Order:
    """What one `get` asks for, and what it accepts."""

    limit: int
    sha256: str | None
    media: tuple[str, ...]
    own_hosts: frozenset[str]


class _Again(Exception):
    """A failure that may pass."""


class _Busy(Exception):
    """The server asks to be left alone for so many seconds; None if it does not say how many."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("it limits how often it may be asked")
        self.seconds = seconds


class Transfer:
    """Fetches files by https from the hosts that it is given, and from no others.

    Proxies, certificates and logins come from the environment: HTTPS_PROXY, NO_PROXY,
    SSL_CERT_FILE, SSL_CERT_DIR, NETRC. Host names are not resolved here to see whether they
    are private: the list is of names, and where there is a proxy, it is the one to resolve them.
    """

    def __init__(
        self,
        hosts: frozenset[str],
        *,
        say: Callable[[str], None],
        offline: bool = False,
        state: Path | None = None,
    ) -> None:
        """`hosts` are names, with a port if it is not 443. `say` takes a line for the reader when
        there is a wait. `state` is the folder in which hosts are noted that asked to be left alone.
        """
        self._hosts = _normal(hosts)
        self._say = say
        self._offline = offline
        self._state = state
        self._resting: dict[str, float] = {}

    def get(
        self,
        url: str,
        *,
        limit: int,
        sha256: str | None = None,
        media: tuple[str, ...] = (),
        hosts: frozenset[str] = frozenset(),
    ) -> Response:
        """The file at `url`, of at most `limit` bytes.

        `sha256` is that of the file as stored, in hex. `media` are the content types to accept
        (`text/` is all of them that start so), none for any; an HTML page is accepted only if
        `text/html` is named.
        `hosts` are allowed for this call, as the user's own settings name them: only they are
        sent a login from netrc. A login in `url` goes to that origin alone.

        Raises `Missing` if there is no such file, `Unavailable` for all else. Not for a thread in
        which an event loop runs.
        """
        if self._offline:
            raise Unavailable(f"{_shown(url)}: offline, so not asked for; needs the network")
        order = _Order(limit, sha256, media, _normal(hosts))
        try:
            return asyncio.run(self._get(url, order))
        except TimeoutError as error:
            raise Unavailable(
                f"{_shown(url)}: not complete after {TOTAL:g} s; try again on a faster network"
            ) from error

    async def _get(self, start: str, order: _Order) -> Response:
        try:
            import httpx
        except ImportError as error:
            raise Unavailable(
                f"{_shown(start)}: needs httpx, which is not installed; `uv run` brings it"
            ) from error
        try:
            url = httpx.URL(start)
        except httpx.InvalidURL as error:
            raise Unavailable(f"{_shown(start)}; expected https://host/path") from error
        login = (url.scheme, url.netloc, url.username, url.password)
        async with asyncio.timeout(TOTAL), self._client() as client:
            for _ in range(1 + REDIRECTS):
                url = url.copy_with(userinfo=b"")
                self._check(url, order)
                answer = await self._ask(client, url, order, _auth(url, order, login))
                if isinstance(answer, Response):
                    return answer
                url = answer
        raise Unavailable(f"{_shown(start)}: more than {REDIRECTS} redirects; expected the file")

    def _client(self) -> "httpx.AsyncClient":
        import httpx

        try:
            return httpx.AsyncClient(
                headers={"User-Agent": USER_AGENT},
                timeout=httpx.Timeout(READ, connect=CONNECT),
            )
        except (httpx.InvalidURL, ImportError, OSError, ValueError) as error:
            raise Unavailable(
                "https cannot be used: of HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and"
                f" SSL_CERT_DIR in the environment, one is wrong: {_line(error)}"
            ) from error

    def _check(self, url: "httpx.URL", order: _Order) -> None:
        """Before anything is sent: may this address be asked?"""
        host = _host(url)
        if url.scheme != "https":
            raise Unavailable(f"{_shown(url)}: not https; only https is used")
        allowed = self._hosts | order.own_hosts
        if host not in allowed:
            raise Unavailable(
                f"{_shown(url)}: {host} is not one of the hosts that may be asked:"
                f" {', '.join(sorted(allowed))}"
            )
        if until := self._rests().get(host):
            clock = datetime.fromtimestamp(until, UTC).astimezone().strftime("%H:%M")
            raise Unavailable(
                f"{_shown(url)}: {host} asked to be left alone until {clock}; try again then"
            )

    async def _ask(
        self,
        client: "httpx.AsyncClient",
        url: "httpx.URL",
        order: _Order,
        auth: "httpx.Auth | None",
    ) -> "Response | httpx.URL":
        """One hop, tried again where that may help: the file, or where to go for it."""
        import httpx

        failures, waited = 0, False
        while True:
            try:
                return await _exchange(client, url, order, auth)
            except _Busy as busy:
                wait = busy.seconds
                if waited or wait is None or wait > PATIENCE:
                    raise self._left_alone(url, wait) from busy
                waited = True
                self._say(f"{_host(url)} asks to wait {wait:.0f} s")
            except (_Again, httpx.TransportError, OSError) as error:
                failures += 1
                if failures > RETRIES:
                    raise Unavailable(
                        f"{_shown(url)}: no complete answer in {failures} attempts: {_line(error)};"
                        " is there a network, and do HTTPS_PROXY and SSL_CERT_FILE fit it?"
                    ) from error
                # Not all clients at the same moment.
                wait = random.uniform(0.5, 1) * PAUSE * failures  # noqa: S311
                self._say(f"{_host(url)}: {_line(error)}; trying again")
            await asyncio.sleep(wait)

    # -- hosts that asked to be left alone ---------------------------------------------

    def _left_alone(self, url: "httpx.URL", seconds: float | None) -> Unavailable:
        """Notes that the host rests, for the next process as well; returns the error for it."""
        seconds = min(REST if seconds is None else seconds, LONGEST_REST)
        self._resting[_host(url)] = time.time() + seconds
        if self._state:
            # A folder that cannot be written costs the memory of it, not the answer.
            with suppress(OSError):
                _write(self._state / RESTING, json.dumps(self._rests()))
        return Unavailable(
            f"{_shown(url)}: {_host(url)} limits how often it may be asked;"
            f" try again in {max(1, math.ceil(seconds / 60))} min"
        )

    def _rests(self) -> dict[str, float]:
        """Hosts, and until when (seconds since 1970) they are left alone."""
        now = time.time()
        noted = _read(self._state / RESTING) if self._state else {}
        return {
            host: until
            for host, until in (noted | self._resting).items()
            if now < until <= now + LONGEST_REST
        }


def _read(file: Path) -> dict[str, float]:
    """The numbers of a JSON object; of a file that is not there or broken, none."""
    try:
        content: object = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    items = cast("dict[str, object]", content).items()
    return {key: value for key, value in items if isinstance(value, int | float)}


def _write(file: Path, text: str) -> None:
    """All of it or nothing. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        new = Path(folder) / file.name
        new.write_text(text, "utf-8")
        new.replace(file)


# -- addresses and logins --------------------------------------------------------------


def _normal(hosts: frozenset[str]) -> frozenset[str]:
    return frozenset(host.lower().removesuffix(":443") for host in hosts)


def _host(url: "httpx.URL") -> str:
    """With the port, if it is not 443."""
    return url.netloc.decode("ascii")


def _shown(url: "str | httpx.URL") -> str:
    """The address without login and query, which may be secret."""
    try:
        parts = urlsplit(str(url))
        _ = parts.port  # a wrong one may be a piece of a password
    except ValueError:
        return "an address that is not valid"
    return _printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def _line(error: Exception) -> str:
    return _printable(str(error))[:300] or type(error).__name__


def _printable(text: str) -> str:
    """One line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _auth(
    url: "httpx.URL", order: _Order, login: tuple[str, bytes, str, str]
) -> "httpx.Auth | None":
    """The login of the address that was given, for its own origin; else netrc's, for a host that
    the user's settings name. A documentation site is sent none.
    """
    import httpx

    scheme, netloc, username, password = login
    if username and (url.scheme, url.netloc) == (scheme, netloc):
        return httpx.BasicAuth(username, password)
    if _host(url) not in order.own_hosts:
        return None
    try:
        return httpx.NetRCAuth(os.environ.get("NETRC"))
    except (OSError, UnicodeDecodeError, NetrcParseError):
        return None  # there is none that can be read; if it is needed, the server says 401


# -- one request -----------------------------------------------------------------------


async def _exchange(
    client: "httpx.AsyncClient", url: "httpx.URL", order: _Order, auth: "httpx.Auth | None"
) -> "Response | httpx.URL":
    """Asks once. Raises `_Again` or `_Busy` where another attempt may help."""
    # What is hashed is the file as stored: not compressed once more on the way.
    headers = {"Accept-Encoding": "identity" if order.sha256 else "gzip"}
    async with client.stream("GET", url, headers=headers, auth=auth) as answer:
        if answer.status_code in {301, 302, 303, 307, 308}:
            return _target(answer)
        _check_status(answer)
        return Response(str(url), await _content(answer, order))


def _target(answer: "httpx.Response") -> "httpx.URL":
    """Where a redirect leads: httpx has made the request for it, and not sent it."""
    if answer.next_request is None:
        raise Unavailable(f"{_shown(answer.url)}: a redirect without a Location; expected the file")
    return answer.next_request.url


def _check_status(answer: "httpx.Response") -> None:
    status, url = answer.status_code, _shown(answer.url)
    if status == 200:
        return
    if status == 429 or (status == 503 and "Retry-After" in answer.headers):
        raise _Busy(_seconds(answer.headers.get("Retry-After", "")))
    if status in {502, 503, 504}:
        raise _Again(f"status {status}")
    if status in {404, 410}:
        raise Missing(f"{url}: there is no such file (status {status})")
    if status in {401, 403}:
        raise Unavailable(
            f"{url}: not allowed (status {status}); an index with a login has it in netrc"
        )
    raise Unavailable(f"{url}: status {status} came; expected 200")


def _seconds(retry_after: str) -> float | None:
    """From now, of a number or a date; None for what is neither."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())


async def _content(answer: "httpx.Response", order: _Order) -> bytes:
    """The body, complete, of an accepted kind, and with the right hash."""
    url = _shown(answer.url)
    _check_media(answer, order)
    content = await _received(answer, order.limit)
    # With a hash, `identity` was asked for: what is named gzip then is how the file is stored.
    encoding = "identity" if order.sha256 else answer.headers.get("Content-Encoding", "identity")
    if encoding == "gzip":
        content = _inflated(url, content, order.limit)
    elif encoding != "identity":
        raise Unavailable(f"{url}: came as {_printable(encoding)}; asked for gzip")
    start = content[:1_000].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) and "text/html" not in order.media:
        raise _html(url)
    digest = hashlib.sha256(content).hexdigest()
    if order.sha256 and digest != order.sha256.lower():
        raise Unavailable(f"{url}: sha256 is {digest}; expected {order.sha256}")
    return content


def _check_media(answer: "httpx.Response", order: _Order) -> None:
    media = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not media or not order.media:
        return
    families = tuple(each for each in order.media if each.endswith("/"))
    if media == "text/html" and media not in order.media:
        raise _html(_shown(answer.url))
    if media not in order.media and not media.startswith(families):
        raise Unavailable(
            f"{_shown(answer.url)}: {_printable(media)} came; expected {' or '.join(order.media)}"
        )


def _html(url: str) -> Unavailable:
    return Unavailable(f"{url}: an HTML page came where data was expected")


async def _received(answer: "httpx.Response", limit: int) -> bytes:
    too_large = Unavailable(
        f"{_shown(answer.url)}: larger than the {limit} bytes that are accepted"
    )
    if int(answer.headers.get("Content-Length", 0)) > limit:
        raise too_large
    content = bytearray()
    async for piece in answer.aiter_raw():
        content += piece
        if len(content) > limit:
            raise too_large
    return bytes(content)


def _inflated(url: str, packed: bytes, limit: int) -> bytes:
    # httpx would unpack a small piece to any size, and take one that was cut for complete.
    inflate = zlib.decompressobj(wbits=GZIP)
    try:
        content = inflate.decompress(packed, limit + 1)
    except zlib.error as error:
        raise Unavailable(f"{url}: its gzip encoding is broken ({_line(error)})") from error
    if len(content) > limit:
        raise Unavailable(f"{url}: larger than the {limit} bytes that are accepted, unpacked")
    if not inflate.eof:
        raise Unavailable(f"{url}: its gzip encoding is cut; expected a complete one")
    return content
