"""Check a rendering: ``gr.verify.harmony(conversation, ids_or_text)``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from gptoss_ref.chat.tokenizer import Tokenizer, o200k_harmony
from gptoss_ref.errors import HarmonyError
from gptoss_ref.verify.rendering.conversation import Conversation, as_conversation
from gptoss_ref.verify.rendering.explain import Case
from gptoss_ref.verify.rendering.pieces import from_ids, from_text, text_of, to_ids
from gptoss_ref.verify.rendering.report import RenderingReport, judge

MAX_RENDERED = 4 << 20
"""Largest size of a rendering, in characters or tokens."""

_DATE = re.compile(r"^Current date: (\d{4}-\d\d-\d\d)\n", re.MULTILINE)
_TODAY = "2026-01-01"


def harmony(
    conversation: Any,
    rendered: str | Iterable[int],
    *,
    next_role: str | None = "assistant",
    training: bool = False,
    tokenizer: Tokenizer | None = None,
) -> RenderingReport:
    """Find the bugs in a rendering of a conversation.

    >>> from gptoss_ref.verify import harmony
    >>> said = {"messages": [{"role": "user", "content": "Hello"}], "date": "2025-06-28"}
    >>> theirs = "<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n"
    >>> harmony(said, theirs).causes[0].name
    'chatml'

    Args:
        conversation: messages of :mod:`gptoss_ref.chat`, or plain data: a request of a chat API
            (``messages``, ``tools``, ``reasoning_effort``), or messages in the format of
            openai-harmony.
        rendered: the text of the prompt with special tokens spelt out, or its token ids. Ids are
            better: in a text, the words ``<|end|>`` of a user look like the token.
        next_role: role of the message that the rendering should open at its end; None: none.
        training: whether it is a training example, whose last answer ends with ``<|return|>``.
        tokenizer: of the ids; None: that of the released models.

    Returns:
        A report with ``causes``, each with a ``name``; empty if nothing is wrong.

    Raises:
        HarmonyError: an invalid conversation, or a rendering of more than 4 Mi characters.
        TokenError: an unknown token id.
    """
    said = as_conversation(conversation)
    case, notes = case_of(said, rendered, next_role=next_role, training=training, with_=tokenizer)
    return judge([case], notes=notes)


def case_of(
    conversation: Conversation,
    rendered: str | Iterable[int],
    *,
    next_role: str | None = "assistant",
    training: bool = False,
    with_: Tokenizer | None = None,
) -> tuple[Case, list[str]]:
    """A case for the search, and notes on its tokens.

    Raises:
        HarmonyError: the rendering is too long.
        TokenError: an unknown token id.
    """
    notes: list[str] = []
    if isinstance(rendered, str):
        spelt, size = True, len(rendered)
        observed = from_text(rendered) if size <= MAX_RENDERED else ()
    else:
        ids = list(rendered)
        spelt, size = False, len(ids)
        tokenizer = with_ or o200k_harmony()
        observed = from_ids(ids, tokenizer) if size <= MAX_RENDERED else ()
        if observed and to_ids(observed, tokenizer) != ids and not _piecewise(ids, tokenizer):
            notes.append(
                f"{conversation.title}: the same text has other tokens with the merges of "
                f"{tokenizer.name}"
            )
    if size > MAX_RENDERED:
        raise HarmonyError(f"a rendering of {size} units: expected at most {MAX_RENDERED}")
    found = _DATE.search(text_of(observed))
    messages = conversation.on(found[1] if found else _TODAY)
    return Case(conversation.title, messages, observed, spelt, next_role, training), notes


def _piecewise(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the texts consist of separately encoded pieces, as headers do."""
    run: list[int] = []
    for token in [*ids, tokenizer.special_id("end")]:
        if not tokenizer.is_special(token):
            run.append(token)
            continue
        text = tokenizer.decode(run)
        if tokenizer.encode(text) != run and text.count(" ") + text.count(":") <= 4:
            cut = [part for part in re.split(r"(?=[ :])", text) if part]
            if [t for part in cut for t in tokenizer.encode(part)] != run:
                return False
        elif tokenizer.encode(text) != run:
            return False
        run = []
    return True
