"""What `members` promises: every file of an honest archive, and a quick end with any other."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsearch import Unavailable, archive
from docsearch.archive import EXTENSION_BYTES, FILE_BYTES, MEMBERS, RATIO, members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
HONEST = ("pkg/honest.html", b"text")
END = bytes(1024)


def everything(_name: str) -> bool:
    return True


def tar(
    *files: tuple[str, bytes], kind: int = tarfile.PAX_FORMAT, encoding: str = "utf-8"
) -> bytes:
    """Not compressed."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=kind, encoding=encoding) as tape:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tape.addfile(member, io.BytesIO(content))
    return target.getvalue()


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """One block, as GNU tar writes it: sizes without a limit."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member.tobuf(tarfile.GNU_FORMAT)


def extended(kind: bytes, content: bytes, name: str = "pkg/short.html") -> bytes:
    """A member behind an extension header."""
    padded = content + bytes(-len(content) % 512)
    return header("extension", len(content), kind) + padded + header(name)


def changed(block: bytes, at: int, field: bytes, checksum: bytes = b"%06o\0 ") -> bytes:
    """A header with another field, and the right checksum."""
    block = block[:at] + field + block[at + len(field) :]
    total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    return block[:148] + checksum % total + block[156:]


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n".encode()
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
        length += 1
    return str(length).encode() + text


def read(tape: bytes, keep: Callable[[str], bool] = everything) -> dict[str, bytes]:
    return dict(members(gzip.compress(tape), keep))


def refused(packed: bytes, keep: Callable[[str], bool] = everything) -> str:
    with pytest.raises(Unavailable) as error:
        list(members(packed, keep))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# -- honest archives -------------------------------------------------------------------

FILES = {
    "pkg/doc/orm/session.html": b"<p>",
    "pkg/empty": b"",
    "pkg/block": b"x" * 512,
    "pkg/block and one": b"x" * 513,
    f"pkg/{'d' * 60}/{'n' * 90}": b"in two fields",
    "pkg/large": bytes(range(256)) * 1_000,
}
LONG = {f"pkg/{'long/' * 60}name.md": b"longer than any field", "pkg/\u00fcber.md": b"not ASCII"}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str) -> None:
    files = FILES | (LONG if kind != "ustar" else {})
    tape = tar(*files.items(), kind=FORMATS[kind])
    assert read(tape) == {name.partition("/")[2]: content for name, content in files.items()}


@given(
    st.dictionaries(
        st.text("abc\u00fc. -_", min_size=1).filter(lambda name: name not in {".", ".."}),
        st.binary(max_size=2_000),
        max_size=8,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_reads_what_tarfile_writes(files: dict[str, bytes], kind: int) -> None:
    assert read(tar(*((f"pkg/{name}", files[name]) for name in files), kind=kind)) == files


def test_keep() -> None:
    """It is asked of every file by the name below the first folder; the others are not read."""
    asked: list[str] = []

    def keep(name: str) -> bool:
        asked.append(name)
        return name.endswith(".html")

    tape = tar(("./pkg/a/b.html", b"1"), ("pkg/c.png", b"2" * 2_000), ("pkg/d.html", b"3"))
    assert list(members(gzip.compress(tape), keep)) == [("a/b.html", b"1"), ("d.html", b"3")]
    assert asked == ["a/b.html", "c.png", "d.html"]


def test_comment_of_all_members() -> None:
    """As Git writes its commit into an archive: of no member in particular."""
    comment = extended(tarfile.XGLTYPE, record("comment", "0" * 40), "pkg/a.md")
    assert read(comment + END) == {"a.md": b""}


def test_gnu_has_other_fields() -> None:
    """Times, where others have the start of the name."""
    assert read(changed(header("pkg/a"), 345, b"15000000000") + END) == {"a": b""}


def test_empty() -> None:
    assert read(tar()) == {}


def test_not_utf_8() -> None:
    tape = tar(("pkg/\u00e4.html", b"\xe4"), kind=tarfile.GNU_FORMAT, encoding="latin-1")
    assert read(tape) == {"\ufffd.html": b"\xe4"}


# -- members that are passed over ------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "//host/share/x",
        "../pkg/x",
        "pkg/../../x",
        "pkg/a/../x",
        "pkg/..",
        "pkg/a/./x",
        "pkg//x",
        "C:/pkg/x",
        "pkg/C:/x",
        "pkg/x:stream",
        "pkg\\..\\x",
        "pkg/..\\..\\x",
        "pkg/\x1b[2Jx",
        "pkg/\u202ex",
        "beside the folder",
    ],
)
@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_name_that_leads_elsewhere(name: str, kind: str) -> None:
    tape = tar((name, b"x" * 700), HONEST, kind=FORMATS[kind])
    assert read(tape) == {"honest.html": b"text"}


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        b"Z",
    ],
)
def test_not_a_file(kind: bytes) -> None:
    asked: list[str] = []

    def keep(name: str) -> bool:
        asked.append(name)
        return True

    size = 0 if kind == b"Z" else 600  # of what is linked to: nothing follows
    tape = header("pkg/link", size, kind, link="/etc/passwd") + tar(HONEST)
    assert read(tape, keep) == {"honest.html": b"text"}
    assert asked == ["honest.html"]


def test_unknown_kind_with_content() -> None:
    """What follows is found behind it."""
    tape = header("pkg/x", 600, b"Z") + bytes(1024) + tar(HONEST)
    assert read(tape) == {"honest.html": b"text"}


# -- archives that are refused ---------------------------------------------------------


@pytest.mark.parametrize(
    "tape",
    [
        header("pkg/sparse", 512, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + bytes(29) + bytes(2048),
        extended(tarfile.XHDTYPE, record("GNU.sparse.major", "1")) + END,
    ],
)
def test_sparse(tape: bytes) -> None:
    refused(gzip.compress(tape))


def test_large_file() -> None:
    """An error for a file that is wanted; others may have any size."""
    content = os.urandom(50_000)
    packed = gzip.compress(tar(("pkg/video", content * (FILE_BYTES // 50_000 + 1)), HONEST))
    assert f"at most {FILE_BYTES} are read" in refused(packed)
    rest = members(packed, lambda name: name != "video")
    assert dict(rest) == {"honest.html": b"text"}


def test_bomb() -> None:
    """Nothing is unpacked that a header says to be too much: this one's end is not there."""
    packed = gzip.compress(tar(HONEST, ("pkg/zeros", bytes(50_000_000))))
    start = packed[: len(packed) // 2]
    assert f"more than {RATIO} times its size" in refused(start, lambda name: name != "zeros")


def test_bomb_behind_the_end() -> None:
    packed = gzip.compress(tar(HONEST) + bytes(50_000_000))
    assert f"more than {RATIO} times its size" in refused(packed)


def test_large_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(tar(*((f"pkg/{i}", os.urandom(30_000)) for i in range(10))))
    assert len(dict(members(packed, everything))) == 10
    monkeypatch.setattr(archive, "ARCHIVE_BYTES", 300_000)
    assert "more than 300000 bytes" in refused(packed)


def test_large_files_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are passed over cost no memory."""
    files = [(f"pkg/{i}", os.urandom(30_000)) for i in range(10)]
    monkeypatch.setattr(archive, "KEPT_BYTES", 100_000)
    packed = gzip.compress(tar(*files))
    assert "more than 100000 bytes" in refused(packed)
    assert len(dict(members(packed, lambda name: name in {"1", "2", "9"}))) == 3


@pytest.mark.parametrize("size", [10**12, 2**80])
def test_size_beyond_all(size: int) -> None:
    tape = header("pkg/x", size) + END
    assert "more than 512000000 bytes" in refused(gzip.compress(tape), lambda _name: False)


def test_25_000_members() -> None:
    tape = b"".join(header(f"pkg/{i:x}") for i in range(25_000))
    packed = gzip.compress(tape + END)
    assert f"more members than the {MEMBERS}" in refused(packed)
    assert len(list(islice(members(packed, everything), MEMBERS))) == MEMBERS


HUGE = os.urandom(EXTENSION_BYTES).hex()  # does not compress to what the ratio would refuse


@pytest.mark.parametrize(
    "tape",
    [
        tar((f"pkg/{HUGE}", b""), kind=tarfile.PAX_FORMAT),
        tar((f"pkg/{HUGE}", b""), kind=tarfile.GNU_FORMAT),
        extended(tarfile.XGLTYPE, record("comment", HUGE)) + END,
        extended(tarfile.GNUTYPE_LONGLINK, HUGE.encode()) + END,
        header("pkg/x", 10**15, tarfile.XHDTYPE),
    ],
    ids=["pax", "long name", "global", "long link", "announced"],
)
def test_huge_extension_header(tape: bytes) -> None:
    assert f"at most {EXTENSION_BYTES} are read" in refused(gzip.compress(tape))


def test_many_extension_headers() -> None:
    """Not a call deeper, and no more memory, with each."""
    names = (record("path", f"pkg/{i}") for i in range(5_000))
    tape = b"".join(extended(tarfile.XHDTYPE, name)[:1024] for name in names)
    assert read(tape + header("pkg/x") + END) == {"4999": b""}


def test_25_000_extension_headers() -> None:
    """Each takes time, as a member does."""
    comments = (record("comment", os.urandom(50).hex()) for _ in range(25_000))
    tape = b"".join(extended(tarfile.XHDTYPE, comment)[:1024] for comment in comments)
    assert f"more members than the {MEMBERS}" in refused(gzip.compress(tape + END))


@pytest.mark.parametrize(
    "content",
    [
        b"path=pkg/x\n",
        b"x path=pkg/x\n",
        b"0 path=pkg/x\n",
        b"5 path=pkg/x\n",
        b"-1 path=pkg/x\n",
        b"99 path=pkg/x\n",
        b"9" * 60_000,
        b"13 path-pkg/x\n",
        record("path", "pkg/x") + b"0 a=\n",
        record("path", "pkg/x") + b"000000010\n",
        record("size", "-512"),
        record("size", "1_0"),
        record("size", "9" * 5_000),
        record("size", "many"),
    ],
)
def test_broken_extension_header(content: bytes) -> None:
    assert "broken" in refused(gzip.compress(extended(tarfile.XHDTYPE, content) + END))


@pytest.mark.parametrize(
    "size", [b"-0000000010\0", b"0000000_010\0", b"00000000009\0", b"\xff" * 12]
)
def test_broken_size(size: bytes) -> None:
    assert "broken" in refused(gzip.compress(changed(header("pkg/x"), 124, size) + END))


@pytest.mark.parametrize("form", [b"%06o\0 ", b"%07o\0", b" %06o\0", b"%6o\0 "])
def test_checksum(form: bytes) -> None:
    """Programs write it each in their own way."""
    assert read(changed(header("pkg/x"), 0, b"pkg/y", form) + END) == {"y": b""}


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (b"", "cut"),
        (b"PK\3\4", "not a gzip archive"),
        (b"<!doctype html>", "not a gzip archive"),
        (tar(HONEST), "not a gzip archive"),
        (gzip.compress(b"text" * 500), "not a tar archive"),
        (gzip.compress(b"0" * 2_000), "not a tar archive"),
    ],
)
def test_not_a_tar_gz(packed: bytes, says: str) -> None:
    assert says in refused(packed)


def test_cut_gzip() -> None:
    packed = gzip.compress(tar(("pkg/a", os.urandom(1_000)), HONEST))
    for end in (*range(0, len(packed), 50), len(packed) - 1):
        assert "cut" in refused(packed[:end])


def test_cut_tar() -> None:
    tape = tar(("pkg/a", os.urandom(1_000)), HONEST)
    for end in range(0, len(tape.rstrip(b"\0")), 100):
        assert "ends before its last member" in refused(gzip.compress(tape[:end]))


def test_damaged() -> None:
    """The checksum of gzip, at the very end, is looked at."""
    packed = bytearray(gzip.compress(tar(HONEST)))
    packed[-8] ^= 1
    assert "broken" in refused(bytes(packed))
