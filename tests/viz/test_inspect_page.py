"""The inspector's page in headless Chromium: what a reader sees, clicks, types and does not run."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image as pictures

import gptoss_ref as gr
from gptoss_ref.chat import build_conversation, o200k_harmony, render_conversation
from gptoss_ref.viz import inspector
from tests.support import chromium
from tests.support.inspected import long_case, parts

pytestmark = pytest.mark.usefixtures("warm_kernels")

# Markup that acts if it is markup, control characters, right-to-left script and emoji.
NASTY = (
    "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    " \x07\x1b[31m \u202eabc\u2066 שלום عليكم 😀🦙 & e\u0301 \u0301 {{js}} ${1} <b>bold</b>"
    + " " * 70
    + "=" * 64
)

TITLE = "<script>document.title='run'</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    program = chromium.find()
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium, which CI has to install (Debian: chromium)")
        pytest.skip(f"there is no Chromium: none of {', '.join(chromium.NAMES)} on the path")
    one = chromium.Browser(program, tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def case(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A trace of a chat with its reply, and its page."""
    prompt = render_conversation(
        build_conversation("What is 27 + 58?", reasoning="high"), tiny.tokenizer
    )
    trace = gr.trace(tiny, [*prompt, *map(int, gr.generate(tiny, prompt, 64))])
    path = tmp_path_factory.mktemp("page") / "page.html"
    inspector.write(path, inspector.page(tiny, trace, token=len(prompt) + 7))
    return trace, path


@pytest.fixture
def page(browser: chromium.Browser, case: tuple[Any, Path]) -> Iterator[chromium.Browser]:
    """The page on a desk, in light; whatever is done with it, it has nothing to complain about."""
    browser.viewport(1280, 900)
    browser.scheme("light")
    browser.open(case[1])
    yield browser
    assert browser.complaints() == []
    assert browser.requests() == [case[1].as_uri()]


def chosen(page: chromium.Browser) -> tuple[int, int, int]:
    """Token, layer and head (−1: the mean) that are chosen; each list has one tab stop."""
    found = page.run(
        "['tokens', 'layers', 'heads'].map(id => {"
        "const all = [...document.querySelectorAll(`#${id} [role=option], #${id} [role=radio]`)];"
        "const is = e => (e.ariaSelected ?? e.ariaChecked) === 'true';"
        "const stops = all.filter(e => e.tabIndex === 0);"
        "return [all.findIndex(is), all.filter(is).length, stops.length, is(stops[0])]; })"
    )
    assert [row[1:] for row in found] == [[1, 1, True]] * 3
    return found[0][0], found[1][0], found[2][0] - 1


def go(page: chromium.Browser, address: str) -> None:
    """Change what follows the # of the address, and wait until the page has seen it."""
    page.run(
        "new Promise(seen => { addEventListener('hashchange', () => setTimeout(seen));"
        f"location.hash = {address!r}; }})"
    )


def texts(page: chromium.Browser, selector: str) -> list[str]:
    found: list[str] = page.run(
        f"[...document.querySelectorAll({selector!r})].map(e => e.innerText.trim())"
    )
    return found


def share(text: str) -> float:
    """The number of "4.6 %" or "<0.1 %"."""
    return float(text.removesuffix(" %").removeprefix("<")) / 100


def test_the_address_holds_what_is_chosen(page: chromium.Browser, case: tuple[Any, Path]) -> None:
    token, layer, _ = chosen(page)
    assert page.run("location.hash") == f"#token={token}&layer={layer}"
    page.click("#layers > :nth-child(4)")
    assert page.run("location.hash") == f"#token={token}&layer=3"
    go(page, "#token=7&layer=2&head=1")
    assert chosen(page) == (7, 2, 1)
    go(page, "#token=99999&layer=-1&head=x")  # out of range: what was stays
    assert chosen(page) == (7, 2, -1)


