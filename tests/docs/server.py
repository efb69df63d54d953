"""The internet as a test wants it: sites with certificates of their own, behind a local proxy.

The code under test has no hook for this. It is told by the environment, as in a company's network:

    with Internet() as internet:
        internet.route("github.com", "/a.tar.gz", b"...")
        subprocess.run(command, env=os.environ | internet.environment())
"""

import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True, slots=True)
class Request:
    """What a site was asked. `host` has the port, if it is not 443; names of headers are in
    lower case.
    """

    method: str
    host: str
    path: str
    headers: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"https://{self.host}{self.path}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The connection ends with it: a body shorter than its `Content-Length` is cut.

    Without that header, it is added for `bytes`; pieces of an iterable are sent as they come.
    """

    status: int = 200
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Route = Answer | bytes | Callable[[Request], Answer | bytes]


class Internet:
    """A CONNECT proxy on 127.0.0.1 that answers itself for the hosts of its routes, and refuses
    all others with 502. Leaving it raises what a route raised.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        """In the order in which they came."""
        self.asked_for: list[str] = []
        """Of the proxy: `host:port`, or the URL of a request without TLS."""
        self.over = Event()
        """Set when the test ends. An answer that is to stay away waits for it."""
        self.errors: list[BaseException] = []
        self._routes: dict[tuple[str, str], list[Route]] = {}
        self._lock = Lock()
        self._folder = TemporaryDirectory()
        self._authority = _Authority(Path(self._folder.name))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._folder.cleanup()
        if self.errors and error is None:
            raise self.errors[0]

    def route(self, host: str, path: str, *answers: Route) -> None:
        """What to answer to `https://host/path`: one after the other, the last one ever after.

        `path` has the query, if there is one. All other paths of the host are 404.
        """
        self._routes[host, path] = list(answers)

    def environment(self) -> dict[str, str]:
        """What leads a client here: variables to set, also over those that there are."""
        proxy = f"http://127.0.0.1:{self._server.server_port}"
        proxies = dict.fromkeys(["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"], proxy)
        proxies["NO_PROXY"] = ""
        lower = {name.lower(): value for name, value in proxies.items()}
        return proxies | lower | {"SSL_CERT_FILE": str(self._authority.file)}

    def context(self, host: str) -> ssl.SSLContext | None:
        """With the certificate of a host; None for one without routes."""
        if all(host != known for known, _ in self._routes):
            return None
        with self._lock:
            return self._authority.context(host.partition(":")[0])

    def answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            answers = self._routes.get((request.host, request.path), [Answer(404)])
            answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if callable(answer):
            answer = answer(request)
        return answer if isinstance(answer, Answer) else Answer(body=answer)


def _handler(internet: Internet) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        host = ""
        """Of the site that this connection leads to, after CONNECT."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                pass  # the client went away, which is its right
            except BaseException as error:
                internet.errors.append(error)

        def do_CONNECT(self) -> None:
            internet.asked_for.append(self.path)
            host = self.path.removesuffix(":443")
            context = internet.context(host)
            if context is None:
                self._refuse()
                return
            self.send_response(200)
            self.end_headers()
            # From here on, this connection is the site.
            self.connection = context.wrap_socket(self.connection, server_side=True)
            self.rfile = self.connection.makefile("rb")
            self.wfile = self.connection.makefile("wb", buffering=0)
            self.host = host
            self.close_connection = False

        def do_GET(self) -> None:
            if not self.host:
                internet.asked_for.append(self.path)
                self._refuse()
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = internet.answer(Request(self.command, self.host, self.path, headers))
            body = [answer.body] if isinstance(answer.body, bytes) else answer.body
            self._send_head(answer)
            if self.command == "GET":
                for piece in body:
                    self.wfile.write(piece)

        do_HEAD = do_GET  # noqa: N815

        def _send_head(self, answer: Answer) -> None:
            sent = dict(answer.headers)
            if isinstance(answer.body, bytes) and "Transfer-Encoding" not in sent:
                sent.setdefault("Content-Length", str(len(answer.body)))
            self.send_response(answer.status)
            for name, value in {**sent, "Connection": "close"}.items():
                self.send_header(name, value)  # and after `close`, the base class does so
            self.end_headers()

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()
            if isinstance(self.connection, ssl.SSLSocket):
                self.connection.close()  # the server closes the socket that it knows, not this one

        def _refuse(self) -> None:
            self.send_error(502)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Nothing: a test reads `requests`."""

    return Handler


class _Authority:
    """Certificates that only those trust who are given its `file`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key, self._certificate = _certificate("Test authority", None)
        self.file = folder / "authority.pem"
        self.file.write_bytes(_pem(self._certificate))
        self.context = cache(self._context)

    def _context(self, host: str) -> ssl.SSLContext:
        key, certificate = _certificate(host, (self._key, self._certificate))
        file = self._folder / "host.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file.write_bytes(private + _pem(certificate))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context


Signed = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def _certificate(name: str, issuer: Signed | None) -> Signed:
    """For a host, signed by the issuer; without one, for an authority, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_key, issuer_name = (issuer[0], issuer[1].subject) if issuer else (key, subject)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .add_extension(_usage(authority=issuer is None), critical=True)
    )
    if issuer:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return key, builder.sign(issuer_key, hashes.SHA256())


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
