"""The page's JavaScript against PyTorch's numbers."""

import base64

import pytest
import torch
from helpers import OPTIONS, plain_attention

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
    tab.evaluate("""() => {
        window.loaded = (config, size, base64, tensors) =>
            window.model = buildModel(config, size, unpack(fromBase64(base64), tensors));
    }""")
    return tab


def made(config) -> GPT | Bigram:
    """A model with other numbers than at initialization."""
    torch.manual_seed(0)
    model = GPT(config, V) if isinstance(config, GPTConfig) else Bigram(config, V)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model.eval()


def load(scripts, model, kind="fp16"):
    """Put a model into the browser, and give it the rounded weights here, too."""
    packed = pack(model.state_dict(), kind)
    model.load_state_dict(packed.rounded)
    content = base64.b64encode(packed.content).decode()
    config = vars(model.config)
    scripts.evaluate(
        "([config, size, bytes, tensors]) => { loaded(config, size, bytes, tensors) }",
        [config, V, content, packed.tensors],
    )


@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("config", MODELS, ids=str)
@torch.no_grad()
def test_logits(scripts, config, kind):
    """Read at once, and in parts, as one character after the other is written."""
    model = made(config)
    load(scripts, model, kind)
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
    """Weights times values is what attention gives, head by head."""
    model = made(GPTConfig(**SIZES | options))
    load(scripts, model)
    seen = []
    for block in model.blocks:
        block.sa.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    ids = [3, 1, 4, 1, 5]
    model(torch.tensor([ids]))
    rows = scripts.evaluate(
        """(ids) => {
            const cache = model.newCache();
            model.read(ids, cache);
            return model.attention(cache, 4).map((row) => [...row]);
        }""",
        ids,
    )
    for n, block in enumerate(model.blocks):
        q, k, v = block.sa._split_heads(seen[n], 0)
        expected = plain_attention(q, k, v)[0, :, 4]  # (n_head, hs)
        found = torch.tensor(rows[3 * n : 3 * n + 3])  # (n_head, 5)
        torch.testing.assert_close((found[:, None] @ v[0])[:, 0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_head_that_is_switched_off_adds_nothing(scripts):
    model = made(MODELS[0])
    load(scripts, model)
    found = scripts.evaluate(
        "() => { model.headsOn[4] = 0; return Array.from(model.read([1, 2, 3, 4], model.newCache())) }"
    )
    model.blocks[1].sa.proj.weight[:, 4:8] = 0  # what the second head of the second layer, of 4 channels, is read by
    torch.testing.assert_close(
        torch.tensor(found).view(4, V), model(torch.tensor([[1, 2, 3, 4]]))[0], rtol=1e-5, atol=1e-5
    )


LOGITS = [0.5, 2.0, 2.0, 1.0, -1.0]


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"temperature": 0.5},
        {"topK": 1},
        {"topK": 3},
        {"topP": 0.4},
        {"topP": 0.8, "temperature": 2.0},
        {"temperature": 1e-300},
        {"topP": 5e-324},
    ],
    ids=str,
)
def test_choices_follow_the_distribution(scripts, choice):
    """As `chargpt.generation.next_token` has it, by its very probabilities."""
    settings = {"temperature": 1.0, "topK": None, "topP": None} | choice
    drawn = scripts.evaluate(
        """([logits, settings]) => Array.from({ length: 20000 }, (_, place) =>
            choose(logits, settings, (id) => noise(7, place, id)))""",
        [LOGITS, settings],
    )
    found = torch.bincount(torch.tensor(drawn), minlength=5).double() / len(drawn)
    given = Sampling(temperature=settings["temperature"], top_k=settings["topK"], top_p=settings["topP"])
    in_python = next_token(torch.tensor([LOGITS] * 100_000), given, torch.Generator().manual_seed(0))
    expected = torch.bincount(in_python, minlength=5).double() / len(in_python)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.015)
    assert torch.equal(found > 0, expected > 0)
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
GREEDY = {"temperature": 0, "topK": None, "topP": None, "seed": 1, "stops": [], "exact": False}