def test_what_it_says_is_in_the_trace(page: chromium.Browser, case: tuple[Any, Path]) -> None:
    """After a click on a token, on a layer and on a head."""
    trace = case[0]
    token, layer, head = 120, 3, 3
    page.run(f"document.querySelectorAll('[role=option]')[{token}].dataset.aim = 'yes'")
    page.click("[data-aim]")
    page.click(f"#layers > :nth-child({layer + 1})")
    page.click(f"#heads > :nth-child({head + 2})")
    assert chosen(page) == (token, layer, head)

    weights = trace[f"block.{layer}.attn.weights"][:, token].astype(float)
    sinks = [share(text.split()[-2]) for text in texts(page, "#heads .value")]
    np.testing.assert_allclose(sinks[1:], 1 - weights.sum(axis=1), atol=0.0051)
    np.testing.assert_allclose(sinks[0], 1 - weights.sum(axis=1).mean(), atol=0.0051)
    keys = [int(text) for text in texts(page, "#reads tbody td:first-child") if text]
    order = np.argsort(-weights[head], kind="stable")
    np.testing.assert_allclose(weights[head][keys], weights[head][order[: len(keys)]], atol=0.004)
    shown = [share(text) for text in texts(page, "#reads tbody td:last-child")]
    assert sum(shown) == pytest.approx(1, abs=0.03)  # ten percentages, each rounded
    painted = page.run(
        "[...document.querySelectorAll('.token')].map(e => +e.style.getPropertyValue('--w'))"
    )
    np.testing.assert_allclose(np.square(painted), weights[head], atol=0.004)
    unseen = page.run("[...document.querySelectorAll('.token')].map(e => e.matches('.unseen'))")
    assert unseen[token + 1 :] == [True] * (len(trace.tokens) - token - 1)

    experts = [int(text) for text in texts(page, "#experts td:first-child")]
    chosen_experts = trace[f"block.{layer}.mlp.expert_indices"][token]
    logits = np.sort(trace[f"block.{layer}.mlp.router_logits"][token])[::-1]
    assert experts[:4] == chosen_experts.tolist()
    margin = float(texts(page, "#experts tr.other td")[-1].removeprefix("−"))
    assert margin == pytest.approx(logits[3] - logits[4], rel=0.01)
    assert len(page.run("[...document.querySelectorAll('#map .on')].map(e => 1)")) == 5 * 4

    chance = np.exp(trace["logits"][token].astype(float))
    chance /= chance.sum()
    said = texts(page, "#next td:last-child")
    assert share(said[0]) == pytest.approx(chance.max(), abs=0.0051)
    assert len(texts(page, "#lens tbody tr")) == 6
    rank = int(texts(page, "#lens tbody tr:last-child td")[-1])
    assert rank == 1 + (chance > chance[trace.tokens[token + 1]]).sum()


def test_a_window_hides_what_lies_before_it(page: chromium.Browser, case: tuple[Any, Path]) -> None:
    token = chosen(page)[0]
    page.click("#layers > :nth-child(3)")
    unseen = page.run("[...document.querySelectorAll('.token')].map(e => e.matches('.unseen'))")
    assert unseen == [not token - 24 < i <= token for i in range(len(case[0].tokens))]
    assert "sees 24 tokens" in texts(page, "#attention-note")[0]


def test_all_of_it_by_keyboard(page: chromium.Browser, case: tuple[Any, Path]) -> None:
    token, layer, head = chosen(page)
    page.press("Tab")
    assert page.run("document.activeElement.role") == "option"
    page.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert chosen(page) == (token + 1, layer, head)
    where = "(e => [e.offsetLeft, e.offsetTop])(document.activeElement)"
    x, y = page.run(where)
    page.press("ArrowUp")
    above = page.run(where)
    assert abs(above[0] - x) < 60
    assert above[1] < y
    page.press("ArrowDown")
    assert page.run(where)[1] == y
    page.press("Home")
    assert chosen(page)[0] == 0
    page.press("ArrowLeft", "PageDown")
    facts = parts(case[1].read_text())[0]
    assert chosen(page)[0] == facts["messages"][1]["begin"]
    page.press("End")
    assert chosen(page)[0] == len(facts["tokens"]) - 1
    assert "Nothing came" in texts(page, "#next-note")[0]
    page.press("PageUp")
    assert chosen(page)[0] == facts["messages"][-1]["begin"]

    roles = ["button", "button", "layers", "heads"]
    focus = "(e => e.closest('#layers, #heads')?.id ?? e.localName)(document.activeElement)"
    for expected in roles:
        page.press("Tab")
        assert page.run(focus) == expected
        # the focus can be seen, on whatever it is
        assert page.run("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    page.press("ArrowDown", "ArrowDown", "ArrowUp")
    assert chosen(page)[2] == 0
    page.press("Shift+Tab", "End", "ArrowLeft")
    assert chosen(page)[1:] == (3, 0)
    page.press("Shift+Tab", " ")  # the next token, by its button
    assert chosen(page)[0] == facts["messages"][-1]["begin"] + 1
    page.press("Tab", "Tab", "Tab", "Enter")
    assert page.run("document.querySelector('details').open")


def test_every_part_has_a_role_and_a_name(page: chromium.Browser) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"]
    ]
    for expected in (
        ("listbox", "Tokens"), ("radiogroup", "Layer"), ("radiogroup", "Head"),
        ("button", "next token"), ("group", "system"), ("group", "assistant, analysis"),
    ):  # fmt: skip
        assert expected in named
    for role, name in named:
        if role in ("option", "radio", "button", "heading", "image", "listbox"):
            assert name, role
    heads = [name for role, name in named if role == "radio" and name.startswith("head 2: sink ")]
    assert re.fullmatch(r"head 2: sink <?[\d.]+ %; “.+” [\d.]+ %.*", heads[0])


