"""Texts: bytes, encodings, folders and globs; each is trained on or refused in a line."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

from generated.world import TINY, VERSE, Case, check, every

GREEN = VERSE.encode()
ZIPPED = gzip.compress(GREEN, mtime=0)
GOOD: dict[str, bytes] = {
    "good": GREEN, "spaces": b" \t\n" * 200, "crlf": GREEN.replace(b"\n", b"\r\n"), "bom": b"\xef\xbb\xbf" + GREEN,
    "controls": bytes(range(1, 32)) * 30, "escapes": b"\x1b[31m\x1b]0;a\x07" * 60,
    "noncharacters": "\uffff\ufffe\U0010ffff".encode() * 150, "combining": "e\u0301\u0302".encode() * 150,
    "right-to-left": "שלום \u202eabc\u202c ".encode() * 50, "separators": "\u2028\u2029\x85\x0b\x0c\x1c".encode() * 90,
    "many": "".join(chr(n) for n in range(0x10000, 0x14000)).encode(), "long-line": b"green " * 100_000,
    "markdown": b"# a\n```\n<script>alert(1)</script>\n" * 20, "percent": b"%s %(message)s %n {} {0} " * 30,
    "interpolation": b"${oc.create:{_target_:os.mkdir,path:was_here}} " * 40, "gzip": ZIPPED,
    "gzip-of-parts": ZIPPED * 3, "gzip-and-zeros": ZIPPED + b"\0" * 9,
    "gzip-bom": gzip.compress(b"\xef\xbb\xbf" + GREEN),
}  # fmt: skip
ODD: dict[str, bytes] = {
    "empty": b"", "one": b"a", "nine": b"abcdefghi", "same": b"a" * 500, "utf-16": VERSE.encode("utf-16"),
    "utf-16-le": VERSE.encode("utf-16-le"), "utf-32": VERSE.encode("utf-32"), "ebcdic": VERSE.encode("cp500"),
    "latin": "café ".encode("latin-1") * 100, "koi8": "привет ".encode("koi8-r") * 50, "nul": GREEN + b"\0",
    "gzip-of-nothing": gzip.compress(b""), "gzip-cut-off": ZIPPED[:-9], "gzip-of-gzip": gzip.compress(ZIPPED),
    "gzip-head": b"\x1f\x8b", "gzip-and-more": ZIPPED + b"more", "gzip-of-zeros": gzip.compress(bytes(100_000_000)),
    "gzip-flipped": ZIPPED[:60] + b"\0" + ZIPPED[61:], "gzip-flags": b"\x1f\x8b\x08\xff" + b"a" * 500,
    "overlong": b"\xc0\xaf" * 200, "surrogate": b"\xed\xa0\x80" * 200, "past-unicode": b"\xf4\x90\x80\x80" * 100,
    "cut-at-the-end": GREEN + b"\xe2\x82", "ff": b"\xff" * 500, "all-bytes": bytes(range(1, 256)) * 4,
}  # fmt: skip
PATHS = [
    "books", "books/..", "empty", "only", "books/*", "**", "books/[", "books/{a,b}.txt", "books/folder.txt", "*",
    "books/dangling.txt", "books/loop.txt", "books/nowhere.txt", "books/a.txt/b", "/dev/null", "/proc/self/mem", "~",
    "1.1", "-", "$HOME/diary.txt", "http://127.0.0.1:9/a.txt", ".", "null", "true", "[]", "[1]", "{}", "' '", "''",
    "books/a.txt,only", "a" * 300, "a/" * 3000, "\udcff", "'a\x01b'", "'a\nb'", "\u202e", "books/fifo.txt",
    "${run_dir}", "[books/a.txt,nowhere]", "$(mkdir was_here)",
]  # fmt: skip
GOOD_PATHS = [
    "good ones", "./good ones//", "good ones/*", "good ones/**/*.txt", "good ones/up/../deep/er", "only/*.md",
    "good ones/deep/a=b,c.txt", "books/b.TXT", "2024_05", "1.10", "books/[x].txt", "books/.hidden.txt",
    "books/é\u202e.txt", "[good ones/a.txt,only/*.md]", "~/diary.txt", "${oc.env:HOME}/diary.txt",
]  # fmt: skip


def a_library(folder: Path) -> None:
    """Two folders: one with everything that may lie in one, and one of texts that can all be read."""
    books = ["a.txt", "b.TXT", ".hidden.txt", "deep/er/e.txt", "[x].txt", "é\u202e.txt"]
    good = ["a.txt", "deep/a=b,c.txt", "deep/er/é.txt", ".ipynb_checkpoints/a.txt"]
    names = [*(f"books/{name}" for name in books), *(f"good ones/{name}" for name in good)]
    for file in (folder / name for name in (*names, "only/a.md", "2024_05", "1.10")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(VERSE, encoding="utf-8")
    (folder / "empty").mkdir()
    (folder / "books/folder.txt").mkdir()
    (folder / "books/binary.txt").write_bytes(b"\0")
    os.mkfifo(folder / "books/fifo.txt")
    for link, target in {"dangling.txt": "nowhere", "loop.txt": "loop.txt", "deep/up": ".."}.items():
        (folder / "books" / link).symlink_to(target)
    (folder / "good ones/empty.txt").touch()
    (folder / "good ones/up").symlink_to("deep")


def case(name: str, prepare: Callable[[Path], object], *overrides: str, succeeds: bool = False) -> Case:
    return Case(name, (*TINY, *overrides), prepare, succeeds)


def contents() -> list[Case]:
    found = []
    for name, content in (GOOD | ODD).items():

        def prepare(folder: Path, content: bytes = content) -> None:
            (folder / "text.txt").write_bytes(content)

        found.append(case(name, prepare, "data.path=text.txt", succeeds=name in GOOD))
        found.append(case(f"{name} as bytes", prepare, "data.path=text.txt", "data.tokenizer=bytes"))
        found.append(case(f"{name} to validate on", prepare, "data.val_path=text.txt", succeeds=name in GOOD))
    return found


def paths() -> list[Case]:
    found = [case(path, a_library, f"data.path={path}", succeeds=path in GOOD_PATHS) for path in PATHS + GOOD_PATHS]
    for fallback in ("null", "pydocs", "file"):
        found.append(case(f"no network, {fallback}", a_library, "data=shakespeare", f"data.fallback={fallback}"))
    return found


@every([*contents(), *paths()])
def test_a_text_is_trained_on_or_refused_in_a_line(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
