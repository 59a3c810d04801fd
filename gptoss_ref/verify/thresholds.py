"""Every tuned number of the verifier, by the folder that uses it, and what set it.

A *threshold* decides a verdict. A *budget* decides how much is tried or looked at: more costs time,
and changes a verdict only if the right answer lay beyond it. Both were set on one machine class
(x86-64, AVX2); the runs are those of ``python -m docs._generate.kill_matrix`` (all bugs of the
catalogue on tiny and on a random model, in three roundings) unless another is named.
"""

from __future__ import annotations

# --- noise: what rounding explains (decision 0012) ---

WHOLE_ARRAY = 5.0
"""Allowed error of a whole array, in measured noise. Correct runs reach 2.4: random models, T of
1 to 900, the torch twin and transformers, float32, bfloat16 and float16."""

ONE_ROW = 16.0
"""Allowed error of a single row, in measured noise: it has fewer values to average over. Correct
runs reach 6.8 in the same runs."""

ALWAYS_ALLOWED = 4.0
"""Allowed error of anything, in unit roundoffs: another implementation may round once where this
one does not. Set by counting: no operation of the model rounds more than four times in a row."""

MEASURED_TOKENS = 256
"""Budget: tokens that the noise is measured on. Later rows are held to the worst of them."""

MEASURED_ROWS = 64
"""Budget: rows that the noise is measured on at least; shorter prompts are run several times."""

USUAL_ROWS = 3.0
"""Allowed quartiles of the rows' errors, in those of the noise; used if most rows hang on ties."""

ROWS_WITHOUT_TIES = 0.5
"""Share of rows without ties from which on each row is judged by itself, else by quartiles."""

TIE_MARGIN = 0.6
"""Share of the error allowed to a row of router logits that the difference of two may have. √2
would be both off by all of it; the largest in 88 ties of correct runs is 0.2."""

HOPELESS = 0.5
"""Relative error from which on bounds that are carried forward say nothing."""

CONSTANT_A_ROW = 4.0
"""The constants of the rows are worth a remark if logits come so many times nearer without them:
the mean of what rounding does to a row is smaller than its values."""

SUM_OF_LOGARITHMS = 0.05
"""How near to 0 the logarithm of a row's sum is, of log-probabilities rounded to bfloat16."""

REORDERED = 0.1
"""Relative distance within which heads or experts in the right order agree, in any rounding: two
bfloat16 runs of tiny are 0.03 apart at the last block."""

REORDERED_ROWS = 64
"""Budget: tokens that are looked at to find the order of heads and experts."""

JUDGED_AGAIN = 100.0
"""In ``compare``, a divergence of less than so many times what rounding explains is judged again
from OTHER's own inputs, as ``diagnose`` does: it may be what a stage makes of the roundings before
it. Correct runs were at 1.5 times."""

COHERENT, ON_GRID = 0.9, 24
"""Logits lay on a grid before a constant was added if so many of them at least have one place
between its points: 1 is exactly; values at random leave 1/√n of n."""

TYPICAL = 1 / 16
"""Share of what a rounding usually does that errors must reach to be its."""

COARSER_KINDS = 6
"""If so many kinds of tap points diverge, another rounding is tried before bugs are."""

COARSER_EARLY, COARSER_SMALL = 4, 0.1
"""In ``compare``, another rounding is tried if one of the first so many tap points diverges, by a
relative error of less than this."""

# --- search, tap by tap (decision 0014) ---

JUDGED = 12
"""Budget: candidates that are judged with a noise floor of their own, the nearest ones."""

SURE, CLEARLY = 0.4, 3.0
"""If the best single bug leaves more than SURE of what rounding explains, pairs are tried; a pair
is taken if it leaves CLEARLY times less.

Measured over 411 cases of the kill matrix's parts ``single``, ``variant`` and ``pair``, with 40
random pairs on each checkpoint in each dtype: a right bug leaves up to 0.20 (0.52 at the router's
logits, where it costs a search for two that finds none), and two beside it never leave 1.2 times
less. The one shadow among them (``sinks-scaled``, where sinks are dropped and padding is attended
to) leaves 0.56, and the two behind it 5.2 times less."""

