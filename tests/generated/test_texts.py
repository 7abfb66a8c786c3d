"""Texts: bytes, encodings, odd files, folders and globs; where texts are kept; and the cache of encoded ones."""

import gzip
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
from generated.world import NEW, TINY, Case, chance, every, leave, name_of

from chargpt.known import stamps_of

# The text as a case says it; TINY without it.
BASE = tuple(each for each in TINY if not each.startswith("data."))
VERSE = "".join(f"{n} green bottles hanging on the wall\n" for n in range(20))


def case(name: str, prepare: Callable[[Path], object], *overrides: str, **options) -> Case:
    options = {"writes": ("work/outputs",)} | options
    given = overrides or ("data=file", "data.path=text.txt")
    return Case(name, [("train.py", *BASE, "data.batch_size=2", NEW, *given)], prepare, **options)


def puts(content: bytes, name: str = "text.txt") -> Callable[[Path], object]:
    def prepare(box: Path) -> None:
        (box / "work" / name).write_bytes(content)

    return prepare


ZIPPED = gzip.compress(VERSE.encode(), mtime=0)
BYTES: dict[str, bytes] = {
    "empty": b"", "one": b"a", "two": b"ab", "nine": b"abcdefghi", "same": b"a" * 500, "lines": b"\n" * 500,
    "spaces": b" \t\n" * 200, "crlf": VERSE.replace("\n", "\r\n").encode(), "cr": VERSE.replace("\n", "\r").encode(),
    "bom": b"\xef\xbb\xbf" + VERSE.encode(), "utf-16": VERSE.encode("utf-16"), "utf-16-le": VERSE.encode("utf-16-le"),
    "utf-32": VERSE.encode("utf-32"), "utf-7": "é".encode("utf-7") * 99, "latin": "café ".encode("latin-1") * 100,
    "cp1252": "\u20ac\u201c ".encode("cp1252") * 100, "koi8": "привет ".encode("koi8-r") * 50,
    "shift-jis": "日本語 ".encode("shift-jis") * 50, "ebcdic": VERSE.encode("cp500"),
    "gzip": ZIPPED, "gzip-of-parts": ZIPPED * 3, "gzip-of-nothing": gzip.compress(b""), "gzip-cut-off": ZIPPED[:-9],
    "gzip-of-gzip": gzip.compress(ZIPPED), "gzip-of-nothing-first": gzip.compress(b"") + ZIPPED,
    "gzip-head": b"\x1f\x8b", "gzip-two": b"\x1f\x8b\x08", "gzip-and-more": ZIPPED + b"more",
    "gzip-and-zeros": ZIPPED + b"\0" * 9, "gzip-of-zeros": gzip.compress(bytes(100_000_000)),
    "gzip-bom": gzip.compress(b"\xef\xbb\xbf" + VERSE.encode()), "gzip-flipped": ZIPPED[:60] + b"\0" + ZIPPED[61:],
    "gzip-flags": b"\x1f\x8b\x08\xff" + b"a" * 500, "gzip-other-method": b"\x1f\x8b\x07" + b"a" * 500,
    "nul": VERSE.encode() + b"\0", "nul-first": b"\0" + VERSE.encode(),
    "overlong": b"\xc0\xaf" * 200, "surrogate": b"\xed\xa0\x80" * 200, "pair": b"\xed\xa0\xbd\xed\xb8\x80" * 100,
    "continuation": b"\x80" * 500, "lead": b"\xc3" * 500, "five-bytes": b"\xf8\x88\x80\x80\x80" * 100,
    "past-unicode": b"\xf4\x90\x80\x80" * 100, "cut-at-the-end": VERSE.encode() + b"\xe2\x82",
    "cut-inside": b"\xe2\x82" + VERSE.encode(), "ff": b"\xff" * 500, "fe-ff": b"\xfe\xff" * 300,
    "all-bytes": bytes(range(1, 256)) * 4, "controls": bytes(range(1, 32)) * 30, "delete": b"\x7f" * 500,
    "escapes": b"\x1b[31m\x1b]0;a\x07" * 60, "noncharacters": "\uffff\ufffe\U0010ffff".encode() * 150,
    "private": "\ue000\uf8ff".encode() * 150, "emoji": "\U0001f468\u200d\U0001f469 ".encode() * 90,
    "combining": "e\u0301\u0302".encode() * 150, "right-to-left": "שלום \u202eabc\u202c ".encode() * 50,
    "separators": "\u2028\u2029\x85\x0b\x0c\x1c".encode() * 90, "wide": "１２３".encode() * 150,
    "planes": "".join(chr(n) for n in range(0x20, 0xD800, 37)).encode(),
    "many": "".join(chr(n) for n in range(0x10000, 0x14000)).encode(),
    "all": "".join(chr(n) for n in range(1, 0x3000)).encode() * 2, "long-line": b"green " * 100_000,
    "no-letters": b"1234567890" * 60, "quotes": b"'\"`\\" * 150,
    "markdown": b"# a\n```\n<script>alert(1)</script>\n" * 20, "interpolation": b"${oc.env:MY_SECRET} " * 40,
    "percent": b"%s %(message)s %n {} {0} " * 30, "yaml": b"a: &a [*a]\n" * 60, "html": b"<b>&amp;</b>" * 60,
    "replacement": "\ufffd".encode() * 300, "empty-lines": b"\n\n" + VERSE.replace("\n", "\n\n\n").encode(),
    "good": VERSE.encode(), "no-end": VERSE.rstrip("\n").encode(), "bom-crlf": b"\xef\xbb\xbfa\r\n" * 200,
}  # fmt: skip
GOOD_BYTES = (
    "spaces", "crlf", "cr", "bom", "controls", "escapes", "noncharacters", "private", "emoji", "combining",
    "right-to-left", "separators", "wide", "planes", "many", "all", "long-line", "no-letters", "quotes", "markdown",
    "interpolation", "percent", "yaml", "html", "empty-lines", "good", "no-end", "bom-crlf", "gzip", "gzip-of-parts",
    "gzip-of-nothing-first", "gzip-and-zeros", "gzip-bom",
)  # fmt: skip


