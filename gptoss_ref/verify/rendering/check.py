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
"""Characters of a rendering, or tokens, that are looked at."""

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
    """Name the bug in somebody's rendering of a conversation.

    >>> from gptoss_ref.verify import harmony
    >>> said = {"messages": [{"role": "user", "content": "Hello"}], "date": "2025-06-28"}
    >>> theirs = "<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n"
    >>> harmony(said, theirs).causes[0].name
    'chatml'

    Args:
        conversation: messages of :mod:`gptoss_ref.chat`, or plain data: what chat APIs take
            (``messages``, ``tools``, ``reasoning_effort``), or messages as openai-harmony writes
            them.
        rendered: the text of the prompt, special tokens spelt out, or its token ids. Ids say more:
            in a text, ``<|end|>`` in a user's words cannot be told from the token.
        next_role: whose message the rendering should open at its end; None: nobody's.
        training: whether it is a training example, whose last answer ends with ``<|return|>``.
        tokenizer: of the ids; None: that of the released models.

    Returns:
        A report with ``causes``, each with a ``name``; empty when nothing is wrong.

    Raises:
        HarmonyError: a conversation that cannot be, or a rendering of more than 4 Mi characters.
        TokenError: an id that no token has.
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
    """A case for the search, and what is to be said about its tokens.

    Raises:
        HarmonyError: a rendering that is too long.
        TokenError: an id that no token has.
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
                f"{conversation.title}: the same text has other tokens by the merges of "
                f"{tokenizer.name}"
            )
    if size > MAX_RENDERED:
        raise HarmonyError(f"a rendering of {size} units: expected at most {MAX_RENDERED}")
    found = _DATE.search(text_of(observed))
    messages = conversation.on(found[1] if found else _TODAY)
    return Case(conversation.title, messages, observed, spelt, next_role, training), notes


def _piecewise(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether each text is made of pieces that were encoded one by one, as headers are."""
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
