"""OpenAI's torch reference; WILD_SOURCE is a checkout of openai/gpt-oss."""

import os
import sys

import torch
from wild import TOKENS, converted, show

sys.path.insert(0, os.environ["WILD_SOURCE"])
from gpt_oss.torch.model import Transformer

import gptoss_ref as gr

model = Transformer.from_checkpoint(str(converted(layout="openai")), device=torch.device("cpu"))
show(f"gpt-oss {os.environ['WILD_VERSION']}", "bfloat16", gr.verify.capture(model, TOKENS))
