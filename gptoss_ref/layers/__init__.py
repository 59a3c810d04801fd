"""The specification: every layer of gpt-oss in plain NumPy, one concept a file.

Axis letters, used in every shape comment:

====  ==========================================  ====  ==========================================
T     query positions (tokens of this pass)       C     head size
S     key positions (tokens seen so far)          E     experts
D     hidden size                                 A     experts per token (active)
H     query heads                                 F     expert intermediate size
K     key/value heads                             V     vocabulary
G     H / K, query heads per key/value head       N, M  outputs and inputs of one matrix
====  ==========================================  ====  ==========================================

Every function takes a ``policy``, a :class:`gptoss_ref.numerics.Policy` or its name, that says
where it rounds (anything else raises GptOssError), and weights as the checkpoint stores them:
bfloat16 bits (uint16), floats, or MXFP4. Functions check shapes only if the docstring names the
error; otherwise NumPy raises, or broadcasts.
"""

from gptoss_ref.layers import mxfp4
from gptoss_ref.layers.attention import attention, attention_weights
from gptoss_ref.layers.embedding import embedding
from gptoss_ref.layers.experts import experts
from gptoss_ref.layers.linear import linear
from gptoss_ref.layers.rmsnorm import rmsnorm
from gptoss_ref.layers.rope import rope, rope_tables, yarn
from gptoss_ref.layers.router import router
from gptoss_ref.layers.swiglu import swiglu

__all__ = [
    "attention",
    "attention_weights",
    "embedding",
    "experts",
    "linear",
    "mxfp4",
    "rmsnorm",
    "rope",
    "rope_tables",
    "router",
    "swiglu",
    "yarn",
]
