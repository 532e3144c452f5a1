"""What the user watches: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rayqd.config import Config
from rayqd.console.say import say
from rayqd.events import EvalEvent, StepEvent
from rayqd.metrics.catalogue import METRICS, Metric
from rayqd.metrics.fidelity import TaskValue
from rayqd.metrics.samples import Value

_WINDOW = 8  # steps whose mean duration the ETA rests on
_BAR_WIDTH = 30
INACTIVITY_SECONDS = (60.0, 120.0, 300.0, 600.0)  # after which it is reported; from the last on at every multiple
_MAX_NAMES = 4


class Progress:
    """Use as a context manager; `console` is for everything else that is to be printed meanwhile."""

    def __init__(self, console: Console, num_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.console = console
        self._num_steps = num_steps
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._step_times: deque[float] = deque(maxlen=_WINDOW + 1)
        self._last_status = ""

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        say(self.console, text)

    def status(self, text: str) -> None:
        """Show what is going on in place of the last status; only in a terminal."""
        if self._live and text != self._last_status:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        self._last_status = text

    def bar(self, text: str, done: int, total: int) -> None:
        """Show how far something is that is no training: `calibrating AWQ ━━━━━╌╌╌╌╌ 15/30`."""
        filled = _BAR_WIDTH * done // total
        self.status(f"{text} {'━' * filled}{'╌' * (_BAR_WIDTH - filled)} {done}/{total}")

    def begin_steps(self) -> None:
        """Start to measure the time that steps take."""
        self._step_times.append(self._clock())

    def step(self, event: StepEvent) -> None:
        """Show a finished optimizer step."""
        self._step_times.append(self._clock())
        width = self.console.width if self._live else None
        line = step_line(event, self._num_steps, self._eta_seconds(event.step), width)
        if self._live:
            self.status(line)
        else:
            self.say(line)

    def _eta_seconds(self, step: int) -> float | None:
        if len(self._step_times) < 2:
            return None
        mean = (self._step_times[-1] - self._step_times[0]) / (len(self._step_times) - 1)
        return mean * (self._num_steps - step)


class InactivityTimer:
    """How long nothing has happened, reported at growing distances: large models have long steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start anew: something has happened."""
        self._began = self._clock()
        self._num_reported = 0

    def seconds_to_report(self) -> float | None:
        """Return the seconds since the last reset, if they are due to be reported once more; else None."""
        seconds = self._clock() - self._began
        *first, again = INACTIVITY_SECONDS
        num_due = sum(seconds >= threshold for threshold in first) + int(seconds // again)
        if num_due <= self._num_reported:
            return None
        self._num_reported = num_due
        return seconds


def headline(config: Config) -> str:
    """Format `quickstart: smollm2-135m to INT4, groups of 64`."""
    return f"{config.name}: {config.model.name} to {config.quant.format.upper()}, groups of {config.quant.group_size}"


def eval_line(event: EvalEvent) -> str:
    """Format `GPTQ INT4: KL to teacher 0.1461, perplexity 20.257`."""
    fidelity = event.fidelity
    text = "" if fidelity.text_perplexity is None else f", of eval.text {fidelity.text_perplexity:.3f}"
    tasks = "".join(f", {_task_text(each)}" for each in fidelity.tasks)
    kl, perplexity = f"{fidelity.kl_to_teacher:.4f}", f"{fidelity.perplexity:.3f}"
    return f"{event.arm.name}: KL to teacher {kl}, perplexity {perplexity}{text}{tasks}"


def _task_text(value: TaskValue) -> str:
    """Format `arc_easy/acc 0.412 ± 0.031 of 64`, with the standard error."""
    error = "" if value.stderr is None else f" ± {value.stderr:.3f}"
    cut = f" ({value.num_cut} of {value.num_answers} answers cut)" if value.num_cut else ""
    return f"{value.name} {value.value:.3f}{error} of {value.num_documents}{cut}"


def waiting_line(step: int | None, names: Sequence[str], seconds: float) -> str:
    """Format `step 18: waiting for rollout-0 for 60 s`; no name means the learner, no step that all are done."""
    shown = ", ".join(names[:_MAX_NAMES]) or "the learner"
    others = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    waited = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"{'' if step is None else f'step {step}: '}waiting for {shown}{others} for {waited}"


def cut_line(max_new_tokens: int) -> str:
    """Format what `cut` stands for in the lines of steps."""
    return f"cut: completions that rollout.max_new_tokens={max_new_tokens} ended before the student came to an end"


def step_line(event: StepEvent, num_steps: int, eta_seconds: float | None, width: int | None = None) -> str:
    """Format `step 12/24  loss 0.1532  tok/s rollout 340 teacher 890 learner 180  length 85  cut 0%  eta 1:20`.

    Where that is more than `width` characters, the lesser metrics are left out of it.
    """
    eta = [f"eta {duration(eta_seconds)}"] if eta_seconds is not None else []
    labelled = list(_labelled(event.values()))
    while True:
        line = "  ".join([f"step {event.step}/{num_steps}", *(text for _, text in labelled), *eta])
        least = max((metric.label_rank for metric, _ in labelled), default=0)
        if width is None or len(line) <= width or least == 0:
            return line
        labelled = [pair for pair in labelled if pair[0].label_rank < least]


def _labelled(measured: Mapping[str, Value]) -> Iterator[tuple[Metric, str]]:
    """`loss 0.1532`: the metrics that have a label; what counts something only once there is something to count."""
    for metric in METRICS:
        found = {role: measured.get(name) for role, name in metric.fields.items()} if metric.label else {}
        values = {role: value for role, value in found.items() if not isinstance(value, Mapping)}
        if len(values) > 1:
            shown = " ".join(f"{role} {value:{metric.form}}" for role, value in values.items() if value)
        else:
            hidden = (None, 0) if metric.kind == "counter" else (None,)
            shown = "".join(f"{value:{metric.form}}" for value in values.values() if value not in hidden)
        if shown:
            yield metric, f"{metric.label} {shown}"


def duration(seconds: float) -> str:
    """Format seconds as 1:15 (75) or 1:01:15 (3675)."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
