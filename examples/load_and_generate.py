"""Load the bundled model and generate a reply token by token.

    python examples/load_and_generate.py

`respond` does all of this in one call. Here are the separate steps: a conversation is rendered to
tokens, `generate` chooses one token after the other, and a parser reads them. Prints the size of
the model, then each generated token with its probability, then the answer. At low effort the model
answers without reasoning; it gets letters wrong, and low probabilities show where it is uncertain.
"""

import math

import gptoss_ref as gr
from gptoss_ref.chat import build_conversation, parse, render_conversation

model = gr.load("tiny")  # or a folder with a released checkpoint, in either layout
config = model.config
print(f"{config.num_hidden_layers} layers, {config.num_experts} experts, D = {config.hidden_size}")

messages = build_conversation("Reverse the word planet.", reasoning="low")
prompt = render_conversation(messages, model.tokenizer)  # a list of ids
print(f"{len(prompt)} tokens of prompt, the last: {model.tokenizer.decode(prompt[-9:])!r}")

reply = []
for token in gr.generate(model, prompt, max_new_tokens=64):  # greedy: temperature is 0
    reply.append(int(token))
    print(f"{token:4d}  p = {math.exp(token.logprob):.2f}  {model.tokenizer.decode([token])!r}")

for message in parse(reply, model.tokenizer, role="assistant"):
    print(f"{message.channel}: {message.text}")
