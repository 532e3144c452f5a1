"""What GitHub reads of .github: it parses, and CI runs what `.ci/run` runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT

GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def load(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def test_ci_runs_the_one_script_on_every_change_and_may_only_read() -> None:
    workflow = load(GITHUB / "workflows" / "check.yml")
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as a boolean
    assert {"push", "pull_request"} <= triggers.keys()
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    (job,) = workflow["jobs"].values()
    assert job["runs-on"].startswith("ubuntu")
    assert 25 < job["timeout-minutes"] <= 120  # `make check` takes 25 on two cores
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    (python,) = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python@")]
    assert python["python-version"] == "3.11"  # a number would be 3.1 for 3.10
    (cache,) = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/cache@")]
    assert "hashFiles('requirements/*.txt')" in cache["key"]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_github_demands_and_asks_for_the_machine(form: Path) -> None:
    content = load(form)
    assert content["name"]
    assert content["description"]
    identifiers = [field["id"] for field in content["body"]]
    assert len(set(identifiers)) == len(identifiers)
    assert {field["type"] for field in content["body"]} <= {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in content["body"])
    assert "rayqd doctor" in form.read_text()


def test_there_is_a_form_for_what_is_wrong_and_one_for_what_is_missing() -> None:
    assert [form.stem for form in FORMS] == ["bug", "feature"]
    bug = {field["id"]: field for field in load(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"]}
    assert bug["doctor"]["validations"]["required"] is True
    assert "make check" in (GITHUB / "pull_request_template.md").read_text()
