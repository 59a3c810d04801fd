"""A served model's behaviour: ``gptoss-ref harmony check --server URL --live``.

The questions are short and any weights will do: what is checked (:data:`LAWS`) holds whatever the
model answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptoss_ref.errors import EndpointError
from gptoss_ref.verify.rendering.server import Server
from gptoss_ref.verify.serving.answers import CHAT, RESPONSES
from gptoss_ref.verify.serving.checks import LAWS, Api, Fault, faults

__all__ = ["LAWS", "Fault", "LiveReport", "check_live"]


@dataclass(frozen=True)
class LiveReport:
    """What a server does wrong.

    Attributes:
        faults: in the order in which they were seen, each law and API once.
        apis: those that the server has.
        notes: what else is to be said.
    """

    faults: tuple[Fault, ...]
    apis: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether something could be asked, and nothing was wrong."""
        return bool(self.apis) and not self.faults

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "ok": self.ok,
            "apis": list(self.apis),
            "faults": [vars(fault) for fault in self.faults],
            "laws": dict(LAWS),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        broken = {fault.name for fault in self.faults}
        out = [f"{' and '.join(self.apis)}: {len(LAWS) - len(broken)} of {len(LAWS)} laws hold."]
        for fault in self.faults:
            out += [f"  {fault.name} ({fault.api}): {LAWS[fault.name]}", f"    {fault.what}"]
        return "\n".join([*out, *self.notes])


def check_live(
    url: str,
    *,
    model: str | None = None,
    timeout: float = 60.0,
    api_key: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> LiveReport:
    """Ask a served model, and check how the server answers.

    Args:
        url: of the server, with or without ``/v1``.
        model: its name there; None takes the first that the server lists.
        timeout: seconds for each answer.
        api_key: sent as a bearer token.
        progress: called with what is being asked.

    Raises:
        EndpointError: the server is down, slow, leads elsewhere, answers garbage, or has neither
            of the two APIs.
    """
    server = Server(url, model=model, timeout=timeout, api_key=api_key)
    found: dict[tuple[str, str], Fault] = {}
    apis, notes = [], []
    for path in (CHAT, RESPONSES):
        api = Api(server, path)
        first = server.ask(path, server.named(api.body("Hi", tokens=16)))
        if first.status in (404, 405, 501):
            notes.append(f"{path}: the server has no such page ({first.complaint()})")
            continue
        apis.append(path)
        for fault in faults(api, progress or (lambda _: None)):
            found.setdefault((fault.name, path), fault)
    if not apis:
        raise EndpointError(f"{server.url}: has neither {CHAT} nor {RESPONSES}")
    return LiveReport(tuple(found.values()), tuple(apis), tuple(notes))
