"""Training without torch: AdamW, schedules, LoRA, and a loop that can be stopped and resumed.

examples = gr.training.read_jsonl("data.jsonl", model.tokenizer, context=2048)
run = gr.train(model, examples, gr.training.Recipe(steps=100), out="adapter")
run.model, run.adapter, run.history
"""

from gptoss_ref.checkpoint.adapter import Adapter, LowRank
from gptoss_ref.checkpoint.peft import read_adapter, write_adapter
from gptoss_ref.training.adamw import AdamW, Moments
from gptoss_ref.training.clipping import clip
from gptoss_ref.training.data import DataError, Example, example, read_jsonl
from gptoss_ref.training.evaluation import Evaluation, evaluate
from gptoss_ref.training.loop import Run, train
from gptoss_ref.training.lora import LoRA
from gptoss_ref.training.recipe import Recipe
from gptoss_ref.training.schedule import SCHEDULES, share

__all__ = [
    "SCHEDULES",
    "AdamW",
    "Adapter",
    "DataError",
    "Evaluation",
    "Example",
    "LoRA",
    "LowRank",
    "Moments",
    "Recipe",
    "Run",
    "clip",
    "evaluate",
    "example",
    "read_adapter",
    "read_jsonl",
    "share",
    "train",
    "write_adapter",
]
