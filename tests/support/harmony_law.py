"""The law that nothing a model writes is lost, and token sequences to try it on.

python -m tests.support.harmony_law --examples 100000 --seed 1
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from gptoss_ref.chat import HarmonyParser, Message, TextDelta, o200k_harmony
from gptoss_ref.chat.reply import Collector

TOKENIZER = o200k_harmony()
SPELT = re.compile(r"<\|[a-z_0-9]+\|>")
ROLE_LETTERS = {"assistant": "n", "developer": "v", "system": "m"}  # in no other role


# --- the law --------------------------------------------------------------------------------------


def letters(texts: Iterable[str | None]) -> Counter[str]:
    """The characters of the texts, without white space and special tokens that are spelt out."""
    return Counter(
        character
        for text in texts
        for character in SPELT.sub("", text or "")
        if not character.isspace()
    )


def ordinary_text(tokens: Iterable[int]) -> str:
    """The text of the ordinary tokens; special ones part it."""
    runs: list[list[int]] = [[]]
    for token in tokens:
        if TOKENIZER.is_special(token):
            runs.append([])
        else:
            runs[-1].append(token)
    return " ".join(map(TOKENIZER.decode, runs))


def fields(messages: Iterable[Message]) -> list[str | None]:
    """The words of the headers, except roles, `to=` and `:`."""
    return [
        word for m in messages for word in (m.name, m.recipient, m.channel, m.content_type) if word
    ]


def check_remainder(left: Counter[str], messages: list[Message]) -> None:
    """What no field, text or repair holds is made of roles, `to=` and `:`, the words of headers."""
    times = {role: left[letter] for role, letter in ROLE_LETTERS.items()}
    times["user"] = left["r"] - times["developer"]
    assert sum(times.values()) <= len(messages), left
    assert min(times.values()) >= 0, left
    times |= {"to=": left["="], ":": left[":"]}
    expected = letters(word * count for word, count in times.items())
    assert left == expected, (left, expected)


def check_parser(tokens: list[int]) -> None:
    """Messages and repairs of the parser hold every token once; texts are in order."""
    parser = HarmonyParser(TOKENIZER)
    events = [event for token in tokens for event in parser.feed(token)] + parser.finish()
    texts = [message.text for message in parser.messages]
    assert "".join(texts) == "".join(e.text for e in events if isinstance(e, TextDelta))
    generated = ordinary_text(tokens)
    left = letters([generated])
    left.subtract(letters([*texts, *fields(parser.messages), *(r.text for r in parser.repairs)]))
    check_remainder(+left, parser.messages)
    assert not -left, left
    rest = iter(generated)
    for character in SPELT.sub("", " ".join(texts)):
        assert character.isspace() or character in rest, (generated, texts)


def check_reply(tokens: list[int], *, stop_at_other_roles: bool) -> None:
    """The places of the Reply hold every token once, the words of headers aside."""
    collector = Collector(TOKENIZER, stop_at_other_roles=stop_at_other_roles)
    parser = HarmonyParser(TOKENIZER)
    read = []
    for token in tokens:
        read.append(token)
        collector.feed(token)
        parser.feed(token)
        if collector.stopped:
            break
    collector.finish()
    parser.finish()
    found = collector.fields()
    places = [found["analysis"], found["commentary"], found["final"]]
    places += [call.text for call in found["tool_calls"]]
    places += [repair.text for repair in found["repairs"]]
    left = letters([ordinary_text(read)])
    left.subtract(letters([*places, *fields(parser.messages)]))
    check_remainder(+left, parser.messages)
    assert not -left, left
    # the texts hold nothing else
    own = letters(m.text for m in parser.messages if m.role == "assistant")
    assert letters(places[:3]) <= own
    if stop_at_other_roles:
        assert {message.role for message in found["messages"]} <= {"assistant"}


def check(tokens: list[int]) -> None:
    """All of it."""
    check_parser(tokens)
    check_reply(tokens, stop_at_other_roles=True)
    check_reply(tokens, stop_at_other_roles=False)


# --- sequences ------------------------------------------------------------------------------------


def spelt(text: str) -> list[int]:
    """Tokens of a text in which special tokens are spelt."""
    return TOKENIZER.encoding.encode(text, allowed_special="all")


TRUE = [
    spelt(text)
    for text in (
        "<|channel|>analysis<|message|>27 and 58 are 85.<|end|><|start|>assistant<|channel|>final"
        "<|message|>It is **85**.\n<|return|>",
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary"
        ' to=functions.get_weather <|constrain|>json<|message|>{"city": "São Paulo"}<|call|>',
        "<|channel|>commentary<|message|>I'll look.<|end|><|start|>assistant to=functions.f"
        '<|channel|>commentary json<|message|>{"a":[1,null]}<|call|>',
        "<|channel|>analysis to=python code<|message|>print('漢字 👩‍🚀')\nx = 1<|call|>",
        "<|channel|>final<|message|>A<|end|><|start|>user<|message|>B?<|end|><|start|>functions.f"
        " to=assistant<|channel|>commentary<|message|>[3]<|end|><|start|>assistant<|channel|>final"
        "<|message|>C<|return|>",
        "<|start|>system<|message|>You are Z.\n# Valid channels: x.<|end|><|start|>developer"
        "<|message|># Instructions<|end|><|start|>user:bob<|message|>Hi<|end|><|start|>assistant",
        "I must refuse that request.<|return|>",
        '<|channel|>commentary to=functions.f{"a":1}<|call|>',
        "<|channel|>analysis<|channel|>final The answer is 4.<|return|>",
    )
]
SPECIALS = [
    TOKENIZER.special_id(name)
    for name in ("start", "end", "message", "channel", "constrain", "return", "call", "endoftext")
]
WORDS = [
    spelt(text)
    for text in (
        *("assistant", "user", "system", "developer", "tool", "robot", "User", "user:bob", "human"),
        *("analysis", "commentary", "final", "Final", "thought", "??", "commentary?", "finally"),
        *(" to=functions.f", " to=g", " to=", "to=python", " functions.f", " json", " code", "{}"),
        *('{"a":1}', " I think so", "Yes", " ", "\n", "assistantcommentary", "userassistant"),
        *("to=functions.f<|constrain|>json{}", "<|start|>user<|message|>", "<|reserved_200013|>"),
        *("<|start|>assistant<|channel|>final<|message|>", "<|start|>assistanttool", "assis", ":"),
    )
]
# tokens that could spell a special one together are left out, and so is no half of a character
ORDINARY = [
    token for token in range(199_998) if not set(b"<|>") & set(TOKENIZER.token_bytes(token))
]
HALVES = [9552, 132990, *range(94, 256)]
some = st.one_of(
    st.sampled_from(SPECIALS).map(lambda token: [token]),
    st.sampled_from(WORDS),
    st.sampled_from([*HALVES, *ORDINARY[:: len(ORDINARY) // 4000]]).map(lambda token: [token]),
)


@st.composite
def mutations(draw: st.DrawFn) -> list[int]:
    """A true answer, or two of them, with tokens left out, put in, doubled, moved or cut off."""
    tokens = list(draw(st.sampled_from(TRUE)))
    if draw(st.booleans()):
        tokens += draw(st.sampled_from(TRUE))
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(tokens)))
        end = min(at + draw(st.integers(0, 3)), len(tokens))
        match draw(st.integers(0, 5)):
            case 0:
                del tokens[at:end]
            case 1:
                tokens[at:at] = draw(some)
            case 2:
                tokens[at:end] = draw(some)
            case 3:
                tokens[end:end] = tokens[at:end]
            case 4:
                to = draw(st.integers(0, len(tokens)))
                moved = tokens[at:end]
                del tokens[at:end]
                tokens[to:to] = moved
            case _:
                del tokens[at:]
    return tokens


anything = st.lists(some, max_size=14).map(lambda parts: [t for part in parts for t in part])
sequences = st.one_of(mutations(), anything)


def main() -> None:
    """The law on many sequences; a failing one is shown."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    seen: set[tuple[int, ...]] = set()

    @seed(args.seed)
    @settings(
        max_examples=args.examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(sequences)
    def law(tokens: list[int]) -> None:
        seen.add(tuple(tokens))
        check(tokens)

    law()
    print(f"{args.examples} sequences of seed {args.seed}, {len(seen)} of them different: held")


if __name__ == "__main__":
    main()
