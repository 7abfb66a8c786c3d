"""The page as a file, and as a person has it in a browser."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from helpers import ROOT, bigram, start
from page.firefox import run_in_firefox

from chargpt.checkpoint import read_checkpoint
from chargpt.errors import NonFiniteError, UserError
from chargpt.history import LOSSES, SAMPLES
from chargpt.model import MODEL_CONFIGS, BigramConfig, GPTConfig
from chargpt.page.__main__ import main
from chargpt.page.build import build_page, check_options, pack

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\u2028\u202e{{script}}"


class Reader(HTMLParser):
    """The elements of a page, and what is in its scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts = [], {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if self.cdata_elem == tag:  # inside of a script or a style sheet
            key = attributes.get("id", tag)
            self.scripts[key] = self.scripts.get(key, "") + data


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run with three validations."""
    folder = tmp_path_factory.mktemp("page") / "run"
    start(folder, *tiny, "trainer.max_steps=60", "trainer.val_check_interval=20", "optimizer.lr=1e-2")
    return folder


@pytest.fixture(scope="module")
def file(run):
    """The page of the run."""
    file = run.with_name("page.html")
    assert main(["--ckpt", str(run), "--out", str(file)]) == 0
    return file


def test_what_the_page_holds(run, monkeypatch):
    """Also by a relative name, from the folder of the checkpoint."""
    monkeypatch.chdir(run / "checkpoints")
    page, checkpoint = Reader(build_page(Path("best.ckpt"))), read_checkpoint(Path("best.ckpt"))
    facts = json.loads(page.scripts["data"])
    assert facts["characters"] == checkpoint.tokenizer.characters
    assert facts["config"] == vars(checkpoint.model.config)
    assert [step for step, *_ in facts["curve"]] == [20, 40, 60]
    assert [step for step, _ in facts["samples"]] == [20, 40, 60]
    assert len(facts["places"]) == len(facts["characters"])
    assert ["optimizer.lr", "0.01"] in facts["settings"]
    numbers = sum(weight.numel() for weight in checkpoint.model.parameters())
    assert 2 * numbers <= len(base64.b64decode(page.scripts["weights"])) <= 2 * numbers + 200


def test_only_its_own_scripts_run(file):
    """What the policy lets run is what is there, by its hash; nothing is loaded from elsewhere."""
    page = Reader(file.read_text(encoding="utf-8"))
    policy = next(each["content"] for tag, each in page.tags if each.get("http-equiv"))
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(page.scripts[tag].encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not [name for _, each in page.tags for name in each if re.match("src$|style$|on", name)]
    assert [each["href"] for _, each in page.tags if "href" in each] == ["#prompt"]


def opened(tab, file):
    tab.goto(file.as_uri())
    tab.wait_for_selector("#go:not([disabled])")
    return tab


def written(page, how="Done"):
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_have_text(re.compile(how), timeout=30_000)


def write(page, how="Done", **fields):
    """Fill the fields, press the button and wait until the text has ended; returns it."""
    for name, value in fields.items():
        page.fill(f"#{name.replace('_', '-')}", value)
    page.click("#go")
    written(page, how)
    return text_of(page)


def text_of(page):
    return page.evaluate("() => [...document.querySelectorAll('#text span')].map((each) => each.textContent).join('')")


def test_hostile_text_is_text(run, file, tmp_path, tab):
    """A run by somebody who means ill with all text in it."""
    folder = shutil.copytree(run, tmp_path / "hostile")
    checkpoint = folder / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    settings = content["hyper_parameters"]
    size = len(settings["characters"])
    settings["characters"] = "".join(sorted(set("<>&\"'/\u2028\u202e{}script")))
    settings["characters"] += "".join(map(chr, range(0x4E00, 0x4E00 + size - len(settings["characters"]))))
    settings["corpus"]["name"] = settings["optimizer"]["name"] = HOSTILE
    torch.save(content, checkpoint)
    (folder / SAMPLES).write_text(json.dumps({"step": 1, "text": HOSTILE}) + "\nno json\n[]\n{}\n", encoding="utf-8")
    (folder / LOSSES).write_text("step,seconds\n1,1,nan,2.5,9\n2,2,inf,1e999,1\n<b>,1,1,1,1\n", encoding="utf-8")
    page = build_page(checkpoint)
    read, safe = Reader(page), Reader(file.read_text(encoding="utf-8"))
    assert read.tags == safe.tags  # the same elements, and the same scripts by their hashes
    facts = json.loads(read.scripts["data"])
    assert (facts["name"], facts["samples"], facts["curve"]) == (Path(HOSTILE).name, [[1, HOSTILE]], [[1, None, 2.5]])
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    opened(tab, tmp_path / "page.html")
    assert tab.inner_text("h1") == "A model of script><img src=x onerror=alert(2)>&lt;\\u2028\\u202e{{script}}"
    assert tab.inner_text("#sample") == HOSTILE.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e")
    write(tab, prompt="<script>")
    assert tab.inner_text("#text").startswith("<script>")
    assert tab.locator("img").count() == 0


def test_a_model_with_an_option_that_the_page_lacks_is_refused(run, monkeypatch):
    """Such as a field that somebody adds to the model alone."""
    config = dataclasses.make_dataclass("Config", [("novel", str, "yes")], bases=(GPTConfig,))
    monkeypatch.setitem(MODEL_CONFIGS, "gpt", config)
    with pytest.raises(UserError, match=r"page/model\.js does not know model\.novel"):
        build_page(run / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize("config", [GPTConfig(), BigramConfig()], ids=lambda config: config.name)
def test_the_page_knows_every_option(config):
    """A new option belongs into `OPTIONS` of model.js, and is used there unless it matters in training only."""
    check_options(config)
    source = (ROOT / "chargpt" / "page" / "model.js").read_text(encoding="utf-8")
    for field in dataclasses.fields(config):
        assert field.name in {"dropout", "zero_init"} or len(re.findall(rf"\b{field.name}\b", source)) > 1, field.name


@pytest.fixture
def page(file, tab):
    """The page of the run, open and ready."""
    return opened(tab, file)


def test_it_writes(page):
    assert "computes what PyTorch computed" in page.inner_text("#proof")
    first = write(page, prompt="1 green", length="80")
    assert first.startswith("1 green")
    assert len(first) == 87
    assert page.locator("#text .prompt").count() == 7
    assert write(page) == first
    page.click("#again")
    written(page)
    assert text_of(page) != first
    assert page.input_value("#seed") == "2"
    page.click("#more")
    written(page)
    assert len(text_of(page)) == 167
    gaps = page.evaluate("""() => {
        const boxes = [...document.querySelectorAll('#text span')].map((span) => span.getBoundingClientRect());
        return boxes.slice(1).flatMap((box, n) => box.top === boxes[n].top ? [box.left - boxes[n].right] : []);
    }""")
    assert gaps
    assert max(map(abs, gaps)) < 0.1  # each character is an element, and the text reads as one


def test_a_write_while_another_is_at_work(page):
    """However quickly buttons are pressed, the text is the one that was asked for last."""
    page.fill("#length", "300")
    page.dblclick("#go")
    written(page)
    expected = text_of(page)
    assert len(expected) == 301
    page.fill("#seed", "8")
    page.click("#go")
    for _ in range(2):
        page.wait_for_selector("#text span:nth-child(50)")
        page.click("#again")
    assert write(page, seed="1") == expected


def test_heads_are_switched_while_it_writes(page):
    """The length and the selection stay; without all heads, and with them again."""
    before = write(page, prompt="1 green", length="300")
    page.click("#text span:nth-child(100)")
    for n in (3, 0):
        page.click(f"#heads button >> nth={n}")
        page.uncheck("#head-on")
    assert page.inner_text("#how-many-off") == "2 heads are switched off."
    written(page)
    assert page.inner_text("#character-title").startswith("Character 100:")
    assert len(text_of(page)) == len(before)
    page.click("#all-on")
    written(page)
    assert text_of(page) == before
    assert not page.is_visible("#heads-off")


def test_going_on_past_a_text_to_stop_at(page):
    page.click("summary >> nth=0")
    first = write(page, "Found", length="300", stop_at="↵")
    assert first.count("\n") == 1  # it begins with one
    page.click("#more")
    written(page, "Found|Done")
    assert text_of(page).startswith(first + "\n")


def test_a_prompt_longer_than_the_window_on_a_phone(page):
    page.set_viewport_size({"width": 320, "height": 700})
    write(page, prompt="1 green bottles hanging on the wall, and 7 fell.", length="5")
    page.wait_for_selector("#text span:nth-child(16):is(.s0, .s1, .s2, .s3, .s4, .s5, .s6)")
    page.click("#text span:nth-child(3)")
    page.wait_for_selector("#heads button")
    assert "probability" in page.inner_text("#probability")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 320


def test_wrong_fields_and_values_between_steps(page):
    page.fill("#prompt", "1 é\u202e")
    page.click("#go")
    assert "these characters of the prompt: \u2068é\u2069 (U+00E9), U+202E." in page.inner_text("#error")
    page.fill("#prompt", "")
    page.click("summary >> nth=0")
    for field, wrong, value in (("temperature", "-1", "0.8312"), ("length", "", "500"), ("seed", "", "1")):
        page.fill(f"#{field}", wrong)
        page.click("#go")
        assert page.is_visible("#error")
        assert text_of(page) == ""
        page.fill(f"#{field}", value)
    write(page, top_p="0.955", top_k="3")
    assert not page.is_visible("#error")


def test_stop_and_the_samples_along_the_curve(page):
    page.fill("#length", "100000")
    page.click("#go")
    page.wait_for_selector("#text span:nth-child(50)")
    page.click("#halt")
    written(page, "Stopped")
    assert 50 <= len(text_of(page)) < 100_000
    assert page.text_content("#sample-step") == "60"
    last = page.inner_text("#sample")
    page.focus("#sample-choice")
    page.keyboard.press("Home")
    assert page.text_content("#sample-step") == "20"
    assert page.inner_text("#sample") != last


def test_a_character_is_explained_and_changed(page):
    before = write(page, prompt="1 green", length="60")
    page.hover("#text span:nth-child(20)")
    assert "bits" in page.inner_text("#tip")
    page.click("#text span:nth-child(20)")
    page.wait_for_selector("#heads button")
    assert page.locator("#heads button").count() == 4
    assert page.locator("#likeliest li").count() in (5, 6)  # the chosen one has a row where it is not among the five
    assert page.locator("#likeliest .chosen").count() == 1
    page.click("#heads button >> nth=3")
    assert page.inner_text("#enlarged-title") == "Enlarged: layer 2, head 2"
    assert page.locator("#text .a6").count() >= 1
    page.click("#text span:nth-child(5)")
    page.fill("#change", "b")
    page.click("#apply")
    written(page)
    after = text_of(page)
    assert after.startswith("1 grben")
    assert len(after) == len(before)
    assert page.input_value("#prompt") == "1 grben"


def test_by_keyboard(page):
    page.fill("#length", "30")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    written(page)
    page.focus("#text")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#character-title").startswith("Character 2:")
    assert "%" in page.text_content("#spoken-character")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#heads button")
    page.focus("#heads button")
    page.keyboard.press("Enter")
    assert page.is_visible("#enlarged")
    page.keyboard.press("Escape")
    assert not page.is_visible("#character")
    assert page.text_content("#spoken").strip()


def open_bigram(tab, folder, order, *options):
    """Open the page of a bigram in which each character is followed by the next one in `order`."""
    checkpoint = bigram(folder / "a.ckpt", "".join(sorted(set(order))), order)
    assert main(["--ckpt", str(checkpoint), "--out", str(folder / "page.html"), *options]) == 0
    return opened(tab, folder / "page.html")


def test_the_tooltip_of_letters_from_right_to_left(tab, tmp_path):
    """Each letter stands before its own probability."""
    page = open_bigram(tab, tmp_path, "אבגדהא")
    write(page, prompt="א")
    page.hover("#text span:nth-child(3)")
    places = page.evaluate("""() => {
        const text = document.querySelector("#tip").firstChild;
        const range = document.createRange();
        return [...text.data].flatMap((each, n) => {
            range.setStart(text, n);
            range.setEnd(text, n + 1);
            const { top, left } = range.getBoundingClientRect();
            return /[א-ה%]/.test(each) ? [[Math.round(top), left]] : [];
        });
    }""")
    assert len(places) >= 4
    assert places == sorted(places)


def test_damaged_weights_are_noticed(file, tmp_path, tab):
    page = file.read_text(encoding="utf-8")
    weights = Reader(page).scripts["weights"]
    half = len(weights) // 8 * 4
    (tmp_path / "page.html").write_text(page.replace(weights[:half], "MMMM" * (half // 4)), encoding="utf-8")
    assert "does not compute what PyTorch computed" in opened(tab, tmp_path / "page.html").inner_text("#proof")


def test_a_bigram_in_int8(tab, tmp_path):
    page = open_bigram(tab, tmp_path, "abca", "--weights", "int8")
    assert "computes what PyTorch computed" in page.inner_text("#proof")
    assert write(page, prompt="a").startswith("abcabc")
    page.click("#text span:nth-child(9)")
    page.wait_for_selector("#about-attention:has-text('A bigram has no attention')")


@pytest.mark.processes
def test_in_firefox(file, tmp_path):
    """Where the numbers, the worker and the policy are another program's."""
    script = """(async () => {
        const at = (selector) => document.querySelector(selector);
        const until = async (holds) => { while (!holds()) await new Promise((wait) => setTimeout(wait, 50)); };
        await until(() => !at("#go").disabled);
        at("#go").click();
        await until(() => at("#status").textContent.startsWith("Done"));
        at("#text span:nth-child(9)").click();
        await until(() => document.querySelectorAll("#heads button").length === 4);
        return at("#proof").textContent + at("#text").childElementCount;
    })()"""
    found = run_in_firefox(tmp_path / "profile", file.as_uri(), script)
    assert "computes what PyTorch computed" in found
    assert found.endswith("501")


def test_what_is_refused(run, bytes_run, tmp_path):
    for inside in (run / LOSSES, run / "checkpoints" / "best.ckpt"):
        assert main(["--ckpt", str(run), "--out", str(inside)]) == 2  # no HTML file: it is not replaced
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["state_dict"]["net.lm_head.bias"][0] = 1e30
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(NonFiniteError):
        build_page(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="is a model of bytes, and the page shows models of characters"):
        build_page(bytes_run / "checkpoints" / "best.ckpt")


def test_int8_uses_all_of_its_range():
    weight = torch.randn(3, 50) * torch.tensor([[1e-3], [1.0], [50.0]])
    packed = pack({"w": weight}, "int8")
    assert len(packed.content) == 3 * 4 + 3 * 50  # a scale for each row, and a byte for each weight
    error = (packed.rounded["w"] - weight).abs().amax(1)
    assert (error <= 1.001 * weight.abs().amax(1) / 254).all()  # half of a step
