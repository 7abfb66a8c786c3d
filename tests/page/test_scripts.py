"""The page's JavaScript against PyTorch's numbers."""

import base64
import itertools

import pytest
import torch
from helpers import OPTIONS

from chargpt.callbacks.look import attention_weights
from chargpt.errors import CONTROL
from chargpt.generation import Sampling, generate, next_token
from chargpt.model import GPT, Bigram, BigramConfig, GPTConfig
from chargpt.page.build import WORKER, bundle, pack

V = 7
SIZES = {"block_size": 12, "n_layer": 2, "n_head": 3, "n_embd": 12}
MODELS = [GPTConfig(**SIZES | options) for options in OPTIONS] + [BigramConfig(block_size=12)]


@pytest.fixture
def scripts(tab):
    """The worker's functions, to be called by `evaluate`."""
    tab.goto("about:blank")
    tab.add_script_tag(content=bundle(WORKER))
    return tab


def load(scripts, config, kind="fp16"):
    """Put a model into the browser; returns it with the same rounded weights, not those of initialization."""
    torch.manual_seed(0)
    model = GPT(config, V) if isinstance(config, GPTConfig) else Bigram(config, V)
    packed = pack({name: w + torch.randn_like(w) * 0.3 for name, w in model.state_dict().items()}, kind)
    model.load_state_dict(packed.rounded)
    content = base64.b64encode(packed.content).decode()
    scripts.evaluate(
        """([config, size, base64, tensors]) => {
            window.model = buildModel(config, size, unpack(fromBase64(base64), tensors));
        }""",
        [vars(config), V, content, packed.tensors],
    )
    return model.eval()


