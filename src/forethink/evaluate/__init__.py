"""Evaluation: next-token accuracy, plain and reasoning, of one model on drawn positions, and comparisons.

A run folder of ``forethink eval`` holds, beside what every run folder holds,

* ``samples.jsonl``: every completion with its answer and outcome;
* ``positions.jsonl``: one line a position: problem, document, base entropy, its splits and its band, whether the
  plain arg-max is right, its bytes (base64), ``top``: the five likeliest next tokens with probabilities, the model's
  log-probability of the true token and its own entropy, and how many of its completions were right, wrong, missing,
  cut off, boxed, equal to the arg-max;
* ``eval.json``: accuracies with intervals by split, perplexity, comparisons.

Which positions are drawn depends on the seed and the problems alone, so the evaluations of several models stand on
the same positions, and `compare` refuses others.
"""

from forethink.evaluate.stage import run_eval
from forethink.evaluate.tables import compare, tabulate

__all__ = ["compare", "run_eval", "tabulate"]
