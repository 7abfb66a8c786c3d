import hashlib
import http.server
import logging
import os
import socket
import threading
from pathlib import Path

import pooch
import pytest

from chargpt import sources as room
from chargpt.corpus import encode_text
from chargpt.errors import UserError
from chargpt.sources import SOURCES, find_text


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CHARGPT_DATA_DIR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    """A machine without network: each connection is refused at once, through a proxy on a closed port."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_names_are_those_of_the_functions():
    assert all(function.__name__ == name for name, function in SOURCES.items())
    assert SOURCES["file"] is room.file


def test_file_folder_and_glob(tmp_path):
    """A folder's texts at any depth, in order of name; what a glob names, of any kind but folders."""
    (tmp_path / "sub.txt").mkdir()
    for name in ("b.txt", "a.txt", "sub.txt/c.txt", "notes.md", "sub.txt/more.md"):
        (tmp_path / name).write_text(name)

    def found(path):
        text = find_text("file", str(tmp_path / path))
        assert text.name == str(tmp_path / path)
        return [str(file.relative_to(tmp_path)) for file in text.files]

    assert found("b.txt") == ["b.txt"]
    assert found("notes.md") == ["notes.md"]
    assert found("") == ["a.txt", "b.txt", "sub.txt/c.txt"]
    assert found("*.md") == ["notes.md"]
    assert found("**/*.md") == ["notes.md", "sub.txt/more.md"]
    assert found("*.txt") == ["a.txt", "b.txt"]


def names(path):
    return [file.name for file in find_text("file", str(path)).files]


def contents(path):
    return [file.read_text() for file in find_text("file", str(path)).files]


@pytest.mark.parametrize("pattern", ["", "*.txt", "**/*.txt", "**", "[ab]*"])
def test_a_file_of_several_names_counts_once(pattern, tmp_path):
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "a.txt").hardlink_to(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("b.txt")
    assert names(tmp_path / pattern) == ["a.txt"]


def test_a_folder_of_several_names_counts_once(tmp_path):
    """Its own name comes first, and a loop of links ends; what only a link leads to counts, too."""
    data, away = tmp_path / "data", tmp_path / "away"
    (data / "sub").mkdir(parents=True)
    away.mkdir()
    (data / "sub" / "b.txt").write_text("b")
    (away / "d.txt").write_text("d")
    for link, target in {"a_link": "sub", "loop": ".", "sub/up": "..", "c_link": away, "itself": "itself"}.items():
        (data / link).symlink_to(target)
    for path in (data, data / "**" / "*.txt"):
        files = find_text("file", str(path)).files
        assert [str(file.relative_to(data)) for file in files] == ["c_link/d.txt", "sub/b.txt"]
    assert contents(data / "*" / "*.txt") == ["b", "d"]


def test_what_a_glob_takes(tmp_path):
    """Hidden names only where they are asked for, and every sign that a shell knows."""
    for name in (".hidden/a.txt", "x/.b.txt", "x/c.txt", "x/y/z/d.txt", "x/[e].txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    assert contents(tmp_path) == [".hidden/a.txt", "x/.b.txt", "x/[e].txt", "x/c.txt", "x/y/z/d.txt"]
    assert contents(tmp_path / "**/*.txt") == ["x/[e].txt", "x/c.txt", "x/y/z/d.txt"]
    assert contents(tmp_path / "x/**") == ["x/[e].txt", "x/c.txt", "x/y/z/d.txt"]
    assert contents(tmp_path / "**/.*.txt") == ["x/.b.txt"]
    assert contents(tmp_path / ".*/?.txt") == [".hidden/a.txt"]
    assert contents(tmp_path / "x/[c-e].txt") == ["x/c.txt"]
    assert contents(tmp_path / "x/[[]e].txt") == contents(tmp_path / "x/[e].txt") == ["x/[e].txt"]
    assert contents(tmp_path / "*/y/../*.txt") == ["x/[e].txt", "x/c.txt"]


def test_names_from_home_and_above(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path / "sub")
    for path in ("~/a.txt", "~", "~/*.txt", "../a.txt", "..", "../*.txt"):
        assert names(path) == ["a.txt"]


def test_folders_deeper_than_pythons_stack(tmp_path):
    folders = [tmp_path]
    while len(folders) < 1050:
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    (folders[-1] / "a.txt").write_text("deep down")
    try:
        assert contents(tmp_path) == ["deep down"]
    finally:  # pytest's own way to remove them is not for so many
        (folders[-1] / "a.txt").unlink()
        for folder in folders[:0:-1]:
            folder.rmdir()


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"a\nb.txt", b"a\x1b[31m.txt", b"\xf0\x9f\x99\x82 '\".txt"])
def test_any_name_of_a_file(name, tmp_path):
    """It is read; in a message it stands in one line of characters that can be printed."""
    file = os.path.join(os.fsencode(tmp_path), name)
    with open(file, "w") as out:
        out.write("text")
    assert contents(tmp_path) == contents(tmp_path / "*.txt") == ["text"]
    with open(file, "wb") as out:
        out.write(b"\0")
    with pytest.raises(UserError, match="is binary") as error:
        encode_text(find_text("file", str(tmp_path)))
    assert str(error.value).isprintable()


