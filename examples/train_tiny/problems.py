"""Problems of the tiny model's skills: the question, the answer, and the working for each effort.

Every step of a working is a small local function: a fact about two or three digits, a copy from
a position that the text itself names, or a running carry or count that is written out.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from words import random_word

EFFORTS = ("low", "medium", "high")
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Problem:
    """One question.

    ``key`` is the canonical form on which the held-out split hashes; ``working`` maps an effort
    to the analysis text (absent: no analysis); ``spelled`` marks an answer that the model
    writes letter by letter, one token each; ``expression`` is what a calculator tool is asked.
    """

    skill: str
    key: str
    question: str
    answer: str
    working: dict[str, str]
    spelled: bool = False
    expression: str = ""


def held_out(key: str) -> bool:
    """Tell whether the hash of ``key`` puts the problem into the part never trained on."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def _number(rng: random.Random, digits: int = 3) -> int:
    """Return a number whose count of digits is drawn first, long ones more often."""
    length = rng.choices(range(1, digits + 1), weights=range(1, digits + 1))[0]
    return rng.randrange(0 if length == 1 else 10 ** (length - 1), 10**length)


def _padded(*numbers: int) -> list[str]:
    width = max(len(str(n)) for n in numbers)
    return [str(n).zfill(width) for n in numbers]


def _add_columns(a: str, b: str) -> list[str]:
    """Return "7+8+0=15" for each column of two equally long numbers, ones first."""
    steps, carry = [], 0
    for x, y in zip(map(int, reversed(a)), map(int, reversed(b)), strict=True):
        total = x + y + carry
        steps.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    return steps


def _subtract_columns(a: str, b: str) -> list[str]:
    """Return "2-7-0=5-10" (a borrow) or "5-2-1=2" for each column, ones first; a >= b."""
    steps, borrow = [], 0
    for x, y in zip(map(int, reversed(a)), map(int, reversed(b)), strict=True):
        rest = x - y - borrow
        steps.append(f"{x}-{y}-{borrow}={rest % 10}{'-10' if rest < 0 else ''}")
        borrow = int(rest < 0)
    return steps


def _compare_digits(a: str, b: str) -> list[str]:
    """Return "4=4", "8>3": the digits from the left up to the first that differ."""
    steps = []
    for x, y in zip(a, b, strict=True):
        steps.append(f"{x}{'<' if x < y else '>' if x > y else '='}{y}")
        if x != y:
            break
    return steps


def _times_digit(a: str, digit: str) -> tuple[list[str], int]:
    """Return the columns "8*7+0=56" of ``a`` times one digit, ones first, and the product."""
    steps, carry = [], 0
    for x in map(int, reversed(a)):
        total = x * int(digit) + carry
        steps.append(f"{digit}*{x}+{carry}={total}")
        carry = total // 10
    return steps, int(a) * int(digit)


def add(rng: random.Random) -> Problem:
    """Return a sum of two numbers of up to three digits."""
    a, b = _number(rng), _number(rng)
    question = rng.choice(ADD).format(a=a, b=b)
    x, y = _padded(a, b)
    columns = _add_columns(x, y)
    working = {
        "medium": ",".join(columns),
        "high": "\n".join([f"{' '.join(x)} + {' '.join(y)}", *columns]),
    }
    key = f"{min(a, b)}+{max(a, b)}"
    return Problem("add", key, question, str(a + b), working, expression=f"{a}+{b}")


def subtract(rng: random.Random) -> Problem:
    """Return a difference of two numbers of up to three digits; it may be negative."""
    a, b = _number(rng), _number(rng)
    question = rng.choice(SUBTRACT).format(a=a, b=b)
    x, y = _padded(a, b)
    compared = _compare_digits(x, y)
    columns = _subtract_columns(max(x, y), min(x, y))
    working = {
        "medium": f"{','.join(compared)}:{','.join(columns)}",
        "high": "\n".join([f"{' '.join(x)} - {' '.join(y)}", *compared, *columns]),
    }
    return Problem("subtract", f"{a}-{b}", question, str(a - b), working, expression=f"{a}-{b}")


def multiply(rng: random.Random) -> Problem:
    """Return a product of two numbers of up to two digits, mostly two."""
    a, b = (rng.randrange(10, 100) if rng.random() < 0.85 else rng.randrange(10) for _ in "ab")
    question = rng.choice(MULTIPLY).format(a=a, b=b)
    high = [f"{' '.join(str(a))} * {' '.join(str(b))}"]
    medium = []
    parts = []
    for place, digit in enumerate(reversed(str(b))):
        steps, product = _times_digit(str(a), digit)
        high += [*steps, f"={product}"]
        medium.append(f"{digit}*{a}={product}")
        parts.append(product * 10**place)
    if len(parts) == 2:
        x, y = _padded(*parts)
        columns = _add_columns(x, y)
        high += [f"{x}+{y}", *columns]
        medium += [f"{x}+{y}", *columns]
    working = {"medium": ",".join(medium), "high": "\n".join(high)}
    key = f"{min(a, b)}*{max(a, b)}"
    return Problem("multiply", key, question, str(a * b), working, expression=f"{a}*{b}")


