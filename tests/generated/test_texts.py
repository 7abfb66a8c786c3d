"""Texts: bytes, encodings, odd files, folders and globs."""

import gzip
import os
import random
from collections.abc import Callable
from pathlib import Path

from generated.world import TINY, VERSE, Case, check, every

GREEN = VERSE.encode()


def case(name: str, prepare: Callable[[Path], object], *overrides: str, succeeds: bool = False) -> Case:
    return Case(name, (*TINY, "data.path=text.txt", *overrides), prepare, succeeds)


def holds(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "text.txt").write_bytes(content)


ZIPPED = gzip.compress(GREEN, mtime=0)
GOOD_BYTES: dict[str, bytes] = {
    "good": GREEN, "no-end": GREEN.rstrip(), "spaces": b" \t\n" * 200, "crlf": GREEN.replace(b"\n", b"\r\n"),
    "cr": GREEN.replace(b"\n", b"\r"), "bom": b"\xef\xbb\xbf" + GREEN, "bom-crlf": b"\xef\xbb\xbfa\r\n" * 200,
    "controls": bytes(range(1, 32)) * 30, "escapes": b"\x1b[31m\x1b]0;a\x07" * 60,
    "noncharacters": "\uffff\ufffe\U0010ffff".encode() * 150, "private": "\ue000\uf8ff".encode() * 150,
    "emoji": "\U0001f468\u200d\U0001f469 ".encode() * 90, "combining": "e\u0301\u0302".encode() * 150,
    "right-to-left": "שלום \u202eabc\u202c ".encode() * 50, "separators": "\u2028\u2029\x85\x0b\x0c\x1c".encode() * 90,
    "wide": "１２３".encode() * 150, "planes": "".join(chr(n) for n in range(0x20, 0xD800, 37)).encode(),
    "many": "".join(chr(n) for n in range(0x10000, 0x14000)).encode(), "long-line": b"green " * 100_000,
    "all": "".join(chr(n) for n in range(1, 0x3000)).encode() * 2, "no-letters": b"1234567890" * 60,
    "quotes": b"'\"`\\" * 150, "markdown": b"# a\n```\n<script>alert(1)</script>\n" * 20, "html": b"<b>&amp;</b>" * 60,
    "interpolation": b"${oc.create:{_target_:os.mkdir,path:was_here}} " * 40, "yaml": b"a: &a [*a]\n" * 60,
    "percent": b"%s %(message)s %n {} {0} " * 30, "empty-lines": b"\n\n" + GREEN.replace(b"\n", b"\n\n\n"),
    "gzip": ZIPPED, "gzip-of-parts": ZIPPED * 3, "gzip-of-nothing-first": gzip.compress(b"") + ZIPPED,
    "gzip-and-zeros": ZIPPED + b"\0" * 9, "gzip-bom": gzip.compress(b"\xef\xbb\xbf" + GREEN),
}  # fmt: skip
ODD_BYTES: dict[str, bytes] = {
    "empty": b"", "one": b"a", "two": b"ab", "nine": b"abcdefghi", "same": b"a" * 500, "lines": b"\n" * 500,
    "utf-16": VERSE.encode("utf-16"), "utf-16-le": VERSE.encode("utf-16-le"), "utf-32": VERSE.encode("utf-32"),
    "utf-7": "é".encode("utf-7") * 99, "latin": "café ".encode("latin-1") * 100, "ebcdic": VERSE.encode("cp500"),
    "cp1252": "\u20ac\u201c ".encode("cp1252") * 100, "koi8": "привет ".encode("koi8-r") * 50,
    "shift-jis": "日本語 ".encode("shift-jis") * 50, "nul": GREEN + b"\0", "nul-first": b"\0" + GREEN,
    "gzip-of-nothing": gzip.compress(b""), "gzip-cut-off": ZIPPED[:-9], "gzip-of-gzip": gzip.compress(ZIPPED),
    "gzip-head": b"\x1f\x8b", "gzip-two": b"\x1f\x8b\x08", "gzip-and-more": ZIPPED + b"more",
    "gzip-of-zeros": gzip.compress(bytes(100_000_000)), "gzip-flipped": ZIPPED[:60] + b"\0" + ZIPPED[61:],
    "gzip-flags": b"\x1f\x8b\x08\xff" + b"a" * 500, "gzip-other-method": b"\x1f\x8b\x07" + b"a" * 500,
    "overlong": b"\xc0\xaf" * 200, "surrogate": b"\xed\xa0\x80" * 200, "pair": b"\xed\xa0\xbd\xed\xb8\x80" * 100,
    "continuation": b"\x80" * 500, "lead": b"\xc3" * 500, "five-bytes": b"\xf8\x88\x80\x80\x80" * 100,
    "past-unicode": b"\xf4\x90\x80\x80" * 100, "cut-at-the-end": GREEN + b"\xe2\x82", "delete": b"\x7f" * 500,
    "cut-inside": b"\xe2\x82" + GREEN, "ff": b"\xff" * 500, "fe-ff": b"\xfe\xff" * 300,
    "all-bytes": bytes(range(1, 256)) * 4, "replacement": "\ufffd".encode() * 300,
}  # fmt: skip
BYTES = GOOD_BYTES | ODD_BYTES


