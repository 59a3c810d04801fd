"""Figures drawn from a trace, a configuration or arrays; needs the extra ``viz`` (matplotlib).

matplotlib is imported when a function is called. Each function returns a Figure that a notebook
shows and ``figure.savefig("name.png")`` writes; none opens a window or changes a setting of
matplotlib. Amounts are shades of one hue, which can be read in grey print and with colour
blindness; lines differ in their markers and dashes, and have labels.

:mod:`gptoss_ref.viz.inspector` writes an HTML page, and needs no extra.
"""

from gptoss_ref.viz import inspector
from gptoss_ref.viz.attention_maps import attention
from gptoss_ref.viz.block_floats import mxfp4_code_points, mxfp4_error
from gptoss_ref.viz.expert_routing import routing
from gptoss_ref.viz.gated_unit import swiglu
from gptoss_ref.viz.lens import logit_lens
from gptoss_ref.viz.loss_curve import loss_curve
from gptoss_ref.viz.rotary import yarn
from gptoss_ref.viz.stream import residual_norms
from gptoss_ref.viz.tap_distance import tap_errors

__all__ = [
    "attention",
    "inspector",
    "logit_lens",
    "loss_curve",
    "mxfp4_code_points",
    "mxfp4_error",
    "residual_norms",
    "routing",
    "swiglu",
    "tap_errors",
    "yarn",
]
