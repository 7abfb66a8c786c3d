"""Pickles that were written to do harm, each of which PyTorch runs, and what is read of honest ones."""

import contextlib
import tracemalloc
import zipfile
from collections import OrderedDict

import pytest
import torch
from helpers import assert_same

from chargpt.checkpoint import read_archive

FLOATS = b"ctorch\nFloatStorage\n"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
SET = b"c__builtin__\nset\n"
ORDERED = b"ccollections\nOrderedDict\n"


def archive(path, program, records=None, padding=0, **options):
    """A file that `torch.load` reads, with this program in place of a pickled checkpoint."""
    with zipfile.ZipFile(path, "w", **options) as target:
        target.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        target.writestr("archive/version", "3\n")
        target.writestr("archive/padding", bytes(padding))
        for key, record in (records or {}).items():
            target.writestr(f"archive/data/{key}", record)
    return path


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value):
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def storage(count, key="0"):
    """The numbers under a key."""
    return b"(" + text("storage") + FLOATS + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(count, size, stride, key="0"):
    return TENSOR + b"(" + storage(count, key) + number(0) + number(size) + b"\x85" + number(stride) + b"\x85\x89)tR"


def test_as_torch_reads_it(tmp_path):
    content = {
        "numbers": [1, -1, 255, 70_000, -(2**40), 2**62, 0.5, float("inf"), True, False, None],
        "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {1: (2, [3])}, OrderedDict(a=1), {-(2**59): 2}],
        "text": "é\U0001fae0" * 200,
        "set": {1, "a"},
        "shared": [(1, "a")] * 2 + ["text"] * 3 + [torch.arange(3)] * 2,
        "tensors": [torch.arange(6).view(2, 3).t().to(kind) for kind in (torch.half, torch.bfloat16, torch.float)],
        "more": [torch.arange(5).to(kind)[1:3] for kind in (torch.double, torch.int, torch.short, torch.int8)],
        "bytes": [torch.tensor([True, False]), torch.tensor(7), torch.empty(0), torch.arange(9, dtype=torch.uint8)],
        "parameter": torch.nn.Linear(2, 2).state_dict(keep_vars=True)["weight"],
    }
    torch.save(content, tmp_path / "content")
    expected = torch.load(tmp_path / "content", weights_only=True)
    expected["parameter"] = expected["parameter"].detach()
    found = read_archive(tmp_path / "content")
    assert_same(found, expected)
    assert found["shared"][0] is found["shared"][1]
    assert found["tensors"][0].stride() == expected["tensors"][0].stride()


@pytest.mark.parametrize("key", [2**60, -(2**61) + 1, 0.5, (1, 2)])
def test_what_may_share_its_hash_is_no_key(key, tmp_path):
    """Of such keys a dict of half a megabyte took ten seconds."""
    for content in ({key: 1}, {key}):
        torch.save(content, tmp_path / "content")
        assert torch.load(tmp_path / "content", weights_only=True) == content
        with pytest.raises(TypeError, match="not a key"):
            read_archive(tmp_path / "content")


def test_tensors_share_what_they_shared(tmp_path):
    whole = torch.zeros(4)
    torch.save([whole, whole[:2]], tmp_path / "content")
    whole, part = read_archive(tmp_path / "content")
    part.fill_(1)
    assert whole.tolist() == [1, 1, 0, 0]


ZEROS = {"0": bytes(400)}  # a hundred


@pytest.mark.parametrize(
    ("program", "records", "message"),
    [
        (
            b"c__builtin__\nbytearray\n" + number(10**7) + b"\x85R",
            {},
            "unexpected in a checkpoint: __builtin__ bytearray",
        ),
        (tensor(100, 10**7, 0), ZEROS, "tensors larger than the file"),
        (b"(" + 200 * tensor(100, 100, 1) + b"t", ZEROS, "tensors larger than the file"),
        # copies of one list: each costs a few bytes in the file
        (
            SET + b"q\x00](" + b"".join(map(number, range(500))) + b"eq\x01" + 50 * b"h\x00h\x01\x85R",
            {},
            "a list that is used twice",
        ),
        (b"]q\x00" + 60 * b"](h\x00h\x00eq\x00", {}, "a list that is used twice"),
        (b"}q\x00" + 60 * b"}(K\x00h\x00K\x01h\x00uq\x00", {}, "a dict that is used twice"),
        (b"(" + tensor(100, 100, 1) + b"q\x00" + 600 * b"h\x00" + b"t", ZEROS, "tensors larger than the file"),
        (b"]" * 20_000, {}, "too many values"),
        # a name under which PyTorch finds the record once more, and reads it once more
        (b"(" + tensor(100, 100, 1, "a") + tensor(100, 100, 1, "A") + b"t", {"a": bytes(400)}, "data/A"),
    ],
    ids=["bytearray", "expanded", "shared", "copies", "lists", "dicts", "tensor", "objects", "aliases"],
)
def test_memory_out_of_proportion(program, records, message, tmp_path):
    file = archive(tmp_path / "evil", program, records, padding=10_000)
    torch.load(file, weights_only=True)  # the attack itself is real
    with pytest.raises((ValueError, KeyError, TypeError), match=message):
        read_archive(file)


DEEP = b")" + 1000 * b"\x85"  # ((((...))))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"}" + DEEP + b"Ns", "not a key"),  # hashing a deeper one ends the process
        (SET + b"]" + DEEP + b"a\x85R", "not a key"),
        (b"}]Ns", "not a key"),
        (b"}(Nu", "shorter"),
        (b"NNa", "list expected"),
        (b"]N]s", "not a key|dict expected"),
        (b"NN\x85R", "Global expected"),
        (ORDERED + b"]\x85R", "unexpected in a checkpoint: collections OrderedDict"),
        (b"]}b", "OrderedDict expected"),
        (b"cos\nsystem\n" + text("true") + b"\x85R", "unexpected in a checkpoint: os system"),
        (b"\x8f", "unexpected in a checkpoint: EMPTY_SET"),
        (b"\x96" + (10**11).to_bytes(8, "little"), "expected|exhausted|bytes"),
        (ORDERED + b"}\x81", "unexpected in a checkpoint: NEWOBJ"),
        (storage(99), "of another size"),
        (storage(-100), "of another size"),
        (b"(" + storage(100) + b"(" + text("storage") + b"ctorch\nIntStorage\n" + text("0") + text("cpu") + number(100)
         + b"tQt", "two kinds"),
        (tensor(100, 101, 1), "out of bounds|larger"),
        (tensor(100, -1, 1), "overflow|negative"),
        (tensor(100, 2**62, 2**62), "overflow|out of bounds|larger"),
    ],
)  # fmt: skip
def test_what_no_checkpoint_says(program, message, tmp_path):
    with pytest.raises(Exception, match=message):
        read_archive(archive(tmp_path / "evil", program, ZEROS, padding=10_000))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_record_that_grows_beyond_what_it_says(method, tmp_path):
    """A module of Python's unpacks some of these whole, whatever size they claim."""
    file = archive(tmp_path / "evil", b"N", {"0": bytes(20_000_000)}, compression=method)
    content = file.read_bytes().replace((20_000_000).to_bytes(4, "little"), (20).to_bytes(4, "little"))
    file.write_bytes(content)
    tracemalloc.start()
    with zipfile.ZipFile(file) as plain, contextlib.suppress(zipfile.BadZipFile):
        plain.read("archive/data/0")
    attacked = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    with pytest.raises(ValueError, match="compressed"):
        read_archive(file)
    ours = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert method == zipfile.ZIP_DEFLATED or attacked > 10_000_000
    assert ours < 1_000_000