def contents() -> list[Case]:
    """As characters, as bytes, and as a separate text to validate or to test on."""
    found = []
    for name, content in BYTES.items():
        good, part = name in GOOD_BYTES, "val" if len(name) % 2 else "test"
        good_bytes = good or (len(content) > 100 and not name.startswith("gzip"))
        separate = ("data.path=verse.txt", f"data.{part}_path=text.txt")
        found.append(case(f"bytes-{name}", holds(content), succeeds=good))
        found.append(case(f"as-bytes-{name}", holds(content), "data.tokenizer=bytes", succeeds=good_bytes))
        found.append(case(f"{part}-{name}", holds(content), *separate, succeeds=good or name == "same"))
    return found


def drawn(count: int = 60) -> list[Case]:
    """Pieces of several texts after one another, or random bytes, of lengths around those that are just enough."""
    found = []
    for n in range(count):
        draw = random.Random(n)
        if n % 3:
            pieces = [draw.choice(list(BYTES.values()))[: draw.randrange(120)] for _ in range(draw.randrange(1, 12))]
            content = b"".join(pieces)
        else:
            alphabet = draw.choice([b"ab", b"abc \n", bytes(range(256)), bytes(range(1, 128))])
            content = bytes(draw.choices(alphabet, k=draw.choice([8, 9, 10, 80, 89, 90, 91, 99, 100, 500])))
        split = draw.choice(["[0.9,0.1]", "[0.5,0.5]", "[0.1,0.9]", "[0.99,0.01]", "[0.8,0.1,0.1]"])
        sizes = (f"data.split={split}", f"model.block_size={draw.choice([1, 2, 8, 9])}")
        found.append(case(f"drawn-{n}", holds(content), *sizes))
    return found


def a_library(folder: Path) -> None:
    """A folder with all that one may find in one, and one of texts that can all be read."""
    names = ["a.txt", "b.TXT", "c.md", ".hidden.txt", "deep/er/e.txt", "[x].txt", "é\u202e.txt", "a b,c=d'e.txt"]
    good_names = ["a.txt", "b c.txt", "deep/a=b,c.txt", "deep/er/é.txt", ".ipynb_checkpoints/a.txt"]
    books, good = folder / "books", folder / "good ones"
    for file in (*(books / name for name in names), *(good / name for name in good_names), folder / "only/a.md"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(VERSE, encoding="utf-8")
    for name in ("2024_05", "1.10"):
        (folder / name).write_text(VERSE, encoding="utf-8")
    (folder / "empty").mkdir()
    (books / "folder.txt").mkdir()
    (books / "binary.txt").write_bytes(b"\0")
    os.mkfifo(books / "fifo.txt")
    for link, target in {"dangling.txt": "nowhere", "loop.txt": "loop.txt", "deep/up": ".."}.items():
        (books / link).symlink_to(target)
    (good / "empty.txt").touch()
    (good / "windows.txt").write_bytes(b"\xef\xbb\xbf" + GREEN.replace(b"\n", b"\r\n"))
    (good / "again.txt").symlink_to(good / "a.txt")
    (good / "up").symlink_to("deep")


PATHS = [
    "books", "books/..", "empty", "only", "books/*.txt", "books/*", "books/**", "**", "books/[", "books/[!",
    "books/{a,b}.txt", "books/folder.txt", "*", "books/dangling.txt", "books/loop.txt", "books/nowhere.txt",
    "books/*.nowhere", "books/a.txt/b", "/dev/null", "/dev/zero", "/proc/self/mem", "/proc/version", "~", "1.1", "-",
    "$HOME/diary.txt", "http://127.0.0.1:9/a.txt", ".", "..", "null", "true", "[]", "[1]", "{}", "books/a.txt,only",
    "a" * 300, "a/" * 3000, "\udcff", "'a\x01b'", "'a\nb'", "' '", "''", "\u202e", "books/fifo.txt", "${run_dir}",
    "[books/a.txt,nowhere]", "$(mkdir was_here)",
]  # fmt: skip
GOOD_PATHS = [
    "good ones", "./good ones//", "good ones/*", "good ones/**/*.txt", "good ones/b c.txt", "good ones/again.txt",
    "good ones/up", "good ones/up/../deep/er", "good ones/deep/a=b,c.txt", "books/a.txt", "books/b.TXT", "2024_05",
    "books/[x].txt", "books/.hidden.txt", "books/é\u202e.txt", "only/*.md", "*.txt", "good ones/[ab]*.txt", "1.10",
    "books/deep/up/a.txt", "[good ones/a.txt,only/*.md]", "~/diary.txt", "${oc.env:HOME}/diary.txt",
]  # fmt: skip


def paths() -> list[Case]:
    found = [case(f"path-{path}", a_library, f"data.path={path}") for path in PATHS]
    found += [case(f"path-{path}", a_library, f"data.path={path}", succeeds=True) for path in GOOD_PATHS]
    for fallback in ("null", "pydocs", "file"):
        found.append(case(f"no-network-{fallback}", a_library, "data=shakespeare", f"data.fallback={fallback}"))
    return found


CASES = [*contents(), *drawn(), *paths()]


@every(CASES)
def test_a_text_is_trained_on_or_refused_in_a_line(case: Case, tmp_path):
    check(case, tmp_path)
