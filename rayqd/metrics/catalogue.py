"""Every metric there is: what a step measures, what it is called, and which field of which event it comes from.

The series in Prometheus (`rayqd/actors/prometheus.py`), the Grafana dashboard, the line in the terminal, the curves of
the report and the table in docs/dashboard.md are all made from METRICS. A new metric is a field and an entry here, and
its value where it is measured.
"""

from __future__ import annotations

from rayqd.metrics.metric import PREFIX, Metric

__all__ = ["METRICS", "PREFIX", "ROLES", "STUDENT", "Metric", "metric"]

ROLES = ("rollout", "teacher", "learner")
STUDENT = "student"  # the arm that is trained, before and after its last step


def _learner_field(name: str) -> dict[str, str]:
    return {"learner": name}


def _role_fields(suffix: str) -> dict[str, str]:
    return {role: f"{role}_{suffix}" for role in ROLES}


METRICS = (
    Metric(
        name="step",
        title="Step",
        unit="steps",
        help="Optimizer steps done.",
        group="Progress",
        fields=_learner_field("step"),
        form=",.0f",
    ),
    Metric(
        name="checkpoint_step",
        title="Last checkpoint",
        unit="steps",
        help="The step that a run which dies now goes on from.",
        group="Progress",
        fields=_learner_field("step"),
        event="checkpoint",
        form=",.0f",
    ),
    Metric(
        name="loss",
        title="Loss",
        unit="nats a token",
        help="Divergence that the step trained on, over the tokens of the whole batch.",
        group="Quality",
        fields=_learner_field("loss"),
        label="loss",
        form=".4f",
    ),
    Metric(
        name="kl_to_teacher",
        title="KL to teacher",
        unit="nats a token",
        help="Forward KL of the student to the teacher on the held-out rows, over the full vocabulary.",
        group="Quality",
        fields=_learner_field("kl_to_teacher"),
        event="eval",
        by_arm=True,
        better="lower",
        form=".4f",
    ),
    Metric(
        name="top1_agreement",
        title="Same top-1 as the teacher",
        unit="share",
        help="Share of the held-out tokens at which the likeliest token is the teacher's.",
        group="Quality",
        fields=_learner_field("top1_agreement"),
        event="eval",
        by_arm=True,
        better="higher",
        form=".1%",
    ),
    Metric(
        name="perplexity",
        title="Perplexity",
        unit="",
        help="Perplexity on the held-out rows.",
        group="Quality",
        fields=_learner_field("perplexity"),
        event="eval",
        by_arm=True,
        better="lower",
        form=".3f",
    ),
    Metric(
        name="text_perplexity",
        title="Perplexity of eval.text",
        unit="",
        help="Perplexity of eval.text, by a window that slides over it.",
        group="Quality",
        fields=_learner_field("text_perplexity"),
        event="eval",
        by_arm=True,
        better="lower",
        form=".3f",
    ),
    Metric(
        name="benchmark",
        title="Benchmarks",
        unit="",
        help="What the student in training scores on eval.tasks, by TASK/METRIC.",
        group="Quality",
        fields=_learner_field("task_values"),
        event="eval",
        by_arm=True,
        by_task=True,
        form=".3f",
    ),
    Metric(
        name="learning_rate",
        title="Learning rate",
        unit="",
        help="Learning rate that the step used.",
        group="Quality",
        fields=_learner_field("lr"),
        form=".2g",
    ),
    Metric(
        name="grad_norm",
        title="Gradient norm",
        unit="",
        help="Norm of the gradient, before clipping.",
        group="Quality",
        fields=_learner_field("grad_norm"),
        form=".3g",
    ),
    Metric(
        name="tokens_per_second",
        title="Tokens a second",
        unit="tokens/s",
        help="Tokens that a worker of the role writes, reads or trains on, in the time that it works.",
        group="Speed",
        fields=_role_fields("tokens_per_second"),
        label="tok/s",
        form=",.0f",
    ),
    Metric(
        name="work_seconds",
        title="Seconds of work",
        unit="s",
        help="Time worked for the steps, summed over the role's workers.",
        group="Speed",
        fields=_role_fields("seconds"),
        kind="counter",
        rate="Workers at work",
        form=".1f",
    ),
    Metric(
        name="wait_seconds",
        title="Seconds of waiting",
        unit="s",
        help="Time that the learner waited for its batches.",
        group="Speed",
        fields=_learner_field("wait_seconds"),
        kind="counter",
        rate="Share of time that the learner waits",
        form=".1f",
    ),
    Metric(
        name="trained_tokens",
        title="Trained tokens",
        unit="tokens",
        help="Completion tokens that the loss was taken over.",
        group="Speed",
        fields=_learner_field("num_loss_tokens"),
        kind="counter",
        rate="Trained tokens a second",
        form=",.0f",
    ),
    Metric(
        name="teacher_cache_hits",
        title="Teacher cache hits",
        unit="sequences",
        help="Sequences of the data whose scores were kept from an earlier reading.",
        group="Speed",
        fields={"teacher": "teacher_cache_hits"},
        kind="counter",
        rate="Teacher cache hits a second",
        form=",.0f",
    ),
    Metric(
        name="teacher_cache_misses",
        title="Teacher cache misses",
        unit="sequences",
        help="Sequences of the data that the teacher had to read.",
        group="Speed",
        fields={"teacher": "teacher_cache_misses"},
        kind="counter",
        rate="Teacher cache misses a second",
        form=",.0f",
    ),
    Metric(
        name="on_policy_sequences",
        title="On-policy sequences",
        unit="sequences",
        help="Sequences of the step's batch that the student wrote.",
        group="Data",
        fields=_learner_field("num_on_policy"),
        form=",.0f",
    ),
    Metric(
        name="drawn_sequences",
        title="Sequences by source",
        unit="sequences",
        help="Sequences drawn from each of several data.sources.",
        group="Data",
        fields={"controller": "sequences_by_source"},
        kind="counter",
        by_source=True,
        form=",.0f",
    ),
    Metric(
        name="completion_tokens",
        title="Length of what the student writes",
        unit="tokens",
        help="Mean length of the completions in the step's batch that the student wrote.",
        group="Data",
        fields=_learner_field("mean_completion_tokens"),
        label="length",
        label_rank=3,
        form=",.0f",
    ),
    Metric(
        name="cut_completions",
        title="Cut at rollout.max_new_tokens",
        unit="share",
        help="Share of the completions that the student wrote which reached their limit before they ended.",
        group="Data",
        fields=_learner_field("cut_share"),
        label="cut",
        label_rank=2,
        form=".0%",
    ),
    Metric(
        name="staleness",
        title="Staleness",
        unit="versions",
        help="How far the oldest weights behind the step's rollouts lag behind the learner.",
        group="Data",
        fields=_learner_field("staleness"),
        label="staleness",
        label_rank=1,
        form=",.0f",
    ),
    Metric(
        name="engine_error",
        title="Error of the rollout engine",
        unit="share",
        help="How far log-probabilities of an engine with its first published weights are from the learner's.",
        group="Trouble",
        fields=_learner_field("engine_error"),
        form=".2%",
    ),
    Metric(
        name="retries",
        title="Retries",
        unit="calls",
        help="Work asked for again because a rollout worker or teacher died, or its answer was lost.",
        group="Trouble",
        fields={"controller": "num_retries"},
        kind="counter",
        counts_from="start",
        label="retries",
        form=",.0f",
    ),
    Metric(
        name="quarantined_sequences",
        title="Quarantined sequences",
        unit="sequences",
        help="Sequences left out of their step: the teacher computed inf or nan, or an engine wrote other than asked.",
        group="Trouble",
        fields={"controller": "num_quarantined"},
        kind="counter",
        counts_from="start",
        label="quarantined",
        form=",.0f",
    ),
)

_BY_NAME = {metric.name: metric for metric in METRICS}


def metric(name: str) -> Metric:
    """Return the metric of that name; raises KeyError where there is none."""
    return _BY_NAME[name]
