"""Texts: bytes, encodings, odd files, folders and globs."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

from generated.world import NEW, TINY, Case, chance, every, leave, name_of

BASE = tuple(each for each in TINY if not each.startswith("data."))  # without a text
VERSE = "".join(f"{n} green bottles hanging on the wall\n" for n in range(20))


def case(name: str, prepare: Callable[[Path], object], *overrides: str, **options) -> Case:
    options = {"writes": ("work/outputs",)} | options
    given = overrides or ("data=file", "data.path=text.txt")
    return Case(name, [("train.py", *BASE, "data.batch_size=2", NEW, *given)], prepare, **options)


def puts(content: bytes) -> Callable[[Path], object]:
    def prepare(box: Path) -> None:
        (box / "work" / "text.txt").write_bytes(content)

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
    """As characters, as bytes, and as a text of their own to validate or to test on."""
    found = []
    for name, content in BYTES.items():
        good = name in GOOD_BYTES
        found.append(case(f"bytes-{name}", puts(content), succeeds=good))
        good_bytes = good or (len(content) > 100 and not name.startswith("gzip"))
        as_bytes = ("data=file", "data.path=text.txt", "data.tokenizer=bytes")
        found.append(case(f"as-bytes-{name}", puts(content), *as_bytes, succeeds=good_bytes))
        own = ("data=file", "data.path=verse.txt", f"data.{'val' if len(name) % 2 else 'test'}_path=text.txt")
        found.append(case(f"own-{name}", puts(content), *own, succeeds=good or name == "same"))
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
    """A folder with all that one may find in one, and one of texts that can all be read."""
    names = {
        "books": ["a.txt", "b.TXT", "c.md", ".hidden.txt", "deep/er/e.txt", "[x].txt", "é\u202e.txt", "a b,c=d'e.txt"],
        "good ones": ["a.txt", "b c.txt", "deep/a=b,c.txt", "deep/er/é.txt", ".ipynb_checkpoints/a.txt"],
        "only": ["a.md"],
    }
    for folder, files in names.items():
        for name in files:
            file = box / "work" / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(VERSE, encoding="utf-8")
    books, good = box / "work/books", box / "work/good ones"
    (box / "work/empty").mkdir()
    (books / "folder.txt").mkdir()
    (books / "binary.txt").write_bytes(b"\0")
    os.mkfifo(books / "fifo.txt")
    for link, target in {"dangling.txt": "nowhere", "loop.txt": "loop.txt", "deep/up": ".."}.items():
        (books / link).symlink_to(target)
    (good / "empty.txt").touch()
    (good / "windows.txt").write_bytes(b"\xef\xbb\xbf" + VERSE.replace("\n", "\r\n").encode())
    (good / "again.txt").symlink_to(good / "a.txt")
    (good / "up").symlink_to("deep")


PATHS = [
    "books", "books/..", "empty", "only", "books/*.txt", "books/*", "books/**", "**", "books/[", "books/[!",
    "books/{a,b}.txt", "books/folder.txt", "*", "books/dangling.txt", "books/loop.txt", "books/nowhere.txt",
    "books/*.nowhere", "books/a.txt/b", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/version", "~",
    "$HOME/diary.txt", "http://127.0.0.1:9/a.txt", "-", ".", "..", "null", "1", "1.10", "true", "[]", "[1]", "{}",
    "books/a.txt,only", "a" * 300, "a/" * 3000, "\udcff", "'a\x01b'", "'a\nb'", "' '", "''", "\u202e",
    "books/fifo.txt", "outputs", "outputs/run/checkpoints/last.ckpt", "${run_dir}", "[books/a.txt,nowhere]",
]  # fmt: skip
GOOD_PATHS = [
    "good ones", "./good ones//", "good ones/*", "good ones/**/*.txt", "good ones/b c.txt", "good ones/again.txt",
    "good ones/up", "good ones/up/../deep/er", "good ones/deep/a=b,c.txt", "BOX/work/good ones", "books/a.txt",
    "books/b.TXT", "books/[x].txt", "books/.hidden.txt", "books/é\u202e.txt", "only/*.md", "*.txt",
    "good ones/[ab]*.txt", "books/deep/up/a.txt",
]  # fmt: skip


def paths() -> list[Case]:
    found = [case(name_of(f"path-{path}"), a_library, "data=file", f"data.path={path}") for path in PATHS]
    for path in GOOD_PATHS:
        given = path.replace("BOX", "${oc.env:HOME}/..")
        found.append(case(name_of(f"good-path-{path}"), a_library, "data=file", f"data.path='{given}'", succeeds=True))
    several = "data.path=[good ones/a.txt,only/*.md]"
    found.append(case("several", a_library, "data=file", several, succeeds=True))
    for folder in (".", "nowhere", "BOX/work/verse.txt", "/dev/null", "/proc/a", "\udcff"):
        cache = {"environment": {"XDG_CACHE_HOME": folder}, "writes": ("work", "home/.cache")}
        found.append(case(name_of(f"cache-{folder}"), puts(VERSE.encode()), **cache))
    for fallback in ("null", "pydocs", "file"):
        found.append(case(f"no-network-{fallback}", leave, "data=shakespeare", f"data.fallback={fallback}"))
    return found


CASES = [*contents(), *drawn(), *paths()]


@every(CASES)
def test_a_text_is_trained_on_or_refused_in_a_line(case, world):
    world.check(case)
