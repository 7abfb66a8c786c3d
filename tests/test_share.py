"""A model in a folder of its own: the same again, also without this project; what others put there is not trusted."""

import builtins
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import OPTIONS, ROOT, composed
from safetensors.torch import load_file, save_file

import sample
from chargpt import evaluate, share
from chargpt.checkpoint import Checkpoint, Scoring, find_checkpoint, load_checkpoint, public_name, read_checkpoint
from chargpt.errors import UserError
from chargpt.model import BigramConfig, GPTConfig, build_model
from chargpt.shared import CARD, CONFIG, FILES, LONGEST, WEIGHTS, read_header
from chargpt.tokenizer import CharTokenizer, tokenizer_of
from train import train

CHARACTERS = "\n !abcdefgh"


def made(config, folder, text=None, characters=CHARACTERS):
    """A folder with a model that has not been trained, but whose weights are no zeros."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(characters)
    model = build_model(config, tokenizer.vocab_size)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    folder.mkdir(exist_ok=True)
    checkpoint = Checkpoint(model.eval(), tokenizer, text or {}, Scoring(), 1.5, 7)
    for name, content in share.contents_of(checkpoint).items():
        (folder / name).write_bytes(content)
    return model


def small(**options):
    return GPTConfig(**{"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16} | options)


@pytest.fixture
def shared(tmp_path):
    """A small folder of this kind."""
    made(small(n_layer=1), tmp_path / "shared")
    return tmp_path / "shared"


@pytest.fixture(scope="session")
def shared_run(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares") / "of" / "a run"
    assert share.main(["--ckpt", str(tiny_run), str(folder)]) == 0
    return folder


def test_the_same_model_to_the_last_bit(tiny_run, shared_run, text_file):
    assert sorted(os.listdir(shared_run)) == sorted(FILES)
    assert find_checkpoint(shared_run) == shared_run / WEIGHTS
    before, after = (read_checkpoint(find_checkpoint(folder)) for folder in (tiny_run, shared_run))
    assert before.model.config == after.model.config
    assert before.tokenizer.characters == after.tokenizer.characters
    assert before.scoring == after.scoring
    assert (before.best_loss, before.step) == (after.best_loss, after.step)
    assert after.step in (3, 6)
    assert 0 < after.best_loss < 5
    assert after.text == before.text | {"name": text_file.name}  # and not the folders that lead there
    weights = after.model.state_dict()
    for name, weight in before.model.state_dict().items():
        assert torch.equal(weight, weights[name])
        assert weights[name].data_ptr() % 16 == 0
    torch.testing.assert_close(load_file(shared_run / WEIGHTS), dict(weights), rtol=0, atol=0)


def test_sampled_scored_and_started_from_like_the_run(tiny_run, shared_run, tiny, tmp_path, capsys):
    texts, scores = [], []
    for folder in (tiny_run, shared_run):
        assert sample.main(["--ckpt", str(folder), "--seed", "1", "--max-new-tokens", "50", "--device", "cpu"]) == 0
        texts.append(capsys.readouterr().out)
        assert evaluate.main(["--ckpt", str(folder), "--json", "--device", "cpu"]) == 0
        scores.append(json.loads(capsys.readouterr().out)[0]["loss"])
    assert texts[0] == texts[1]
    assert scores[0] == scores[1]
    begin = [each for each in tiny if not each.startswith("model.")]
    losses = [
        train(composed(*begin, f"init_from='{folder}'", f"run_dir={tmp_path / str(n)}"))
        for n, folder in enumerate((tiny_run, shared_run))
    ]
    assert losses[0] == losses[1]
    model, tokenizer = load_checkpoint(shared_run)
    assert not model.training
    assert tokenizer.vocab_size == model.lm_head.out_features


def run_card(folder, monkeypatch):
    """What the block of code in a description defines and prints, where only three packages can be imported."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / CARD).read_text(encoding="utf-8"), re.M | re.S)
    real = builtins.__import__

    def imported(name, space=None, *rest):
        if space is names:
            assert name.split(".")[0] in ("torch", "json", "safetensors"), name
        return real(name, space, *rest)

    names = {"__builtins__": {**vars(builtins), "__import__": imported}}
    monkeypatch.chdir(folder)
    exec(code, names)
    assert len(code.split("\n")) < 75
    return names


