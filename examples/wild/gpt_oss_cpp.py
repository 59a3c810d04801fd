"""The torch model of AaronWang04/gpt-oss-cpp; WILD_SOURCE is a checkout."""

import os
import sys

import torch
from wild import TOKENS, converted, show

sys.path.insert(0, os.environ["WILD_SOURCE"] + "/pyt")
import gptoss_ref as gr
from model import Transformer

model = Transformer.from_checkpoint(str(converted(layout="openai")), device=torch.device("cpu"))
show(f"gpt-oss-cpp {os.environ['WILD_VERSION']}", "bfloat16", gr.verify.capture(model, TOKENS))
