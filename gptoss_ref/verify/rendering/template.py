"""Check a chat template, or the folder of a transformers tokenizer.

A template is an untrusted program: it runs in jinja2's sandbox, in a separate process with limits
on time, memory and output (template_worker.py). Needs jinja2 (extra: verify).
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

from gptoss_ref._extras import install_line
from gptoss_ref.chat.hf_tokenizer import read_tokenizer_json
from gptoss_ref.chat.tokenizer import Tokenizer
from gptoss_ref.errors import GptOssError, HarmonyError
from gptoss_ref.verify.rendering.check import case_of
from gptoss_ref.verify.rendering.conversation import Conversation
from gptoss_ref.verify.rendering.conversations import check_conversations
from gptoss_ref.verify.rendering.explain import Case
from gptoss_ref.verify.rendering.report import RenderingReport, judge

DATE = "2026-01-02"
"""The date that the template gets."""

SECONDS = 20
"""Time limit in seconds for all conversations together."""

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
    """Find the bugs of a Jinja chat template.

    Args:
        template: its text.
        conversations: the conversations to render; None: those of this package. As in transformers,
            the template gets the arguments of calls as objects. The check also tries arguments as
            text, as chat APIs and servers give them, and notes differences.
        tokenizer: of the model, to check token ids as well: special tokens in texts are recognised,
            as in transformers' tokenizers.
        seconds: time limit for everything.

    Raises:
        HarmonyError: the template is invalid or unsafe, takes too long or writes too much; or a
            conversation is in Harmony's format instead of that of chat APIs.
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
                    f"If a call's arguments are text, as in chat APIs: {cause.name}: "
                    f"{cause.summary}"
                )
    return judge(cases, refused, notes)


def check_template_file(
    path: str | Path, conversations: Sequence[Conversation] | None = None
) -> RenderingReport:
    """:func:`check_template` for a file.

    Raises:
        HarmonyError: the file cannot be read or is too large; also the errors of `check_template`.
    """
    return check_template(_read(Path(path)), conversations)


def check_tokenizer_folder(
    folder: str | Path, conversations: Sequence[Conversation] | None = None
) -> RenderingReport:
    """:func:`check_template` for the folder of a transformers tokenizer, with its token ids.

    Raises:
        HarmonyError: the folder has no chat template; also the errors of `check_template`.
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
        if isinstance(told, list):  # several named templates
            named = {one.get("name"): one.get("template") for one in told}
            told = named.get("default") or next(iter(named.values()), None)
        if isinstance(told, str):
            template = told
        else:
            raise HarmonyError(f"{config}: has no chat_template, and there is no {file.name}")
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
    """The renderings, and the conversations that the template refuses."""
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
    """The variables of a template.

    Raises:
        HarmonyError: the conversation is in Harmony's format.
    """
    if conversation.chat is None:
        raise HarmonyError(
            f"{conversation.title}: is in Harmony's format; expected the format of chat APIs"
        )
    data: dict[str, Any] = copy.deepcopy(dict(conversation.chat))
    for message in data["messages"]:
        for key in ("reasoning_content", "reasoning"):
            if key in message:  # the released template's name; others read reasoning_content
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
        raise GptOssError(f"jinja2 is not installed: {install_line('verify')}")
    job = {
        "template": template,
        "renderings": list(renderings),
        "date": DATE,
        "seconds": max(int(seconds), 1),
        "megabytes": MEGABYTES,
        "characters": CHARACTERS,
    }
    late = HarmonyError(f"the template takes more than {seconds:g} seconds: does it loop?")
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
            raise HarmonyError(f"the template is invalid: {answer['broken']}")
        if "unsafe" in answer:
            raise HarmonyError(f"the template is unsafe: {answer['unsafe']}")
        if "large" in answer:
            raise HarmonyError(f"the template writes more than {CHARACTERS} characters")
        if "memory" in answer:
            raise HarmonyError(f"the template takes more than {MEGABYTES} MiB of memory")
    if len(answers) != len(renderings):
        if done.returncode < 0:
            raise late
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise HarmonyError(f"the renderer crashed: {(words or ['no message'])[-1][:200]}")
    return answers
