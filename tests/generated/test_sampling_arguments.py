"""Arguments of sample.py: every option with extremes, alone and together, and odd ends of its pipes."""

import os
import shutil

from generated.world import RUN, SECRET, Case, chance, every, name_of

BASE = ("--ckpt", "outputs/run", "--max-new-tokens", "5", "--seed", "1", "--device", "cpu")
VALUES = [
    "0", "-0", "-1", "1", "7", "0.5", "1" + "0" * 30, "-1" + "0" * 30, "9223372036854775807", "9223372036854775808",
    "1e-320", "1e308", "-1e308", "1e400", "nan", "inf", "-inf", "", " ", "abc", "null", "[]", "{}", "\x01\x1b[31m",
    "\udcff", "\u2028", "\U0001f600\u202e", "1_000", "0x10", "é", "١", "%s%n", "${seed}", "a" * 20000, "-", "--", ".",
    "..", "verse.txt", "notes.txt/a", "nowhere/at/all", "/dev/null",
]  # fmt: skip
OPTIONS = [
    "--ckpt", "--prompt", "--prompt-file", "--unknown", "--max-new-tokens", "--temperature", "--top-k", "--top-p",
    "--num-samples", "--window", "--seed", "--stop", "--out", "--device",
]  # fmt: skip
DEVICES = [
    "cpu",
    "auto",
    "cuda",
    "cuda:99",
    "cuda:-1",
    "mps",
    "xpu",
    "meta",
    "cpu:0",
    "cpu:7",
    "hpu",
    "vulkan",
    "CPU",
    "mtia",
]
# Files that --out names are there for the taking; the others are the user's.
WRITES = ("work/out.txt", "work/new.txt")


def case(name: str, *arguments: str, base: tuple[str, ...] = BASE, **options) -> Case:
    endless = any(len(each) > 17 and each.isdigit() for each in arguments)
    options = {"stop_after": 4.0 if endless else None} | options
    return Case(name, [("sample.py", *base, *arguments)], **options)


# What must work, one option or several.
GOOD = [
    "--help", "-h", "--prompt=green", "--prompt green", "--prompt 10", "--seed 0", "--seed 1 --seed 2",
    "--seed 4294967295", "--top-k 1", "--top-k 7", "--top-k 65536", "--top-p 1", "--top-p 0.5", "--top-p 1e-320",
    "--temperature 0", "--temperature 0.5", "--temperature 7", "--temperature 1e308", "--top-k 1 --temperature 1e-320",
    "--top-p 0.5 --temperature 1e308", "--temperature 5e-324", "--num-samples 1", "--num-samples 7",
    "--stop e --num-samples 3", "--stop green", "--stop 1 --temperature 0", "--max-new-tokens 1",
    "--max-new-tokens 50", "--window stride --max-new-tokens 50", "--window exact --max-new-tokens 50",
    "--window stride --num-samples 2 --max-new-tokens 50", "--prompt-file verse.txt", "--prompt-file -",
    "--unknown skip --prompt XgreenX", "--out new.txt", "--out new.txt --num-samples 3", "--out verse.txt",
    "--out /dev/null", "--device auto", "--device cpu", "--device cpu:0", "--ckpt outputs/run", "--ckpt outputs/run/",
    "--ckpt ./outputs//run", "--ckpt outputs/../outputs/run", "--ckpt outputs/run/checkpoints",
    "--ckpt outputs/run/checkpoints/best.ckpt", "--ckpt outputs/run/checkpoints/last.ckpt",
    "--ckpt outputs/run/checkpoints/previous.ckpt",
]  # fmt: skip


def good() -> list[Case]:
    options = {"succeeds": True, "stdin": b"green", "writes": (*WRITES, "work/verse.txt")}
    found = [case(name_of(f"good-{line}"), *line.split(), **options) for line in GOOD]
    words = [" ", "\n", "", "green bottles\n", "'\u2028\x01\x1b[31m${seed}\"é"]
    for word in words:
        arguments = ("--prompt", word, "--unknown", "skip")
        found.append(case(name_of(f"good-prompt-{word}"), *arguments, **options))
    return found


def one_option() -> list[Case]:
    """Each option with each value, said after the usual ones, of which the last counts."""
    found = []
    for option in OPTIONS:
        for value in VALUES:
            writes = ("work/verse.txt", f"work/{value}") if option == "--out" else ()
            if option == "--out" and value in (" ", ".", ".."):
                writes = ("work/ ",)
            found.append(case(name_of(f"{option} {value}"), option, value, writes=writes))
    return found


def several(count: int = 60) -> list[Case]:
    found = []
    for n in range(count):
        draw = chance("several", n)
        options = draw.sample([option for option in OPTIONS if option not in ("--ckpt", "--out")], 3)
        arguments = [each for option in options for each in (option, draw.choice(VALUES))]
        found.append(case(name_of(f"several-{n}-{' '.join(arguments)}"), *arguments))
    return found


def linked_out(box) -> None:
    os.symlink("../home/diary.txt", box / "work/link.txt")


