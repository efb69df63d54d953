"""Files from a tar.gz that a stranger may have made: read in memory, and only up to the caps."""

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

from . import Unavailable

FILE_BYTES = 8_000_000  # the largest page of these libraries has 2 MB
ARCHIVE_BYTES = 512_000_000  # the largest archive has 69 MB, unpacked
KEPT_BYTES = 128_000_000  # of all files that are wanted; the most have 50 MB
MEMBERS = 20_000  # and extension headers; the most have 2,036
RATIO = 200  # the highest is 9
SMALL = 1_000_000  # unpacked bytes below which no ratio counts: an empty archive has 227
EXTENSION_BYTES = 65_536  # of the header that carries a member's long name: a path has 4,096

GZIP = 31  # to zlib: with gzip's header and checksum
BLOCK = 512  # of a tar archive
CHUNK = 65_536  # unpacked at a time


def members(archive: bytes, keep: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The regular files of a tar.gz that `keep` wants, with their content, in the archive's order.

    A name, for `keep` as well, is what follows the archive's first folder: `doc/orm/session.html`.
    Members with a name that leads elsewhere, links and devices are passed over; nothing is
    written. Raises `Unavailable` if it is no complete tar.gz, or exceeds a cap: as it is read bit
    by bit, only after what came before has been yielded.

    Not tarfile: it reads a member's extension headers into memory whatever their size, and some
    of its versions search them in quadratic time.
    """
    tape = _Tape(archive)
    count = kept = 0
    longer: dict[bytes, bytes] = {}  # what extension headers say of the member that follows
    while header := tape.header():
        kind, size = header[156:157], _number(header[124:136])
        count += 1
        if count > MEMBERS:
            raise Unavailable(f"the archive has more members than the {MEMBERS} that are read")
        if kind in _EXTENSIONS:
            longer |= _extension(kind, tape.read(size, EXTENSION_BYTES, "an extension header"))
            continue
        name = _name(longer.get(b"path") or _ustar_name(header))
        size = _number(longer[b"size"], base=10) if b"size" in longer else size
        longer = {}
        if kind in _WITHOUT_CONTENT:
            continue
        if kind in _REGULAR and name and keep(name):
            kept += size
            if kept > KEPT_BYTES:
                raise Unavailable(f"the pages in the archive have more than {KEPT_BYTES} bytes")
            yield name, tape.read(size, FILE_BYTES, name)
        else:
            tape.skip(size)
    tape.finish()


_REGULAR = {b"0", b"\0", b"7"}
_WITHOUT_CONTENT = {b"1", b"2", b"3", b"4", b"5", b"6"}  # links, devices, folders, pipes
_PAX, _LONG_NAME = b"x", b"L"
_EXTENSIONS = {_PAX, _LONG_NAME, b"g", b"K"}  # g: of all members, a comment; K: a link's target


def _name(path: bytes) -> str:
    """Below the archive's first folder; empty for a path that is not below it, or that some
    system would take for another place.
    """
    name = path.decode("utf-8", "replace").removeprefix("./")
    if not name.isprintable() or "\\" in name or ":" in name:
        return ""
    first, *rest = name.split("/")
    return "/".join(rest) if {first, *rest}.isdisjoint({"", ".", ".."}) else ""


def _ustar_name(header: bytes) -> bytes:
    name, prefix = (_text(field) for field in (header[:100], header[345:500]))
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes, base: int = 8) -> int:
    if field[:1] == b"\x80":  # GNU, for what has no place in octal digits
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0") or b"0"
    with suppress(ValueError):
        if digits.isdigit():  # int() alone takes a sign and underscores
            return int(digits, base)
    raise Unavailable("the archive is broken: a header has text where a number belongs")


def _extension(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    """The `path` and the `size` that it gives to the next member, if any."""
    if kind == _LONG_NAME:
        return {b"path": _text(content)}
    if kind != _PAX:
        return {}
    records = dict(_pax(content))
    if any(key.startswith(b"GNU.sparse.") for key in records):
        raise Unavailable("the archive has a sparse file; documentation has none")
    return {key: records[key] for key in (b"path", b"size") if key in records}


def _pax(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Records as `17 path=a/b.html` and a newline; the number is the record's own length."""
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + 8)
        end = at + _number(content[at:space], base=10)
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if space < 0 or not equals or content[end - 1 : end] != b"\n":
            raise Unavailable("the archive is broken: an extension header is no list of records")
        yield key, value
        at = end


class _Tape:
    """The blocks of a tar.gz, unpacked as they are asked for and no further than the caps."""

    def __init__(self, archive: bytes) -> None:
        self._packed = io.BytesIO(archive)
        self._inflate = zlib.decompressobj(wbits=GZIP)
        self._ready = bytearray()
        self._unpacked = 0
        self._ratio_bytes = max(SMALL, RATIO * len(archive))

    def header(self) -> bytes:
        """The next one; empty at the end."""
        block = self._take(BLOCK)
        if not block.strip(b"\0"):
            return b""
        # The checksum itself counts as spaces.
        checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if _text(block[148:156]).strip().lstrip(b"0") != b"%o" % checksum:
            raise Unavailable("not a tar archive, or a broken one: a header's checksum is wrong")
        return block

    def read(self, size: int, cap: int, what: str) -> bytes:
        if size > cap:
            raise Unavailable(f"the archive: {what} has {size} bytes; at most {cap} are read")
        content = self._take(size)
        self._take(-size % BLOCK)
        return content

    def skip(self, size: int) -> None:
        left = size + -size % BLOCK
        self._check(self._unpacked - len(self._ready) + left)  # before any work for it
        while left:
            left -= len(self._take(min(left, CHUNK)))

    def finish(self) -> None:
        """To gzip's checksum, which is at the very end."""
        while not self._inflate.eof:
            self._ready.clear()
            self._more()

    def _take(self, size: int) -> bytes:
        while len(self._ready) < size:
            if self._inflate.eof:
                raise Unavailable("the archive is cut: it ends before its last member does")
            self._more()
        taken = bytes(self._ready[:size])
        del self._ready[:size]
        return taken

    def _more(self) -> None:
        packed = self._inflate.unconsumed_tail or self._packed.read(CHUNK)
        if not packed:
            raise Unavailable("the archive is cut: its gzip stream has no end")
        try:
            piece = self._inflate.decompress(packed, CHUNK)
        except zlib.error as error:
            raise Unavailable(f"not a gzip archive, or a broken one: {error}") from error
        self._unpacked += len(piece)
        self._check(self._unpacked)
        self._ready += piece

    def _check(self, unpacked: int) -> None:
        if unpacked > ARCHIVE_BYTES:
            raise Unavailable(f"the archive has more than {ARCHIVE_BYTES} bytes, unpacked")
        if unpacked > self._ratio_bytes:
            raise Unavailable(f"the archive unpacks to more than {RATIO} times its size")
