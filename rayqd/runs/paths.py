"""Names of the files and directories inside a run's directory; the ones in its storage are called the same."""

from __future__ import annotations

CONFIG = "config.toml"  # as resolved; its first line names the command
METRICS = "metrics.jsonl"  # a line for each step and each evaluation
AUDIT = "audit.jsonl"  # what each step trained on, for `rayqd doctor RUN`
EVALUATIONS = "evaluations.json"  # in a checkpoint: what decides which weights are the best, and when to end
BAD_STEPS = "bad-steps"  # a file for each step that was skipped, and learner worker
QUARANTINE = "quarantine.jsonl"  # a line for each sequence that was left out of its step
COMPLETIONS = "teacher.jsonl"  # what the teacher wrote for distill.seq_kd, before the first step
DATA = "data.json"  # what the run reads, what was left out, the first rows as the model sees them
RESULT = "result.json"  # once the run has finished
REPORT = "report.html"
RESULT_TABLE = "result.md"  # verdict and table, beside the page
FIGURES = "figures"  # the page's drawings, an SVG each
ENDED = "ended.json"  # why a run ended before its last step

START = "start"  # where training starts: the untrained arms, and the weights if calibration moved them
CHECKPOINTS = "checkpoints"
EXPORT = "export"
EVALS = "eval"  # what `rayqd eval` measured, a file for each model
LOGS = "logs"  # a link to what the processes print
RAY_TRAIN = "ray_train"  # Ray Train's own files

RUN_ID = "run-id"  # tells a run from a later one of the same name, where there is storage
LOCK = ".lock"  # held as long as the run goes on
FETCH_LOCK = ".fetch.lock"  # held while a node fetches what the storage has
