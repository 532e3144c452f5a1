"""`rayqd cluster validate`: wrong keys are named, right files are read as Ray reads them."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ray.runtime_env import RuntimeEnv

from rayqd.cli import main
from rayqd.cluster.check import find_errors
from rayqd.cluster.files import parse_nodes, read_cluster_file

ROOT = Path(__file__).parents[2]
AWS = ROOT / "cluster.yaml"
KUBERAY = ROOT / "configs" / "kuberay.yaml"


@pytest.fixture
def edited(tmp_path: Path) -> Any:
    """A copy of a file in which every occurrence of some text is another."""

    def edit(file: Path, *changes: tuple[str, str]) -> Path:
        text = file.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        copy = tmp_path / file.name
        copy.write_text(text)
        return copy

    return edit


def validate(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["cluster", "validate", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def row(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.mark.parametrize(
    ("file", "learner_cpus", "spot_cpus"), [(AWS, "16", "8"), (KUBERAY, "15", "7")], ids=["ray up", "kuberay"]
)
def test_the_files_that_come_with_rayqd_are_right_and_say_where_roles_land(
    file: Path, learner_cpus: str, spot_cpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = validate(capsys, file, f"@{ROOT}/configs/gpu.toml", "--rollout.num-workers", 3)
    assert (code, err) == (0, "")
    assert row(out, "gpu-learner") == ["gpu-learner", learner_cpus, "1", "0-1", "on-demand", "1"]
    assert row(out, "gpu-spot") == ["gpu-spot", spot_cpus, "1", "0-8", "spot", "4"]
    assert row(out, "learner") == ["learner", "1", "1 CPU, 1 GPU", "market-type=!spot", "gpu-learner (1)"]
    assert row(out, "teacher") == ["teacher", "1", "1 CPU, 1 GPU", "market-type=spot", "gpu-spot (1)"]
    assert row(out, "rollout") == ["rollout", "3", "1 CPU, 1 GPU", "market-type=spot", "gpu-spot (3)"]
    assert "the run waits for 1 gpu-learner, 4 gpu-spot, ray.placement_timeout_seconds=120 at most: a cloud's" in out
    assert "is still to be filled in" in out


TYPES = "available_node_types"
SPEC = "spec.rayClusterSpec"
WORKER = f"{SPEC}.workerGroupSpecs[0]"
CONTAINER = f"{WORKER}.template.spec.containers[0]"
WRONG_KEYS = {
    AWS: [
        ("max_workers: 8", "max_worker: 8", f"{TYPES}.gpu-spot.max_worker", "unknown key; did you mean max_workers?"),
        ("idle_timeout_m", "idle_timout_m", "idle_timout_minutes", "unknown key; did you mean idle_timeout_minutes?"),
        ('"GPU": 1', '"GPU": "one"', f"{TYPES}.gpu-learner.resources.GPU", "'one' must be a whole number (and 1 more)"),
        ("type: aws", "type: amazon", "provider.type", "Ray knows no provider amazon"),
        ("type: aws", "type: gcpp", "provider.type", "Ray knows no provider gcpp; did you mean gcp?"),
        ("max_workers: 9", "no_such: 1", "no_such", "unknown key"),
    ],
    KUBERAY: [
        ("minReplicas: 0", "minReplicas: none", f"{WORKER}.minReplicas", "'none' must be a whole number (and 1 more)"),
        ("version: v2", "version: v22", f"{SPEC}.autoscalerOptions.version", "'v22' must be one of v1, v2; did you"),
        (
            "labels: {ray.io/market-type: spot}",
            "label: {}",
            f"{SPEC}.workerGroupSpecs[1].label",
            "unknown key; did you",
        ),
        ("volumeMounts: *m", "volumeMount: *m", f"{CONTAINER}.volumeMount", "unknown key; did you mean volumeMounts?"),
    ],
}


@pytest.mark.parametrize(
    ("file", "old", "new", "key", "text"), [(file, *each) for file, changes in WRONG_KEYS.items() for each in changes]
)
def test_a_wrong_key_is_named_with_its_line_and_the_nearest_right_one(
    file: Path, old: str, new: str, key: str, text: str, edited: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = edited(file, (old, new))
    code, out, err = validate(capsys, copy)
    assert (code, out) == (2, "")
    found = re.fullmatch(rf"rayqd: error: {re.escape(str(copy))}:(\d+): (.*)\n", err)
    assert found
    assert found[2].startswith(f"{key}: {text}")
    assert key.rpartition(".")[2] in copy.read_text().splitlines()[int(found[1]) - 1]


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [
        (AWS, "type: head\n", "type: boss\n", "1: `head_node_type` must be one of `available_node_types`."),
        (KUBERAY, "groupName: gpu-learner", "priority: 1", f"57: {WORKER}.groupName: is missing"),
        (KUBERAY, "submissionMode: SidecarMode", "runtimeEnvYAML: 'pips: [a]'", "18: spec.runtimeEnvYAML.pips"),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_named(
    file: Path, old: str, new: str, line: str, edited: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = edited(file, (old, new))
    code, out, err = validate(capsys, copy)
    assert (code, out) == (2, "")
    assert err.startswith(f"rayqd: error: {copy}:{line}")


def test_a_run_that_can_never_fit_names_who_finds_no_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = validate(capsys, AWS, "--rollout.num-workers", 200)
    # Nine GPUs for at most 16 workers each: 144 places, for one learner, one teacher and 142 of 200 rollout workers.
    assert code == 1
    assert row(out, "rollout")[-1].endswith("no room (58)")
    assert "no room for 58 of 200 rollout worker(s)" in err
    assert "lower rollout.num_workers" in err


def test_several_learner_workers_need_gpus_of_their_own_off_spot(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = validate(capsys, AWS, "--learner.num-workers", 2)
    assert code == 1
    assert "no room for 1 of 2 learner worker(s)" in err
    assert 'learner not on spot nodes, unless ray.learner_labels has "ray.io/market-type=spot"' in err
    assert "learner worker(s) share no GPU with each other" in err


def test_a_spot_machine_without_the_label_is_pointed_out(edited: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = validate(capsys, edited(AWS, ('"ray.io/market-type": "spot"', '"market": "spot"')))
    assert "available_node_types.gpu-spot.labels.ray.io/market-type: should be spot, as node_config is" in out


def test_a_fixed_ray_cluster_of_kuberay_has_its_replicas_and_no_more(edited: Any) -> None:
    fixed = ("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false")
    file = edited(KUBERAY, fixed, ("replicas: 0", "replicas: 2"))
    assert [group.startable for group in parse_nodes(read_cluster_file(file)).groups] == [0, 2, 2]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "rayqd cluster needs an action; there is validate: rayqd cluster validate cluster.yaml"),
        (["validat", "x"], 'rayqd cluster needs an action; there is validate: got "validat"; did you mean validate?'),
        (["validate"], "rayqd cluster validate needs a file: rayqd cluster validate cluster.yaml @configs/gpu.toml"),
        (["validate", "no/such.yaml"], "no/such.yaml: does not exist, nor does the folder no"),
        (["validate", f"{ROOT}/pyproject.toml"], f"{ROOT}/pyproject.toml:2: is not YAML: expected "),
        (["validate", f"{ROOT}/configs/runtime_env.yaml"], f"{ROOT}/configs/runtime_env.yaml: is neither "),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"rayqd: error: {line}")
    assert err.count("\n") == 1


def test_nodes_of_a_file_are_those_that_ray_s_autoscaler_reads() -> None:
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    whole = prepare_config(yaml.safe_load(AWS.read_text()))
    read = AutoscalingConfig(whole, skip_content_hash=True).get_node_type_configs()
    ours = {group.name: group for group in parse_nodes(read_cluster_file(AWS)).groups}
    assert ours.keys() == read.keys()
    for name, theirs in read.items():
        assert (ours[name].cpus, ours[name].gpus) == (theirs.resources["CPU"], theirs.resources.get("GPU", 0))
        assert ours[name].labels == theirs.labels
        assert ours[name].size == theirs.max_worker_nodes
    assert find_errors(read_cluster_file(AWS)) == []


def pins() -> dict[str, str]:
    environment = yaml.safe_load((ROOT / "configs" / "runtime_env.yaml").read_text())
    RuntimeEnv(**environment)  # raises at what Ray does not take
    requirements = [Requirement(text) for text in environment["pip"]["packages"]]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in requirements}


def test_the_pins_of_a_cluster_are_versions_that_rayqd_takes_and_the_same_in_every_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["gpu"]]]
    pinned = pins()
    for each in ranges:
        name = canonicalize_name(each.name)
        if name in pinned:
            assert Version(pinned[name]) in each.specifier, each
    named = dict(re.findall(r"\b(vllm|torch|transformers|compressed-tensors)==([\d.]+)", AWS.read_text()))
    assert named == {name: pinned[name] for name in ("vllm", "torch", "transformers", "compressed-tensors")}
    rays = {*re.findall(r"rayproject/ray:([\d.]+)", AWS.read_text()), *re.findall(r"\]==([\d.]+)", AWS.read_text())}
    assert rays == {yaml.safe_load_all(KUBERAY.read_text()).__next__()["spec"]["rayClusterSpec"]["rayVersion"]}


def documented_commands() -> list[str]:
    """Command lines of docs/clusters.md, those that need a cloud or a cluster left out."""
    text = (ROOT / "docs" / "clusters.md").read_text()
    lines = [line for block in re.findall(r"```bash[^\n]*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [
        line.partition(" # ")[0].strip()
        for line in lines
        if "# needs a clo" not in line and "# needs a clu" not in line
    ]


def test_the_documentation_has_commands_to_run() -> None:
    assert len(documented_commands()) == 3


@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_do_what_they_say(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    program, *words = command.split()
    assert program == "rayqd"
    assert main(words) == 0
    if "1800" in words:
        text = (ROOT / "docs" / "clusters.md").read_text()
        shown = text.partition("```\ncluster.yaml: ray up")[2].partition("```")[0].splitlines()[1:]
        printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert [line for line in shown if line not in printed] == []
        assert len(shown) > 15
