"""What a run decides once: a template's text, and the date that it prints."""

import io
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.commands.dry_run import dry_run
from rayqd.config.resolved import to_toml
from rayqd.driver.frozen import describe_date, with_frozen_settings
from rayqd.errors import ConfigError
from rayqd.runs.directory import RunDirectory
from tests.conftest import CHATML

DATED = "{{ strftime_now('%d %b %Y %H:%M:%S') }}" + CHATML


def test_a_template_that_prints_the_date_has_one_for_the_run_also_when_it_goes_on(tiny_config: Any) -> None:
    config = tiny_config(data={"chat_template": DATED})
    before = datetime.now().replace(microsecond=0)
    frozen = with_frozen_settings(config)
    assert frozen.data.date is not None
    assert before <= datetime.fromisoformat(frozen.data.date) <= datetime.now()
    assert describe_date(config, frozen).endswith(f"{frozen.data.date} in all of this run (data.date)")

    earlier = config.model_copy(update={"data": config.data.model_copy(update={"date": "2026-01-31T12:00:00"})})
    RunDirectory(earlier).close()
    assert with_frozen_settings(config).data.date == "2026-01-31T12:00:00"
    assert to_toml(with_frozen_settings(config)) == to_toml(earlier)


def test_a_template_that_prints_none_has_none(tiny_config: Any) -> None:
    assert with_frozen_settings(tiny_config()).data.date is None
    assert (
        with_frozen_settings(tiny_config(model={"name": "./nowhere"})).data.date is None
    )  # `check` says what is wrong


def test_a_template_in_a_file_is_kept_as_its_text(tiny_config: Any, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML)
    config = with_frozen_settings(tiny_config(data={"chat_template": str(file)}))
    assert config.data.chat_template == CHATML
    with pytest.raises(
        ConfigError, match=r"data.chat_template=.*absent.jinja: No such file or directory; give the path"
    ):
        with_frozen_settings(tiny_config(data={"chat_template": str(tmp_path / "absent.jinja")}))


def test_the_run_says_as_what_its_rows_are_read_and_what_is_measured_on_prompts(
    tiny_config: Any, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"question": "Say {i}!"}}\n' for i in range(9)))
    said = io.StringIO()
    config = tiny_config(data={"source": str(file)}, distill={"lmbda": 1.0}, rollout={"temperature": 0.5})
    dry_run(config, Console(file=said, width=200))
    assert "rows are read as prompts (question)\n" in said.getvalue()
    assert "4 of 4 held-out rows have no answer: the divergence is measured on their prompts" in said.getvalue()
    assert "rollouts are sampled with temperature 0.5, while the divergence is of the whole" in said.getvalue()
