"""All tuned numbers of the verifier, by the folder that uses them.

A *threshold* decides a verdict. A *budget* limits the work: a larger one costs time, and changes a
verdict only if the smaller one missed the right answer. A number that names no measurement was
chosen so that the cells of ``python -m docs._generate.kill_matrix`` hold; how far it could move
was not measured.
"""

from __future__ import annotations

# --- noise: what rounding explains (decision 0012) ---

WHOLE_ARRAY = 5.0
"""Allowed error of a whole array, in multiples of the measured noise. Correct runs reach 2.4
(random models, T from 1 to 900, the torch twin and transformers, float32, bfloat16, float16)."""

ONE_ROW = 16.0
"""Allowed error of a single row, in multiples of the measured noise; a row has fewer values to
average over. Correct runs reach 6.8 in the same measurement."""

ALWAYS_ALLOWED = 4.0
"""Error that is always allowed, in unit roundoffs, as implementations round at different points.
Set by counting: no operation of the model rounds more than four times in a row."""

MEASURED_TOKENS = 256
"""Budget: largest number of tokens on which the noise is measured. The allowance of later rows is
that of the measured row with the most noise."""

MEASURED_ROWS = 64
"""Budget: least number of rows on which the noise is measured; short prompts run several times."""

USUAL_ROWS = 3.0
"""Allowed quartiles of the rows' errors, in multiples of the noise's quartiles; used if most rows
depend on ties."""

ROWS_WITHOUT_TIES = 0.5
"""If at least this share of the rows has no ties, each row is judged alone, else by quartiles."""

TIE_MARGIN = 0.6
"""Largest margin of a tie, as a share of the allowed error of a row of router logits. If both had
all of that error, the share would be √2; the largest in 88 ties of correct runs is 0.2."""

HOPELESS = 0.5
"""Relative error from which on propagated error bounds are useless."""

CONSTANT_A_ROW = 4.0
"""A constant added to each row of logits is reported if the logits come this many times nearer
without it. Rounding errors have a mean too, but it is smaller than they are."""

SUM_OF_LOGARITHMS = 0.05
"""Logits whose exponentials sum to 1 within this error are log-probabilities, even in bfloat16."""

REORDERED = 0.1
"""Heads or experts are in another order if they agree within this relative error in that order. The
noise of bfloat16 on tiny is 0.02 in the last block (decision 0012)."""

REORDERED_ROWS = 64
"""Budget: number of tokens in which an order of heads and experts is looked for."""

INTEGERS, INTEGERS_FROM = 1e-4, 512
"""Without a model, ``compare`` allows experts' products the error INTEGERS if both of their
matrices have at least INTEGERS_FROM inputs: this package's kernels then round activations to 16-bit
integers, and their tests use the same bound. The largest error seen is 2.3e-5. With a model, the
numbers show such roundings."""

JUDGED_AGAIN = 100.0
"""``compare`` judges a divergence below this many allowances again, from OTHER's own inputs, as
``diagnose`` does: a stage may amplify the rounding errors of its inputs."""

COHERENT, ON_GRID = 0.9, 24
"""Logits with an added constant show a rounding if the phases of ON_GRID values, relative to its
step, have a mean of at least COHERENT. Exact values give 1, n random ones about 1/√n."""

TYPICAL = 1 / 16
"""An error is that of a rounding if it has at least this share of the rounding's measured noise."""

COARSER_KINDS = 6
"""If this many kinds of tap points diverge, a coarser rounding is tried before any bug."""

COARSER_EARLY, COARSER_SMALL = 4, 0.1
"""``compare`` tries a coarser rounding if one of the first COARSER_EARLY tap points diverges, with
a relative error below COARSER_SMALL."""

CANCELLED = 1000.0
"""Budget: a product of experts that is off by more gets no noise in proportion to its terms. For
2,880 terms that noise is at most about 150 times the usual one, in a row that is nearly all
cancellation (such a row is held to a tenth of the usual size)."""

# --- search, tap by tap (decision 0014) ---

JUDGED = 12
"""Budget: number of nearest candidates that are judged, each with its own noise floor."""

WITHIN_REACH = 7.0
"""Budget: a candidate is judged only if the mean logarithm of its rows' errors is at most this much
larger than the nearest one's: a thousand times the error. If the nearest one leaves rounding, the
other one leaves more."""

