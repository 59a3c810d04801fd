"""The Harmony part of the suite: rendering, parsing, streaming and tokenizing, and their judge.

The cases are in ``harmony.json``: their values come from openai-harmony 0.0.8, or from a rule of
the format that the case states. No code of this package computed them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from gptoss_ref.errors import GptOssError
from gptoss_ref.verify.rendering.check import harmony
from gptoss_ref.verify.rendering.conversation import conversation_from_data

FILES = ("harmony.json", "harmony.schema.json")
RESULTS = "harmony.json"
OPERATIONS = ("render", "parse", "stream", "tokenize")
MAX_BYTES = 256 << 20


@cache
def harmony_vectors() -> Mapping[str, Any]:
    """The cases and flags; see ``harmony.schema.json``."""
    data: Mapping[str, Any] = json.loads((files(__package__) / FILES[0]).read_text("utf-8"))
    return data


def harmony_files() -> dict[str, bytes]:
    """The contents of the files by name."""
    return {name: (files(__package__) / name).read_bytes() for name in FILES}


@dataclass(frozen=True)
class HarmonyFinding:
    """The result of one case.

    Attributes:
        case: the case, as in the file.
        verdict: ``"right"``, ``"wrong"`` or ``"missing"``.
        note: what is wrong, in one sentence.
        causes: names of rendering bugs that give exactly this answer.
    """

    case: Mapping[str, Any]
    verdict: str
    note: str = ""
    causes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "case": self.case["id"],
            "verdict": self.verdict,
            "note": self.note,
            "flags": list(self.case["flags"]),
            "causes": list(self.causes),
        }


@dataclass(frozen=True)
class HarmonyJudgement:
    """The findings, one for each case of the operations with answers."""

    findings: tuple[HarmonyFinding, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether something was judged and all of it is right."""
        return bool(self.findings) and all(one.verdict == "right" for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "ok": self.ok,
            "findings": [one.to_json() for one in self.findings],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for operation in OPERATIONS:
            rows = [one for one in self.findings if one.case["operation"] == operation]
            if not rows:
                continue
            right = sum(one.verdict == "right" for one in rows)
            yield f"{operation:13} {right} of {len(rows)} right"
            for one in rows:
                if one.verdict != "right":
                    yield f"  {one.case['id']}  {one.verdict}: {one.note}"
                    yield f"    {one.case['note']}"
                    for name in one.causes:
                        yield f"    this is {name}: {harmony_vectors()['flags'][name]['note']}"
        yield from self.notes


def check_harmony(results: Mapping[str, Any]) -> HarmonyJudgement:
    """Judge answers by case.

    Args:
        results: case id -> answer, with the fields of ``expected``: ``ids`` or ``text`` of a
            rendering, ``strict`` and ``messages`` of a parse (for malformed tokens, ``messages`` is
            the tolerant reading), ``deltas`` of a stream, ``ids`` of a text. An operation without
            any answer is not judged.

    Raises:
        GptOssError: the results are not an object of objects.
    """
    if not isinstance(results, Mapping):
        raise GptOssError("Harmony results: expected an object of answers by case")
    known = {case["id"]: case for case in harmony_vectors()["cases"]}
    notes = tuple(f"{RESULTS}: no case is called {key!r}" for key in results if key not in known)
    given = {known[key]["operation"] for key in results if key in known}
    findings = []
    for key, case in known.items():
        if case["operation"] not in given:
            continue
        answer = results.get(key)
        if answer is None:
            findings.append(HarmonyFinding(case, "missing", "no answer"))
        elif not isinstance(answer, Mapping):
            findings.append(HarmonyFinding(case, "wrong", "expected an object"))
        else:
            findings.append(_judged(case, answer))
    return HarmonyJudgement(tuple(findings), notes)


def check_harmony_file(folder: str | Path) -> HarmonyJudgement | None:
    """:func:`check_harmony` for ``harmony.json`` in a folder; None if there is none.

    The suite's own file is also accepted: its answers are ``expected`` of each case.

    Raises:
        GptOssError: the file cannot be read.
    """
    path = Path(folder) / RESULTS
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GptOssError(f"{path}: more than {MAX_BYTES >> 20} MiB")
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, GptOssError):
            raise
        raise GptOssError(f"{path}: cannot be read as JSON: {error}") from None
    if isinstance(data, Mapping) and data.get("format") == harmony_vectors()["format"]:
        data = {case["id"]: case["expected"] for case in data.get("cases", ())}
    try:
        return check_harmony(data)
    except GptOssError as error:
        raise GptOssError(f"{path}: {error}") from None


def _judged(case: Mapping[str, Any], answer: Mapping[str, Any]) -> HarmonyFinding:
    expected, operation = case["expected"], case["operation"]
    if operation == "parse":
        return _parsed(case, answer)
    keys = ("ids", "text") if operation == "render" else tuple(expected)
    key = next((key for key in keys if key in answer), None)
    if key is None:
        return HarmonyFinding(case, "missing", f"no {' or '.join(keys)}")
    theirs, ours = answer[key], expected[key]
    if theirs == ours:
        return HarmonyFinding(case, "right")
    return HarmonyFinding(case, "wrong", _difference(key, theirs, ours), _causes(case, theirs))


def _difference(key: str, theirs: Any, ours: Any) -> str:
    if type(theirs) is not type(ours):
        return f"{key}: expected {type(ours).__name__}, found {type(theirs).__name__}"
    pairs = enumerate(zip(theirs, ours, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(theirs), len(ours)))
    cut = slice(at, at + (30 if isinstance(ours, str) else 6))
    return f"{key} at {at}: {theirs[cut]!r}, expected {ours[cut]!r}"


def _causes(case: Mapping[str, Any], theirs: Any) -> tuple[str, ...]:
    if case["operation"] != "render" or not isinstance(theirs, (str, list)):
        return ()
    said = conversation_from_data({"messages": case["input"]["messages"], "format": "harmony"})
    training = case["input"]["state"] == "training"
    try:
        report = harmony(
            said, theirs, next_role=None if training else "assistant", training=training
        )
    except (GptOssError, TypeError, ValueError):
        return ()
    found = [cause.name for cause in (*report.causes, *report.forms)]
    return tuple(name for name in found if name in harmony_vectors()["flags"])


def _parsed(case: Mapping[str, Any], answer: Mapping[str, Any]) -> HarmonyFinding:
    expected = case["expected"]
    if "strict" not in answer and "messages" not in answer:
        return HarmonyFinding(case, "missing", "no strict, and no messages")
    verdict = answer.get("strict", expected["strict"])
    if verdict != expected["strict"]:
        return HarmonyFinding(case, "wrong", f"{verdict}, expected {expected['strict']}")
    messages = answer.get("messages")
    if "messages" in expected:
        if messages is not None and messages != expected["messages"]:
            return HarmonyFinding(
                case, "wrong", _difference("messages", messages, expected["messages"])
            )
    elif messages is not None:
        shown, at = json.dumps(messages, ensure_ascii=False), 0
        for text in expected["kept"]:
            found = shown.find(json.dumps(text, ensure_ascii=False)[1:-1], at)
            if found < 0:
                return HarmonyFinding(case, "wrong", f"the text {text!r} is lost")
            at = found + len(text)
    return HarmonyFinding(case, "right")