@pytest.mark.parametrize("config", [*(small(**each) for each in OPTIONS), BigramConfig(block_size=8)], ids=str)
def test_the_description_alone_rebuilds_the_model(config, tmp_path, monkeypatch, capsys):
    model = made(config, tmp_path)
    names = run_card(tmp_path, monkeypatch)
    assert len(capsys.readouterr().out) == 202
    ids = torch.randint(len(CHARACTERS), (3, 8))
    with torch.no_grad():
        torch.testing.assert_close(names["logits"](ids), model(ids), rtol=0, atol=1e-5)


def test_a_model_of_bytes(tmp_path, monkeypatch, capsys):
    """Its description writes text, too; and the texts that it was validated and tested on are known by their hashes."""
    text = {f"{part}{key}": f"a/b/{part}{key}" for part in ("", "val_", "test_") for key in ("name", "sha256")}
    made(small(), tmp_path, text, characters=None)
    run_card(tmp_path, monkeypatch)
    capsys.readouterr().out.encode()
    checkpoint = read_checkpoint(find_checkpoint(tmp_path))
    assert (checkpoint.tokenizer.unit, checkpoint.tokenizer.vocab_size) == ("byte", 256)
    assert checkpoint.text == text | {f"{part}name": f"{part}name" for part in ("", "val_", "test_")}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_other_kinds_of_numbers(kind, tmp_path, monkeypatch):
    model = build_model(small(positions="rotary"), len(CHARACTERS)).to(kind)
    checkpoint = Checkpoint(model, CharTokenizer(CHARACTERS), {}, Scoring())
    for name, content in share.contents_of(checkpoint).items():
        (tmp_path / name).write_bytes(content)
    read = read_checkpoint(tmp_path / WEIGHTS)
    assert (read.best_loss, read.step, read.text) == (None, None, {})
    for name, weight in model.state_dict().items():
        assert weight.dtype == kind
        assert torch.equal(read.model.state_dict()[name], weight)
    run_card(tmp_path, monkeypatch)


def test_weights_that_share_memory(tmp_path):
    """As a stranger's checkpoint can have them; safetensors has no way to say so."""
    model = build_model(small(n_layer=1), len(CHARACTERS))
    model.blocks[0].ln2.weight = model.blocks[0].ln1.weight
    assert WEIGHTS in share.contents_of(Checkpoint(model, CharTokenizer(CHARACTERS), {}, Scoring()))


NAMES = [
    "```\n# Hello\n<script>alert(1)</script>", "</code></pre><img src=x onerror=a>",
    "a\u2028# b\u2029# c\x85# d\x0c# e",
    "\ud800", "{code}{0.__class__}", "[a](javascript:b)", "\x1b[31m", "a" * 10_000, "---\nlicense: x\n---", "~~~\n# a",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_and_characters_are_no_markup(name, tmp_path):
    made(BigramConfig(), tmp_path / "plain", {"name": "a", "sha256": "b"}, "ab")
    made(BigramConfig(), tmp_path / "odd", {"name": name, "sha256": name}, "\n\x0c\x1b#<>`ab~\x85\u2028")
    plain, odd = ((tmp_path / kind / CARD).read_text(encoding="utf-8") for kind in ("plain", "odd"))
    outside = [[line for line in card.splitlines() if not line.startswith("    ")] for card in (plain, odd)]
    assert outside[0] == outside[1]
    assert len(plain.splitlines()) == len(odd.splitlines())
    assert max(map(len, odd.splitlines())) < 1000
    assert read_checkpoint(tmp_path / "odd" / WEIGHTS).text == {"name": public_name(name), "sha256": name}


def test_an_earlier_share_is_replaced_whole(tiny_run, shared, capsys):
    (shared / CARD).write_text("edited")
    assert share.main(["--ckpt", str(tiny_run), str(shared)]) == 0
    assert sorted(os.listdir(shared)) == sorted(FILES)
    assert "edited" not in (shared / CARD).read_text()
    assert read_checkpoint(shared / WEIGHTS).model.config == read_checkpoint(find_checkpoint(tiny_run)).model.config
    before = (shared / WEIGHTS).read_bytes()
    assert share.main(["--ckpt", str(shared), str(shared)]) == 0  # of itself
    assert (shared / WEIGHTS).read_bytes() == before
    assert f"Wrote {shared}, trained on verse.txt" in capsys.readouterr().err


def other_file(folder):
    (folder / "notes.txt").write_text("mine")


def card_alone(folder):
    for name in (WEIGHTS, CONFIG):
        (folder / name).unlink()


def others_config(folder):
    (folder / CONFIG).write_text('{"model_type": "gpt2"}')


def linked_card(folder):
    (folder / CARD).rename(folder.parent / "card")
    (folder / CARD).symlink_to(folder.parent / "card")


def folder_for_card(folder):
    (folder / CARD).unlink()
    (folder / CARD).mkdir()


@pytest.mark.parametrize("change", [other_file, card_alone, others_config, linked_card, folder_for_card])
def test_nobodys_file_is_lost(change, tiny_run, shared, capsys):
    change(shared)
    before = {file: file.read_bytes() for file in shared.iterdir() if file.is_file()}
    assert share.main(["--ckpt", str(tiny_run), str(shared)]) == 2
    assert "and is not what this command wrote before: name a new folder" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in shared.iterdir() if file.is_file()} == before


