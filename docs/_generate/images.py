"""Makes the pictures of the README: three figures, and the inspector on a desk and a phone.

    python -m docs._generate.images          # needs the extras viz and test, and Chromium

The same numbers make the same figures; screenshots differ by a few levels of 255 from run to run,
and by a pixel here and there with the fonts of a machine.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

import gptoss_ref as gr
from gptoss_ref.chat import Message, build_conversation, render_conversation
from gptoss_ref.viz import inspector
from tests.support import chromium

HERE = Path(__file__).resolve().parents[1] / "images"

LARGEST = 150_000  # bytes of a picture
QUESTION = "What is 27 + 58?"


def main() -> None:
    model = gr.load("tiny", backend="numpy")
    messages = build_conversation(QUESTION, reasoning="high")
    trace = traced(model, messages)
    figures(trace, traced(model, messages[1:]))
    # the digit that it has just written of 7+8+0=15: it is about to write the other one
    equals = model.tokenizer.encode("=")[0]
    screenshots(inspector.page(model, trace, token=trace.tokens.tolist().index(equals) + 1))


def traced(model: gr.Model, messages: list[Message]) -> gr.Trace:
    """The pass over these messages and the model's answer."""
    prompt = render_conversation(messages, model.tokenizer)
    return gr.trace(model, [*prompt, *map(int, gr.generate(model, prompt, 64))])


def figures(trace: gr.Trace, short: gr.Trace) -> None:
    """Attention with no system message, routing with it, and YaRN of the released models."""
    for name, figure in (
        ("attention", gr.viz.attention(short, 3, heads=[0, 3, 4])),
        ("routing", gr.viz.routing(trace)),
        ("yarn", gr.viz.yarn(gr.GPT_OSS_20B)),
    ):
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=100)
        save(name, drawn.getvalue())


def screenshots(page: str) -> None:
    """The same page in light, in dark, and on a phone."""
    program = chromium.find()
    if program is None:
        sys.exit(f"there is no Chromium: none of {', '.join(chromium.NAMES)} on the path")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        inspector.write(path, page)
        browser = chromium.Browser(program, Path(folder, "profile"))
        try:
            for name, scheme, width, height, scale in (
                ("inspect-light", "light", 1280, 1180, 1.0),
                ("inspect-dark", "dark", 1280, 1180, 1.0),
                ("inspect-phone", "light", 360, 740, 2.0),
            ):
                browser.viewport(width, height, scale, phone=width < 500)
                browser.scheme(scheme)
                browser.open(path)
                for part in ("#layers > :nth-child(4)", "#heads > :nth-child(2)"):
                    browser.run(f"document.querySelector({part!r}).click()")
                browser.run("document.activeElement.blur(), window.scrollTo(0, 0)")
                save(name, browser.screenshot())
        finally:
            browser.close()


def save(name: str, png: bytes) -> None:
    """Writes a picture in at most 256 colours."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small = io.BytesIO()
    picture.save(small, "PNG", optimize=True)
    size = len(small.getvalue())
    if size > LARGEST:
        sys.exit(f"{name}.png has {size} bytes: expected at most {LARGEST}")
    (HERE / f"{name}.png").write_bytes(small.getvalue())
    print(f"{name}.png: {picture.width} x {picture.height}, {size} bytes")


if __name__ == "__main__":
    main()
