"""The gpt-oss language models, written to be read.

The names below are loaded when first used: importing the package imports none of its dependencies,
and compiles and configures nothing.
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
    "Token": "generate",
    "Trace": "trace",
    "compare": "verify",
    "convert": "checkpoint",
    "diagnose": "verify",
    "generate": "generate",
    "kernels": None,
    "layers": None,
    "load": "model",
    "load_checkpoint": "checkpoint",
    "respond": "chat",
    "threads": "kernels.threads",
    "trace": "trace",
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
    "compare",
    "convert",
    "diagnose",
    "generate",
    "kernels",
    "layers",
    "load",
    "load_checkpoint",
    "respond",
    "threads",
    "trace",
    "verify",
    "viz",
]

if TYPE_CHECKING:
    from . import kernels, layers, verify, viz
    from .chat import Reply, respond
    from .checkpoint import load_checkpoint
    from .checkpoint.convert import convert
    from .config import GPT_OSS_20B, GPT_OSS_120B, ModelConfig
    from .errors import GptOssError
    from .generate import Token, generate
    from .kernels.threads import threads
    from .model import Model, load
    from .trace import Trace, trace
    from .verify.compare import compare
    from .verify.diagnose import diagnose


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


class _Package(ModuleType):
    """Keeps a function that is named like its module: `generate` stays the function.

    Importing a submodule sets the package's attribute of that name; without this, `gr.generate`
    would turn into the module as soon as anything had imported it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOMES.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
