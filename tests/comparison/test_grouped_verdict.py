"""Many arms are told by what was decided of them: each once, with its own difference."""

import math
from pathlib import Path

from made_runs import ARMS, INPUTS, every_job, leave_run, make_jobs

from rayqd.comparison.directory import ComparisonDirectory
from rayqd.comparison.findings import Findings, find
from rayqd.comparison.grouped_verdict import Against, group
from rayqd.comparison.outcomes import by_arm
from rayqd.comparison.verdict import MOST_IN_FULL, sentence
from rayqd.statistics.crossed import Components, Estimate
from rayqd.statistics.decision import Decision, Needed

MORE = """
slow = {kind = "on-policy", learner.lr = 1e-5}
reverse = {kind = "off-policy", distill.beta = 1.0}
"""
KL = {"rtn": 0.36, "gptq": 0.15, "off-policy": 0.10, "mixed": 0.1001, "on-policy": 0.12, "slow": 0.13, "reverse": 0.07}


def judge(directory: Path) -> Findings:
    jobs = make_jobs(directory, "seeds = [0, 1, 2]", ARMS + MORE)
    made = ComparisonDirectory(jobs)
    for job in every_job(jobs):
        made.begin(job, INPUTS)
        leave_run(job, KL[job.arm.name], 0.002)
    return find(jobs.spec, by_arm(jobs.spec.arms, [made.outcome(job) for job in every_job(jobs)]))


def test_arms_are_told_in_groups_the_largest_difference_first(tmp_path: Path) -> None:
    findings = judge(tmp_path)
    size = {a.arm.name: abs(a.decision.difference.value) for a in findings.arms if a.decision}
    assert len(size) > MOST_IN_FULL
    said = sentence(findings)
    assert said == (
        f"Against off-policy, reverse (by {size['reverse']:.3f} nats) is better; rtn (by {size['rtn']:.3f} nats), "
        f"gptq ({size['gptq']:.3f}), slow ({size['slow']:.3f}) and on-policy ({size['on-policy']:.3f}) are worse; "
        "mixed is equivalent within ±0.01 nats."
    )


def not_decided(value: float, needed: Needed | None) -> Decision:
    found = Estimate(value=value, components=Components(item=1.0, seed=1.0, rest=1.0), num_items=60, num_seeds=3)
    return Decision(difference=found, outcome="not decided", p_different=0.5, p_equivalent=0.5, needed=needed)


def test_what_is_not_decided_says_what_would_decide_all_of_it() -> None:
    against = Against(name="off-policy", margin=0.001)
    some = [
        ("mixed", not_decided(0.002, Needed(items=None, seeds=4))),
        ("slow", not_decided(-0.003, Needed(items=80, seeds=9))),
    ]
    text = "against off-policy, of mixed and slow nothing is decided"
    assert group(some, against, "prompts") == f"{text} (about 1 to 6 more seeds would, if it stays as it is)"
    some[0] = ("mixed", not_decided(0.002, Needed(items=61, seeds=None)))
    assert group(some, against, "prompts") == f"{text} (about 1 to 20 more prompts would, if it stays as it is)"
    some[0] = ("mixed", not_decided(0.0, None))
    assert group(some, against, "prompts") == text


def test_a_kl_that_is_not_finite_is_said() -> None:
    some = [("mixed", not_decided(math.nan, None)), ("slow", not_decided(0.0, None))]
    said = group(some, Against(name="off-policy", margin=0.001), "prompts")
    assert said == "against off-policy, of slow nothing is decided; of mixed neither, as a KL is not finite"
