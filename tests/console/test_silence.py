"""When a long wait is told, and in which words."""

from rayqd.console.progress import Silence, waiting_line


def test_a_silence_is_told_after_1_2_5_and_10_minutes_and_then_every_10() -> None:
    now = 0.0
    silence = Silence(clock=lambda: now)
    told: list[float] = []
    for second in range(60 * 40 + 1):
        now = float(second)
        if seconds := silence.to_tell():
            told.append(seconds / 60)
    assert told == [1, 2, 5, 10, 20, 30, 40]


def test_a_silence_that_nobody_looked_at_is_told_once_and_ends_with_the_next_word() -> None:
    now = 0.0
    silence = Silence(clock=lambda: now)
    now = 400.0
    assert silence.to_tell() == 400
    assert silence.to_tell() is None
    silence.end()
    now = 459.0
    assert silence.to_tell() is None
    now = 460.0
    assert silence.to_tell() == 60


def test_the_line_names_whom_the_step_waits_for() -> None:
    assert waiting_line(18, ["rollout-0"], 60.4) == "step 18: waiting for rollout-0 for 60 s"
    assert waiting_line(18, ["rollout-1", "teacher-0"], 120.2) == "step 18: waiting for rollout-1, teacher-0 for 2 min"
    many = [f"rollout-{rank}" for rank in range(30)]
    four = "rollout-0, rollout-1, rollout-2, rollout-3"
    assert waiting_line(1, many, 60) == f"step 1: waiting for {four} and 26 more for 60 s"
    assert waiting_line(None, [], 300.3) == "waiting for the learner for 5 min"