def contents() -> list[Case]:
    return [case(f"bytes-{name}", puts(content), succeeds=name in GOOD_BYTES) for name, content in BYTES.items()]


def parts() -> list[Case]:
    """As bytes, and as texts of their own to validate and to test on."""
    found = []
    for name, content in BYTES.items():
        good = len(content) > 100 and not name.startswith("gzip")
        said = ("data=file", "data.path=text.txt", "data.tokenizer=bytes")
        found.append(case(f"as-bytes-{name}", puts(content), *said, succeeds=good or name in GOOD_BYTES))
        own = ("data=file", "data.path=verse.txt", f"data.{'val' if len(name) % 2 else 'test'}_path=text.txt")
        found.append(case(f"own-{name}", puts(content), *own, succeeds=name in (*GOOD_BYTES, "same")))
    for n, path in enumerate(PATHS):
        own = f"data.{'val' if n % 2 else 'test'}_path={path}"
        found.append(case(name_of(f"own-{own}"), a_library, "data=file", "data.path=verse.txt", own))
    return found


def drawn(count: int = 60) -> list[Case]:
    """Pieces of several texts after one another, or random bytes, of lengths around those that are just enough."""
    found = []
    for n in range(count):
        draw = chance("text", n)
        if n % 3:
            content = b"".join(
                draw.choice(list(BYTES.values()))[: draw.randrange(120)] for _ in range(draw.randrange(1, 12))
            )
        else:
            alphabet = draw.choice([b"ab", b"abc \n", bytes(range(256)), bytes(range(1, 128))])
            content = bytes(draw.choices(alphabet, k=draw.choice([8, 9, 10, 80, 89, 90, 91, 99, 100, 500])))
        sizes = [
            f"data.split={draw.choice([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.99, 0.01], [0.8, 0.1, 0.1]])}",
            f"model.block_size={draw.choice([1, 2, 8, 9])}",
        ]
        found.append(case(f"drawn-{n}", puts(content), "data=file", "data.path=text.txt", *sizes))
    return found


# Odd files, folders and globs


def a_library(box: Path) -> None:
    """A folder with all that one may find in one."""
    books = box / "work/books"
    (books / "deep/er").mkdir(parents=True)
    for name in (
        "a.txt",
        "b.TXT",
        "c.md",
        ".hidden.txt",
        "deep/d.txt",
        "deep/er/e.txt",
        "[x].txt",
        "*.txt",
        "é\u202e.txt",
        "a b,c=d'e.txt",
    ):
        (books / name).write_text(VERSE, encoding="utf-8")
    (books / "folder.txt").mkdir()
    os.symlink("nowhere", books / "dangling.txt")
    os.symlink("loop.txt", books / "loop.txt")
    os.symlink("..", books / "deep/up")
    os.mkfifo(books / "fifo.txt")
    (box / "work/empty").mkdir()
    (box / "work/only").mkdir()
    (box / "work/only/a.md").write_text(VERSE, encoding="utf-8")
    good = box / "work/good ones"
    (good / "deep/er").mkdir(parents=True)
    for name in ("a.txt", "b c.txt", "deep/a=b,c.txt", "deep/er/é.txt"):
        (good / name).write_text(VERSE, encoding="utf-8")
    (good / "empty.txt").touch()
    (good / "windows.txt").write_bytes(b"\xef\xbb\xbf" + VERSE.replace("\n", "\r\n").encode())
    for name in ("again.txt", "and-again.txt", "deep/too.txt"):
        (good / name).symlink_to(good / "a.txt")
    os.link(good / "a.txt", good / "hard.txt")
    (good / "up").symlink_to("deep")


