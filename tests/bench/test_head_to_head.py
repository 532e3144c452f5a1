"""What `rayqd bench run` must get right besides the clock: the same tokens for all, and an honest row for each."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_events import step_event
from rich.console import Console

from rayqd.bench.head_to_head import own, process_watch
from rayqd.bench.head_to_head.contender_process import ProcessEnd
from rayqd.bench.head_to_head.measure import measure_peer
from rayqd.bench.head_to_head.peers import BY_NAME, Peer
from rayqd.bench.head_to_head.process_watch import CpuClock
from rayqd.bench.head_to_head.requests import make_requests
from rayqd.bench.head_to_head.result import HeadToHeadResult, parse_head_to_head
from rayqd.bench.head_to_head.step_times import StepRecorder, StepTimes, read_step_times
from rayqd.bench.head_to_head.table import show
from rayqd.bench.head_to_head.trl_gkd import Collator
from rayqd.bench.head_to_head.workload import Request, Workload, read_workload

CPU = CpuClock((), ())


def request(number: int, prompt_tokens: int = 3) -> Request:
    ids = tuple(range(10 * number, 10 * number + prompt_tokens))
    return Request(prompt=f"p{number}", answer=f"a{number}", prompt_ids=ids, completion_ids=(90, 91, 92, 93))


def workload(**changed: Any) -> Workload:
    base = Workload(
        arm="on-policy",
        model="/nowhere",
        dtype="float32",
        requests=tuple(request(number) for number in range(12)),
        held_out=(request(12),),
        num_sequences=4,
        new_tokens=4,
        steps=3,
        seconds=60,
        microbatch_tokens=16,
        gradient_checkpointing=False,
        group_size=32,
        rank=4,
        alpha=8,
        lr=1e-3,
        beta=1.0,
        temperature=1.0,
        seed=0,
    )
    return replace(base, **changed)


@pytest.fixture
def peer_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a peer of Python code, in which `steps` is the file that it writes."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(code: str, **changed: Any) -> Peer:
        (tmp_path / "own_peer.py").write_text(f"import sys, json\ngiven, steps = sys.argv[1:]\n{code}\n")
        return Peer(name="own", label="Own", module="own_peer", packages=("json",), remark="", **changed)

    return make


STEPS = "open(steps, 'w').writelines(json.dumps({'step': n, 'time': t}) + '\\n' for n, t in enumerate(%s))"


def test_requests_have_exactly_the_tokens_that_are_asked_for_and_differ(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    requests = make_requests(tokenizer, 6, 24)
    assert {len(each.completion_ids) for each in requests} == {24}
    assert len({each.prompt_ids for each in requests}) == 6
    for each in requests:  # an independent rendering of the same conversation
        prompt = tokenizer.apply_chat_template(each.messages[:-1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(each.messages, tokenize=False)
        assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == list(each.prompt_ids)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert ids[: len(each.prompt_ids) + 24] == [*each.prompt_ids, *each.completion_ids]


def test_rayqd_and_every_peer_are_given_the_same_tokens(tiny_model: Path, tiny_config: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from rayqd.bench.head_to_head.trl_distillation import check_prompts
    from rayqd.data import load_run_data

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    made = make_requests(tokenizer, 5, 24)
    given = workload(model=str(tiny_model), requests=made[:4], held_out=made[4:], new_tokens=24, steps=1)
    config = own.own_config(tiny_config(), given, tmp_path / "runs")
    own.write_rows(config, given)
    training, held_out = load_run_data(tokenizer, config, 512)
    trained = {(tuple(example.prompt_ids), tuple(example.completion_ids)) for example in training.examples}
    assert len(training.examples) == 4  # none is left out, as it would be where it is held out, too
    assert trained == {(each.prompt_ids, each.completion_ids) for each in given.requests}
    assert len(held_out.examples) == 1
    check_prompts(tokenizer, given)
    batch = Collator(0)([{"prompt_ids": r.prompt_ids, "completion_ids": r.completion_ids} for r in given.requests])
    for index, each in enumerate(given.requests):
        ids, mask, labels = (batch[name][index] for name in ("input_ids", "attention_mask", "labels"))
        assert ids[mask == 1].tolist() == [*each.prompt_ids, *each.completion_ids]
        assert ids[labels != -100].tolist() == list(each.completion_ids)
        prompts, of_prompt = batch["prompts"][index], batch["prompt_attention_mask"][index]
        assert prompts[of_prompt == 1].tolist() == list(each.prompt_ids)
    other = replace(given.requests[0], prompt_ids=(1, *given.requests[0].prompt_ids))
    with pytest.raises(ValueError, match="other tokens"):
        check_prompts(tokenizer, replace(given, requests=(other,)))


def test_the_steps_that_count_have_their_own_scoring_in_them(tiny_config: Any, tmp_path: Path) -> None:
    """A teacher two steps ahead scores in the first step, which does not count, for the next two."""
    ahead = [own.own_config(tiny_config(), workload(steps=n), tmp_path).teacher.prefetch_steps for n in (2, 5, 6)]
    assert ahead == [0, 0, None]
    asked = tiny_config(teacher={"prefetch_steps": 1})
    assert own.own_config(asked, workload(), tmp_path).teacher.prefetch_steps == 1


def test_a_workload_reads_back_and_its_micro_batch_divides_the_step(tmp_path: Path) -> None:
    given = workload(num_sequences=6, microbatch_tokens=35)  # 5 sequences of 3 + 4 tokens fit, 3 divides 6
    given.write(tmp_path / "w.json")
    assert read_workload(tmp_path / "w.json") == given
    assert given.microbatch_sequences() == 3
    assert replace(given, microbatch_tokens=1).microbatch_sequences() == 1


def test_the_first_step_is_in_no_median(tmp_path: Path, peer_of: Any) -> None:
    began = time.time()
    peer = peer_of(STEPS % f"[{began + 100}, {began + 102}, {began + 103}, {began + 107}]")
    result = measure_peer(peer, workload(), tmp_path, limit_seconds=60)
    assert result.status == "measured"
    assert result.step_seconds == pytest.approx((2.0, 1.0, 4.0))
    assert result.seconds == pytest.approx(2.0)
    assert result.first_step_seconds == pytest.approx(100, abs=5)
    assert result.tokens_per_second == pytest.approx(4 * 4 / 2.0)


def test_a_peer_that_is_not_installed_is_skipped_and_told_how_to_get_it(tmp_path: Path) -> None:
    peer = replace(BY_NAME["trl-gkd"], packages=("json", "no_such_package"))
    result = measure_peer(peer, workload(), tmp_path, limit_seconds=60)
    assert (result.status, result.why) == ("skipped", "no_such_package is not installed: pip install no_such_package")
    assert result.seconds is None
    assert "seconds" not in result.to_json()
    assert measure_peer(BY_NAME["vllm"], workload(arm="off-policy"), tmp_path, limit_seconds=60).status == "skipped"


def test_a_peer_that_fails_is_a_row_with_the_line_of_its_error(tmp_path: Path, peer_of: Any) -> None:
    peer = peer_of(
        "print('before'); sys.stderr.write('Traceback\\nValueError: no such head\\n[W] shut down\\n'); sys.exit(3)"
    )
    result = measure_peer(peer, workload(), tmp_path, limit_seconds=60)
    log = tmp_path / "on-policy.own.log"
    assert (result.status, result.why) == ("failed", f"exit code 3: ValueError: no such head ({log})")
    assert "before" in log.read_text()


def test_a_peer_with_one_step_alone_or_none_in_time_has_no_number(tmp_path: Path, peer_of: Any) -> None:
    one = measure_peer(peer_of(STEPS % "[1.0]"), workload(), tmp_path, limit_seconds=60)
    assert one.why.startswith("ended after 1 of the 2 steps that it takes: it wrote nothing")
    late = measure_peer(peer_of("import time; time.sleep(60)"), workload(), tmp_path, limit_seconds=0.5)
    assert late.status == "failed"
    assert late.why.startswith("ended after ")


def test_a_peer_out_of_memory_is_tried_once_more_with_gradient_checkpointing(tmp_path: Path, peer_of: Any) -> None:
    code = "if not json.load(open(given))['gradient_checkpointing']: sys.exit('OutOfMemoryError: CUDA out of memory')\n"
    heeding = peer_of(code + STEPS % "[1.0, 3.0]", heeds_checkpointing=True)
    result = measure_peer(heeding, workload(), tmp_path, limit_seconds=60)
    assert (result.status, result.seconds) == ("measured", 2.0)
    assert result.settings.startswith("gradient checkpointing")
    killed = code.replace("sys.exit('OutOfMemoryError: CUDA out of memory')", "os.kill(os.getpid(), 9)")
    heeding = peer_of(f"import os\n{killed}" + STEPS % "[1.0, 3.0]", heeds_checkpointing=True)
    assert measure_peer(heeding, workload(), tmp_path, limit_seconds=60).settings == result.settings  # by the kernel


def test_a_peer_that_has_no_gradient_checkpointing_is_not_tried_again_as_if_it_had(
    tmp_path: Path, peer_of: Any
) -> None:
    """It would be the same attempt, and by chance a row that says what was not."""
    peer = peer_of("sys.exit('RuntimeError: DefaultCPUAllocator: not enough memory')")
    result = measure_peer(peer, workload(), tmp_path, limit_seconds=60)
    assert (result.status, result.settings) == ("failed", "")
    assert list(tmp_path.glob("*.2.log")) == []
    for name, each in BY_NAME.items():  # the sources of those that read it, and of those that do not
        source = Path(process_watch.__file__).with_name(f"{each.module.rpartition('.')[2]}.py").read_text()
        assert each.heeds_checkpointing == ("workload.gradient_checkpointing" in source), name


def test_steps_end_with_the_last_one_or_once_time_is_over(tmp_path: Path) -> None:
    recorder = StepRecorder(tmp_path / "all", workload(steps=2))
    assert [recorder.end_step(), recorder.end_step()] == [False, True]
    recorder = StepRecorder(tmp_path / "late", workload(steps=9, seconds=0))
    assert [recorder.end_step(), recorder.end_step()] == [False, True]  # one step is measured in any case
    assert len(read_step_times(tmp_path / "late").ends) == 2
    assert read_step_times(tmp_path / "none").ends == ()


def test_rayqds_row_is_what_its_run_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = [
        (1000.0, step_event(1, rollout_seconds=50.0)),
        (1010.0, step_event(2, rollout_seconds=6.0, wait_seconds=7.0)),
        (1012.0, step_event(3, rollout_seconds=2.0, wait_seconds=3.0)),
    ]
    monkeypatch.setattr(own, "read_timed_events", lambda run_dir: timed)
    end = ProcessEnd(began=900.0, seconds=130.0, exit_code=0, is_late=False, last_line="", peak_bytes=2**30, cpu=CPU)
    row = own.conclude_own(tmp_path, workload(), end, tmp_path / "log")
    assert (row.seconds, row.first_step_seconds, row.trained_tokens) == (6.0, 100.0, 400)  # no result.json: own clock
    assert row.role_seconds == {"rollout": 4.0, "teacher": 1.0, "learner": 6.0, "waiting for the batch": 5.0}
    monkeypatch.setattr(own, "read_timed_events", lambda run_dir: timed[:1])
    failed = own.conclude_own(
        tmp_path, workload(), replace(end, exit_code=1, last_line="rayqd: error: no"), tmp_path / "log"
    )
    assert failed.why == f"exit code 1: rayqd: error: no ({tmp_path / 'log'})"


def test_cpu_time_is_read_at_the_ends_of_steps() -> None:
    """At 1000 s 100 s were used, at 1010 s 110, at 1014 s 118: the steps end at 1005, 1010 and 1012."""
    cpu = CpuClock((1000.0, 1010.0, 1014.0), (100.0, 110.0, 118.0))
    assert cpu.between(1005.0, 1010.0) == pytest.approx(5.0)
    assert StepTimes(ends=(1005.0, 1010.0, 1012.0)).median_cpu_seconds(cpu) == pytest.approx((5.0 + 4.0) / 2)
    assert cpu.between(999.0, 1010.0) is None
    assert StepTimes(ends=(1012.0, 1020.0)).median_cpu_seconds(cpu) is None


def rows() -> list[HeadToHeadResult]:
    base = HeadToHeadResult(arm="on-policy", contender="rayqd", label="rayqd", status="measured", trained_tokens=1024)
    return [
        replace(base, seconds=20.0, first_step_seconds=90.0, peak_bytes=3 * 2**30, role_seconds={"rollout": 10.0}),
        replace(base, contender="trl-gkd", label="TRL GKDTrainer", seconds=130.0, first_step_seconds=150.0),
        replace(base, contender="vllm", label="vLLM alone", seconds=9.5, rollouts_alone=True),
        replace(
            base, contender="trl-distillation", label="TRL D", status="failed", why="exit code 1: E: x", seconds=None
        ),
    ]


def test_the_table_has_ratios_to_rayqd_and_no_number_for_what_failed() -> None:
    output = io.StringIO()
    show(rows(), "tiny, 8 x 128 new tokens", Console(file=output, width=150))
    shown = {line.split("│")[1].strip(): line for line in output.getvalue().splitlines() if "│" in line}
    assert {"20.00", "1.00", "51.20", "90.00", "3.0"} <= set(shown["rayqd"].replace("│", " ").split())
    assert {"130.0", "6.50", "7.88"} <= set(shown["TRL GKDTrainer"].replace("│", " ").split())  # 1024 tokens / 130 s
    assert {"9.50", "0.95"} <= set(shown["vLLM alone"].replace("│", " ").split())  # of rayqd's rollouts, not its step
    assert "TRL D" not in shown
    assert "TRL D: failed: exit code 1: E: x" in output.getvalue()
    assert "no INT4 rounding" in output.getvalue()
    assert "of one step" not in output.getvalue()
    one = replace(rows()[0], step_seconds=(20.0,))
    show([one], "tiny", Console(file=output, width=150))
    assert "rayqd: s/step is of one step, as no other was counted" in output.getvalue()


def test_without_rayqds_row_there_is_no_ratio_and_rows_read_back() -> None:
    output = io.StringIO()
    show(rows()[1:2], "tiny", Console(file=output, width=150))
    assert "130.0" in output.getvalue()
    assert "6.50" not in output.getvalue()
    assert [parse_head_to_head(json.loads(json.dumps(row.to_json()))) for row in rows()] == rows()


def test_times_without_a_step_beside_the_warm_up_have_no_median() -> None:
    assert StepTimes(ends=(5.0,)).median_seconds is None