DECODED_VALUES, LEAST_EXPERTS = 1 << 26, 4
"""Budget: largest number of values of experts' matrices that are decoded for each of many
candidates, and least number of experts: 4 of the 32 of gpt-oss-20b, all of a small model. The
verdict itself comes from all experts."""

SURE, CLEARLY = 0.4, 3.0
"""If the best single bug leaves an error of more than SURE times the allowance, pairs are tried. A
pair is taken if its error is CLEARLY times smaller.

Measured on 411 cases of the kill matrix's parts ``single``, ``variant`` and ``pair``, with 40
random pairs on each checkpoint in each dtype. A right bug leaves up to 0.20 (0.52 at the router's
logits, which only costs a search for pairs that finds none), and no pair leaves 1.2 times less than
a right single bug. In one case a wrong single bug comes near (``sinks-scaled``, if sinks are
dropped and padding is attended to): it leaves 0.56, and the right pair leaves 5.2 times less."""

ALIKE = 1.02
"""Two candidates are alternatives if their distances differ by less than this factor."""

EXCHANGED = 3
"""Budget: number of earlier explanations that are replaced by alternatives if nothing else fits."""

PAIRED, LEADING = 24, 4
"""Budget: number of nearest candidates that are tried in pairs; and number of the nearest of these
that are tried with every form of the others."""

CARRIED, ARRIVES = 2.0, 1e-3
"""A rewriting must move what follows by less than CARRIED times its noise, or by less than ARRIVES
of its own size, each in multiples of what rounding explains. The inputs of a stage have roundings
of their own, larger than the stage's: experts of tiny in another order differ by 1.2 million times
what rounding explains at the router, and by 0.46 times after the experts."""

SAME_AFTER_FIT = 64.0
"""Largest difference, in unit roundoffs, of two arrays that are equal after a fitted rewriting."""

# --- search: constants fitted to the numbers ---

GRID, FINE, ROUNDS = 32, 9, 14
"""Budget: number of values in the coarse grid, in each finer grid, and number of finer grids."""

REFINED = 8
"""Budget: number of mutants, nearest on the coarse grid, whose value is refined."""

STALLED, FLAT = 2, 0.02
"""Budget: a fit ends if the mean logarithms of the rows' errors differ by less than FLAT in STALLED
finer grids in a row. Around the right value the error is in proportion to the distance from it,
so that they differ by more than 2 in every grid, until only rounding is left."""

FINEST = 2.0**-26
"""Relative step at which a fit ends, the resolution of float32."""

ENUMERATED = 64
"""Budget: an integer parameter (window, chunk, ring length) with up to this number of possible
values is tried with all of them."""

# --- search: bugs smaller than rounding, by the sign test (decision 0014) ---

VOTERS, SIDES = 30, 0.9
"""A bug is named if at least VOTERS values vote (round differently with and without it), and the
share SIDES agrees with it. Correct runs split evenly; 27 or more of 30 fair coins agree in 4 of a
million tries."""

EXACT, CLEAR = 3, 8.0
"""A bug is also named if EXACT values vote, and all of them are within a rounding or two with the
bug, and off by CLEAR roundings without it."""

GROSS = 2.0
"""A candidate that changes a tap point by this many times the allowance is larger than rounding."""

LOOKED_AT = 1 << 23
"""Budget: number of values whose votes are counted: one or two blocks of gpt-oss-20b on 200 tokens,
or all of a small model. A bug in a single block is found only if that block is among them."""

RESOLVED, RESOLVED_VALUES = 0.1, 8
"""Values of a gradient below one rounding of the whole array vote only if RESOLVED_VALUES values of
the same size do not depend on the bug, and all but the share RESOLVED of these are right within
that relative error."""

# --- search: gradients ---

AS_WELL, FITS_WELL = 3.0, 0.5
"""Another bug is an alternative if it leaves at most AS_WELL times what the best one leaves, or at
most FITS_WELL of what rounding explains."""

HELPFUL = 0.5
"""Budget: a bug is tried with others if by itself it leaves less than this share of the error."""

# --- search, end to end: from outputs alone ---

