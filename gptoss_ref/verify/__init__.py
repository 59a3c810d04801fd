"""Find the first wrong number in another implementation of gpt-oss, and name the bug.

The folders are in the order of the data flow; each imports only from those before it:

1. ``observe`` makes a trace from arrays under other names, live modules, files or servers;
2. ``replay`` computes each stage of the model from the trace's own inputs of that stage;
3. ``noise`` measures the error that rounding explains, and finds ties in the choice of experts;
4. ``mutants`` is the catalogue: each known bug replaces one operation of the model;
5. ``search`` finds the bugs whose replay gives the observed numbers, by tap point or end to end;
6. ``report`` has the rows, the causes, and the verdict as text, JSON or HTML.

``diagnose`` uses all six, ``compare`` the first three and the last; ``gradients`` does the same for
backward passes. ``vectors`` writes test vectors of the operations as files, ``rendering`` and
``serving`` check prompts and servers, ``published`` compares with published outputs.
"""

from gptoss_ref.verify.compare import compare
from gptoss_ref.verify.diagnose import diagnose
from gptoss_ref.verify.observe.adapters import (
    capture,
    capture_calls,
    from_arrays,
    from_llama,
    observe,
    read,
)
from gptoss_ref.verify.observe.observation import LogprobObservation
from gptoss_ref.verify.rendering.check import harmony

__all__ = [
    "LogprobObservation",
    "capture",
    "capture_calls",
    "compare",
    "diagnose",
    "from_arrays",
    "from_llama",
    "harmony",
    "observe",
    "read",
]
