"""What outlives the machines: a run's mirror under a URI. Driver and learner write to it, each its own part.

    <storage>/<name>/run-id                       which run this is; the same as in the run's directory
                     config.toml metrics.jsonl    by the driver, when training starts and at every checkpoint
                     quarantine.jsonl teacher.jsonl
                     result.json report.html      by the driver, at the end
                     start/                       by the learner: once, before the first step
                     checkpoints/step-000100/     by the learner: those that it keeps on its own disk
                     export/                      by the learner, after the last step

A directory counts only with its `manifest.json`, see `folder.py`.
"""
