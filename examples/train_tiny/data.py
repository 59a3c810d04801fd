"""Harmony conversations for the tiny model: a shared prefix and many independent branches.

A *context* is a system message, perhaps a developer message, and earlier turns. A *branch* is a
user message and the assistant's reply to it. Many branches share one context, so that a training
step computes the long prefix once. Everything is rendered by ``gptoss_ref.chat``; only an answer
that the model spells letter by letter is tokenised here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from gptoss_ref.chat import (
    DeveloperContent,
    Message,
    SystemContent,
    render_conversation,
    render_message,
    small_harmony,
)
from problems import EFFORTS, SKILLS, Problem, draw
from tools import StringTool, draw_tool_problem, draw_tools
from words import N_RANKS

TOKENIZER = small_harmony(N_RANKS)
MAX_PREFIX = 576  # tokens of a context
PLAIN = tuple(SKILLS)
ARITHMETIC = ("add", "subtract", "multiply")
WEIGHTS = {
    "add": 1.0,
    "subtract": 1.3,
    "multiply": 2.0,
    "compare": 1.1,
    "reverse": 7.0,
    "count": 3.4,
    "sort": 1.0,
    "talk": 0.25,
}
_EFFORT_WEIGHTS = (0.2, 0.35, 0.45)
_INSTRUCTIONS = (
    "Be brief.",
    "Answer briefly.",
    "You are a helpful assistant.",
    "Be helpful.",
    "Answer in English.",
    "Be polite.",
    "Be concise and correct.",
    "Give short answers.",
    "Only give the answer.",
    "You are a math tutor.",
    "Think carefully.",
    "Do not explain.",
    "You help children with homework.",
)


@dataclass(frozen=True)
class Context:
    """What stands before the user's message."""

    effort: str
    tools: tuple[StringTool, ...]
    messages: tuple[Message, ...]

    @property
    def tokens(self) -> list[int]:
        """The rendered context."""
        return render_conversation(self.messages, TOKENIZER, None, history="keep")


@dataclass(frozen=True)
class Branch:
    """A user message and the reply; ``loss[i]`` tells whether token i is the assistant's."""

    tokens: list[int]
    loss: list[bool]
    problem: Problem


def draw_context(
    rng: random.Random,
    *,
    effort: str | None = None,
    tools: bool | None = None,
    plain: bool = False,
    long: bool = False,
) -> Context:
    """Draw a context.

    ``plain`` leaves out date, instructions and earlier turns; ``long`` gives at least four turns.
    """
    effort = effort or rng.choices(EFFORTS, weights=_EFFORT_WEIGHTS)[0]
    if tools is None:
        tools = rng.random() < 0.3
    chosen = draw_tools(rng) if tools else ()
    date = instructions = None
    if rng.random() < 0.5 and not plain:
        date = f"{rng.randint(2024, 2027)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if rng.random() < 0.25 and not plain:
        instructions = rng.choice(_INSTRUCTIONS)
    head = [Message.system(SystemContent(reasoning_effort=effort, conversation_start_date=date))]
    if instructions or chosen:
        functions = [tool.schema for tool in chosen]
        head.append(Message.developer(DeveloperContent.with_functions(instructions, functions)))
    turns = 0
    if not plain and rng.random() < 0.35:
        turns = rng.choice((1, 1, 2, 2, 3, 4))
    if long:
        turns = rng.randint(4, 9)
    while True:
        messages = (*head, *_history(chosen, rng, turns))
        context = Context(effort, chosen, messages)
        if len(context.tokens) <= MAX_PREFIX:
            return context
        turns -= 1


def _history(tools: tuple[StringTool, ...], rng: random.Random, turns: int) -> list[Message]:
    """Return earlier turns as history keeps them: no analysis."""
    messages = []
    for _ in range(turns):
        if tools and rng.random() < 0.6:
            tool = rng.choice(tools)
            drawn = draw_tool_problem(tool, rng, evaluation=False)
            problem = drawn.problem
            messages += [
                Message.user(problem.question),
                Message.call(tool.recipient, drawn.arguments),
                Message.tool(tool.recipient, drawn.result),
            ]
        else:
            skills = [s for s in PLAIN if not tools or s not in ARITHMETIC]
            problem = draw(rng.choice(skills), rng, evaluation=False)
            messages.append(Message.user(problem.question))
        messages.append(Message.assistant(problem.answer))
    return messages


def draw_skill(context: Context, rng: random.Random) -> str:
    """Draw what the user asks; with a calculator, arithmetic always goes to the tool."""
    if not context.tools:
        return rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))[0]
    if rng.random() < 0.7:
        return "tool"
    others = ("reverse", "count", "sort", "compare", "talk")
    skill = rng.choices(others, weights=[WEIGHTS[s] for s in others])[0]
    if all(tool.kind == "weather" for tool in context.tools) and rng.random() < 0.5:
        skill = rng.choice(ARITHMETIC)
    return skill


def draw_branch(
    context: Context, skill: str, rng: random.Random, *, evaluation: bool = False
) -> Branch:
    """Draw a question of ``skill`` ("tool": for one of the context's tools) and its reply."""
    pieces: list[tuple[list[int], bool]] = []  # tokens, and whether the assistant wrote them
    start = TOKENIZER.special_id("start"), *TOKENIZER.encode("assistant")

    def given(message: Message) -> None:
        pieces.append((render_message(message, TOKENIZER), False))

    def written(message: Message) -> None:
        # the opening belongs to the prompt, unless the assistant goes on after its own message
        tokens = render_message(message, TOKENIZER)
        pieces.append((list(start), pieces[-1][1]))
        pieces.append((tokens[len(start) :], True))

    if skill == "tool":
        tool = rng.choice(context.tools)
        drawn = draw_tool_problem(tool, rng, evaluation=evaluation)
        problem = drawn.problem
    else:
        problem = draw(skill, rng, evaluation=evaluation)
    given(Message.user(problem.question))
    if thought := problem.working.get(context.effort):
        written(Message.assistant(thought, "analysis"))
    if skill == "tool":
        written(Message.call(tool.recipient, drawn.arguments))
        given(Message.tool(tool.recipient, drawn.result))
    written(Message.assistant(problem.answer))
    final, _ = pieces.pop()
    end = [TOKENIZER.special_id("return")]
    if problem.spelled:
        header = final[: final.index(TOKENIZER.special_id("message")) + 1]
        letters = [token for letter in problem.answer for token in TOKENIZER.encode(letter)]
        final = [*header, *letters, *end]
    else:
        final = [*final[:-1], *end]
    pieces.append((final, True))
    tokens = [token for part, _ in pieces for token in part]
    loss = [mine for part, mine in pieces for _ in part]
    return Branch(tokens, loss, problem)
