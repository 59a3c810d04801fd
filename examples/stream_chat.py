"""A conversation of two questions, streamed: the text is printed as it is generated.

    python examples/stream_chat.py

Prints each question and, as they come, the model's thoughts (channel `analysis`) and its answer
(channel `final`); then how long prompt and reply were. A `Chat` keeps the history; the thoughts of
an answered question are dropped from what the model sees, as Harmony asks.
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
            case _:  # MessageEnd, or a Repair of what did not follow the format
                print()
