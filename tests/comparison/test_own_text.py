"""What a comparison measures and says of students along the text that they write themselves."""

import io
import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import INPUTS, ROWS, every_job, leave_all, leave_run, make_jobs, measure
from rich.console import Console

from rayqd.commands.compare_arms import check_runs, compare_arms
from rayqd.commands.compare_own_text import measure_own_texts
from rayqd.commands.evaluate import load_student
from rayqd.comparison.directory import ComparisonDirectory
from rayqd.comparison.findings import Findings, find
from rayqd.comparison.jobs import Jobs
from rayqd.comparison.outcomes import by_arm
from rayqd.comparison.own_text import FILE, OwnTexts, read_own_text, write_own_text
from rayqd.comparison.table import print_findings
from rayqd.comparison.verdict import own_sentence, sentence
from rayqd.comparison.write import write_findings
from rayqd.config import Config
from rayqd.config.comparison import ComparisonSpec, load_comparison
from rayqd.data import ExampleSet
from rayqd.errors import ConfigError
from rayqd.evals.writing import Writing
from rayqd.metrics.fidelity import ByRow
from rayqd.model.load import load_model, load_tokenizer
from rayqd.runs.continuations import Basis, OwnText
from rayqd.runs.paths import EVALS, EXPORT
from rayqd.sweep.shared import data_key
from rayqd.types import Example
from tests.evals.plain_writing import agree_at, eager, kl_at, moved, sampled

OWN_KL = {"rtn": 0.50, "gptq": 0.30, "off-policy": 0.20, "mixed": 0.15, "on-policy": 0.10}
BASIS = Basis(prompts="p", model="m", teacher="t", dtype="float32", ends=(2,), max_new_tokens=12, seed=3, rayqd="0")