def test_where_nothing_can_be_written(tiny_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for place, message in {
        "file": "is no folder",
        "link": "is no folder",
        "file/folder": f"error: cannot write to {tmp_path / 'file/folder'}: Not a directory",
    }.items():
        assert share.main(["--ckpt", str(tiny_run), str(tmp_path / place)]) == 2
        assert message in capsys.readouterr().err
    assert share.main([]) == 2
    assert "the following arguments are required: DIR" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert share.main(["--ckpt", str(tiny_run), str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err == f"error: cannot write to {tmp_path / 'empty'}: No space left on device\n"
    assert not list((tmp_path / "empty").iterdir())


def test_the_disk_is_full_halfway(tiny_run, shared, monkeypatch, capsys):
    """All of the earlier share is then as it was."""
    before = {file: file.read_bytes() for file in shared.iterdir()}
    real = Path.open

    def refuse(file, *arguments, **options):
        if file.name.startswith(f".{CARD}"):
            raise OSError(28, "No space left on device")
        return real(file, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert share.main(["--ckpt", str(tiny_run), str(shared)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert {file: file.read_bytes() for file in shared.iterdir()} == before


@pytest.mark.parametrize("name", FILES)
def test_samples_are_not_written_over_it(name, shared, capsys):
    before = (shared / name).read_bytes()
    assert sample.main(["--ckpt", str(shared), "--out", str(shared / name)]) == 2
    assert "--out would overwrite" in capsys.readouterr().err
    assert (shared / name).read_bytes() == before


CONFIGS = [
    (b"", "config.json is damaged"),
    (b"{", "config.json is damaged"),
    (b"[1]", "config.json is not one that chargpt.share wrote"),
    (b"\xff{}", "config.json is damaged"),
    (b"[" * 100_000, "config.json is damaged"),
    (b'{"a":' * 50_000, "config.json is damaged"),
    (b"9" * 10_000, "config.json is damaged"),
    (b'{"format_version": 1, "format_version": 1}', "config.json is damaged"),
    (b" " * (LONGEST + 1), "config.json is damaged"),
    ({"format_version": 2}, "config.json is of another version than 1"),
    ({"format_version": None}, "config.json is of another version than 1"),
    ({"format_version": True}, "config.format_version must be a whole number"),
    ({"another": 1}, "unknown key config.another"),
    ({"\ud800\x1b": 1}, "unknown key config."),
    ({"best_loss": float("nan")}, "config.json is damaged"),
    ({"best_loss": -1}, "config.best_loss must be at least 0"),
    ({"best_loss": "1"}, "config.best_loss must be a number or null"),
    ({"best_loss": 10**400}, "config.best_loss must be a number of at most 64 bits"),
    ({"step": -1}, "config.step must be at least 0"),
    ({"step": 1.5}, "config.step must be a whole number or null"),
    ({"text": {"name": "a"}}, "config.text must have a name and a sha256"),
    ({"text": {"name": [], "sha256": "a"}}, "config.text must be a mapping"),
    ({"scoring": {"batch_size": 0}}, "scoring.batch_size must be at least 1"),
    ({"scoring": {"_target_": "os.mkdir"}}, "unknown key scoring._target_"),
    ({"characters": "ba"}, "a vocabulary is one or more distinct characters"),
    ({"characters": "a\ud800"}, "a vocabulary has no surrogates"),
    ({"characters": ["a", "b"]}, "config.characters must be text"),
    ({"characters": CHARACTERS[1:]}, "the weights do not fit its settings"),
    ({"model": {}}, "model.name must be one of gpt, bigram"),
    ({"model": [1]}, "config.model must be a mapping"),
    ({"model": {"name": "os.system"}}, "got 'os.system'"),
    ({"model": {"name": "gpt", "n_embd": 10**8, "n_head": 1}}, "the weights do not fit its settings"),
    ({"model": {"name": "gpt", "n_layer": 1000}}, "the weights do not fit its settings"),
    ({"model": {"name": "gpt", "n_embd": "16"}}, "model.n_embd must be a whole number"),
    ({"model": {"name": "bigram"}}, "the weights do not fit its settings"),
]


def refused(folder, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_checkpoint(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(("content", "message"), CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_of_a_stranger(content, message, shared):
    file = shared / CONFIG
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_bytes()) | content).encode()
    file.write_bytes(content)
    refused(shared, message)


def test_a_config_that_lacks_something(shared):
    config = json.loads((shared / CONFIG).read_bytes())
    for key in ("format_version", "model", "characters"):
        (shared / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if name != key}))
        refused(shared, "config.json")


def with_header(file, change):
    """The file with another header before the same numbers."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + length]))
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


NAME = "lm_head.bias"


def changed(**about):
    return lambda header: header | {NAME: header[NAME] | about}


def shifted(by):
    return lambda header: (
        header | {NAME: header[NAME] | {"data_offsets": [n + by for n in header[NAME]["data_offsets"]]}}
    )


HEADERS = {
    "empty": lambda header: b"",
    "list": lambda header: [],
    "null": lambda header: None,
    "twice": lambda header: json.dumps(header)[:-1].encode() + b', "lm_head.bias": {}}',
    "deep": lambda header: b"[" * 100_000,
    "another-key": changed(another=1),
    "dtype-int": changed(dtype="I32"),
    "dtype-half": changed(dtype="F16"),
    "dtype-float8": changed(dtype="F8_E4M3"),
    "dtype-list": changed(dtype=[]),
    "dtype-null": changed(dtype=None),
    "shape-null": changed(shape=None),
    "shape-huge": changed(shape=[10**30]),
    "shape-overflow": changed(shape=[2**62, 2**62]),
    "shape-negative": changed(shape=[-11]),
    "shape-float": changed(shape=[11.0]),
    "shape-bool": changed(shape=[True]),
    "shape-deep": changed(shape=[11, 1, 1]),
    "shape-none": changed(shape=[]),
    "offsets-text": changed(data_offsets=["0", "44"]),
    "offsets-three": changed(data_offsets=[0, 44, 88]),
    "offsets-null": changed(data_offsets=None),
    "offsets-huge": changed(data_offsets=[0, 10**30]),
    "offsets-all": changed(data_offsets=[0, 2**40]),
    "overlap": shifted(-4),
    "hole": shifted(4),
    "missing": lambda header: {name: about for name, about in header.items() if name != NAME},
    "metadata": lambda header: header | {"__metadata__": {"a": 1}},
    "metadata-null": lambda header: header | {"__metadata__": None},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_a_stranger(name, shared):
    with_header(shared / WEIGHTS, HEADERS[name])
    refused(shared, "model.safetensors is damaged, or not a file that chargpt.share wrote")


def test_a_header_of_another_program(shared):
    """With its own notes, and spaces at its end."""
    with_header(shared / WEIGHTS, lambda header: json.dumps(header | {"__metadata__": {"a": "b"}}).encode() + b"     ")
    load_checkpoint(shared)


def test_headers_that_claim_too_much(shared):
    content = (shared / WEIGHTS).read_bytes()
    for length in (0, len(content), LONGEST + 1, 2**63, 2**64 - 1):
        (shared / WEIGHTS).write_bytes(length.to_bytes(8, "little") + content[8:])
        refused(shared, "is damaged")
    for cut in (0, 7, 8, 100, len(content) - 1):
        (shared / WEIGHTS).write_bytes(content[:cut])
        refused(shared, "is damaged")
    (shared / WEIGHTS).write_bytes(content + b"a")
    refused(shared, "is damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights | {"another": torch.zeros(5)}, "the weights do not fit"),
        (lambda weights: weights | {NAME: torch.zeros(12)}, "the weights do not fit"),
        (lambda weights: weights | {NAME: torch.zeros(11, 1)}, "the weights do not fit"),
        (lambda weights: weights | {NAME: torch.zeros(11).double()}, "one kind: torch.float32, torch.float64"),
        (lambda weights: weights | {NAME: torch.full((11,), float("nan"))}, f"weights {NAME} are not finite"),
        (lambda weights: weights | {NAME: torch.full((11,), float("-inf"))}, f"weights {NAME} are not finite"),
        (lambda weights: {name: each for name, each in weights.items() if name != NAME}, "the weights do not fit"),
        (lambda weights: weights | {NAME: torch.zeros(11, dtype=torch.int32)}, "is damaged"),
        (lambda weights: weights | {NAME: torch.zeros(11, dtype=torch.bool)}, "is damaged"),
        (lambda weights: weights | {NAME: torch.zeros(11).to(torch.float8_e5m2)}, "is damaged"),
        (lambda weights: {}, "the weights do not fit"),
    ],
)
def test_weights_of_a_stranger(change, message, shared):
    save_file(change(load_file(shared / WEIGHTS)), shared / WEIGHTS)
    refused(shared, message)


def test_an_enormous_file_is_refused_before_it_is_read(shared, monkeypatch):
    """Whether its header tells of its size or not."""
    os.truncate(shared / WEIGHTS, 1 << 40)
    refused(shared, "is damaged")
    with_start = {"a": {"dtype": "F32", "shape": [1 << 20, 1 << 18], "data_offsets": [0, 1 << 40]}}
    header = json.dumps(with_start).encode()
    (shared / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(shared / WEIGHTS, 8 + len(header) + (1 << 40))
    monkeypatch.setattr("chargpt.checkpoint.read_numbers", None)
    with open(shared / WEIGHTS, "rb") as file:
        assert read_header(file)["a"].nbytes == 1 << 40
    refused(shared, "the weights do not fit its settings")
    config = json.loads((shared / CONFIG).read_bytes())
    config |= {"model": {"name": "bigram"}, "characters": "".join(map(chr, range(0x20000, 0xC0000)))}
    sizes = [len(config["characters"])] * 2
    about = {"dtype": "F32", "shape": sizes, "data_offsets": [0, 4 * sizes[0] ** 2]}
    header = json.dumps({"token_embedding_table.weight": about}).encode()
    (shared / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(shared / WEIGHTS, 8 + len(header) + 4 * sizes[0] ** 2)
    (shared / CONFIG).write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    refused(shared, "the weights need some")
    (shared / CONFIG).write_bytes(b"")
    os.truncate(shared / CONFIG, 1 << 40)
    refused(shared, "config.json is damaged")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_something_else_in_place_of_a_file(name, shared):
    message = {WEIGHTS: "holds no checkpoint", CONFIG: "config.json"}[name]
    place = shared / name
    for make in (
        lambda: None,
        place.mkdir,
        lambda: os.mkfifo(place),
        lambda: place.symlink_to("nowhere"),
        lambda: place.symlink_to(name),
        lambda: place.symlink_to("/dev/zero"),
    ):
        (place.rmdir if place.is_dir() else lambda: place.unlink(missing_ok=True))()
        make()
        refused(shared, message)


def test_a_link_to_a_file_is_followed(shared):
    """As folders of download caches have them."""
    for name in (WEIGHTS, CONFIG):
        (shared / name).rename(shared.parent / name)
        (shared / name).symlink_to(shared.parent / name)
    load_checkpoint(shared)


def test_what_may_not_be_read_is_not_called_damaged(shared, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "config.json")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"^cannot read config\.json: Permission denied$"):
        load_checkpoint(shared)


def test_no_memory_is_not_damage(shared, monkeypatch):
    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr("chargpt.checkpoint.read_numbers", refuse)
    with pytest.raises(MemoryError):
        load_checkpoint(shared)


def test_sampling_a_run_does_not_import_it(tiny_run):
    code = (
        "import sys, sample; assert 'torch' not in sys.modules;"
        f"sample.main(['--ckpt', {str(tiny_run)!r}, '--max-new-tokens', '2']); assert 'safetensors' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120, stdout=subprocess.DEVNULL)
