"""Check a chat template, or the folder of a transformers tokenizer.

The template is somebody's program: it runs in jinja2's sandbox, in a process of its own, with
limits on time, memory and output (template_worker.py). Needs jinja2 (extra: verify).
"""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gptoss_ref.chat.hf_tokenizer import read_tokenizer_json
from gptoss_ref.chat.tokenizer import Tokenizer
from gptoss_ref.errors import GptOssError, HarmonyError
from gptoss_ref.verify.rendering.check import case_of
from gptoss_ref.verify.rendering.conversation import Conversation
from gptoss_ref.verify.rendering.conversations import check_conversations
from gptoss_ref.verify.rendering.explain import Case
from gptoss_ref.verify.rendering.report import RenderingReport, judge

DATE = "2026-01-02"
"""What the template's clock says."""

SECONDS = 20
"""A template gets no more time for all conversations together."""

MEGABYTES = 1024
CHARACTERS = 1 << 20
TEMPLATE_BYTES = 1 << 20

_WORKER = Path(__file__).with_name("template_worker.py")


def check_template(
    template: str,
    conversations: Sequence[Conversation] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    seconds: float = SECONDS,
) -> RenderingReport:
    """Name the bugs of a Jinja chat template.

    Args:
        template: its text.
        conversations: what it has to render; None: those of this package. They are handed over as
            transformers does it: arguments of calls as objects. Whether the template can also take
            them as text, as chat APIs and servers have them, is tried besides, and noted.
        tokenizer: of the model, to look at token ids as well: its special tokens are recognised
            in texts, as transformers' tokenizers do.
        seconds: for everything.

    Raises:
        HarmonyError: no template, one that does unsafe things, takes too long or writes too much;
            a conversation that is Harmony's own.
        GptOssError: jinja2 is not installed.
    """
    said = check_conversations() if conversations is None else tuple(conversations)
    cases, refused, notes = _cases(template, said, True, tokenizer, seconds)
    if refused and not cases:
        raise HarmonyError(f"the template renders none of the conversations: {refused[0][1]}")
    with_calls = tuple(one for one in said if '"tool_calls"' in json.dumps(one.chat))
    if with_calls:
        texts, _, _ = _cases(template, with_calls, False, tokenizer, seconds)
        names = {cause.name for cause in judge(cases).causes}
        for cause in judge(texts).causes:
            if cause.name not in names:
                notes.append(
                    f"Given a call's arguments as text, as chat APIs have them: {cause.name}: "
                    f"{cause.summary}"
                )
    return judge(cases, refused, notes)


def check_template_file(
    path: str | Path, conversations: Sequence[Conversation] | None = None
) -> RenderingReport:
    """:func:`check_template` of a file.

    Raises:
        HarmonyError: the file cannot be read or is too large; and what `check_template` raises.
    """
    return check_template(_read(Path(path)), conversations)


def check_tokenizer_folder(
    folder: str | Path, conversations: Sequence[Conversation] | None = None
) -> RenderingReport:
    """:func:`check_template` of a tokenizer as transformers saves it, with its token ids.

    Raises:
        HarmonyError: the folder has no chat template; and what `check_template` raises.
        TokenError: its ``tokenizer.json`` cannot be read.
    """
    where = Path(folder)
    if not where.is_dir():
        raise HarmonyError(f"{folder}: expected a folder with a tokenizer")
    file, config = where / "chat_template.jinja", where / "tokenizer_config.json"
    if file.is_file():
        template = _read(file)
    elif config.is_file():
        try:
            told: Any = json.loads(_read(config)).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise HarmonyError(f"{config}: not a tokenizer's configuration: {error}") from None
        if isinstance(told, list):  # several by name
            named = {one.get("name"): one.get("template") for one in told}
            told = named.get("default") or next(iter(named.values()), None)
        if isinstance(told, str):
            template = told
        else:
            raise HarmonyError(f"{config}: has no chat_template, nor is there {file.name}")
    else:
        raise HarmonyError(f"{folder}: has neither {file.name} nor {config.name}")
    vocabulary = where / "tokenizer.json"
    tokenizer = read_tokenizer_json(vocabulary) if vocabulary.is_file() else None
    return check_template(template, conversations, tokenizer=tokenizer)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > TEMPLATE_BYTES:
            raise HarmonyError(f"{path}: more than {TEMPLATE_BYTES >> 20} MiB")
        return path.read_text("utf-8")
    except OSError as error:
        raise HarmonyError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise HarmonyError(f"{path}: not UTF-8") from None


