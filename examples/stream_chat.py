"""A conversation of two questions, streamed: the text is printed as it is generated.

    python examples/stream_chat.py

Prints each question and, as they are generated, the model's analysis and its final answer; then the
lengths of prompt and reply. A `Chat` keeps the history; the analysis of an answered question is
dropped
from the prompt, as the Harmony format requires.
"""

import gptoss_ref as gr
from gptoss_ref.chat import Chat, MessageStart, TextDelta

chat = Chat(gr.load("tiny"), reasoning="medium")
for question in ("What is 345 + 678?", "Reverse the word cloud."):
    print(f"user: {question}")
    for event in chat.send(question):
        match event:
            case MessageStart(header):
                print(f"{header.channel}: ", end="")
            case TextDelta(_, text):
                print(text, end="", flush=True)
            case gr.Reply() as reply:
                print(f"({reply.prompt_tokens} tokens of prompt, {len(reply.tokens)} of reply)")
            case _:  # MessageEnd, or a Repair of a violation of the format
                print()