PATHS = [
    "books", "books/", "./books", "books/..", "empty", "only", "books/a.txt", "books/b.TXT", "books/*.txt", "books/*",
    "books/**", "books/**/*.txt", "**", "**/*.txt", "books/[x].txt", "books/[[]x].txt", "books/?.txt", "books/[",
    "books/[!", "books/{a,b}.txt", "books/folder.txt", "*", "books/dangling.txt", "books/loop.txt", "books/deep/up",
    "books/.hidden.txt", "books/nowhere.txt", "books/*.nowhere", "nowhere/*.txt", "books/a.txt/b", "/dev/null",
    "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/self/maps", "/proc/version", "/sys/kernel", "~", "~/diary.txt",
    "$HOME/diary.txt", "http://127.0.0.1:9/a.txt", "file:///etc/hostname", "-", ".", "..", "null", "1", "true", "[]",
    "{}", "books/a.txt,only", "[books/a.txt,only/a.md]", "a" * 300, "a/" * 3000, "\udcff", "'a\x01b'", "'a\nb'", "' '",
    "''", "\u202e", "books/fifo.txt", "/dev/stdin", "'books/a b,c=d\\'e.txt'", "books/*/*/*/*/*", "work/*",
    "../home/diary.txt", "outputs", "outputs/run/checkpoints/last.ckpt", "${run_dir}",
]  # fmt: skip


GOOD_PATHS = [
    "good ones", "good ones/", "./good ones//", "good ones/*", "good ones/*.txt", "good ones/**/*.txt",
    "good ones/b c.txt", "good ones/again.txt", "good ones/up", "good ones/up/../deep/er", "good ones/deep/a=b,c.txt",
    "BOX/work/good ones", "books/a.txt", "books/b.TXT", "books/.hidden.txt", "books/é\u202e.txt", "only/*.md", "*.txt",
    "good ones/[ab]*.txt", "good ones/deep/er/é.txt", "good ones/**/too.txt",
]  # fmt: skip


def files() -> list[Case]:
    found = [
        case(name_of(f"path-{path}"), a_library, "data=file", f"data.path={path}", stdin=VERSE.encode())
        for path in PATHS
        if path not in GOOD_PATHS
    ]
    for path in GOOD_PATHS:
        said = path.replace("BOX", "${oc.env:HOME}/..")
        found.append(case(name_of(f"good-path-{path}"), a_library, "data=file", f"data.path='{said}'", succeeds=True))
    return found


def a_socket(box: Path) -> None:
    here = os.getcwd()
    os.chdir(box / "work")  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as each:
            each.bind("text.txt")
    finally:
        os.chdir(here)


def a_name_of_bytes(box: Path) -> None:
    (box / "work/text.txt").mkdir()
    shutil.copy(box / "work/verse.txt", os.fsencode(box / "work/text.txt") + b"/\xff.txt")


def many_files(box: Path) -> None:
    (box / "work/text.txt").mkdir()
    for n in range(2000):
        (box / f"work/text.txt/{n}.txt").write_text("green ", encoding="utf-8")


def a_sparse_file(box: Path) -> None:
    (box / "work/text.txt").write_text(VERSE, encoding="utf-8")
    os.truncate(box / "work/text.txt", 20 << 20)


PLACES: dict[str, Callable[[Path], object]] = {
    "socket": a_socket,
    "fifo": lambda box: os.mkfifo(box / "work/text.txt"),
    "folder": lambda box: (box / "work/text.txt").mkdir(),
    "link": lambda box: (box / "work/text.txt").symlink_to("verse.txt"),
    "link-to-the-home": lambda box: (box / "work/text.txt").symlink_to(box / "home"),
    "link-to-itself": lambda box: (box / "work/text.txt").symlink_to("text.txt"),
    "hard-link": lambda box: os.link(box / "home/diary.txt", box / "work/text.txt"),
    "name-of-bytes": a_name_of_bytes,
    "many": many_files,
    "deep": lambda box: (box / "work/text.txt" / "/".join(["a"] * 300)).mkdir(parents=True),
    "sparse": a_sparse_file,
}