def own_rows(kl: float, seed: int | None) -> ByRow:
    """Prompts as hard for every arm, at completions of each arm's own lengths."""
    rows = measure(kl, seed, spread=0.002).by_row
    assert rows is not None
    own = np.random.default_rng([round(1e6 * kl), 0 if seed is None else seed + 1])
    lengths = own.integers(20, 160, ROWS)
    sums = np.array(rows.kl) / np.array(rows.num_tokens) * lengths
    agrees = tuple(int(number) // 2 for number in lengths)
    return ByRow(num_tokens=tuple(map(int, lengths)), kl=tuple(map(float, sums)), agrees=agrees, nll=rows.nll)


def judge(jobs: Jobs, directory: ComparisonDirectory, own: OwnTexts | None) -> Findings:
    findings = find(jobs.spec, by_arm(jobs.spec.arms, [directory.outcome(job) for job in every_job(jobs)]), own)
    write_findings(findings, jobs, directory, None)
    return findings


def test_arms_are_judged_along_their_own_text_beside_the_datas(tmp_path: Path) -> None:
    """On the data on-policy is worse, along its own text better; numbers are those of a loop over the rows."""
    jobs = make_jobs(tmp_path, "seeds = [0, 1, 2]")
    directory = leave_all(jobs, spread=0.002)
    by_run = {job.name: own_rows(OWN_KL[job.arm.name], job.seed) for job in every_job(jobs)}
    findings = judge(jobs, directory, OwnTexts(num_prompts=ROWS, max_new_tokens=160, by_run=by_run))
    own = {each.arm.name: each.own_text for each in findings.arms}
    assert own.pop("teacher") is None
    means: dict[str, float] = {}
    for name, each in own.items():
        assert each is not None
        runs = [by_run[job.name] for job in every_job(jobs) if job.arm.name == name]
        total = sum(kl for rows in runs for kl in rows.kl)
        number = sum(tokens for rows in runs for tokens in rows.num_tokens)
        means[name] = total / number
        assert each.kl.value == pytest.approx(means[name])
        assert each.num_tokens == pytest.approx(number / len(runs) / ROWS)
        if each.decision:
            assert each.decision.difference.value == pytest.approx(means[name] - _mean(by_run, jobs, "off-policy"))
    outcomes = {name: each.decision.outcome for name, each in own.items() if each and each.decision}
    assert outcomes == {"rtn": "worse", "gptq": "worse", "mixed": "better", "on-policy": "better"}
    assert "on-policy is worse than off-policy" in sentence(findings)
    said = own_sentence(findings)
    assert said.startswith("Along the text that each student writes itself: mixed is better than off-policy by 0.0")
    assert "on-policy is better than off-policy by" in said

    written = json.loads((directory.path / "compare.json").read_text())
    assert written["own_text"]["verdict"] == said
    assert written["arms"][5]["own_text"]["kl_to_teacher"]["value"] == pytest.approx(means["on-policy"])
    assert written["arms"][5]["own_text"]["decision"]["outcome"] == "better"
    text = (directory.path / "compare.md").read_text()
    assert said in text
    (row,) = [line for line in text.splitlines() if line.startswith("| on-policy")]
    assert f"| {means['on-policy']:.4f} (" in row
    assert "| worse |" in row
    assert "| better |" in row
    page = (directory.path / "compare.html").read_text()
    assert "KL on own text" in page
    assert f"{means['on-policy']:.4f}" in page
    console = Console(width=160, record=True, file=io.StringIO())
    print_findings(console, findings, directory.path, None)
    shown = console.export_text()
    assert f"{means['on-policy']:.4f}" in shown
    assert "160 tokens" in shown


def _mean(by_run: dict[str, ByRow], jobs: Jobs, arm: str) -> float:
    runs = [by_run[job.name] for job in every_job(jobs) if job.arm.name == arm]
    return sum(sum(rows.kl) for rows in runs) / sum(sum(rows.num_tokens) for rows in runs)


def test_without_the_setting_nothing_is_different(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    directory = leave_all(jobs)
    findings = judge(jobs, directory, measure_own_texts(jobs, every_job(jobs), {}, pytest.fail))
    assert own_sentence(findings) == ""
    for name in ("compare.json", "compare.md", "compare.html"):
        assert not re.search(r"own[ _]text|writes itself", (directory.path / name).read_text())


def test_a_run_that_could_not_be_measured_is_named_and_the_others_are_judged(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0]")
    directory = leave_all(jobs)
    by_run = {job.name: own_rows(OWN_KL[job.arm.name], job.seed) for job in every_job(jobs)}
    del by_run["mixed-seed=0-steps=4"]
    own = OwnTexts(num_prompts=ROWS, max_new_tokens=9, by_run=by_run, errors={"mixed-seed=0-steps=4": "no memory"})
    findings = judge(jobs, directory, own)
    assert {each.arm.name for each in findings.arms if each.own_text} == {"rtn", "gptq", "off-policy", "on-policy"}
    for name in ("compare.json", "compare.md", "compare.html"):
        assert "no memory" in (directory.path / name).read_text()
    (row,) = [line for line in (directory.path / "compare.md").read_text().splitlines() if line.startswith("| mixed")]
    assert "| not measured |" in row
    del by_run["off-policy-seed=0-steps=4"]
    said = own_sentence(judge(jobs, directory, own))
    assert said.endswith("nothing is decided: off-policy, which they are held against, was not measured.")


def test_an_arm_goes_on_from_the_same_prompts_as_the_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.continuations = 3: every arm goes on from the same prompts"):
        make_jobs(tmp_path, arms="off-policy = {}\nmixed = {eval.continuations = 3}")


def test_several_teachers_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    routed = [f"@{tmp_path}/study.toml", "--teacher.column", "subject", "--teacher.route", "math=org/m,*=m"]
    assert len(load_comparison(routed).config().teachers) == len(jobs.base.teachers) + 1
    with pytest.raises(ConfigError, match=r"^eval\.continuations = 3 holds .* one teacher .*: leave it out") as caught:
        load_comparison([*routed, "--eval.continuations", "3"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", [field.name for field in fields(Basis)])
def test_a_record_counts_on_its_own_basis_alone(field: str, tmp_path: Path) -> None:
    found = OwnText(by_row=own_rows(0.1, 0), basis=BASIS)
    write_own_text(tmp_path, found)
    assert read_own_text(tmp_path, BASIS) == found.by_row
    value = {"ends": (2, 3), "max_new_tokens": 13, "seed": 4}.get(field, "other")
    assert read_own_text(tmp_path, replace(BASIS, **{field: value})) is None


def test_what_rayqd_eval_measured_counts_and_a_damaged_file_does_not(tmp_path: Path) -> None:
    found = OwnText(by_row=own_rows(0.1, 0), basis=BASIS)
    content = {"data": [], "own": [], "agreed": [], "num_whole": 0, "max_new_tokens": 12, "samples": []}
    (tmp_path / EVALS).mkdir()
    file = tmp_path / EVALS / "export-continuations.json"
    file.write_text(json.dumps(content))  # of an older version
    (tmp_path / EVALS / FILE).write_text('{"by_row": ')
    assert read_own_text(tmp_path, BASIS) is None
    file.write_text(json.dumps({**content, "own_text": asdict(found)}))
    assert read_own_text(tmp_path, BASIS) == found.by_row


FILE_OF_ARMS = """
name = "study"
runs_dir = "{directory}"
model = {{name = "{model}", dtype = "float32"}}
data = {{source = "quickstart", max_length = 128, min_room = 8}}
eval = {{source = "quickstart", continuations = 3}}
quant.group_size = 64
rollout = {{max_new_tokens = 10, min_new_tokens = 4}}
learner.steps = 4
[compare]
seeds = [5]
[compare.arms]
off-policy = {{rollout.max_new_tokens = 20}}
gptq = {{}}
"""


@pytest.mark.slow
def test_every_finished_run_is_measured_once_and_is_what_each_text_alone_gives(
    tiny_model: Path, make_rollouts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export of one run stands in its directory; of another it is gone; of the third the run never ended."""
    (tmp_path / "study.toml").write_text(FILE_OF_ARMS.format(directory=tmp_path, model=tiny_model))
    jobs = Jobs(load_comparison([f"@{tmp_path / 'study.toml'}"]))
    rounded, gptq, trained = every_job(jobs)
    rows = make_rollouts((5, 3), (9, 4), (3, 7), (4, 4), seed=4)
    examples = [Example(row=i, prompt_ids=r.prompt_ids, completion_ids=r.completion_ids) for i, r in enumerate(rows)]
    one = ExampleSet(examples=examples, keys=np.zeros(4, np.uint64), source="", num_rows=4, left_out=())
    data = {data_key(job.config): (one, one) for job in every_job(jobs)}
    directory = ComparisonDirectory(jobs)
    for job in (rounded, trained):
        directory.begin(job, INPUTS)
        leave_run(job, 0.1)
    student = moved(tiny_model)
    student.save_pretrained(trained.directory / EXPORT)
    load_tokenizer(tiny_model).save_pretrained(trained.directory / EXPORT)
    said: list[str] = []
    found = measure_own_texts(jobs, every_job(jobs), data, said.append)
    assert found is not None
    assert found.by_run.keys() == {trained.name}
    assert found.errors.keys() == {rounded.name}
    assert gptq.name not in " ".join(said)

    writing = Writing(ends=(2,), max_new_tokens=10, seed=5, max_tokens=1)
    plain, teacher = eager(tiny_model, student), eager(tiny_model, load_model(tiny_model, "float32"))
    prompts = [row.prompt_ids for row in rows[:3]]
    texts = [np.array(sampled(plain, prompt, (5, i), writing)) for i, prompt in enumerate(prompts)]
    by_row = found.by_run[trained.name]
    assert list(by_row.num_tokens) == [len(text) for text in texts]
    kl = [sum(kl_at(teacher, plain, prompt, text)) for prompt, text in zip(prompts, texts, strict=True)]
    assert by_row.kl == pytest.approx(kl, rel=1e-3)
    agrees = [agree_at(teacher, plain, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    assert list(by_row.agrees) == agrees

    monkeypatch.setattr("rayqd.commands.compare_own_text.load_student", pytest.fail)
    again = measure_own_texts(jobs, every_job(jobs), data, said.append)
    assert again is not None
    assert again.by_run == found.by_run


@pytest.mark.slow
def test_the_command_measures_finished_runs_and_again_only_what_is_missing(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two runs and started again it ends with the same table. Nothing is left to train: without Ray."""
    lines = tiny_data.read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:20]))
    (tmp_path / "heldout.jsonl").write_text("".join(lines[20:]))
    (tmp_path / "study.toml").write_text(FILE_OF_ARMS.format(directory=tmp_path, model=tiny_model))
    sources = ["--data.source", str(tmp_path / "train.jsonl"), "--eval.source", str(tmp_path / "heldout.jsonl")]
    spec = load_comparison([f"@{tmp_path / 'study.toml'}", *sources])
    jobs = Jobs(spec)
    _, inputs = check_runs(jobs, every_job(jobs))
    directory = ComparisonDirectory(jobs)
    for number, job in enumerate(every_job(jobs)):
        directory.begin(job, inputs[job.name])
        leave_run(job, 0.1 + 0.1 * number)
        moved(tiny_model, 0.02 + 0.02 * number).save_pretrained(job.directory / EXPORT)
        load_tokenizer(tiny_model).save_pretrained(job.directory / EXPORT)
    directory.close()
    stop_the_measuring(spec, monkeypatch)
    written = json.loads((directory.path / "compare.json").read_text())  # the data's numbers, as soon as there are any
    assert all(arm["kl_to_teacher"] for arm in written["arms"])
    assert "own_text" not in written
    with monkeypatch.context() as broken:
        broken.setattr("rayqd.commands.compare_own_text.load_student", without_memory_for("gptq"))
        findings = compare_arms(spec, Console(file=io.StringIO()))
    assert findings.own_texts is not None
    assert findings.own_texts.errors == {"gptq-seed=5": "RuntimeError: DefaultCPUAllocator: not enough memory"}
    assert [each.own_text is not None for each in findings.arms] == [True, True, False]
    findings = compare_arms(spec, Console(file=io.StringIO()))
    assert findings.own_texts is not None
    assert findings.own_texts.errors == {}
    assert [each.own_text is not None for each in findings.arms] == [True, True, True]
    kl = [each.own_text.kl.value for each in findings.arms if each.own_text]
    assert kl[0] < kl[2] < kl[1]  # rounded, GPTQ, trained: how far each was moved from the teacher
    before = (directory.path / "compare.json").read_text()

    (every_job(jobs)[1].directory / EVALS / FILE).unlink()
    stop_the_measuring(spec, monkeypatch)
    assert (directory.path / "compare.json").read_text() == before  # no table takes the place of one that says more
    loaded: list[Path] = []
    monkeypatch.setattr(
        "rayqd.commands.compare_own_text.load_student",
        lambda path, config: loaded.append(path) or load_student(path, config),
    )
    compare_arms(spec, Console(file=io.StringIO()))
    assert loaded == [every_job(jobs)[1].directory]
    assert (directory.path / "compare.json").read_text() == before


def stop_the_measuring(spec: ComparisonSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("rayqd.commands.compare_own_text.measure_own_text", stop)
        with pytest.raises(KeyboardInterrupt):
            compare_arms(spec, Console(file=io.StringIO()))


def without_memory_for(arm: str) -> Any:
    def load(path: Path, config: Config) -> Any:
        if path.name.startswith(arm):
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return load_student(path, config)

    return load
