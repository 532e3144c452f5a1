"""The timeline draws each span where it lies in time, and the table beside it says the same."""

import re

from rayqd.report.startup import draw_timeline, startup_section
from rayqd.runs.startup import Startup
from rayqd.spans import Span

ENGINE = Span(role="rollout-0", name="engine", start=10.0, end=30.0)
IMPORTS = Span(role="learner", name="import <torch>", start=5.0, end=10.0)
EXPORT = Span(role="learner", name="export", start=91.0, end=93.0)
STARTUP = Startup(first_step=40.0, last_step=90.0, end=100.0, spans=(IMPORTS, ENGINE, EXPORT))


def bars(drawing: str) -> list[tuple[float, float]]:
    """The left edge and the width of each bar, in the drawing's units."""
    return [(float(x), float(w)) for x, w in re.findall(r'<rect [^>]*x="([\d.]+)"[^>]*width="([\d.]+)"', drawing)]


def test_a_bar_is_as_long_and_lies_where_its_span_does() -> None:
    (first, first_width), (second, second_width) = bars(draw_timeline("start", [IMPORTS, ENGINE], 0.0, 40.0))
    assert abs(second_width / first_width - 20 / 5) < 0.02
    assert abs(first + first_width - second) < 0.11  # one begins where the other ends; edges are rounded to 0.1
    unit = first_width / 5
    assert abs((first - 5 * unit) - (second - 10 * unit)) < 0.3  # both count from the same zero


def test_a_span_beyond_the_drawing_is_cut_and_one_too_short_to_see_is_left_out() -> None:
    tiny = Span(role="driver", name="moment", start=20.0, end=20.01)
    (only,) = bars(draw_timeline("start", [ENGINE, tiny], 0.0, 20.0))
    whole = bars(draw_timeline("start", [Span(role="driver", name="all", start=0.0, end=20.0)], 0.0, 20.0))[0]
    assert abs(sum(only) - sum(whole)) < 0.11


def test_the_section_has_both_ends_of_the_run_and_every_span_in_a_table() -> None:
    section = str(startup_section(STARTUP))
    assert "To the first step" in section
    assert "After the last step" in section
    assert "import <torch>" not in section  # escaped
    assert section.count("import &lt;torch&gt;") >= 2  # drawn, and in the table
    table = section[section.index("<table") :]
    assert [row.count("<td") for row in table.split("<tr")[2:]] == [5, 5, 5]
    assert '<td class="number">91.0</td><td class="number">93.0</td><td class="number">2.0</td>' in table


def test_a_run_without_steps_is_one_drawing() -> None:
    section = str(startup_section(Startup(first_step=None, last_step=None, end=50.0, spans=(ENGINE,))))
    assert section.count("<svg") == 1
    assert "From start to end" in section
