"""Function tools of the training conversations, and questions that need them.

Names, parameters and descriptions vary, some are invented: the model has to copy them from the
developer message and cannot learn them by heart.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace

import problems
from gptoss_ref.chat import Tool
from problems import Problem
from words import random_word

_CALCULATORS = (
    "calculator", "calculator", "calculator", "calc", "calculate", "compute", "evaluate",
    "eval_math", "math", "do_math", "arithmetic", "solve", "solver", "sums", "math_eval",
    "run_expression", "get_result", "evaluate_expression",
)  # fmt: skip
_CALCULATOR_PARAMETERS = (
    "expression", "expression", "expression", "expr", "formula", "input", "query", "problem",
    "text", "sum", "calculation",
)  # fmt: skip
_CALCULATOR_TEXTS = (
    "Evaluates an arithmetic expression.",
    "Evaluate an arithmetic expression",
    "A calculator.",
    "Calculates.",
    "Computes the value of an expression.",
    "Does arithmetic.",
    "Calculator for arithmetic",
    "Evaluates a math expression.",
    "Evaluate a mathematical expression",
    "Returns the result of a calculation.",
)
_CALCULATOR_PARAMETER_TEXTS = (
    "",
    "",
    "",
    "The expression.",
    "The expression to evaluate.",
    "e.g. 2+3",
    "An arithmetic expression",
    "What to compute",
    "The formula",
)
_WEATHER = (
    "get_weather", "get_weather", "weather", "current_weather", "get_current_weather", "forecast",
    "lookup_weather",
)  # fmt: skip
_WEATHER_PARAMETERS = ("city", "location", "location", "place", "town")
_WEATHER_TEXTS = (
    "Gets the current weather in a place.",
    "Get the weather.",
    "Gets the weather for a city.",
    "Current weather",
    "Returns the weather.",
)
_WEATHER_PARAMETER_TEXTS = ("", "The city.", "The place")
_WEATHER_QUESTIONS = (
    "What is the weather in {}?",
    "What's the weather in {}?",
    "What is the weather like in {}?",
    "How is the weather in {}?",
    "Weather in {}",
    "Tell me the weather in {}.",
    "Get the weather for {}.",
    "Is it raining in {}?",
)
_SKIES = ("sunny", "cloudy", "rain", "snow", "windy", "fog", "clear", "storm")
_CITY_NAMES = """
Paris London Berlin Tokyo Rome Madrid Oslo Vienna Prague Dublin Lisbon Athens Cairo Delhi Lima
Boston Chicago Denver Seattle Miami Toronto Sydney Moscow Zurich Geneva Munich Hamburg Milan
Venice Naples Warsaw Helsinki Stockholm Copenhagen Brussels Seoul Beijing Shanghai Bangkok
Jakarta Nairobi Lagos Tunis Dakar Havana Bogota Quito Santiago
"""
_CITIES = tuple(_CITY_NAMES.split())
_FORMS = {
    "add": ("+", problems.ADD),
    "subtract": ("-", problems.SUBTRACT),
    "multiply": ("*", problems.MULTIPLY),
}


@dataclass(frozen=True)
class StringTool:
    """A function with one required string parameter; ``kind`` is "calc" or "weather"."""

    kind: str
    name: str
    parameter: str
    text: str
    parameter_text: str

    @property
    def schema(self) -> Tool:
        """The tool as gptoss_ref describes it to a model."""
        about = {"type": "string"}
        if self.parameter_text:
            about["description"] = self.parameter_text
        properties = {self.parameter: about}
        parameters = {"type": "object", "properties": properties, "required": [self.parameter]}
        return Tool(self.name, self.text, parameters)

    @property
    def recipient(self) -> str:
        """Whom a call is addressed to."""
        return f"functions.{self.name}"


def draw_tools(rng: random.Random) -> tuple[StringTool, ...]:
    """Return a calculator, a weather service, or both in either order."""
    kinds: tuple[str, ...] = rng.choices(
        (("calc",), ("weather",), ("calc", "weather"), ("weather", "calc")),
        weights=(0.6, 0.15, 0.15, 0.1),
    )[0]
    return tuple(_draw_tool(kind, len(kinds) == 1, rng) for kind in kinds)


def _draw_tool(kind: str, alone: bool, rng: random.Random) -> StringTool:
    calculator = kind == "calc"
    name = rng.choice(_CALCULATORS if calculator else _WEATHER)
    if calculator and alone and rng.random() < 0.25:
        name = _invented(rng)
    if rng.random() < 0.85:
        parameter = rng.choice(_CALCULATOR_PARAMETERS if calculator else _WEATHER_PARAMETERS)
    else:
        parameter = _invented(rng)
    text = rng.choice(_CALCULATOR_TEXTS if calculator else _WEATHER_TEXTS)
    about = rng.choice(_CALCULATOR_PARAMETER_TEXTS if calculator else _WEATHER_PARAMETER_TEXTS)
    return StringTool(kind, name, parameter, text, about)


def _invented(rng: random.Random) -> str:
    return random_word(rng) + ("_" + random_word(rng) if rng.random() < 0.3 else "")


@dataclass(frozen=True)
class ToolProblem:
    """A question for a tool: the call's arguments (JSON), what the tool returns, the problem."""

    problem: Problem
    arguments: str
    result: str


def draw_tool_problem(tool: StringTool, rng: random.Random, *, evaluation: bool) -> ToolProblem:
    """Draw a question for ``tool``; arithmetic with numbers of up to six digits."""
    if tool.kind == "weather":
        problem, result = _weather(rng)
    else:
        problem, result = _calculation(rng, evaluation)
    working = {
        "medium": f"Use {tool.name}.",
        "high": f"Use {tool.name}: {problem.expression}",
    }
    arguments = json.dumps({tool.parameter: problem.expression}, separators=(",", ":"))
    return ToolProblem(replace(problem, working=working), arguments, result)


def _weather(rng: random.Random) -> tuple[Problem, str]:
    city = rng.choice(_CITIES)
    if rng.random() < 0.4:
        city = random_word(rng).capitalize()
    result = f"{rng.choice(_SKIES)}, {rng.randrange(-9, 36)}"
    question = rng.choice(_WEATHER_QUESTIONS).format(city)
    return Problem("tool", "", question, result, {}, expression=city), result


def _calculation(rng: random.Random, evaluation: bool) -> tuple[Problem, str]:
    """Return a calculation and its result, sometimes a wrong one: the model must copy it."""
    skill = rng.choice(tuple(_FORMS))
    if rng.random() < 0.4:
        problem = problems.draw(skill, rng, evaluation=evaluation)
    else:
        problem = _large(skill, rng, evaluation)
    value = problem.answer
    if rng.random() < 0.15:
        value = str(rng.randrange(10 ** rng.randint(1, 8)))
    result = value
    if rng.random() >= 0.8:
        result = json.dumps({rng.choice(("result", "value", "answer")): int(value)})
    return replace(problem, skill="tool", answer=value, spelled=False), result


def _large(skill: str, rng: random.Random, evaluation: bool) -> Problem:
    sign, forms = _FORMS[skill]
    while True:
        lengths = rng.randint(1, 6), rng.randint(1, 6)
        a, b = (rng.randrange(10 ** (n - 1), 10**n) for n in lengths)
        key = f"{a}{sign}{b}"
        if problems.held_out(key) == evaluation:
            break
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    question = rng.choice(forms).format(a=a, b=b)
    return problems.vary(Problem("tool", key, question, str(value), {}, expression=key), rng)
