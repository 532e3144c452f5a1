"""When a long wait is told, and in which words."""

from rayqd.console.progress import InactivityTimer, waiting_line


def test_a_timer_is_told_after_1_2_5_and_10_minutes_and_then_every_10() -> None:
    now = 0.0
    timer = InactivityTimer(clock=lambda: now)
    told: list[float] = []
    for second in range(60 * 40 + 1):
        now = float(second)
        if seconds := timer.seconds_to_report():
            told.append(seconds / 60)
    assert told == [1, 2, 5, 10, 20, 30, 40]


def test_a_timer_that_nobody_looked_at_is_told_once_and_ends_with_the_next_word() -> None:
    now = 0.0
    timer = InactivityTimer(clock=lambda: now)
    now = 400.0
    assert timer.seconds_to_report() == 400
    assert timer.seconds_to_report() is None
    timer.reset()
    now = 459.0
    assert timer.seconds_to_report() is None
    now = 460.0
    assert timer.seconds_to_report() == 60


def test_the_line_names_whom_the_step_waits_for() -> None:
    assert waiting_line(18, ["rollout-0"], 60.4) == "step 18: waiting for rollout-0 for 60 s"
    assert waiting_line(18, ["rollout-1", "teacher-0"], 120.2) == "step 18: waiting for rollout-1, teacher-0 for 2 min"
    many = [f"rollout-{rank}" for rank in range(30)]
    four = "rollout-0, rollout-1, rollout-2, rollout-3"
    assert waiting_line(1, many, 60) == f"step 1: waiting for {four} and 26 more for 60 s"
    assert waiting_line(None, [], 300.3) == "waiting for the learner for 5 min"