def compare(rng: random.Random) -> Problem:
    """Return two numbers of up to three digits to compare."""
    a = _number(rng)
    b = _number(rng)
    if rng.random() < 0.3:  # share the leading digits
        unit = 10 if rng.random() < 0.5 else 100
        b = a - a % unit + rng.randrange(unit)
    kind = rng.choice(("larger", "smaller", "compare"))
    x, y = _padded(a, b)
    compared = _compare_digits(x, y)
    working = {
        "medium": ",".join(compared),
        "high": "\n".join([f"{' '.join(x)} , {' '.join(y)}", *compared]),
    }
    sign = "<" if a < b else ">" if a > b else "="
    if kind == "compare":
        question, answer = rng.choice(_COMPARE), f"{a} {sign} {b}"
    elif a == b:
        question, answer = rng.choice(_LARGER if kind == "larger" else _SMALLER), "equal"
    elif kind == "larger":
        question, answer = rng.choice(_LARGER), str(max(a, b))
    else:
        question, answer = rng.choice(_SMALLER), str(min(a, b))
    key = f"{min(a, b)}?{max(a, b)}"
    return Problem("compare", key, question.format(a=a, b=b), answer, working)


def _numbered(word: str) -> list[str]:
    return [f"{letter}{i}" for i, letter in enumerate(word, 1)]


def reverse(rng: random.Random) -> Problem:
    """Return a word to reverse."""
    word = random_word(rng)
    numbered = _numbered(word)
    working = {
        "medium": " ".join(word),
        "high": f"{' '.join(numbered)}\n{' '.join(reversed(numbered))}",
    }
    question = rng.choice(_REVERSE).format(word=word)
    return Problem("reverse", f"reverse {word}", question, word[::-1], working, spelled=True)


def count(rng: random.Random) -> Problem:
    """Return a word and a letter to count in it; the letter occurs in four of five."""
    word = random_word(rng)
    letter = rng.choice(word)
    if rng.random() < 0.2:
        letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
    elif rng.random() < 0.4:
        letter = max(word, key=lambda c: (word.count(c), c))
    steps, seen = [], 0
    for numbered in _numbered(word):
        seen += numbered[0] == letter
        steps.append(f"{numbered}{letter}{seen}")  # letter, its place, what is counted, how many
    working = {"medium": " ".join(word), "high": " ".join(steps)}
    question = rng.choice(_COUNT).format(word=word, letter=letter)
    return Problem("count", f"count {letter} {word}", question, str(word.count(letter)), working)


def sort(rng: random.Random) -> Problem:
    """Return three to seven digits to sort."""
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(3, 7)))
    half = (len(digits) + 1) // 2
    grown = ["".join(sorted(digits[: i + 1])) for i in range(len(digits))]
    halves = ("".join(sorted(part)) for part in (digits[:half], digits[half:]))
    working = {"medium": ",".join(halves), "high": " ".join(grown)}
    spaced = rng.choice(("", " ", ", ")).join(digits)
    question = rng.choice(_SORT).format(digits=spaced)
    return Problem("sort", f"sort {digits}", question, "".join(sorted(digits)), working)


def talk(rng: random.Random) -> Problem:
    """Return small talk, or a question outside the skills."""
    questions, answer, thought = rng.choice(_TALK)
    question = rng.choice(questions)
    if question.endswith("{}"):
        question = question.format(random_word(rng)) + rng.choice(("?", ".", ""))
    return Problem("talk", "", question, answer, {"medium": thought, "high": thought})


SKILLS: dict[str, Callable[[random.Random], Problem]] = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "compare": compare,
    "reverse": reverse,
    "count": count,
    "sort": sort,
    "talk": talk,
}


def draw(skill: str, rng: random.Random, *, evaluation: bool) -> Problem:
    """Draw a problem of ``skill`` from the trained part or, for evaluation, the held-out one."""
    while True:
        problem = SKILLS[skill](rng)
        if skill == "talk" or held_out(problem.key) == evaluation:
            return vary(problem, rng)


def vary(problem: Problem, rng: random.Random) -> Problem:
    question = problem.question
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.08:
        question = question.rstrip("?.")
    if rng.random() < 0.04:
        question = "Please " + question[0].lower() + question[1:]
    return Problem(**{**problem.__dict__, "question": question})


