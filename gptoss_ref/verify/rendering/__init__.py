"""Check renderings of conversations, and find the rule of Harmony that a wrong one breaks.

Rules (rules.py) render a conversation (conversation.py) into pieces (pieces.py). A bug (bug.py; the
catalogue is bugs_*.py) replaces one rule. The search (explain.py) finds the bugs that turn the
right rendering into the observed one; report.py reports them. Renderings come from a text or ids
(check.py), a chat template (template.py) or a server (server.py); conversations.py holds the
conversations that templates and servers have to render.
"""

from gptoss_ref.verify.rendering.bug import RenderingBug
from gptoss_ref.verify.rendering.catalogue import BUGS, rendering_bug
from gptoss_ref.verify.rendering.check import harmony
from gptoss_ref.verify.rendering.conversation import (
    Conversation,
    conversation_from_data,
    read_conversation,
)
from gptoss_ref.verify.rendering.report import RenderingCause, RenderingReport, UnexplainedRendering

__all__ = [
    "BUGS",
    "Conversation",
    "RenderingBug",
    "RenderingCause",
    "RenderingReport",
    "UnexplainedRendering",
    "conversation_from_data",
    "harmony",
    "read_conversation",
    "rendering_bug",
]
