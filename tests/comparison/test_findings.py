"""Runs with a known truth: what a comparison says of them, in the terminal, in its files and on its page."""

import io
import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from made_runs import INPUTS, KL, every_job, leave_all, leave_run, make_jobs
from rich.console import Console

from rayqd.comparison.directory import ComparisonDirectory, read_failures
from rayqd.comparison.findings import Findings, find, find_curve
from rayqd.comparison.jobs import Jobs
from rayqd.comparison.outcomes import Outcome, by_arm, read_curve
from rayqd.comparison.table import print_findings
from rayqd.comparison.verdict import evidence, sentence
from rayqd.comparison.write import write_findings
from rayqd.runs.result_file import DistillResult


def judge(jobs: Jobs, directory: ComparisonDirectory, price: float | None = None) -> Findings:
    outcomes = [directory.outcome(job) for job in every_job(jobs)]
    findings = find(jobs.spec, by_arm(jobs.spec.arms, outcomes))
    write_findings(findings, jobs, directory, price)
    return findings


def shown(findings: Findings, directory: Path, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_findings(console, findings, directory, None)
    return console.export_text()


def test_each_arm_is_judged_as_the_truth_is(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0, 1, 2]")
    findings = judge(jobs, leave_all(jobs, spread=0.002))
    outcomes = {each.arm.name: each.decision.outcome for each in findings.arms if each.decision}
    assert outcomes == {"rtn": "worse", "gptq": "worse", "mixed": "equivalent", "on-policy": "worse"}
    said = sentence(findings)
    assert said.startswith("Mixed and off-policy are equivalent within ±0.01 nats")
    last, reference = findings.arms[-1].decision, findings.reference.kl
    assert last is not None
    assert reference is not None
    truth = (KL["on-policy"] / KL["off-policy"] - 1) * reference.value
    low, high = last.difference.interval() or (0.0, 0.0)
    assert low < truth < high
    assert f"on-policy is worse than off-policy by {last.difference.value:.3f} nats" in said
    assert "60 held-out rows" in evidence(findings)
    assert "3 seeds together" in evidence(findings)


def test_a_model_made_elsewhere_is_judged_as_the_others_and_has_no_cost(tmp_path: Path) -> None:
    arms = 'gptq = {}\noff-policy = {}\ntheirs = {kind = "model", path = "out/w4"}'
    jobs = make_jobs(tmp_path, 'seeds = [0, 1, 2]\nagainst = "theirs"', arms)
    directory = leave_all(jobs, spread=0.002)
    findings = judge(jobs, directory, price=3.6)
    given = findings.reference
    assert given.kl is not None
    assert given.kl.interval() is not None
    assert given.cost is None
    assert (given.recovered.value if given.recovered else 0) == pytest.approx(1 - KL["theirs"] / KL["rtn"], abs=0.05)
    outcomes = {each.arm.name: each.decision.outcome for each in findings.arms if each.decision}
    assert outcomes == {"rtn": "worse", "gptq": "worse", "off-policy": "better"}
    assert sentence(findings).startswith("Off-policy is better than theirs by 0.0")
    (row,) = [line for line in (directory.path / "compare.md").read_text().splitlines() if line.startswith("| theirs")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4] == "reference"
    assert cells[7] == "6.5"  # bits a weight
    assert cells[-3:] == ["made elsewhere", "-", "made elsewhere"]  # never 0
    (written,) = [arm for arm in json.loads((directory.path / "compare.json").read_text())["arms"] if "path" in arm]
    assert (written["path"], written["cost"], written["made"]) == ("out/w4", None, "made elsewhere")
    page = (directory.path / "compare.html").read_text()
    assert "What is not known here: what theirs cost, made elsewhere." in page
    assert 'path = "out/w4"' in unescape(re.sub("<[^>]*>", "", page))
    console = Console(width=200, record=True, file=io.StringIO())
    print_findings(console, findings, directory.path, 3.6)
    assert console.export_text().count("made elsewhere") == 2


def test_an_arm_whose_kl_is_not_finite_decides_nothing_and_says_so(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0, 1, 2]")
    directory = leave_all(jobs)
    outcomes = [
        spoil(o) if o.job.name.startswith("mixed-seed=1") else o for o in map(directory.outcome, every_job(jobs))
    ]
    findings = find(jobs.spec, by_arm(jobs.spec.arms, outcomes))
    write_findings(findings, jobs, directory, None)
    assert "Whether mixed is better than off-policy is not decided: the KL of mixed is not finite" in sentence(findings)
    text = (directory.path / "compare.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| mixed")]
    assert "| not finite |" in row
    written = json.loads((directory.path / "compare.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written["arms"][4]["kl_to_teacher"] == {"value": None, "low": None, "high": None}
    assert {each.arm.name: each.decision.outcome for each in findings.arms if each.decision}["rtn"] == "worse"

    spoilt = [spoil(o) if o.job.arm.name == "off-policy" else o for o in map(directory.outcome, every_job(jobs))]
    said = sentence(find(jobs.spec, by_arm(jobs.spec.arms, spoilt)))
    assert "rtn is better than off-policy is not decided: the KL of off-policy is not finite" in said


def spoil(outcome: Outcome) -> Outcome:
    """Put a value that is no number into one row of what was measured."""
    result = outcome.result
    assert isinstance(result, DistillResult)
    rows = result.student.fidelity.by_row
    assert rows is not None
    bad = replace(rows, kl=(math.nan, *rows.kl[1:]))
    student = replace(result.student, fidelity=replace(result.student.fidelity, kl_to_teacher=math.nan, by_row=bad))
    return replace(outcome, result=replace(result, rows=(*result.rows[:-1], student)))


def test_recovery_is_measured_from_rounding_to_the_teacher(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0, 1, 2]")
    findings = {each.arm.name: each for each in judge(jobs, leave_all(jobs)).arms}
    rtn, gptq = findings["rtn"], findings["gptq"]
    assert rtn.kl is not None
    assert gptq.kl is not None
    assert gptq.recovered is not None
    assert gptq.recovered.value == pytest.approx((gptq.kl.value - rtn.kl.value) / (0 - rtn.kl.value))
    low, high = gptq.recovered.interval() or (0.0, 0.0)
    assert low < 1 - KL["gptq"] / KL["rtn"] < high
    assert rtn.recovered is not None
    assert rtn.recovered.value == 0


def test_an_interval_without_0_that_decides_nothing_is_explained(tmp_path: Path) -> None:
    """Its own p-value is below 5 %; four times as large, which Holm's correction may ask for, it is not."""
    findings = judge(jobs := make_jobs(tmp_path, "seeds = [0, 1]"), leave_all(jobs))
    decision = next(each.decision for each in findings.arms if each.arm.name == "gptq")
    assert decision is not None
    low, high = decision.difference.interval() or (0.0, 0.0)
    assert 0 < low < high
    assert (decision.difference.p_different() or 1.0) < 0.05 < (decision.p_different or 0.0)
    assert re.search(
        r"whether gptq is better than off-policy is not decided \(\+0\.\d+ to \+0\.\d+\), though it would be by this "
        r"test alone: at 5 % for all 4 together it is not: about 1 more seed would",
        sentence(findings),
    )
    on_policy = next(each.decision for each in findings.arms if each.arm.name == "on-policy")
    assert on_policy is not None
    low, high = on_policy.difference.interval() or (0.0, 0.0)
    assert low < 0 < high
    assert sentence(findings).count("test alone") == 1


def test_too_little_is_not_decided_and_says_how_much_more_would_be_enough(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [4, 5, 6]\nmargin = 1e-4", "off-policy = {}\nmixed = {}")
    findings = judge(jobs, leave_all(jobs, spread=0.3))
    decision = next(each.decision for each in findings.arms if each.arm.name == "mixed")
    assert decision is not None
    assert decision.outcome == "not decided"
    assert decision.needed is not None
    said = sentence(findings)
    number = re.search(r"not decided \(.*?\): about .*?([\d,]+) more seeds? would, if it stays as it is", said)
    assert number is not None, said
    assert int(number[1].replace(",", "")) == (decision.needed.seeds or 0) - 3


def test_one_seed_says_that_it_is_one(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [3]")
    findings = judge(jobs, leave_all(jobs))
    assert evidence(findings).endswith("What other seeds would have given is not in them.")
    assert all(each.kl is None or each.kl.components.seed == 0 for each in findings.arms)


@pytest.mark.slow
def test_a_comparison_that_was_killed_ends_with_the_same_files(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    whole = make_jobs(one)
    judge(whole, leave_all(whole))
    jobs = make_jobs(other)
    for kept in range(len(every_job(jobs))):  # killed after each run, and started again
        directory = ComparisonDirectory(jobs)
        job = every_job(jobs)[kept]
        directory.begin(job, INPUTS)
        leave_run(job, KL[job.arm.name])
        judge(jobs, directory)
        directory.close()
    for name in ("compare.json", "compare.md"):
        assert (other / "study" / name).read_text() == (one / "study" / name).read_text()


def test_an_arm_that_failed_stands_in_the_table_with_the_end_of_its_log(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0]")
    directory = ComparisonDirectory(jobs)
    for job in every_job(jobs):
        directory.begin(job, INPUTS)
        if job.arm.name != "mixed":
            leave_run(job, KL[job.arm.name])
            continue
        directory.fail(job, "the learner's memory is full")
        job.directory.mkdir(parents=True)
        (job.directory / "log.txt").write_text("".join(f"line {i}\n" for i in range(40)))
    findings = judge(jobs, directory)
    assert [each.arm.name for each in findings.failed] == ["mixed"]
    text = shown(findings, directory.path, 100)
    assert "mixed-seed=0-steps=4 failed: the learner's memory is full" in text
    assert "line 39" in text
    page = (directory.path / "compare.html").read_text()
    assert "line 39" in page
    assert "line 2\n" not in page
    assert "mixed-seed=0-steps=4 failed" in (directory.path / "compare.md").read_text()
    assert json.loads((directory.path / "compare.json").read_text())["arms"][4]["runs"][0]["state"] == "failed"
    directory.begin(findings.failed[0].outcome.runs[0].job, INPUTS)  # it is tried again
    assert read_failures(directory.path) == {}


def test_the_evidence_is_of_the_seeds_that_the_differences_rest_on(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0, 1]", "off-policy = {}\non-policy = {}")
    directory = leave_all(jobs)
    outcomes = [directory.outcome(job) for job in every_job(jobs)]
    assert "and 2 seeds together" in evidence(find(jobs.spec, by_arm(jobs.spec.arms, outcomes)))
    lost = [
        replace(each, result=None, error="memory") if each.job.name.startswith("on-policy-seed=1") else each
        for each in outcomes
    ]
    said = evidence(find(jobs.spec, by_arm(jobs.spec.arms, lost)))
    assert "tokens, with one seed" in said
    assert said.endswith("What other seeds would have given is not in them.")


@pytest.mark.parametrize("at", [1, 2])
def test_a_curve_has_the_exported_weights_at_their_own_step(tmp_path: Path, at: int) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0]", "off-policy = {}")
    run = leave_all(jobs).outcome(every_job(jobs)[-1])
    assert isinstance(run.result, DistillResult)
    before, best = read_curve(run), replace(run, result=replace(run.result, exported_step=at))
    after = read_curve(best)
    assert run.row is not None
    assert after[at] == (400 * at, run.row.fidelity)  # 400 tokens a step
    assert [*before] == [0, 2, 4]
    assert 4 not in after  # which nobody measured


@pytest.mark.parametrize("width", [60, 100])
def test_the_table_fits_the_terminal(tmp_path: Path, width: int) -> None:
    jobs = make_jobs(tmp_path)
    directory = leave_all(jobs)
    text = shown(judge(jobs, directory), directory.path, width)
    table = text[: text.index("KL in nats a token")]
    assert max(map(len, table.splitlines())) <= width
    assert "off-policy" in table


def test_the_page_begins_with_the_verdict_and_loads_nothing(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    directory = leave_all(jobs)
    findings = judge(jobs, directory, price=2.5)
    page = (directory.path / "compare.html").read_text()
    assert page.index(sentence(findings).partition("(")[0]) < page.index("<table>")
    assert not re.search(r'(src|href)="(https?:)?//', page)
    figures = sorted(file.name for file in (directory.path / "figures").iterdir())
    assert figures == ["kl-to-teacher-over-tokens.svg", "quality-against-cost.svg"]


def test_a_curve_is_the_mean_over_the_seeds_with_its_interval(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0, 1, 2]")
    findings = judge(jobs, leave_all(jobs))
    curve = find_curve(findings.reference.outcome)
    assert [point.tokens for point in curve] == [0, 800, 1600]  # 400 a step, measured at steps 0, 2 and 4
    assert findings.reference.kl is not None
    assert curve[-1].kl.value == pytest.approx(findings.reference.kl.value)
    assert np.diff([point.kl.value for point in curve]).max() < 0