# Where texts come from, and where they are kept

SHAKESPEARE = "data=shakespeare"
KEPT: dict[str, Callable[[Path], object]] = {
    "nothing": leave,
    "empty": lambda box: (box / "data/tinyshakespeare.txt").touch(),
    "other": lambda box: (box / "data/tinyshakespeare.txt").write_text(VERSE),
    "folder": lambda box: (box / "data/tinyshakespeare.txt").mkdir(),
    "fifo": lambda box: os.mkfifo(box / "data/tinyshakespeare.txt"),
    "link": lambda box: (box / "data/tinyshakespeare.txt").symlink_to(box / "home/diary.txt"),
    "link-to-nothing": lambda box: (box / "data/tinyshakespeare.txt").symlink_to(box / "home/made"),
    "link-to-itself": lambda box: (box / "data/tinyshakespeare.txt").symlink_to("tinyshakespeare.txt"),
    "zeros": lambda box: (box / "data/tinyshakespeare.txt").symlink_to("/dev/zero"),
    "lock-is-a-folder": lambda box: (box / "data/.lock").mkdir(),
    "lock-is-a-pipe": lambda box: os.mkfifo(box / "data/.lock"),
    "lock-is-a-link": lambda box: (box / "data/.lock").symlink_to(box / "home/diary.txt"),
}
FOLDERS = [
    "", " ", ".", "nowhere", "BOX/nowhere/at/all", "BOX/work/verse.txt", "/dev/null", "/proc/a", "~", "\udcff", "a\nb",
    "$HOME", "a" * 300, "BOX/a::b", "file://BOX/a",
]  # fmt: skip


def sources() -> list[Case]:
    found = []
    for name, make in KEPT.items():

        def prepare(box: Path, make: Callable[[Path], object] = make) -> None:
            (box / "data").mkdir()
            make(box)

        for more in ("data.fallback=null", "data.fallback=pydocs"):
            options = {"environment": {"CHARGPT_DATA_DIR": "BOX/data"}, "writes": ("work/outputs", "data/.lock")}
            found.append(case(f"data-folder-{name}-{more}", prepare, SHAKESPEARE, more, seconds=15.0, **options))
    for folder in FOLDERS:
        shown = name_of(folder)
        options = {"writes": ("work", "nowhere", "a::b"), "environment": {"CHARGPT_DATA_DIR": folder}}
        found.append(case(f"data-folder-{shown}", leave, SHAKESPEARE, "data.fallback=null", **options))
        if folder not in ("", "~"):  # with these the cache would be another's
            # One that is not absolute does not count, as the standard says.
            options = {"writes": ("work", "nowhere", "a::b", "home/.cache"), "environment": {"XDG_CACHE_HOME": folder}}
            found.append(case(f"cache-folder-{shown}", puts(VERSE.encode()), **options))
    for name in ("pydocs", "shakespeare"):
        for more in ("data.path=text.txt", "data.path=''", "data.fallback=file", "data.fallback=shakespeare"):
            found.append(case(f"source-{name}-{name_of(more)}", puts(VERSE.encode()), f"data={name}", more))
    for environment in (
        {"http_proxy": "abc", "https_proxy": "abc"},
        {"https_proxy": "\udcff"},
        {"https_proxy": "http://a:b@[::1"},
    ):
        found.append(case(name_of(f"network-{environment}"), leave, SHAKESPEARE, environment=environment))
    return found


# The cache of encoded texts


def cached(harm: Callable[[Path, Path], object], which: str) -> Callable[[Path], object]:
    """A cache as a run leaves it, of which something is changed."""

    def prepare(box: Path) -> None:
        (box / "work/text.txt").write_text(VERSE, encoding="utf-8")
        folder, sha = box / "cache/chargpt/encoded", hashlib.sha256(VERSE.encode()).hexdigest()
        shutil.rmtree(box / "cache")
        folder.mkdir(parents=True)
        characters = "".join(sorted(set(VERSE)))
        ids = np.array([characters.index(each) for each in VERSE], np.uint8).tobytes()
        (folder / f"{sha}.uint8").write_bytes(ids)
        about = {
            "text_sha256": sha,
            "characters": characters,
        }
        (folder / f"{sha}.json").write_text(json.dumps(about), encoding="utf-8")
        harm({"folder": folder, "above": folder.parent}.get(which, folder / f"{sha}.{which}"), box)

    return prepare


