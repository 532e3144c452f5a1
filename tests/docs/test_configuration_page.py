"""docs/configuration.md is what the settings say today."""

from pages import ROOT

from rayqd.cli import main
from rayqd.config.comparison.fields import comparison_settings
from rayqd.config.markdown import settings_markdown
from rayqd.config.sections.markers import SameResult
from rayqd.config.settings import settings
from rayqd.config.source_list import source_group
from rayqd.config.sweep.fields import sweep_settings

PAGE = ROOT / "docs" / "configuration.md"


def test_the_page_is_up_to_date(capsys):
    assert main(["config", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(), "run `make docs`"


def test_every_setting_has_a_line_that_says_whether_a_run_may_be_resumed_with_another_value():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = {line.split("`")[1]: "↻" in line.split("|")[1] for line in lines}
    of_sources = {setting.key: setting for setting in source_group().settings}
    known = settings() | sweep_settings() | comparison_settings() | of_sources
    assert named == {key: setting.marker(SameResult) is not None for key, setting in known.items()}


def test_what_has_no_default_is_said_to_be_required():
    page = settings_markdown()
    assert "| `data.sources.N.source` | required |" in page
    assert "Undefined" not in page
    assert "`^[A-Za-z_][A-Za-z0-9_-]*$`, or none" in page  # a pattern ends before what else there may be