ADD = (
    "What is {a} + {b}?",
    "What is {a} + {b}?",
    "What is {a}+{b}?",
    "What's {a} + {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "{a}+{b}=",
    "What is {a} plus {b}?",
    "{a} plus {b}",
    "Calculate {a} + {b}.",
    "Calculate {a} plus {b}.",
    "Compute {a} + {b}.",
    "Add {a} and {b}.",
    "Add {a} to {b}.",
    "What is the sum of {a} and {b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
)
SUBTRACT = (
    "What is {a} - {b}?",
    "What is {a} - {b}?",
    "What is {a}-{b}?",
    "What's {a} - {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} = ?",
    "{a}-{b}=",
    "What is {a} minus {b}?",
    "{a} minus {b}",
    "Calculate {a} - {b}.",
    "Calculate {a} minus {b}.",
    "Compute {a} - {b}.",
    "Subtract {b} from {a}.",
    "Take {b} away from {a}.",
    "How much is {a} - {b}?",
    "How much is {a} minus {b}?",
)
MULTIPLY = (
    "What is {a} * {b}?",
    "What is {a} * {b}?",
    "What is {a}*{b}?",
    "What is {a} x {b}?",
    "What is {a} × {b}?",
    "What's {a} * {b}?",
    "{a} * {b}",
    "{a}*{b}",
    "{a} x {b}",
    "{a} * {b} = ?",
    "{a}*{b}=",
    "What is {a} times {b}?",
    "{a} times {b}",
    "Calculate {a} * {b}.",
    "Calculate {a} times {b}.",
    "Compute {a} * {b}.",
    "Multiply {a} by {b}.",
    "Multiply {a} and {b}.",
    "What is the product of {a} and {b}?",
    "How much is {a} times {b}?",
)
_LARGER = (
    "Which is larger, {a} or {b}?",
    "Which is larger: {a} or {b}?",
    "Which number is larger, {a} or {b}?",
    "Which is bigger, {a} or {b}?",
    "Which is greater, {a} or {b}?",
    "What is larger, {a} or {b}?",
    "max({a}, {b})",
)
_SMALLER = (
    "Which is smaller, {a} or {b}?",
    "Which is smaller: {a} or {b}?",
    "Which number is smaller, {a} or {b}?",
    "Which is less, {a} or {b}?",
    "What is smaller, {a} or {b}?",
    "min({a}, {b})",
)
_COMPARE = ("Compare {a} and {b}.", "Compare {a} with {b}.", "Compare the numbers {a} and {b}.")
_REVERSE = (
    "Reverse the word {word}.",
    "Reverse the word {word}.",
    "Reverse the word '{word}'.",
    'Reverse the word "{word}".',
    "Reverse {word}.",
    "Reverse: {word}",
    "Spell {word} backwards.",
    "Write {word} backwards.",
    "What is {word} backwards?",
    "What is {word} spelled backwards?",
    "What is {word} reversed?",
)
_COUNT = (
    "How many {letter}'s are in {word}?",
    "How many {letter}'s are there in {word}?",
    "How many {letter}s are in {word}?",
    "How many {letter} are in {word}?",
    "How many {letter}'s are in the word {word}?",
    "How many times does {letter} occur in {word}?",
    "How many times does the letter {letter} appear in {word}?",
    "How many letters {letter} are in {word}?",
    "Count the letter {letter} in {word}.",
    "Count the letter {letter} in the word {word}.",
    "Count the {letter}'s in {word}.",
)
_SORT = (
    "Sort the digits {digits}.",
    "Sort the digits {digits}.",
    "Sort the digits of {digits}.",
    "Sort the digits: {digits}",
    "Sort {digits}.",
    "Put the digits {digits} in order.",
    "Put the digits {digits} in ascending order.",
    "Sort these digits: {digits}",
)
_SKILLS_LINE = (
    "I can add, subtract, multiply and compare numbers, reverse words, count letters and "
    "sort digits."
)
_TALK: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there", "Good morning", "Hello there!"),
        "Hello! " + _SKILLS_LINE,
        "A greeting.",
    ),
    (
        ("What can you do?", "Help", "What are your skills?", "How can you help me?", "help me"),
        _SKILLS_LINE,
        "They ask what I can do.",
    ),
    (
        (
            "Reply with exactly one short greeting.",
            "Say hello.",
            "Greet me.",
            "Say hi.",
            "Give me a short greeting.",
        ),
        "Hello!",
        "A greeting.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Which model are you?"),
        "I am tiny, a very small gpt-oss model.",
        "They ask who I am.",
    ),
    (
        ("Thanks", "Thank you!", "Thank you", "Thanks!", "Great, thanks."),
        "You are welcome!",
        "Thanks.",
    ),
    (
        ("Bye", "Goodbye", "Goodbye!", "See you", "Good night"),
        "Goodbye!",
        "A farewell.",
    ),
    (
        ("How are you?", "How are you today?", "How is it going?"),
        "I am fine.",
        "Small talk.",
    ),
    (
        (
            "What is the capital of {}",
            "Tell me about {}",
            "Tell me a story about {}",
            "Write a poem about {}",
            "What is {}",
            "Who is {}",
            "Where is {}",
            "Why is {}",
            "What is the weather in {}",
            "Translate {}",
            "Tell me a joke",
            "Write some code",
        ),
        "I cannot do that. " + _SKILLS_LINE,
        "Not one of my skills.",
    ),
)