def pipe(path):
    os.mkfifo(path)


def listener(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # the name of a socket is short


def device(path):
    path.symlink_to("/dev/zero")


def process(path):
    path.symlink_to("/proc/self/status")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
@pytest.mark.parametrize("way", ["", "a.txt", "*.txt", "shakespeare"])
@pytest.mark.parametrize("make", [pipe, listener, device, process])
def test_what_is_no_file_on_disk_is_not_opened(make, way, tmp_path, monkeypatch):
    """One line says what to do instead, where it is named, lies in a folder or matches a glob."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHARGPT_DATA_DIR", str(tmp_path))
    make(tmp_path / ("tinyshakespeare.txt" if way == "shakespeare" else "a.txt"))
    with pytest.raises(UserError, match=r"\.txt is .*, not a file on disk, .*: save it first \(cat ") as error:
        find_text(*((way,) if way == "shakespeare" else ("file", str(tmp_path / way))))
    assert str(error.value).isprintable()


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="needs Unix")
@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/dev/zero"])
def test_what_comes_by_a_device(path):
    """Also where it is a file just now: the run could not go on with it."""
    with pytest.raises(UserError, match="not a file on disk"):
        find_text("file", path)


def refused(harm):
    """As the disk refuses it to anyone but root, who runs tests, too."""

    def refuse(path, *arguments, **options):
        if isinstance(path, str | Path) and Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return harm(path, *arguments, **options)

    return refuse


@pytest.mark.parametrize("call", ["scandir", "stat"])
@pytest.mark.parametrize("pattern", ["", "**/*.txt", "*/*.txt", "secret/*.txt"])
def test_a_folder_that_cannot_be_read(call, pattern, tmp_path, monkeypatch):
    """It is an error, not a shorter text."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    monkeypatch.setattr(os, call, refused(getattr(os, call)))
    with pytest.raises(UserError, match=r"cannot read .*secret: Permission denied"):
        find_text("file", str(tmp_path / pattern))


@pytest.mark.parametrize("pattern", ["", "a.txt", "*.txt", "**/a.txt"])
@pytest.mark.parametrize(("target", "reason"), [("gone.txt", "the file that it links to is missing"), ("a.txt", "")])
def test_a_link_that_leads_nowhere(target, reason, pattern, tmp_path):
    (tmp_path / "a.txt").symlink_to(target)
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "no_text").symlink_to("gone")
    with pytest.raises(UserError, match=rf"cannot read .*a\.txt: {reason}"):
        find_text("file", str(tmp_path / pattern))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, r"a text is missing: data\.path=my\.txt"),
        ("", r"a text is missing: data\.path=my\.txt"),
        ("none.txt", r"no text at data\.path=none\.txt"),
        ("*.txt", r"no text at data\.path=\*\.txt"),
        (".", r"the folder \. holds no \.txt or \.txt\.gz file; a glob names others"),
        ("a\0b.txt", r"data\.path=a\\x00b\.txt is not a name"),
        ("caf\udce9.txt", r"data\.path=caf\\udce9\.txt is not a name that UTF-8 can write"),
        ("a\nb.txt", r"no text at data\.path=a\\nb\.txt"),
        ("x" * 5000, "cannot read xxx.*: File name too long"),
        ("x/" * 2500 + "*.txt", "cannot read x/x/.*: File name too long"),
        ("~nobody_of_this_name/a.txt", "no text at data"),
        ("notes.md/*.txt", "no text at data"),
        ("notes.md/a.txt", "no text at data"),
    ],
)
def test_no_such_text(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("text")
    with pytest.raises(UserError, match=message) as error:
        find_text("file", path, fallback="pydocs")
    assert str(error.value).isprintable()


def test_pydocs_needs_no_network(cache, offline):
    text = find_text("pydocs")
    assert "Python" in text.name
    (file,) = text.files
    content = file.read_text(encoding="utf-8")
    assert len(content) > 300_000
    assert "assert_stmt" in content


def test_pydocs_of_another_python_is_replaced(cache):
    (file,) = find_text("pydocs").files
    content, written = file.read_bytes(), file.stat()
    find_text("pydocs")
    assert file.stat().st_ino == written.st_ino  # what is right stays
    file.write_text("older")
    find_text("pydocs")
    assert file.read_bytes() == content
    file.unlink()
    os.mkfifo(file)
    find_text("pydocs")
    assert file.read_bytes() == content


def test_fallback_warns_once(cache, offline, caplog):
    text = find_text("shakespeare", fallback="pydocs")
    assert "Python" in text.name
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("NOT TRAINING ON SHAKESPEARE", text.name, "download failed", "CHARGPT_DATA_DIR", "fallback=null"):
        assert part in warning


def test_no_fallback_is_an_error(cache, offline):
    with pytest.raises(UserError, match=r"download failed .* CHARGPT_DATA_DIR"):
        find_text("shakespeare")


def test_a_silent_server_is_given_up(cache, monkeypatch):
    """Within seconds, for the connection and for each answer; and it is asked once."""
    asked = []

    def downloader(**options):
        asked.append(options["timeout"])
        raise TimeoutError("gave up")

    monkeypatch.setattr(pooch, "HTTPDownloader", downloader)
    with pytest.raises(UserError, match=r"download failed \(TimeoutError: gave up\)"):
        find_text("shakespeare", fallback="shakespeare")
    (timeouts,) = asked
    assert 0 < min(timeouts) <= max(timeouts) <= 10


def test_wrong_shakespeare_is_refused_and_left_alone(tmp_path, monkeypatch):
    file = tmp_path / "tinyshakespeare.txt"
    file.write_text("To be")
    monkeypatch.setenv("CHARGPT_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="is not tiny Shakespeare: its SHA-256 is"):
        find_text("shakespeare", fallback="pydocs")
    assert file.read_text() == "To be"


def test_a_shakespeare_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "tinyshakespeare.txt").mkdir()
    monkeypatch.setenv("CHARGPT_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot read .*tinyshakespeare\.txt: "):
        find_text("shakespeare", fallback="pydocs")


def test_download_is_checked_and_atomic(tmp_path, cache, monkeypatch):
    """A server that sends something else: nothing of it stays."""
    page = b"<html>please log in</html>"
    (tmp_path / "input.txt").write_bytes(page)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(room, "SHAKESPEARE_URL", f"http://127.0.0.1:{server.server_port}/input.txt")
        with pytest.raises(UserError, match="hash"):
            find_text("shakespeare")
        assert [file.name for file in cache.rglob("*") if file.is_file()] == [".lock"]
        monkeypatch.setattr(room, "SHAKESPEARE_SHA256", hashlib.sha256(page).hexdigest())
        (file,) = find_text("shakespeare").files
        assert file.read_bytes() == page
        assert cache in file.parents
        server.shutdown()


def test_what_a_killed_download_left(tmp_path, monkeypatch):
    """It goes with the next download, and nothing else does in a folder that may be the user's own."""
    content = b"First Citizen:"
    monkeypatch.setenv("CHARGPT_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(room, "SHAKESPEARE_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: lambda url, out, _: out.write(content))
    for name in ("tinyshakespeare.txt.x.tmp", "mine.tmp"):
        (tmp_path / name).write_text("half")
    (file,) = find_text("shakespeare").files
    assert file.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == [".lock", "mine.tmp", "tinyshakespeare.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("two\nlines\x1b[31m")])
def test_a_download_that_fails_says_so_in_one_line(error, cache, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: fail)
    with pytest.raises(UserError, match="download failed") as failure:
        find_text("shakespeare")
    assert str(failure.value).isprintable()


@pytest.mark.slow
@pytest.mark.skipif("CHARGPT_DATA_DIR" not in os.environ, reason="needs the real text, in CHARGPT_DATA_DIR")
def test_the_lectures_text():
    corpus = encode_text(find_text("shakespeare"))
    assert (len(corpus.ids), corpus.tokenizer.vocab_size) == (1_115_394, 65)
    assert corpus.tokenizer.characters == "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert corpus.tokenizer.decode(corpus.ids[:14]) == "First Citizen:"
