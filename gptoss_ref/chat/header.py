"""Parse the header of a message: role, recipient, channel and content type.

The text between `<|start|>` and `<|message|>` is

    {role}[:{name}][ to={recipient}][<|channel|>{channel}][ to={recipient}][ {content type}]

In prompts the recipient comes before the channel; models write it before or after. The content type
may begin with `<|constrain|>`, with or without a space before it. A tool's header has the tool's
name instead of a role.

Models also write headers that break this format. `report` is called for each violation, with the
problem, the chosen reading, and the text that is in no field of the header. A strict parser
raises there. unfinished.py reads a header without `<|message|>`.

Source: openai-harmony 0.0.8. One reading differs: a single word that is neither `to=...` nor the
name of a tool, as in `final json` or `final <|constrain|>json`, is a content type here and a
recipient there (openai/harmony issue 56 and pull request 144).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gptoss_ref.chat.messages import CHANNELS, ROLES, Message
from gptoss_ref.chat.render import CONSTRAIN

Report = Callable[[str, str, str], None]
"""Called with the problem, the chosen reading, and the text that is left out."""

_BUILT_IN_TOOLS = ("python", "browser")
_TYPES = ("json", "code")
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[_-]+[A-Za-z0-9]+)+")
# misspelt `to=`; with spaces or a colon only if a tool's name follows: functions.f
_TO = re.compile(r"(?<!\S)(?i:to)(?:=|\s*[=:]\s*(?=[\w-]+\.\w))")
_GLUED = re.compile(rf"((?:{'|'.join(ROLES)})+)({'|'.join(CHANNELS)})?")


@dataclass(frozen=True)
class Header:
    """A parsed header; the fields are those of Message."""

    role: str
    name: str | None = None
    recipient: str | None = None
    channel: str | None = None
    content_type: str | None = None

    def message(self, text: str) -> Message:
        """The message with this header and this text."""
        return Message(
            self.role,
            text,
            name=self.name,
            recipient=self.recipient,
            channel=self.channel,
            content_type=self.content_type,
        )


def parse_header(sections: list[str], role: str | None, report: Report) -> Header:
    """Parse a header, given as the texts between its `<|channel|>` tokens (at least one).

    Args:
        sections: these texts.
        role: the role if it is known before the header (a completion follows
            `<|start|>assistant`); None if the header has to name it.
        report: called for each violation of the format.
    """
    sections = [_with_plain_to(section, report) for section in sections]
    lead, name, glued = _words(sections[0]), None, None
    channel, rest = _channel(sections[1:], report)
    if role is not None:
        if lead and lead[0] == role:
            lead.pop(0)
    elif not lead or lead[0].startswith("to="):
        report("a header without a role", "taken as the assistant's", "")
        role = "assistant"
    else:
        word = lead.pop(0)
        addressed = any(other.startswith("to=") for other in lead + rest)
        role, name, glued = read_role(word, addressed, report)
        if role is None:
            while lead and not lead[0].startswith(CONSTRAIN):
                word += " " + lead.pop(0)
            report(f"unknown role {word!r}", "taken as the assistant's", word)
            role = "assistant"
    recipient, content_type = _recipient_and_type(lead + rest, report)
    if channel and glued:
        report(f"{glued!r} after the role, and a channel", f"{channel!r} counts", glued)
    return Header(role, name, recipient, channel or glued, content_type)


def _with_plain_to(text: str, report: Report) -> str:
    """The text with `to=` in place of `TO=`, `to = ` and similar spellings."""

    def plain(found: re.Match[str]) -> str:
        if found[0] != "to=":
            report(f"{found[0].strip()!r} for 'to='", "taken as 'to='", "".join(found[0].split()))
        return "to="

    return _TO.sub(plain, text)


def _words(text: str) -> list[str]:
    """Split at ASCII white space, and before `<|constrain|>`."""
    return re.findall(r"[^ \t\n\r\f]+", text.strip().replace(CONSTRAIN, f" {CONSTRAIN}"))


def _channel(sections: list[str], report: Report) -> tuple[str | None, list[str]]:
    """The channel and the words after it; `sections` holds one text for each `<|channel|>`."""
    names = []
    rest = []
    for section in sections:
        name, after = re.match(r"([^\s<]*)(.*)", section, re.DOTALL).groups()  # type: ignore[union-attr]
        words = _words(after)
        if not name:
            report("<|channel|> without a name right after it", "the next word counts, if any", "")
            if words and not words[0].startswith(("to=", "<")):
                name = words.pop(0)
        elif after and not after[0].isspace() and not after.startswith(CONSTRAIN):
            report(f"{words[0]!r} right after the channel {name!r}", "read as a separate word", "")
        names += [name] if name else []
        rest += words
    return one_channel(names, len(sections), report), rest


def one_channel(names: list[str], times: int, report: Report) -> str | None:
    """The channel of a header with `times` tokens `<|channel|>`: the last known name."""
    known = [i for i, name in enumerate(names) if _known(name.lower())]
    chosen = known[-1] if known else 0
    if times > 1 or len(names) > 1:
        others = names[:chosen] + names[chosen + 1 :]
        action = f"{names[chosen]!r} counts, the last known one" if names else "there is none"
        report("more than one <|channel|> in a header", action, " ".join(others))
    if not names:
        return None
    channel = _known(names[chosen]) or names[chosen]
    if channel != names[chosen]:
        text = names[chosen].removeprefix(channel)
        report(f"channel {names[chosen]!r}", f"taken as {channel}", text)
    return channel


def _known(channel: str) -> str | None:
    """The known channel that a name means, such as `commentary` for `commentary?`; else None."""
    known = re.match(rf"({'|'.join(CHANNELS)})\b", channel)
    return known[1] if known else None


def read_role(
    word: str, addressed: bool, report: Report
) -> tuple[str | None, str | None, str | None]:
    """Role (or None), name, and a channel without a space before it, from a header's first word.

    A word that is not a role is a tool's name if it looks like one (`functions.f`, `python`,
    `get_it`) or the message is `addressed`.
    """
    role, colon, name = word.partition(":")
    if role == "tool":
        return role, word, None
    if role in ROLES:
        return role, name if colon else None, None
    if role.lower() in (*ROLES[:4], "human") and not addressed:
        meant = "user" if role.lower() == "human" else role.lower()
        report(f"unknown role {role!r}", f"taken as {meant}", role)
        return meant, name if colon else None, None
    if glued := _GLUED.fullmatch(word):
        role = next(role for role in ROLES if glued[1].endswith(role))
        if role == "tool":
            report(f"unknown role {word!r}", "taken as the name of a tool", "")
            return role, word, None
        taken = " and ".join(filter(None, (role, glued[2])))
        report(f"unknown role {word!r}", f"taken as {taken}", glued[1].removesuffix(role))
        return role, None, glued[2]
    if _is_tool(word) or addressed:
        return "tool", word, None
    if word == "functions" or _IDENTIFIER.fullmatch(word):
        report(f"unknown role {word!r}", "taken as the name of a tool", "")
        return "tool", word, None
    return None, None, None


def names_a_role(text: str) -> bool:
    """Whether a text, which may not be a header, begins with a role or a tool's name.

    Tool names are recognised only if they would hardly begin a sentence: `functions.f`, but not
    every word with a dot.
    """
    word = (text.split() or [""])[0]
    role = word.partition(":")[0]
    return (
        role in ROLES[:4]
        or (word != "tool" and bool(_GLUED.fullmatch(word)))
        or word.startswith(("functions.", "browser."))
    )


def _is_tool(word: str) -> bool:
    return "." in word or word in _BUILT_IN_TOOLS


def _recipient_and_type(words: list[str], report: Report) -> tuple[str | None, str | None]:
    """Recipient and content type, from the words that are neither role nor channel."""
    recipient = content_type = None
    plain: list[str] = []
    queue = deque(words)
    while queue:
        word = queue.popleft()
        if word.startswith("to="):
            target = word.removeprefix("to=")
            if not target:
                report("to= without a name right after it", "the next word counts, if any", "")
                follows = bool(queue) and not queue[0].startswith(("to=", CONSTRAIN))
                target = queue.popleft() if follows else ""
            elif (bare := target.strip("\"'`")) and bare != target:
                quotes = "".join(character for character in target if character in "\"'`")
                report(f"to={target}", "the name counts without its quotes", quotes)
                target = bare
            if recipient is not None or content_type is not None or plain:
                report(
                    f"to={target} after another recipient or type",
                    "the first of each kind counts",
                    f"to={target}" if recipient else "",
                )
            recipient = recipient or target or None
        elif content_type is not None:
            report(f"{word!r} after the content type", "left out", word)
        elif word.startswith(CONSTRAIN):
            if word == CONSTRAIN:
                report("<|constrain|> without a format right after it", "the next word counts", "")
                word += queue.popleft() if queue and not queue[0].startswith("to=") else ""
            content_type = word
        else:
            plain.append(word)
    if recipient is None and plain:
        behind = len(plain) - (content_type is None)
        if _is_tool(plain[0]) or behind == 1:
            recipient = plain.pop(0)
    if content_type is None and plain and (len(plain) == 1 or plain[-1] in _TYPES):
        content_type = plain.pop()
    if plain:
        text = " ".join(plain)
        report(f"unexpected {text!r} in a header", "left out", text)
    return recipient, content_type
