"""NeMo Automodel's own gpt-oss, on torch's flexible attention, which `capture` runs uncompiled."""

import torch
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.gpt_oss.model import GptOssForCausalLM
from safetensors.torch import load_file
from transformers import AutoConfig
from wild import TOKENS, converted, show

import gptoss_ref as gr

folder = converted(layout="hf", experts="bfloat16")
backend = BackendConfig(
    attn="flex", linear="torch", rms_norm="torch", experts="torch", dispatcher="torch"
)
torch.cuda.current_device = lambda: 0  # it asks, and puts nothing there
model = GptOssForCausalLM(AutoConfig.from_pretrained(folder), backend=backend)
model.model.rotary_emb.device = torch.device("cpu")
model.load_state_dict(model.state_dict_adapter.from_hf(load_file(folder / "model.safetensors")))
show("nemo-automodel", "bfloat16, flex", gr.verify.capture(model, TOKENS))
