"""The header of a message: who speaks, to whom, in which channel, in what format.

Between `<|start|>` and `<|message|>` stands

    {role}[:{name}][ to={recipient}][<|channel|>{channel}][ to={recipient}][ {content type}]

where the recipient may come before the channel (prompts) or after it (what models write), and the
content type may begin with `<|constrain|>`, with or without a space before it. A tool's header has
its name in place of a role. Models also write headers that do not follow this, so each departure
goes through `report`: a strict parser raises there, a tolerant one notes it and takes the reading
chosen here.

Source of the plain readings: openai-harmony 0.0.8. It differs in one: a single word that is neither
`to=…` nor the name of a tool, as in `final json` or `final <|constrain|>json`, is a content type
here and a recipient there (openai/harmony issue 56 and pull request 144).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from gptoss_ref.chat.messages import CHANNELS, ROLES, Message
from gptoss_ref.chat.render import CONSTRAIN

Report = Callable[[str, str], None]
"""Called with what is wrong, and what is done about it."""

_BUILT_IN_TOOLS = ("python", "browser")
_GLUED = re.compile(rf"((?:{'|'.join(ROLES)})+)({'|'.join(CHANNELS)})?")


@dataclass(frozen=True)
class Header:
    """What a header says; the fields are those of Message."""

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
    """The header whose text, cut at the `<|channel|>` tokens, is `sections` (at least one).

    Args:
        sections: texts between the special tokens.
        role: the role if it was settled before the header (a completion follows
            `<|start|>assistant`); None if the header has to name it.
        report: called with what departs from the format, and the reading that is taken.
    """
    lead, name, glued = _words(sections[0]), None, None
    channel, rest = _channel(sections[1:], report)
    if role is not None:
        if lead and lead[0] == role:
            lead.pop(0)
    elif not lead or lead[0].startswith("to="):
        report("a header without a role", "taken as the assistant's")
        role = "assistant"
    else:
        word = lead.pop(0)
        addressed = any(other.startswith("to=") for other in lead + rest)
        role, name, glued = _role(word, addressed, report)
        if role is None:
            report(f"unknown role {word!r}", "taken as the assistant's")
            role = "assistant"
    recipient, content_type = _recipient_and_type(lead + rest, report)
    return Header(role, name, recipient, channel or glued, content_type)


def parse_unfinished(sections: list[str], role: str | None, report: Report) -> tuple[Header, str]:
    """A header and the text behind it, where no `<|message|>` parts them (openai/harmony pull 82).

    The header is the role, the channel, `to=…` and `<|constrain|>…`, as far as they are there; the
    text is everything else.
    """
    lead, name, channel = sections[0], None, None
    first = re.match(r"\s*(\S+)", lead)
    if role is None and first:
        addressed = re.match(r"\s*\S+\s+to=", lead) is not None
        role, name, channel = _role(first[1], addressed, report)
    role = role or "assistant"
    if first and (first[1] in (role, f"{role}:{name}", name) or channel):
        lead = lead[first.end() :]
    named = re.match(r"\s*([^\s<]+)", "".join(sections[1:]))
    after = "".join(sections[1:])
    if named:
        channel, after = _known(named[1], report), after[named.end() :]
    text, recipient, content_type = f"{lead} {after}".strip(), None, None
    if found := re.match(r"to=(\S+)\s*", text):
        recipient, text = found[1], text[found.end() :]
    if found := re.match(re.escape(CONSTRAIN) + r"\w*\s*", text):
        content_type, text = found[0].strip(), text[found.end() :]
    return Header(role, name, recipient, channel, content_type), text


def _words(text: str) -> list[str]:
    """Split at ASCII white space; `<|constrain|>` begins a word also where no space precedes it."""
    return re.findall(r"[^ \t\n\r\f]+", text.strip().replace(CONSTRAIN, f" {CONSTRAIN}"))


def _channel(sections: list[str], report: Report) -> tuple[str | None, list[str]]:
    """The channel, and the words that follow it. `sections` holds one text per `<|channel|>`."""
    if len(sections) > 1:
        report("more than one <|channel|> in a header", "the first channel named counts")
    channel = None
    rest = []
    for section in sections:
        name, after = re.match(r"([^\s<]*)(.*)", section, re.DOTALL).groups()  # type: ignore[union-attr]
        words = _words(after)
        if not name:
            report("<|channel|> without a name right after it", "the next word counts, if any")
            if words and not words[0].startswith(("to=", "<")):
                name = words.pop(0)
        elif after and not after[0].isspace() and not after.startswith(CONSTRAIN):
            report(f"{words[0]!r} right behind the channel {name!r}", "a word of its own")
        if name and channel is None:
            channel = _known(name, report)
        rest += words
    return channel, rest


def _known(channel: str, report: Report) -> str:
    """`commentary` for `commentary?` and the like; a channel of another name is left alone."""
    known = re.match(rf"({'|'.join(CHANNELS)})\b", channel)
    if known and known[1] != channel:
        report(f"channel {channel!r}", f"taken as {known[1]}")
        return known[1]
    return channel


def _role(word: str, addressed: bool, report: Report) -> tuple[str | None, str | None, str | None]:
    """Role (None: no such), name, and a channel glued to it, from the first word of a header.

    A word that is no role is a tool's name if it looks like one or the message is `addressed`.
    """
    role, colon, name = word.partition(":")
    if role == "tool":
        return role, word, None
    if role in ROLES:
        return role, name if colon else None, None
    if glued := _GLUED.fullmatch(word):
        role = next(role for role in ROLES if glued[1].endswith(role))
        report(f"unknown role {word!r}", f"taken as {' and '.join(filter(None, (role, glued[2])))}")
        return role, None, glued[2]
    if _is_tool(word) or addressed:
        return "tool", word, None
    return None, None, None


def _is_tool(word: str) -> bool:
    return "." in word or word in _BUILT_IN_TOOLS


def _recipient_and_type(words: list[str], report: Report) -> tuple[str | None, str | None]:
    """Recipient and content type from the words that are neither role nor channel."""
    recipient = content_type = None
    plain: list[str] = []
    queue = iter(words)
    for word in queue:
        if word.startswith("to="):
            target = word.removeprefix("to=")
            if not target:
                report("to= without a name right after it", "the next word counts, if any")
                target = next(queue, "")
            if recipient is not None or content_type is not None or plain:
                report(
                    f"to={target} behind another recipient or type", "the first of a kind counts"
                )
            recipient = recipient or target or None
        elif content_type is not None:
            report(f"{word!r} behind the content type", "left out")
        elif word.startswith(CONSTRAIN):
            if word == CONSTRAIN:
                report("<|constrain|> without a format right after it", "the next word counts")
                word += next(queue, "")
            content_type = word
        else:
            plain.append(word)
    if recipient is None and plain:
        behind = len(plain) - (content_type is None)
        if _is_tool(plain[0]) or behind == 1:
            recipient = plain.pop(0)
    if content_type is None and plain:
        content_type = plain.pop()
    if plain:
        report(f"unexpected {' '.join(plain)!r} in a header", "left out")
    return recipient, content_type
