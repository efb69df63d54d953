"""What `Transfer` promises, against real TLS, a real proxy and servers that misbehave."""

import gzip
import hashlib
import json
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docsearch import Unavailable, transfer
from docsearch.transfer import PATIENCE, REDIRECTS, REST, RESTING, Missing, Response, Transfer

from .server import Answer, Internet, Request

SITE, MIRROR, FOREIGN = "docs.example.org", "mirror.example.org", "elsewhere.example.com"
URL = f"https://{SITE}/file"
HTML = {"Content-Type": "text/html; charset=utf-8"}
CONTENT = b"some documentation " * 50


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.01)


def client(**options: Any) -> Transfer:
    options.setdefault("say", print)
    return Transfer(frozenset({SITE, MIRROR}), **options)


def get(url: str = URL, **options: Any) -> Response:
    options.setdefault("limit", 10_000)
    return client().get(url, **options)


def refused(url: str = URL, *, by: Transfer | None = None, **options: Any) -> str:
    """The message of the error, which is one line and tells no secret."""
    options.setdefault("limit", 10_000)
    with pytest.raises(Unavailable) as error:
        (by or client()).get(url, **options)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "secret" not in message
    return message


def redirect(to: str, status: int = 302) -> Answer:
    return Answer(status, headers={"Location": to})


def urls(internet: Internet) -> list[str]:
    return [request.url for request in internet.requests]


# -- what comes ------------------------------------------------------------------------


def test_file(online: Internet) -> None:
    """The content, and who asks."""
    online.route(SITE, "/file?q=1", CONTENT)
    response = client().get(URL + "?q=1", limit=len(CONTENT))
    assert response == Response(URL + "?q=1", CONTENT)
    assert online.requests[0].headers["user-agent"].startswith("async-sqlmodel-docs/1 ")


def test_not_modified_unasked(online: Internet) -> None:
    online.route(SITE, "/file", Answer(304))
    assert "status 304" in refused()


@pytest.mark.parametrize("status", [404, 410])
def test_missing(online: Internet, status: int) -> None:
    online.route(SITE, "/file", Answer(status))
    with pytest.raises(Missing, match=f"{URL}: there is no such file"):
        get()


@pytest.mark.parametrize(
    ("status", "says"), [(401, "netrc"), (403, "netrc"), (500, "expected 200")]
)
def test_status(online: Internet, status: int, says: str) -> None:
    """An error, not a missing file, and no reason to ask again."""
    online.route(SITE, "/file", Answer(status), CONTENT)
    message = refused()
    assert f"{URL}: " in message
    assert f"status {status}" in message
    assert says in message
    assert len(online.requests) == 1


# -- network ---------------------------------------------------------------------------


