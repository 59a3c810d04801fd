"""Find the first wrong number in somebody else's gpt-oss, and name the bug.

The folders follow the data; each imports only from those before it:

1. ``observe``: arrays under anybody's names, live modules, files and servers become a trace;
2. ``replay``: each stage of the model computed from the trace's own inputs of that stage;
3. ``noise``: how large an error rounding explains there, and which choices of experts are ties;
4. ``mutants``: the catalogue, each known bug as one operation of the model replaced;
5. ``search``: the bugs whose replay gives the other's numbers, per tap point or end to end;
6. ``report``: rows, causes, and the verdict as text, JSON or HTML.

``diagnose`` does all six, ``compare`` the first three and the last; ``gradients`` does the same for
backward passes. ``vectors`` writes the operations as files, ``rendering`` and ``serving`` judge
prompts and servers, ``published`` repeats published outputs.
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
