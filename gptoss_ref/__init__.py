"""The gpt-oss language models, written to be read.

The names below are imported when they are first used: importing the package imports none of its
dependencies, and compiles and configures nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that defines it; None: the name is itself a submodule
_HOMES: dict[str, str | None] = {
    "GPT_OSS_120B": "config",
    "GPT_OSS_20B": "config",
    "GptOssError": "errors",
    "Model": "model",
    "ModelConfig": "config",
    "Reply": "chat",
    "Token": "generation",
    "Trace": "tracing.trace",
    "backward": "backpropagation",
    "compare": "verify",
    "convert": "checkpoint",
    "diagnose": "verify",
    "generate": "generation",
    "gradients": None,
    "kernels": None,
    "layers": None,
    "load": "model",
    "load_checkpoint": "checkpoint",
    "respond": "chat",
    "threads": "kernels.threads",
    "trace": "tracing.record",
    "train": "training",
    "training": None,
    "verify": None,
    "viz": None,
}

__all__ = [
    "GPT_OSS_20B",
    "GPT_OSS_120B",
    "GptOssError",
    "Model",
    "ModelConfig",
    "Reply",
    "Token",
    "Trace",
    "__version__",
    "backward",
    "compare",
    "convert",
    "diagnose",
    "generate",
    "gradients",
    "kernels",
    "layers",
    "load",
    "load_checkpoint",
    "respond",
    "threads",
    "trace",
    "train",
    "training",
    "verify",
    "viz",
]

if TYPE_CHECKING:
    from gptoss_ref import gradients, kernels, layers, training, verify, viz
    from gptoss_ref.backpropagation import backward
    from gptoss_ref.chat import Reply, respond
    from gptoss_ref.checkpoint import load_checkpoint
    from gptoss_ref.checkpoint.convert import convert
    from gptoss_ref.config import GPT_OSS_20B, GPT_OSS_120B, ModelConfig
    from gptoss_ref.errors import GptOssError
    from gptoss_ref.generation import Token, generate
    from gptoss_ref.kernels.runtime.threads import threads
    from gptoss_ref.model import Model, load
    from gptoss_ref.tracing.record import trace
    from gptoss_ref.tracing.trace import Trace
    from gptoss_ref.training.loop import train
    from gptoss_ref.verify.compare import compare
    from gptoss_ref.verify.diagnose import diagnose


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    module = import_module(f".{home or name}", __name__)
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


_RENAMED = {"Rules": "ModelOps", "At": "OpContext"}


def _former(name: str, *homes: str) -> None:
    """Keeps ``from gptoss_ref.<name> import …`` working for names that have moved to ``homes``."""
    module = ModuleType(f"{__name__}.{name}", f"Moved to {', '.join(homes)} of {__name__}.")

    def find(attribute: str) -> Any:
        attribute = _RENAMED.get(attribute, attribute)
        modules = [import_module(f".{home}", __name__) for home in homes]
        return getattr(next((m for m in modules if hasattr(m, attribute)), modules[0]), attribute)

    module.__getattr__ = find  # type: ignore[method-assign]
    sys.modules[module.__name__] = module


for _name, *_homes in (
    ("dialects", "config_json"),
    ("generate", "generation"),
    ("info", "checkpoint.summary"),
    ("kernels.doctor", "kernels.runtime.doctor"),
    ("kernels.mxfp4", "layers.mxfp4"),
    ("kernels.sampling", "sampling"),
    ("kernels.threads", "kernels.runtime.threads"),
    ("kernels.warmup", "kernels.runtime.warmup"),
    ("routing", "weights"),
    ("selfcheck", "verify.published"),
    ("taps", "tracing.taps"),
    ("trace", "tracing.trace", "tracing.record", "tracing.rounding"),
    ("tracefile", "tracing.file"),
    ("verify.adapters", "verify.observe.adapters"),
    ("verify.rules", "verify.replay.ops"),
    ("verify.walk", "verify.replay.evaluate"),
):
    _former(_name, *_homes)