def test_proxy_and_authority_of_the_environment(
    online: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are used: another authority than the proxy's is the end of it."""
    online.route(SITE, "/file", CONTENT)
    assert get().content == CONTENT
    assert online.asked_for == [f"{SITE}:443"]
    with Internet() as other:
        monkeypatch.setenv("SSL_CERT_FILE", other.environment()["SSL_CERT_FILE"])
        assert "SSL_CERT_FILE" in refused()
    assert len(online.requests) == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SSL_CERT_FILE", "/no/such/file"),
        ("https_proxy", "ftp://user:secret@proxy.example"),
        ("https_proxy", "http://user:secret@proxy.example:port"),
    ],
)
def test_broken_environment(
    online: Internet, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert variable.upper() in refused()
    assert online.asked_for == []


def test_no_network(online: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses; an address where nobody listens."""
    assert f"{URL}: no complete answer" in refused()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert f"{URL}: no complete answer" in refused()
    assert online.asked_for == [f"{SITE}:443"] * 3


def test_offline(online: Internet) -> None:
    online.route(SITE, "/file", CONTENT)
    offline = client(offline=True)
    assert f"{URL}: offline" in refused(f"https://user:secret@{SITE}/file?secret", by=offline)
    assert online.asked_for == []


def test_without_httpx(online: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    assert "uv run" in refused()
    assert online.asked_for == []


def test_imports_httpx_late() -> None:
    code = "import sys, docsearch.transfer; sys.exit('httpx' in sys.modules)"
    folder = Path(transfer.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def cut_chunks() -> Answer:
    return Answer(body=b"5\r\nabcde\r\n", headers={"Transfer-Encoding": "chunked"})


FLEETING = {
    "502": Answer(502),
    "503": Answer(503),
    "504": Answer(504),
    "content-length": Answer(body=CONTENT[:100], headers={"Content-Length": str(len(CONTENT))}),
    "chunked": cut_chunks(),
}


@pytest.mark.parametrize("failure", FLEETING.values(), ids=FLEETING)
def test_tries_again(online: Internet, failure: Answer) -> None:
    online.route(SITE, "/file", failure, failure, CONTENT)
    said: list[str] = []
    assert client(say=said.append).get(URL, limit=10_000).content == CONTENT
    assert len(online.requests) == 3
    assert [line.partition(":")[0] for line in said] == [SITE, SITE]


@pytest.mark.parametrize("failure", FLEETING.values(), ids=FLEETING)
def test_gives_up(online: Internet, failure: Answer) -> None:
    """A truncated download is an error, however its end was announced."""
    online.route(SITE, "/file", failure, failure, failure, CONTENT)
    assert f"{URL}: no complete answer in 3 attempts" in refused()
    assert len(online.requests) == 3


def test_silence(online: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends nothing is given up after `READ`."""
    monkeypatch.setattr(transfer, "READ", 0.1)

    def silent(_request: Request) -> bytes:
        online.over.wait()
        return b""

    online.route(SITE, "/file", silent)
    assert "Timeout" in refused()


def test_trickle(online: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps a read timeout from ever ending; `TOTAL` ends it."""
    monkeypatch.setattr(transfer, "TOTAL", 0.5)

    def trickle(_request: Request) -> Answer:
        return Answer(body=(b"x" for _ in range(400) if not online.over.wait(0.02)))

    online.route(SITE, "/file", trickle)
    assert "not complete after 0.5 s" in refused()


# -- redirects -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect(online: Internet, status: int) -> None:
    online.route(SITE, "/file", redirect("other?x=1", status))
    online.route(SITE, "/other?x=1", redirect(f"https://{MIRROR}/file", status))
    online.route(MIRROR, "/file", CONTENT)
    response = get()
    assert response.content == CONTENT
    assert response.url == f"https://{MIRROR}/file"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (f"https://{FOREIGN}/file", f"{FOREIGN} is not one of the hosts"),
        (f"//{FOREIGN}/file", f"{FOREIGN} is not one of the hosts"),
        (f"https://{SITE}@{FOREIGN}/file", f"{FOREIGN} is not one of the hosts"),
        (f"https://{SITE}.{FOREIGN}/file", f"{SITE}.{FOREIGN} is not one of the hosts"),
        (f"https://{SITE}:8443/file", f"{SITE}:8443 is not one of the hosts"),
        ("https://127.0.0.1/file", "127.0.0.1 is not one of the hosts"),
        (f"http://{SITE}/file", "only https"),
        ("file:///etc/passwd", "only https"),
        ("https://user:secret@host:port/file", "Invalid URL in location header"),
        ("https://[::1/file", "Invalid URL in location header"),
    ],
)
def test_redirect_elsewhere(online: Internet, target: str, says: str) -> None:
    """Nothing is sent to an address that is not allowed, not even a handshake."""
    for host in (FOREIGN, f"{SITE}.{FOREIGN}", f"{SITE}:8443", "127.0.0.1"):
        online.route(host, "/file", CONTENT)
    online.route(SITE, "/file", redirect(target))
    assert says in refused()
    assert set(online.asked_for) == {f"{SITE}:443"}
    assert set(urls(online)) == {URL}


def test_redirect_to_nowhere(online: Internet) -> None:
    online.route(SITE, "/file", Answer(302))
    assert f"{URL}: a redirect without a Location" in refused()


def test_redirect_loop(online: Internet) -> None:
    online.route(SITE, "/file", redirect("/file"))
    assert f"{URL}: more than {REDIRECTS} redirects" in refused()
    assert len(online.requests) == 1 + REDIRECTS


@pytest.mark.parametrize(
    "url", [f"http://{SITE}/file", f"https://{FOREIGN}/file", "/file", "https://user:sec/ret@x/"]
)
def test_address(online: Internet, url: str) -> None:
    """The address that is given is checked as those of redirects are."""
    online.route(FOREIGN, "/file", CONTENT)
    assert "ret@" not in refused(url)
    assert online.asked_for == []


def test_hosts_of_a_call(online: Internet) -> None:
    """A host of the user's settings may be asked in that call, and has its port."""
    index = "index.example.net:8443"
    online.route(index, "/file", CONTENT)
    by = client()
    url = f"https://{index.upper()}/file"
    assert by.get(url, limit=10_000, hosts=frozenset({index})).content == CONTENT
    assert "is not one of the hosts" in refused(url, by=by)
    online.route(FOREIGN, "/file", CONTENT)
    get(f"https://{FOREIGN}/file", hosts=frozenset({f"{FOREIGN.title()}:443"}))


# -- logins ----------------------------------------------------------------------------


def authorized(internet: Internet) -> list[tuple[str, bool]]:
    return [(request.host, "authorization" in request.headers) for request in internet.requests]


def test_login_of_the_address(online: Internet) -> None:
    """It goes to its own origin, and is not shown."""
    online.route(SITE, "/file?key=secret", redirect("/moved"))
    online.route(SITE, "/moved", redirect(f"https://{MIRROR}/file"))
    online.route(MIRROR, "/file", redirect(f"{URL}/back"))
    online.route(SITE, "/file/back", redirect("https://other:secret@mirror.example.org/404"))
    message = refused(f"https://user:secret@{SITE}/file?key=secret")
    assert f"https://{MIRROR}/404: there is no such file" in message
    expected = [(SITE, True), (SITE, True), (MIRROR, False), (SITE, True), (MIRROR, False)]
    assert authorized(online) == expected


def test_netrc(online: Internet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host that the user's settings name is sent its login from there, and no other host."""
    file = tmp_path / "netrc"
    file.write_text(f"machine {FOREIGN} login user password secret\ndefault login x password y\n")
    monkeypatch.setenv("NETRC", str(file))
    online.route(FOREIGN, "/file", redirect(URL))
    online.route(SITE, "/file", CONTENT)
    get(f"https://{FOREIGN}/file", hosts=frozenset({FOREIGN}))
    assert authorized(online) == [(FOREIGN, True), (SITE, False)]


@pytest.mark.parametrize("content", [None, "machine", "\x00"])
def test_netrc_broken(
    online: Internet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    """No login, and no error."""
    if content is not None:
        (tmp_path / "netrc").write_text(content)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    online.route(SITE, "/file", CONTENT)
    assert get(hosts=frozenset({SITE})).content == CONTENT
    assert authorized(online) == [(SITE, False)]


# -- what is accepted ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "media"),
    [
        (b"<!DOCTYPE html><title>Wait</title>", HTML, ("application/json",)),
        (b"<!DOCTYPE html><title>Wait</title>", HTML, ("application/json", "text/")),
        (b"<!DOCTYPE html><title>Wait</title>", HTML, ()),
        (b"{}", HTML, ("application/json",)),
        (b"<!doctype HTML>", {"Content-Type": "application/json"}, ("application/json",)),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", {}, ("application/json",)),
    ],
)
def test_html(online: Internet, body: bytes, kind: dict[str, str], media: tuple[str, ...]) -> None:
    """A page of a proxy or a bot check is not data, whatever its status and type say."""
    online.route(SITE, "/file", Answer(body=body, headers=kind))
    wrong = hashlib.sha256(b"").hexdigest()  # that it is a page says more
    assert f"{URL}: an HTML page came" in refused(media=media, sha256=wrong)


@pytest.mark.parametrize(
    ("kind", "media"),
    [
        ("text/html", ("text/html",)),
        ("Application/JSON; charset=utf-8", ("application/json",)),
        ("text/javascript", ("application/json", "text/")),
        ("image/png", ()),
        (None, ("application/json",)),
    ],
)
def test_media(online: Internet, kind: str | None, media: tuple[str, ...]) -> None:
    headers = {"Content-Type": kind} if kind else {}
    content = b"<html>" if kind == "text/html" else CONTENT
    online.route(SITE, "/file", Answer(body=content, headers=headers))
    assert get(media=media).content == content


def test_wrong_media(online: Internet) -> None:
    online.route(SITE, "/file", Answer(body=CONTENT, headers={"Content-Type": "image/png"}))
    expected = f"{URL}: image/png came; expected application/json or text/"
    assert expected in refused(media=("application/json", "text/"))


def test_hash(online: Internet) -> None:
    online.route(SITE, "/file", CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert get(sha256=digest.upper()).content == CONTENT
    wrong = "0" * 64
    assert f"{URL}: sha256 is {digest}; expected {wrong}" in refused(sha256=wrong)


def test_limit_announced(online: Internet) -> None:
    """The body is not waited for."""

    def body() -> Iterator[bytes]:
        online.over.wait()
        yield b""

    headers = {"Content-Length": "10001"}
    online.route(SITE, "/file", Answer(body=body(), headers=headers))
    assert f"{URL}: larger than the 10000 bytes" in refused()


def test_limit_exceeded(online: Internet) -> None:
    """Nor is what comes without an announcement read to its end."""
    ends: list[str] = []

    def body() -> Iterator[bytes]:
        for _ in range(1_000):
            yield b"x" * 65_536
        ends.append("all was sent")

    online.route(SITE, "/file", Answer(body=body()))
    assert f"{URL}: larger than the 10000 bytes" in refused()
    assert ends == []


def packed(content: bytes, encoding: str = "gzip") -> Answer:
    return Answer(body=content, headers={"Content-Encoding": encoding})


def test_compressed(online: Internet) -> None:
    online.route(SITE, "/file", packed(gzip.compress(CONTENT)))
    assert get(limit=len(CONTENT)).content == CONTENT
    assert online.requests[0].headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (packed(gzip.compress(CONTENT)[:-9]), "cut"),
        (packed(gzip.compress(CONTENT)[:-1]), "cut"),
        (packed(gzip.compress(CONTENT)[:-8] + bytes(8)), "broken"),
        (packed(CONTENT), "broken"),
        (packed(gzip.compress(bytes(10_001))), "larger than the 10000 bytes"),
        (packed(CONTENT, "br"), "came as br"),
    ],
)
def test_compressed_badly(online: Internet, answer: Answer, says: str) -> None:
    online.route(SITE, "/file", answer)
    message = refused()
    assert message.startswith(f"{URL}: ")
    assert says in message


def test_compressed_bomb(online: Internet) -> None:
    """It is not unpacked to see how large it is."""
    online.route(SITE, "/file", CONTENT, packed(gzip.compress(bytes(9_000_000))))
    get()
    tracemalloc.start()
    try:
        refused()
        assert tracemalloc.get_traced_memory()[1] < 9_000_000
    finally:
        tracemalloc.stop()


def test_archive_as_stored(online: Internet) -> None:
    """A server that takes the .gz for an encoding does not change what is hashed."""
    archive = gzip.compress(CONTENT)
    online.route(SITE, "/file", packed(archive))
    assert get(sha256=hashlib.sha256(archive).hexdigest()).content == archive
    assert online.requests[0].headers["accept-encoding"] == "identity"


# -- 429 -------------------------------------------------------------------------------


def busy(after: str | None, status: int = 429) -> Answer:
    return Answer(status, headers={} if after is None else {"Retry-After": after})


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after", ["0", "1", "Mon, 02 Nov 2020 10:00:00 GMT"])
def test_busy_shortly(online: Internet, tmp_path: Path, after: str, status: int) -> None:
    online.route(SITE, "/file", busy(after, status), CONTENT)
    said: list[str] = []
    by = client(state=tmp_path, say=said.append)
    assert by.get(URL, limit=10_000).content == CONTENT
    assert said == [f"{SITE} asks to wait {after if after.isdigit() else 0} s"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [429, 503])
def test_busy_for_long(online: Internet, tmp_path: Path, status: int) -> None:
    """The host is left alone, by the next process as well; others are not."""
    online.route(SITE, "/file", busy(f"{PATIENCE + 1:.0f}", status), CONTENT)
    online.route(MIRROR, "/file", CONTENT)
    online.route(MIRROR, "/redirect", redirect(URL))
    assert "try again in 1 min" in refused(by=client(state=tmp_path))
    second = client(state=tmp_path)
    assert f"{URL}: {SITE} asked to be left alone until " in refused(by=second)
    assert second.get(f"https://{MIRROR}/file", limit=10_000).content == CONTENT
    assert "left alone" in refused(f"https://{MIRROR}/redirect", by=second)
    assert urls(online).count(URL) == 1
    assert [file.name for file in tmp_path.iterdir()] == [RESTING]


def test_busy_twice(online: Internet, tmp_path: Path) -> None:
    """It is waited for once."""
    online.route(SITE, "/file", busy("0"), busy("10"), CONTENT)
    refused(by=client(state=tmp_path))
    assert "left alone" in refused(by=client(state=tmp_path))
    assert len(online.requests) == 2


@pytest.mark.parametrize(
    ("after", "rest"),
    [(None, REST), ("soon", REST), ("-5", REST), ("", REST), ("999999999999", 86_400.0)],
)
def test_busy_until(online: Internet, tmp_path: Path, after: str | None, rest: float) -> None:
    """Half an hour for a server that does not say; no longer than a day for one that does."""
    online.route(SITE, "/file", busy(after))
    earliest = time.time() + rest
    refused(by=client(state=tmp_path))
    until = json.loads((tmp_path / RESTING).read_text("utf-8"))
    assert list(until) == [SITE]
    assert earliest <= until[SITE] <= time.time() + rest


def test_rest_is_over(online: Internet, tmp_path: Path) -> None:
    """Then the host is asked again, and the note of others is kept."""
    now = time.time()
    notes = {SITE: now - 1, FOREIGN: now + 1_000}
    (tmp_path / RESTING).write_text(json.dumps(notes), "utf-8")
    online.route(SITE, "/file", CONTENT, busy("100"))
    by = client(state=tmp_path)
    assert by.get(URL, limit=10_000).content == CONTENT
    refused(by=by)
    assert set(json.loads((tmp_path / RESTING).read_text("utf-8"))) == {SITE, FOREIGN}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[1]",
        b"[" * 100_000,
        b'{"docs.example.org": "tomorrow"}',
        b'{"docs.example.org": NaN}',
        b'{"docs.example.org": 1e300}',
    ],
)
def test_broken_notes(online: Internet, tmp_path: Path, content: bytes) -> None:
    """Are none; the next ones replace them."""
    (tmp_path / RESTING).write_bytes(content)
    online.route(SITE, "/file", CONTENT, busy(None))
    by = client(state=tmp_path)
    assert by.get(URL, limit=10_000).content == CONTENT
    refused(by=by)
    assert list(json.loads((tmp_path / RESTING).read_text("utf-8"))) == [SITE]


def test_notes_not_writable(online: Internet, tmp_path: Path) -> None:
    """Root may write everywhere, but not into a file that stands where a folder should."""
    (tmp_path / "file").touch()
    online.route(SITE, "/file", busy(None), CONTENT)
    by = client(state=tmp_path / "file")
    assert "try again in 30 min" in refused(by=by)
    assert "left alone" in refused(by=by)
    assert len(online.requests) == 1
