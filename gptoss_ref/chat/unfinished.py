"""Parse a header without `<|message|>`: find its fields, and where the text begins.

Models leave `<|message|>` out (openai/harmony pull request 82), so header and text run together:

    <|channel|>commentary to=functions.f{"a":1}<|call|>
    <|channel|>final The answer is 4.<|return|>
    I must refuse<|end|>

Fields are recognised by their form. Everything else is text, except white space next to a field.
"""

from __future__ import annotations

import re

from gptoss_ref.chat.header import Header, Report, names_a_role, one_channel, read_role
from gptoss_ref.chat.messages import CHANNEL_WORDS, CHANNELS
from gptoss_ref.chat.render import CONSTRAIN

# Up to two punctuation marks may come before it: commentary? to=functions.f
_RECIPIENT = re.compile(r"\s*([?!.,:;–—-]{0,2})\s*to=\s*([A-Za-z0-9_]+(?:[.-]+[A-Za-z0-9_]+)*)\s*")
_CONSTRAINED = re.compile(rf"\s*({re.escape(CONSTRAIN)}(?:[A-Za-z]+|\s+(?:json|code)\b)?)\s*")
# A word without <|constrain|> is a type if arguments of that type follow it.
_TYPE = re.compile(r"\s*(json(?=\s*[{\[])|code(?=\s+[\w\"'#%!]))\s*")
# <|channel|> is missing too: commentary to=functions.f
_BARE_CHANNEL = re.compile(rf"\s*({'|'.join(CHANNELS)})\s+(?=to=\w)")
_CHANNEL = re.compile(r"\s*([A-Za-z_]+)")


def parse_unfinished(
    sections: list[str], role: str | None, report: Report, *, cut: bool
) -> tuple[Header, str]:
    """The header and the text after it.

    Args:
        sections, role, report: as for header.parse_header.
        cut: the tokens ended here. If the last word may be the beginning of a field, it is then not
            text.
    """
    lead, name, glued = sections[0], None, None
    first = re.match(r"\s*(\S+)", lead)
    if first and role is None:
        if cut and len(sections) == len(lead.split()) == 1:
            return Header("assistant"), ""
        addressed = re.match(r"\s*\S+\s+to=", lead) is not None
        if addressed or names_a_role(lead):
            role, name, glued = read_role(first[1], addressed, report)
            lead = lead[first.end() :].lstrip()
    elif first and first[1] == role:
        lead = lead[first.end() :].lstrip()
    fields = _Fields(report)
    texts = [fields.take(lead)] if lead.strip() or len(sections) == 1 else []
    channels = [glued] if glued else []
    if found := _BARE_CHANNEL.match(texts[0] if texts else ""):
        channels.append(found[1])
        texts = [fields.take(texts[0][found.end() :])]
    for number, section in enumerate(sections[1:], 2):
        channel, text = _channel(section)
        if channel:
            channels.append(channel)
        elif cut and number == len(sections) and _begins(section, CHANNELS):
            report(f"{section!r}, the beginning of a channel", "left out", section)
            break
        elif section.strip():
            report(f"<|channel|> before {section[:20]!r}", "the rest is text", "")
        texts.append(fields.take(text))
    text = " ".join(filter(None, texts))
    channel = one_channel(channels, len(sections) - 1, report)
    header = Header(role or "assistant", name, fields.recipient, channel, fields.content_type)
    return header, "" if cut and _begins(text, ("to=",)) else text


class _Fields:
    """Collects the first recipient and the first content type."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.recipient: str | None = None
        self.content_type: str | None = None

    def take(self, text: str) -> str:
        """Take the fields at the beginning of the text; returns the rest."""
        if self.recipient is None and (found := _RECIPIENT.match(text)):
            if found[1]:
                self._report(f"{found[1]!r} before to=", "left out", found[1])
            self.recipient, text = found[2], text[found.end() :]
        found = _CONSTRAINED.match(text) or (_TYPE.match(text) if self.recipient else None)
        if self.content_type is None and found:
            self.content_type, text = "".join(found[1].split()), text[found.end() :]
        return text


def _channel(section: str) -> tuple[str | None, str]:
    """The channel at the beginning of a section, as written, and the rest of the section."""
    found = _CHANNEL.match(section)
    if found is None:
        return None, section
    word, begin = found[1], found.start(1)
    if word.lower() in CHANNELS or word in CHANNEL_WORDS:
        return word, section[found.end() :].lstrip()
    for known in CHANNELS:  # analysisWe need to ..., commentaryto=functions.f
        rest = section[begin + len(known) :]
        if word.startswith(known) and (rest[0].isupper() or rest.startswith("to=")):
            return known, rest
    return None, section


def _begins(text: str, words: tuple[str, ...]) -> bool:
    """Whether the text is the beginning of one of these words."""
    return bool(text.strip()) and any(word.startswith(text.strip()) for word in words)