ALIKE = 1.02
"""Two candidates whose distances differ by less than this factor cannot be told apart."""

EXCHANGED = 3
"""Budget: earlier explanations that are exchanged for their alternatives if nothing else fits."""

PAIRED, LEADING = 24, 4
"""Budget: the nearest candidates, which are tried in pairs; and the nearest of these, which are
tried with every form of the others."""

CARRIED, FADED = 2.0, 1e-3
"""A rewriting must move what follows by less than CARRIED times its noise, or by less than FADED of
its own size, each in multiples of what rounding explains. The inputs of a stage have roundings of
their own, larger than the stage's: experts of tiny in another order differ by 1.2 million times
what rounding explains at the router, and by 0.46 times behind the experts."""

SAME_AFTER_FIT = 64.0
"""Unit roundoffs within which two arrays are equal after a fitted change of their form."""

# --- search: constants fitted to the numbers ---

GRID, FINE, ROUNDS = 32, 9, 14
"""Budget: values of the coarse grid, of each finer one, and how many finer ones there are."""

REFINED = 8
"""Budget: mutants, the nearest on the coarse grid, whose value is refined."""

FINEST = 2.0**-26
"""Relative step at which a fit ends: float32 holds no finer number."""

ENUMERATED = 64
"""Budget: up to so many whole numbers (window, chunk, ring lengths) are all tried."""

# --- search: bugs smaller than rounding, by the sign test (decision 0014) ---

VOTERS, SIDES = 30, 0.9
"""A bug is named if at least VOTERS values vote, and SIDES of them for it. Correct runs split
evenly, and 27 or more of 30 fair coins agree in 4 of a million tries."""

EXACT, CLEAR = 3, 8.0
"""It is also named if EXACT values vote and all of them fit to a rounding or two with it, and are
CLEAR roundings off without it."""

GROSS = 2.0
"""A candidate that moves a tap point by this many times what rounding explains is no such bug."""

LOOKED_AT = 1 << 23
"""Budget: values at which the votes are counted: one or two blocks of gpt-oss-20b on 200 tokens,
all of a small model. A bug of one block alone is not found by its votes elsewhere."""

# --- search, end to end: from outputs alone ---

SAMPLES = 3
"""Budget: rounded runs that show how far rounding carries a correct model."""

SHORTLIST, COMBINED = 4, 8
"""Budget: the nearest candidates, which get a noise floor of their own; and those that are combined
with one another if none fits alone."""

GAIN, WINS = 0.1, 4.0
"""A bug smaller than rounding is named if it improves the mean logarithm of the rows' errors by
GAIN, and wins more rows than it loses, by WINS standard deviations of a fair coin."""

NOT_FINITE = 1e3
"""Error of a row that is NaN or infinite in one of the two only."""

# --- search: mistakes of the recording ---

SUM_OF_ROW = 1e-2
"""How near to 1 a row of probabilities sums: in bfloat16 it misses by half a per cent."""

WITH_TOKENS_IN_FRONT = 0.05
"""Relative distance within which a tap point of the first block is that of a longer prompt, and
that share of the distance to the prompt itself. bfloat16 is 0.02 off there."""

SAME_DIRECTION = 1e-3
"""How much less than 1 the cosine of a normalised embedding with its token's may be; bfloat16
leaves 1e-5."""

SAME_BASE = 5e-3
"""Relative distance within which logits are multiplied by the logarithm of a base: that of
bfloat16."""

SAME_EMBEDDING = 1e-2
"""Relative distance within which a row of embeddings is that of a token; bfloat16 leaves 2e-3."""

LISTED = 1024
"""Budget: tokens of a vocabulary that are tried one after the other."""

# --- report: where the error is ---

CONCENTRATED, SOME = 0.99, 0.5
"""Heads, experts or channels are named if they hold CONCENTRATED of the squared error and are at
most SOME of their axis."""

FADED = 0.25
"""A rewriting leaves at most this share of its relative error in what is computed from it."""