SAMPLES = 3
"""Budget: number of rounded runs that measure the effect of rounding on a correct model."""

BEGINNING, WRONG_ROWS = 128, 64
"""Budget: a bug is looked for in the first BEGINNING tokens of a long prompt, or in more, so that
WRONG_ROWS of their rows are wrong. What explains them is judged on the whole prompt. Chosen, not
measured: no cell of the kill matrix is so long."""

FINALISTS = 16
"""Budget: number of nearest candidates on that beginning that are run on the whole prompt."""

SHORTLIST, COMBINED = 4, 8
"""Budget: number of nearest candidates with their own noise floors; and number of candidates that
are combined in pairs if none fits alone."""

MOST_AT_ONCE = 4
"""Bugs at once that are looked for."""

BESIDE = 2
"""Budget: sets of bugs beside which a constant is fitted, if no set of known bugs explains all."""

PREDICTED = 8
"""Budget: sets of each size that are run, those whose effects come nearest when they add up."""

NO_DOUBT = 0.6
"""A bug that leaves no more of what rounding explains than this is taken without trying others."""

ALONG, FITTED, COMPARED = 0.3, 4, 3
"""Budget: a constant is fitted to outputs if the cosine of its effect and the difference to be
explained is at least ALONG; at most FITTED constants, those with the largest cosines. Each is
refined in COMPARED rounds; then only the nearest one is refined further."""

EFFECT_COLUMNS, EXTENDED_SETS = 64, 256
"""Budget: outputs of a row that effects are compared in, drawn at random; and sets of three that
are extended to sets of four, the nearest ones."""

FAR_OFF = 100.0
"""Budget: the noise floor of a candidate is not measured if its error is more than this many times
the specification's noise floor."""

GAIN, WINS = 0.1, 4.0
"""A bug smaller than rounding is named if it improves the mean logarithm of the rows' errors by
GAIN, and improves more rows than it worsens by WINS standard deviations of a fair coin."""

TURNED = 0.03
"""Budget: another bug is added to a set if it improves the mean logarithm of the sines between the
rows by at least this much. Among three gross bugs, one of them alone gains 0.08, and any other bug
0.01 (residual-missing with value-bias-folded and ring-boundary, on the random checkpoint)."""

NOT_FINITE = 1e3
"""Error of a row that is NaN or infinite in only one of the two traces."""

# --- search: mistakes of the recording ---

SUM_OF_ROW = 1e-2
"""Largest deviation from 1 of the sum of a row of probabilities; in bfloat16 it is 0.5 %."""

WITH_TOKENS_IN_FRONT = 0.05
"""Relative distance within which a tap point of the first block is that of a longer prompt, and
that share of the distance to the prompt itself."""

SAME_DIRECTION = 1e-3
"""How much less than 1 the cosine of a normalised embedding with its token's may be."""

SAME_BASE = 5e-3
"""Relative distance within which logits are multiplied by the logarithm of a base: that of
bfloat16."""

SAME_EMBEDDING = 1e-2
"""Largest relative distance of a row of embeddings from that of its token; 2e-3 in bfloat16."""

RECORDED_WRONGLY = 1 << 27
"""Budget: number of values of a tap point up to which ``compare`` looks for mistakes: 600 rows of
logits of gpt-oss-20b. It holds a few copies of the array in float64."""

FILTERED = -1e4
"""Rows whose smallest logits are all one number below this have been masked."""

MISTAKES = 3
"""Budget: number of mistakes that are undone one after the other in one array of outputs, such as
probabilities at a temperature; and of tokens that were replaced in one prompt."""

ORDERED_ROWS, ORDERED_RANKS = 16, 8
"""Budget: rows of logits by which another order of the vocabulary is found, and neighbouring ranks
among which the nearest column is looked for. With many tokens and a coarse rounding the right
column lies further away, and no order is found."""

LISTED = 1024
"""Budget: number of tokens of a vocabulary that are tried one after the other."""

# --- report: where the error is ---

CONCENTRATED, SOME = 0.99, 0.5
"""Heads, experts or channels are named if they have at least the share CONCENTRATED of the squared
error, and are at most the share SOME of their axis."""

FADED = 0.25
"""A rewriting leaves at most this share of its relative error in arrays computed from it."""