def _cases(
    template: str,
    said: Sequence[Conversation],
    objects: bool,
    tokenizer: Tokenizer | None,
    seconds: float,
) -> tuple[list[Case], list[tuple[str, str]], list[str]]:
    """The renderings, and those that the template refuses."""
    answers = render_template(template, [variables(one, objects) for one in said], seconds=seconds)
    cases: list[Case] = []
    refused, notes = [], []
    for conversation, answer in zip(said, answers, strict=True):
        if "text" not in answer:
            refused.append((conversation.title, answer["refused"]))
            continue
        rendered: Any = answer["text"]
        if tokenizer is not None:
            rendered = tokenizer.encoding.encode(rendered, allowed_special="all")
        case, more = case_of(conversation.undated(), rendered, with_=tokenizer)
        cases.append(case)
        notes += more
    return cases, refused, notes


def variables(conversation: Conversation, objects: bool) -> dict[str, Any]:
    """What a template is called with.

    Raises:
        HarmonyError: the conversation is in Harmony's own form.
    """
    if conversation.chat is None:
        raise HarmonyError(
            f"{conversation.title}: is in Harmony's own form; a template takes that of chat APIs"
        )
    data: dict[str, Any] = copy.deepcopy(dict(conversation.chat))
    for message in data["messages"]:
        for key in ("reasoning_content", "reasoning"):
            if key in message:  # the released template's name for it; others read the first
                message.setdefault("thinking", message[key])
        if message.get("content", "") is None:
            message["content"] = ""
        for call in message.get("tool_calls") or ():
            arguments = call["function"].get("arguments", "{}")
            if objects and isinstance(arguments, str):
                with contextlib.suppress(ValueError, RecursionError):  # else the text
                    call["function"]["arguments"] = json.loads(arguments)
    kept = {k: v for k, v in data.items() if k not in ("title", "id", "format", "model", "date")}
    return {
        "tools": None,
        "add_generation_prompt": True,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        **kept,
    }


def render_template(
    template: str, renderings: Sequence[dict[str, Any]], *, seconds: float = SECONDS
) -> list[dict[str, str]]:
    """Each rendering as ``{"text": …}``, or ``{"refused": reason}``.

    Raises:
        HarmonyError: the template is broken, unsafe, too slow or writes too much.
        GptOssError: jinja2 is not installed.
    """
    if find_spec("jinja2") is None:
        raise GptOssError("jinja2 is not installed: pip install 'gptoss-ref[verify]'")
    job = {
        "template": template,
        "renderings": list(renderings),
        "date": DATE,
        "seconds": max(int(seconds), 1),
        "megabytes": MEGABYTES,
        "characters": CHARACTERS,
    }
    late = HarmonyError(f"the template was not done after {seconds:g} seconds: does it loop?")
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_WORKER)],
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=seconds + 2,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise late from None
    answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
    for answer in answers:
        if "broken" in answer:
            raise HarmonyError(f"the template cannot be read: {answer['broken']}")
        if "unsafe" in answer:
            raise HarmonyError(f"the template does what it must not: {answer['unsafe']}")
        if "large" in answer:
            raise HarmonyError(f"the template writes more than {CHARACTERS} characters")
        if "memory" in answer:
            raise HarmonyError(f"the template takes more than {MEGABYTES} MiB of memory")
    if len(answers) != len(renderings):
        if done.returncode < 0:
            raise late
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise HarmonyError(f"the template ended the renderer: {(words or ['no word'])[-1][:200]}")
    return answers
