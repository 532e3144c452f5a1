"""The pages in a real browser: no error, nothing asked for, no scrolling sideways on a phone, colours of the night.

The pages of real runs are opened where such runs are made: tests/comparison/test_compare_on_ray.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayqd.comparison.findings import find
from rayqd.comparison.outcomes import by_arm
from rayqd.comparison.write import write_findings
from tests.comparison.made_runs import every_job, leave_all, make_jobs
from tests.report.chromium import Chromium, check_page, chromium, needs_chromium
from tests.report.test_report import EVENTS, RESULT, ROWS, report

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_the_page_of_a_run(browser: Chromium, tmp_path: Path) -> None:
    errors = {f"model.layers.{i}.mlp.{kind}_proj": 0.1 + i / 50 for i in range(30) for kind in ("gate", "up", "down")}
    rows = [ROWS[0], *({**row, "layer_errors": errors} for row in ROWS[1:])]
    parts = {"start": 100.0, "learner": 12.0, "waiting": 4.0, "between steps": 0.0, "end": 335.0}
    (tmp_path / "report.html").write_text(report(result={**RESULT, "rows": rows, "parts": parts}))
    titles = check_page(browser, tmp_path / "report.html")
    assert {"Loss", "KL to teacher, held out", "Error by layer, GPTQ INT4"} <= set(titles)


def test_the_page_of_a_run_under_way(browser: Chromium, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(report(result=None, events=EVENTS[:3]))
    assert check_page(browser, tmp_path / "report.html")


def test_the_page_of_a_comparison(browser: Chromium, tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    directory = leave_all(jobs)
    findings = find(jobs.spec, by_arm(jobs.spec.arms, [directory.outcome(job) for job in every_job(jobs)]))
    write_findings(findings, jobs, directory, price=2.5)
    directory.close()
    titles = check_page(browser, directory.path / "compare.html")
    assert titles == ["KL to teacher over tokens", "Quality against cost"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("<script>undefined_function()</script>", "Runtime.exceptionThrown"),
        ("<script>fetch('https://example.invalid/a').catch(() => {})</script>", "example.invalid"),
        ('<p style="width:700px">wide</p>', "scrolls sideways"),
        ('<p style="color:#bbb">pale</p>', "'pale' has a contrast"),
        ("<figure><figcaption><strong>None</strong></figcaption><svg></svg></figure>", "None is empty"),
    ],
)
def test_what_is_broken_is_found(broken: str, said: str, browser: Chromium, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(report().replace("</main>", f"{broken}</main>"))
    with pytest.raises(AssertionError) as caught:
        check_page(browser, tmp_path / "report.html")
    assert said in str(caught.value)