def own_checkpoint(box) -> None:
    shutil.copy(box / RUN / "checkpoints/best.ckpt", box / "work/mine.ckpt")


def two_runs(box) -> None:
    """Links in outputs/, and something there that only looks like a run."""
    os.symlink("run", box / "work/outputs/again")
    os.symlink("outputs", box / "work/outputs/loop")
    (box / "work/outputs/odd/checkpoints/best.ckpt").mkdir(parents=True)


def no_runs(box) -> None:
    shutil.rmtree(box / "work/outputs")


ODD_INPUTS = {
    "none": b"", "latin": b"caf\xe9\n", "nul": b"a\0b", "zeros": bytes(1000), "bom": b"\xef\xbb\xbfgreen",
    "crlf": b"green\r\n", "cut": b"gr\xe2\x82", "surrogate": b"\xed\xa0\x80", "emoji": "\U0001f600".encode(),
    "long": b"green bottles " * 20000, "utf-16": "green".encode("utf-16"), "escape": b"\x1b[31m", "good": b"10 green",
    "lines": b"\n" * 1000,
}  # fmt: skip


LINES = [
    "", "--help", "-h", "--abc", "-x", "green", "--ckpt", "--prompt a --prompt-file -",
    "--prompt-file - --prompt-file -", "--max 5", "--pro green", "--top 3", "--prompt=green", "--seed=",
    "--seed 1 --seed 2", "--no-window", "--=", "=", "@notes.txt", "--ckpt outputs/run/checkpoints",
    "--ckpt outputs/run/checkpoints/best.ckpt", "--ckpt outputs", "--ckpt .", "--ckpt /",
    "--ckpt outputs/run/.hydra/config.yaml", "--ckpt outputs/run/train.log", "--ckpt /dev/zero", "--ckpt /dev/full",
    "--ckpt outputs/run/checkpoints/best.ckpt/a", "--out new.txt", "--out new.txt --num-samples 3",
    "--out outputs/run", "--stop green", "--stop e --num-samples 3", "--stop 1 --temperature 0",
    "--top-k 1 --temperature 1e-320", "--top-p 1e-320", "--top-p 0.5 --temperature 1e308", "--top-p 1",
    "--top-k 65536", "--window stride --max-new-tokens 50", "--window exact --max-new-tokens 50",
    "--window stride --num-samples 2 --max-new-tokens 50", "--num-samples 1000", "--num-samples 1000000",
    "--num-samples 1000000000", "--max-new-tokens 1000000000", "--temperature 5e-324",
]  # fmt: skip


def others() -> list[Case]:
    found = [case(f"device-{device}", "--device", device) for device in DEVICES]
    for name, content in ODD_INPUTS.items():
        for unknown in ("error", "skip"):
            options = ("--prompt-file", "-", "--unknown", unknown)
            found.append(case(f"stdin-{name}-{unknown}", *options, stdin=content))
    for stdout in ("/dev/full", "/dev/null"):
        found.append(case(f"stdout-{name_of(stdout)}", stdout=stdout))
        found.append(case(f"stdout-{name_of(stdout)}-many", "--num-samples", "3", stdout=stdout))
        found.append(case(f"stdout-{name_of(stdout)}-help", "--help", stdout=stdout))
        found.append(case(f"out-{name_of(stdout)}", "--out", stdout))
    for line in LINES:
        if line in GOOD:
            continue
        stop = 4.0 if "00000" in line else None
        found.append(case(name_of(f"line-{line}"), *line.split(), writes=WRITES, stop_after=stop))
    bare = ("--max-new-tokens", "5")
    found += [
        # Written to is what --out names, but never what is being read, and never after a refusal.
        case("out-is-the-checkpoint", "--out", "mine.ckpt", "--ckpt", "mine.ckpt", prepare=own_checkpoint),
        case("out-is-the-checkpoint-of-the-run", "--out", "outputs/run/checkpoints/best.ckpt"),
        case("out-kept-wrong-top-k", "--out", "verse.txt", "--top-k", "0"),
        case("out-kept-wrong-prompt", "--out", "verse.txt", "--prompt", "\u2028"),
        case("out-kept-wrong-checkpoint", "--out", "verse.txt", "--ckpt", "notes.txt"),
        case("out-kept-out-of-memory", "--out", "verse.txt", "--num-samples", "1000000000"),
        case("out-through-a-link", "--out", "link.txt", prepare=linked_out, writes=("home/diary.txt",)),
        case("newest-of-odd-runs", base=bare, prepare=two_runs),
        case("newest-of-none", base=bare, prepare=no_runs),
        case("no-home", environment={"HOME": "BOX/nowhere"}),
        case("ascii-locale", "--prompt", "é", environment={"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}),
        case("secret-is-not-told", "--prompt", "${oc.env:MY_SECRET}", environment={"MY_SECRET": SECRET}),
    ]
    return found


CASES = [*good(), *one_option(), *several(), *others()]


@every(CASES)
def test_arguments_write_or_are_refused_in_a_line(case, world):
    world.check(case)
