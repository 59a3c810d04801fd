"""Give the model a calculator: the model calls it, the program computes, the model answers.

    python examples/call_a_tool.py

Prints the call as the model wrote it, the tool's result, and the answer.
"""

import ast
import operator

import gptoss_ref as gr
from gptoss_ref.chat import Message, Tool

CALCULATOR = Tool(
    "calculator",
    "Evaluates an arithmetic expression.",
    {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
    },
)
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value(node: ast.expr) -> int:
    """The value of a sum, difference or product of integers; ValueError for other expressions."""
    match node:
        case ast.Constant(int(number)):
            return number
        case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](value(left), value(right))
    raise ValueError("expected numbers, +, - and *")


def calculate(expression: str) -> str:
    """The tool's result; an error in the expression is returned to the model as text."""
    try:
        return str(value(ast.parse(expression, mode="eval").body))
    except (ValueError, SyntaxError) as error:
        return f"error: {error}"


model = gr.load("tiny")
messages = [Message.user("What is 37 * 46?")]
reply = gr.respond(model, messages, tools=[CALCULATOR])
results = []
for call in reply.tool_calls:
    print(f"call: {call.recipient}({call.text})")
    if call.error is None and call.name == CALCULATOR.name:
        results.append(call.answer(calculate(call.arguments["expression"])))
        print(f"result: {results[-1].text}")

reply = gr.respond(model, [*messages, *reply.messages, *results], tools=[CALCULATOR])
print(f"answer: {reply.final}")