@pytest.mark.parametrize("window", ["stride", "exact"])
@pytest.mark.parametrize("prompt", [[2], [1, 2, 3, 4, 5], list(range(7)) * 3], ids=len)
@pytest.mark.parametrize("config", MODELS, ids=str)
def test_a_text_is_continued_as_in_python(scripts, config, prompt, window):
    """Past the window, too; the likeliest character each time."""
    model = made(config)
    load(scripts, model)
    settings = GREEDY | {"length": 30, "exact": window == "exact"}
    written = scripts.evaluate(WRITE, [prompt, settings, []])["text"]
    tokens = generate(model, torch.tensor([prompt]), Sampling(max_new_tokens=30, temperature=0, window=window))
    assert written == prompt + [int(token) for token in tokens]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_changed_text_is_read_as_if_it_were_new(scripts, options):
    """Whatever stays of the cache."""
    load(scripts, made(GPTConfig(**SIZES | options)))
    settings = GREEDY | {"temperature": 1, "length": 4}
    changed = [1, 2, 6, 4, 5]
    for before in ([1, 2, 3, 4, 5], [1], changed, [1, 2, 6, 4, 5, 0, 0, 0], list(range(7)) * 3):
        again = scripts.evaluate(WRITE, [before, settings, [changed]])
        new = scripts.evaluate(WRITE, [changed, settings, []])
        assert again["text"] == new["text"]
        reported = {}
        for post in again["posts"] + new["posts"]:
            if post["type"] == "read":
                for n, seen in enumerate(post["seen"]):
                    reported[post["from"] + n] = seen["probability"]
        assert set(reported) >= set(range(1, 5))


def test_going_on_is_as_if_it_had_not_ended(scripts):
    """Past the window, too."""
    load(scripts, made(MODELS[3]))
    settings = GREEDY | {"temperature": 1, "length": 25}
    whole = scripts.evaluate(WRITE, [[1, 2], settings, []])["text"]
    for cut in (3, 12, 13, 20, 26):
        first = scripts.evaluate(WRITE, [[1, 2], settings | {"length": cut - 2}, []])["text"]
        assert first == whole[:cut]
        both = scripts.evaluate(WRITE, [[1, 2], settings | {"length": cut - 2}, [first]])["text"]
        assert both[: len(whole)] == whole[: len(both)]


def test_all_of_a_long_prompt_is_looked_at(scripts):
    """The part before the window, in separate windows."""
    model = made(MODELS[2])
    load(scripts, model)
    prompt = [n * n % V for n in range(40)]  # the window has 12
    posts = scripts.evaluate(WRITE, [prompt, GREEDY | {"length": 1}, []])["posts"]
    reported = {}
    for post in posts:
        for n, seen in enumerate(post["seen"] if post["type"] == "read" else ()):
            reported[post["from"] + n] = seen
    assert sorted(reported) == list(range(1, 40))
    for place, seen in reported.items():
        context = torch.tensor([prompt[seen["start"] : place]])
        expected = model(context)[0, -1].softmax(-1)[prompt[place]].item()
        assert seen["probability"] == pytest.approx(expected, abs=1e-5)


def test_the_largest(scripts):
    numbers = [0.5, 2.0, 2.0, -1.0, 7.0] * 5
    expected = sorted(range(25), key=lambda n: (-numbers[n], n))
    for count in (1, 3, 16, 17, 25, 30):
        found = scripts.evaluate("([numbers, count]) => largest(numbers, count)", [numbers, count])
        assert found == expected[:count]


def test_what_is_unprintable(tab):
    """The same characters as on a terminal."""
    tab.goto("about:blank")
    tab.add_script_tag(content=bundle(("glyphs.js",)))
    found = tab.evaluate("""() => Array.from({ length: 0x110000 }, (_, code) => code).filter(
        (code) => (code < 0xd800 || code > 0xdfff) && isUnprintable(String.fromCodePoint(code)))""")
    assert found == [code for code in range(0x110000) if CONTROL.match(chr(code)) and not 0xD800 <= code <= 0xDFFF]


def test_stop(scripts):
    load(scripts, made(MODELS[0]))
    free = scripts.evaluate(WRITE, [[1], GREEDY | {"length": 20, "temperature": 1}, []])["text"]
    ending = free[5:7]
    done = scripts.evaluate(WRITE, [[1], GREEDY | {"length": 20, "temperature": 1, "stops": [ending]}, []])
    assert done["posts"][-1] == {"type": "done", "job": 1, "reason": "stop", "stop": ending}
    assert done["text"] == free[: len(done["text"])]
    assert done["text"][-2:] == ending
    assert len(done["text"]) <= 7
