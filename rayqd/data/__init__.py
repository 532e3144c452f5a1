"""From a file or a data set id to tokens, and from tokens to the sequences of each step.

sources: rows  -->  template: tokens of one row  -->  examples: the rows that are kept
  -->  run_data: of all sources, and held-out ones  -->  plan: which, when
"""

from rayqd.data.calibration import calibration_sequences
from rayqd.data.example_set import ExampleSet
from rayqd.data.examples import load_examples
from rayqd.data.plan import Plan, make_plan
from rayqd.data.run_data import load_heldout, load_run_data
from rayqd.data.sources import Message, Rows, read_rows
from rayqd.data.template import tokenize_example

__all__ = [
    "ExampleSet",
    "Message",
    "Plan",
    "Rows",
    "calibration_sequences",
    "load_examples",
    "load_heldout",
    "load_run_data",
    "make_plan",
    "read_rows",
    "tokenize_example",
]