def test_nothing_of_the_prompt_runs(browser: chromium.Browser, tmp_path: Path) -> None:
    """With the tokenizer of the released models, which has whole words of other scripts."""
    path = tmp_path / "nasty.html"
    model, _ = long_case(1, vocab_size=201_088)
    trace = gr.trace(model, o200k_harmony().encode(NASTY))
    inspector.write(path, inspector.page(model, trace, name=TITLE))
    browser.viewport(360, 740, phone=True)
    browser.open(path)
    time.sleep(0.1)
    assert browser.run("document.title") == f"Inside {TITLE}"
    assert browser.run("document.querySelectorAll('script').length") == 3
    assert browser.run("document.querySelectorAll('main img, #prompt img, .said b').length") == 0
    shown = "".join(browser.run("[...document.querySelectorAll('.token')].map(e => e.textContent)"))
    assert "</script><script>document.title='run'</script><img src=x" in shown
    for piece in ("\\x07", "\\x1b[31m", "שלום", "😀", "◌\u0301", "{{js}}"):
        assert piece in shown, piece
    assert not {"\u202e", "\u2066", "\x07", "\x1b"} & {*shown}
    assert browser.run("document.documentElement.scrollWidth") == 360
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    # tokens stay in order from the left, whatever their script
    lefts = browser.run(
        "[...document.querySelectorAll('.token')].map(e => [e.offsetTop, e.offsetLeft])"
    )
    assert lefts == sorted(lefts)


def test_the_policy_would_stop_a_script_that_got_in(
    browser: chromium.Browser, case: tuple[Any, Path]
) -> None:
    browser.viewport(1280, 900)
    browser.open(case[1])
    tries = browser.run(
        """[
          () => { document.body.innerHTML += '<img src="x" onerror="document.title = 1">'; },
          () => { document.body.setAttribute('onclick', 'document.title = 2'); },
          () => { const s = document.createElement('script'); s.append('document.title = 3');
                  document.body.append(s); },
          () => { location = 'javascript:document.title = 4'; },
          () => { document.body.append(Object.assign(new Image(), {src: 'https://a.invalid/'})); },
        ].map((attempt) => { try { attempt(); return 'done'; } catch (e) { return e.name; } })"""
    )
    assert tries[:2] == ["TypeError", "TypeError"]
    browser.click("h1")
    time.sleep(0.1)
    assert browser.run("document.title") == "Inside tiny"
    refused = browser.complaints()
    assert any("https://a.invalid/" in told and "violates" in told for told in refused), refused
    assert {*browser.requests()} <= {case[1].as_uri(), "https://a.invalid/"}  # asked, and refused


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900)])
def test_it_fits_the_screen_and_can_be_read(
    page: chromium.Browser, scheme: str, width: int, height: int
) -> None:
    """No sideways scrolling; text against what is behind it has the contrast of WCAG 2 AA, 4.5."""
    page.viewport(width, height, phone=width < 500)
    page.scheme(scheme)
    assert page.run("document.documentElement.scrollWidth") == width
    assert page.run("(e => e.scrollWidth - e.clientWidth)(document.querySelector('#tokens'))") == 0
    widths = page.run("[...document.querySelectorAll('.said')].map(e => e.offsetWidth)")
    assert min(widths) > 0.8 * width  # nearly all of it for the tokens
    for layer in (1, 3, 4):
        page.click(f"#layers > :nth-child({layer + 1})")
        worst = page.run(CONTRAST)
        assert worst[0] >= 4.5, worst
    picture = pictures.imread(io.BytesIO(page.screenshot()))[..., :3]
    assert (np.median(picture) > 0.5) == (scheme == "light")
    # the same weights are told apart without colour
    grey = picture @ [0.2126, 0.7152, 0.0722]
    assert grey.std() > 0.05