def _instead(make: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    def harm(place: Path, box: Path) -> None:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        make(place, box)

    return harm


def _lock(harm: Callable[[Path, Path], object]) -> Callable[[Path, Path], object]:
    """The same, at the place of the lock."""

    def harm_lock(folder: Path, box: Path) -> None:
        (folder / ".lock").touch()
        next(folder.glob("*.uint8")).unlink()  # so that there is something to write
        harm(folder / ".lock", box)

    return harm_lock


HARMS: dict[str, Callable[[Path, Path], object]] = {
    "none": lambda place, box: None,
    "missing": _instead(lambda place, box: None),
    "empty": _instead(lambda place, box: place.touch()),
    "folder": _instead(lambda place, box: place.mkdir()),
    "fifo": _instead(lambda place, box: os.mkfifo(place)),
    "link": _instead(lambda place, box: place.symlink_to(box / "home/diary.txt")),
    "link-to-nothing": _instead(lambda place, box: place.symlink_to(box / "home/made")),
    "link-to-itself": _instead(lambda place, box: place.symlink_to(place.name)),
    "link-to-zeros": _instead(lambda place, box: place.symlink_to("/dev/zero")),
    "hard-link": _instead(lambda place, box: os.link(box / "home/diary.txt", place)),
}
FILE_HARMS: dict[str, Callable[[Path, Path], object]] = {
    "half": lambda place, box: os.truncate(place, place.stat().st_size // 2),
    "longer": lambda place, box: place.write_bytes(place.read_bytes() + b"\0"),
    "flipped": lambda place, box: place.write_bytes(bytes([place.read_bytes()[0] ^ 1]) + place.read_bytes()[1:]),
    "nonsense": lambda place, box: place.write_bytes(b"\xff" * place.stat().st_size),
    "deep": lambda place, box: place.write_bytes(b"[" * 100_000),
    "list": lambda place, box: place.write_bytes(b"[]"),
    "number": lambda place, box: place.write_bytes(b"1" * 10_000),
}


def caches() -> list[Case]:
    found = []
    for name in ("folder", "fifo", "link", "link-to-nothing"):
        found.append(case(f"cache-lock-{name}", cached(_lock(HARMS[name]), "folder"), seconds=15.0))
    for which in ("uint8", "json", "folder", "above"):
        for name, harm in (HARMS | (FILE_HARMS if which in ("uint8", "json") else {})).items():
            if not (name == "hard-link" and which in ("folder", "above")):
                spoilt = which in ("uint8", "json") and name in {"none", "missing", "empty", *FILE_HARMS}
                found.append(case(f"cache-{which}-{name}", cached(harm, which), seconds=15.0, succeeds=spoilt))
    return found


# What is remembered of texts

ANSWERS: dict[str, object] = {
    "none": None, "number": 5, "empty": "", "path": "../../../home/diary", "pipe": "/dev/zero", "other": "0" * 64,
    "upper": "A" * 64, "deep": [[[[]]]], "long": "0" * 10_000_000, "end": "0" * 64 + "\n",
}  # fmt: skip


def remembered() -> list[Case]:
    """A record of the text with a wrong answer, or something else in its place."""
    found = []

    def add(name: str, harm: Callable[[Path, Path], object]) -> None:
        def prepare(box: Path) -> None:
            text = box / "work/text.txt"
            text.write_text(VERSE, encoding="utf-8")
            key = hashlib.sha256(os.fsencode("\0".join(["characters", os.path.realpath(text)]))).hexdigest()
            (box / "cache/chargpt/known").mkdir(parents=True, exist_ok=True)
            record = box / f"cache/chargpt/known/{key}.json"
            record.write_text(json.dumps({"files": stamps_of([text]).files, "answer": "0" * 64}), encoding="utf-8")
            harm(record, box)

        found.append(case(f"known-{name}", prepare, succeeds=True))

    for name, answer in ANSWERS.items():
        add(
            f"answer-{name}",
            lambda record, box, answer=answer: record.write_text(
                json.dumps(json.loads(record.read_text()) | {"answer": answer})
            ),
        )
    for name, harm in (HARMS | FILE_HARMS).items():
        if name != "folder":  # it cannot be written anew
            add(name, harm)
    return found


CASES = [
    *contents(),
    *parts(),
    *remembered(),
    *drawn(),
    *files(),
    *(case(f"file-{name}", make, succeeds=name in ("link", "name-of-bytes", "many")) for name, make in PLACES.items()),
    *sources(),
    *caches(),
]


@every(CASES)
def test_a_text_is_trained_on_or_refused_in_a_line(case, world):
    world.check(case)