@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("config", MODELS, ids=str)
@torch.no_grad()
def test_logits(scripts, config, kind):
    """Read at once, and in parts, as one character after the other is written."""
    model = load(scripts, config, kind)
    ids = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0, 6]
    expected = model(torch.tensor([ids]))[0]
    for parts in ([12], [1] * 12, [5, 1, 4, 2]):
        logits = scripts.evaluate(
            """([ids, parts]) => {
                const cache = model.newCache();
                return parts.flatMap((size) => Array.from(model.read(ids.splice(0, size), cache)));
            }""",
            [ids, parts],
        )
        torch.testing.assert_close(torch.tensor(logits).view(12, V), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_attention(scripts, options):
    """What the last of five characters attends to, head by head."""
    model, ids = load(scripts, GPTConfig(**SIZES | options)), [3, 1, 4, 1, 5]
    rows = scripts.evaluate(
        """(ids) => {
            const cache = model.newCache();
            model.read(ids, cache);
            return model.attention(cache, 4).map((row) => [...row]);
        }""",
        ids,
    )
    expected = torch.cat([weights[0, :, 4] for weights in attention_weights(model, torch.tensor([ids]))])
    torch.testing.assert_close(torch.tensor(rows), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_head_that_is_switched_off_adds_nothing(scripts):
    model = load(scripts, MODELS[0])
    found = scripts.evaluate(
        "() => { model.headsOn[4] = 0; return Array.from(model.read([1, 2, 3, 4], model.newCache())) }"
    )
    model.blocks[1].sa.proj.weight[:, 4:8] = 0  # what the second head of the second layer, of 4 channels, is read by
    torch.testing.assert_close(
        torch.tensor(found).view(4, V), model(torch.tensor([[1, 2, 3, 4]]))[0], rtol=1e-5, atol=1e-5
    )


LOGITS = [0.5, 2.0, 2.0, 1.0] + [-1.0] * 16  # those that are equal are in the order of their ids


CHOICES = [
    *({}, {"temperature": 0.5}, {"topK": 1}, {"topK": 3}, {"topP": 0.4}, {"topP": 0.8, "temperature": 2.0}),
    *({"temperature": 1e-300}, {"topP": 5e-324}),
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_choices_follow_the_distribution(scripts, choice):
    """As `chargpt.generation.next_token` has it, by its very probabilities."""
    settings = {"temperature": 1.0, "topK": None, "topP": None} | choice
    drawn = scripts.evaluate(
        """([logits, settings]) => Array.from({ length: 20000 }, (_, place) =>
            choose(logits, settings, (id) => noise(7, place, id)))""",
        [LOGITS, settings],
    )
    given = Sampling(temperature=settings["temperature"], top_k=settings["topK"], top_p=settings["topP"])
    in_python = next_token(torch.tensor([LOGITS] * 40_000), given, torch.Generator().manual_seed(0))
    found, expected = (torch.bincount(x, minlength=20) / len(x) for x in (torch.tensor(drawn), in_python))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.015)
    assert torch.equal(found > 0, expected > 0)


def test_the_likeliest(scripts):
    assert scripts.evaluate("(logits) => choose(logits, { temperature: 0, topK: null, topP: null }, null)", LOGITS) == 1


def test_noise(scripts):
    """Spread evenly, and of one place or character independent of the next."""
    drawn = scripts.evaluate("""() => [0, 1, 4294967295].flatMap((seed) => Array.from({ length: 4000 }, (_, n) =>
        [noise(seed, n, 0), noise(seed, n + 1, 0), noise(seed, n, 1), noise(seed + 1, n, 0)]))""")
    table = torch.tensor(drawn, dtype=torch.float64)
    assert 0 < table.min() < 0.001
    assert 0.999 < table.max() < 1
    for shard in table.split(4000):
        torch.testing.assert_close(shard.mean(0), torch.full((4,), 0.5, dtype=torch.float64), rtol=0, atol=0.03)
        assert (torch.corrcoef(shard.T) - torch.eye(4)).abs().max() < 0.06


def test_float16(scripts):
    """All of its finite numbers, one by one."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    halves = bits.view(torch.float16)
    finite = halves[halves.isfinite()].clone()
    content = base64.b64encode(finite.numpy().tobytes()).decode()
    found = scripts.evaluate(
        """([content, size]) => {
            const tensors = [{ name: "w", shape: [size], kind: "fp16", offset: 0 }];
            return Array.from(unpack(fromBase64(content), tensors).w);
        }""",
        [content, len(finite)],
    )
    assert torch.equal(torch.tensor(found), finite.float())


WRITE = """async ([prompt, settings, changes]) => {
    const posts = [];
    const writer = new Writer((message) => posts.push(message), async () => {});
    writer.model = model;
    writer.cache = model.newCache();
    [writer.text, writer.begin] = [[], 0];
    const heads = Array.from(model.headsOn);
    await writer.write({ job: 1, ids: prompt, settings, heads });
    for (const ids of changes) await writer.write({ job: 2, ids, settings, heads });
    return { posts, text: writer.text };
}"""


def write(scripts, prompt, *changes, **settings):
    """A text and the messages of the worker; with changes, each is the text to go on from after the one before it."""
    likeliest = {"temperature": 0, "topK": None, "topP": None, "seed": 1, "stops": [], "exact": False}
    return scripts.evaluate(WRITE, [prompt, likeliest | settings, changes])


def reported(posts):
    """What the messages say of each place in the text."""
    posts = [post for post in posts if post["type"] == "read"]
    return {post["from"] + n: seen for post in posts for n, seen in enumerate(post["seen"])}


@pytest.mark.parametrize("config", MODELS, ids=str)
def test_a_text_is_continued_as_in_python(scripts, config):
    """Past the window, too; the likeliest character each time."""
    model = load(scripts, config)
    for prompt, window in itertools.product(([2], [1, 2, 3, 4, 5], list(range(7)) * 3), ("stride", "exact")):
        written = write(scripts, prompt, length=30, exact=window == "exact")["text"]
        tokens = generate(model, torch.tensor([prompt]), Sampling(max_new_tokens=30, temperature=0, window=window))
        assert written == prompt + [int(token) for token in tokens], (prompt, window)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_changed_text_is_read_as_if_it_were_new(scripts, options):
    """Whatever stays of the cache."""
    load(scripts, GPTConfig(**SIZES | options))
    changed = [1, 2, 6, 4, 5]
    new = write(scripts, changed, temperature=1, length=4)
    for before in ([1, 2, 3, 4, 5], [1], changed, [1, 2, 6, 4, 5, 0, 0, 0], list(range(7)) * 3):
        again = write(scripts, before, changed, temperature=1, length=4)
        assert again["text"] == new["text"]
        assert set(reported(again["posts"] + new["posts"])) >= set(range(1, 5))


def test_going_on_is_as_if_it_had_not_ended(scripts):
    """Past the window, too."""
    load(scripts, MODELS[3])
    whole = write(scripts, [1, 2], temperature=1, length=25)["text"]
    for cut in (3, 12, 13, 20, 26):
        first = write(scripts, [1, 2], temperature=1, length=cut - 2)["text"]
        assert first == whole[:cut]
        both = write(scripts, [1, 2], first, temperature=1, length=cut - 2)["text"]
        assert both[: len(whole)] == whole[: len(both)]


def test_all_of_a_long_prompt_is_looked_at(scripts):
    """The part before the window, in separate windows."""
    model = load(scripts, MODELS[2])
    prompt = [n * n % V for n in range(40)]  # the window has 12
    places = reported(write(scripts, prompt, length=1)["posts"])
    assert sorted(places) == list(range(1, 40))
    for place, seen in places.items():
        context = torch.tensor([prompt[seen["start"] : place]])
        expected = model(context)[0, -1].softmax(-1)[prompt[place]].item()
        assert seen["probability"] == pytest.approx(expected, abs=1e-5)


def test_what_is_unprintable(tab):
    """The same characters as on a terminal."""
    tab.goto("about:blank")
    tab.add_script_tag(content=bundle(("glyphs.js",)))
    found = tab.evaluate("""() => Array.from({ length: 0x110000 }, (_, code) => code).filter(
        (code) => (code < 0xd800 || code > 0xdfff) && isUnprintable(String.fromCodePoint(code)))""")
    assert found == [code for code in range(0x110000) if CONTROL.match(chr(code)) and not 0xD800 <= code <= 0xDFFF]


def test_stop(scripts):
    load(scripts, MODELS[0])
    free = write(scripts, [1], length=20, temperature=1)["text"]
    ending = free[5:7]
    done = write(scripts, [1], length=20, temperature=1, stops=[ending])
    assert done["posts"][-1] == {"type": "done", "job": 1, "reason": "stop", "stop": ending}
    assert done["text"] == free[: len(done["text"])]
    assert done["text"][-2:] == ending
    assert len(done["text"]) <= 7