# The least contrast of any text: its colour on the nearest background, painted on a canvas, since
# colours may be written as color-mix().
CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const seen = new Map();
  const light = (colour) => {
    if (!seen.has(colour)) {
      canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      const part = (v) => (v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
      seen.set(colour, a < 255 ? null : 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b));
    }
    return seen.get(colour);
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const found = light(getComputedStyle(e).backgroundColor);
      if (found !== null) return found;
    }
    return 1;
  };
  let worst = [99, ''];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    if (!e.checkVisibility() || e.disabled || e.closest('script, svg')) continue;
    const [a, b] = [light(getComputedStyle(e).color), behind(e)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 200)];
  }
  return worst;
})()"""


def test_the_shade_is_where_the_weight_is(page: chromium.Browser, case: tuple[Any, Path]) -> None:
    """Pixels: the darker a token's box, the more the head reads it."""
    page.click("#layers > :nth-child(4)")
    page.click("#heads > :nth-child(5)")
    page.run("document.querySelector('#tokens').style.maxHeight = 'none'")
    page.run("window.scrollTo(0, 0)")
    picture = pictures.imread(io.BytesIO(page.screenshot()))[..., :3].mean(axis=2)
    boxes = page.run(
        "[...document.querySelectorAll('.token')].map(e => e.getBoundingClientRect())"
        ".map(b => [b.x, b.y, b.width, b.height])"
    )
    token, layer, head = chosen(page)
    weights = case[0][f"block.{layer}.attn.weights"][head, token]
    corner = []  # no letter is there
    for x, y, _, height in boxes[: token + 1]:
        corner.append(picture[round(y + height / 2) - 3, round(x) + 1])
    seen = weights[:token] > 0.01
    ranks = np.argsort(np.argsort(-np.array(corner[:token])[seen]))
    expected = np.argsort(np.argsort(weights[:token][seen]))
    assert np.corrcoef(ranks, expected)[0, 1] > 0.9


def test_the_parts_of_a_bar_are_told_apart_without_colour(page: chromium.Browser) -> None:
    """Keys are dark, the rest is light, and the sink is hatched, as one sees who sees no colour."""
    page.call("Emulation.setEmulatedVisionDeficiency", type="achromatopsia")
    page.run("window.scrollTo(0, 0)")
    picture = pictures.imread(io.BytesIO(page.screenshot()))[..., :3].mean(axis=2)
    page.call("Emulation.setEmulatedVisionDeficiency", type="none")
    seen = {}
    for name in ("keys", "rest", "sink"):
        left, top, right, bottom = page.run(
            "(b => [b.left, b.top, b.right, b.bottom].map(Math.round))"
            f"(document.querySelector('.swatch.{name}').getBoundingClientRect())"
        )
        inside = picture[top + 2 : bottom - 2, left + 2 : right - 2]
        seen[name] = float(inside.mean()), float(inside.std())
    assert seen["keys"][0] < 0.4 < 0.8 < seen["rest"][0]
    assert seen["keys"][1] < 0.02 > seen["rest"][1]
    assert seen["sink"][1] > 0.1


def test_a_browser_that_cannot_inflate_is_told_so(
    browser: chromium.Browser, case: tuple[Any, Path]
) -> None:
    script = browser.call(
        "Page.addScriptToEvaluateOnNewDocument", source="delete self.DecompressionStream"
    )
    browser.open(case[1], ready="document.querySelector('#failed')?.checkVisibility()")
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    assert "needs a browser of 2023 or later" in browser.run("document.body.innerText")


def test_many_layers_and_heads_fit_on_a_phone(browser: chromium.Browser, tmp_path: Path) -> None:
    model, tokens = long_case(
        20, num_hidden_layers=36, num_attention_heads=64, num_key_value_heads=8, num_experts=128
    )
    path = tmp_path / "deep.html"
    inspector.write(path, inspector.page(model, tokens, token=len(tokens) - 1))
    browser.viewport(360, 740, phone=True)
    browser.open(path)
    assert browser.run("document.documentElement.scrollWidth") == 360
    # what stays in sight leaves room for what it is about
    assert browser.run("document.querySelector('#prompt').offsetHeight") < 0.6 * 740
    browser.press("Tab", "Tab", "Tab", "End")
    assert chosen(browser)[1] == 35
    left, right = browser.run(
        "(b => [b.left, b.right])(document.activeElement.getBoundingClientRect())"
    )
    assert 0 <= left < right <= 360
    browser.press("Tab", "End")
    assert chosen(browser)[2] == 63
    assert browser.complaints() == []


COUNT_CHANGES = """
window.changes = 0;
new MutationObserver((records) => { window.changes += records.length; }).observe(document, {
  subtree: true, childList: true, attributes: true, characterData: true,
});
"""


def test_5000_tokens_stay_quick_and_narrow(browser: chromium.Browser, tmp_path: Path) -> None:
    """A step to another token changes each token's element a few times, not more with more tokens.

    Class, title, style, `aria-selected` and `tabindex`; and the other parts of the page.
    """
    model, tokens = long_case()
    path = tmp_path / "long.html"
    inspector.write(path, inspector.page(model, tokens, token=4990))
    browser.viewport(360, 740, phone=True)
    browser.open(path)
    assert browser.run("document.querySelectorAll('.token').length") == 5000
    assert browser.run("document.documentElement.scrollWidth") == 360
    browser.press("Tab")
    browser.run(COUNT_CHANGES)
    browser.press(*["ArrowLeft"] * 5)
    assert chosen(browser)[0] == 4985
    assert 0 < browser.run("changes") / 5 < 10 * 5000
    assert browser.complaints() == []
