"""What reads the pages can fail: each mistake in a block is found, and what is no mistake is not."""

from pathlib import Path

import pytest
from pages import MARKERS, Block, blocks, check_command, rayqd_commands, settings_files

from rayqd.errors import ConfigError


def shell(text: str, language: str = "bash") -> Block:
    return Block(page="page.md", line=1, language=language, mark="", text=text)


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("rayqd doctor   # a word about it", [["doctor"]]),
        ("pip install rayqd\ngit clone x && cd rayqd", []),
        ("X=1 .venv/bin/rayqd config --seed 1 | head -n 3; rayqd runs", [["config", "--seed", "1"], ["runs"]]),
        ("rayqd distill @a.toml \\\n    --seed 1", [["distill", "@a.toml", "--seed", "1"]]),
        ("for i in 1 2; do rayqd distill --seed $i; done", [["distill", "--seed", "$i"]]),
        ("ray job submit --working-dir . -- rayqd distill @a.toml", [["distill", "@a.toml"]]),
        ("docker run --rm image rayqd doctor", [["doctor"]]),
        ("nohup python -m rayqd doctor > log &", [["doctor"]]),
        ('eval "$(rayqd completion bash)"', [["completion", "bash"]]),
        ("cat > a.toml <<'EOF'\nrayqd = 'nothing'\nEOF\nrayqd doctor", [["doctor"]]),
        ("echo rayqd is not called", []),
    ],
)
def test_commands_are_found_wherever_a_shell_would_start_them(text: str, commands: list[list[str]]) -> None:
    assert rayqd_commands(shell(text)) == commands


def test_a_transcript_is_read_where_it_shows_a_command() -> None:
    text = "$ rayqd doctor\nok    python 3.11\nrayqd: error: no such model\nrayqd --version"
    assert rayqd_commands(shell(text, "")) == [["doctor"], ["--version"]]
    assert rayqd_commands(shell("rayqd = 1", "toml")) == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("distil @configs/gpu.toml", "there is no command distil"),
        ("distill @configs/none.toml", "does not exist"),
        ("distill --learner.lrr 1", "learner.lrr"),
        ("distill --learner.lrr $lr", "no such setting"),
        ("distill --quant.format int3", "must be one of int4"),
        ("distill --quant.format nvfp4 --quant.group_size 32", "nvfp4 has groups of 16"),
        ("export", "needs a run's directory"),
        ("export a b", 'unexpected argument "b"'),
        ("export a --verfy", "did you mean --verify"),
        ("export a --out", "needs a value"),
        ("bench stap", "needs one of step, loss, teacher"),
        ("runs --seed 1", "takes no settings"),
        ("compare a", "needs two runs or more"),
    ],
)
def test_what_rayqd_would_refuse_is_refused(words: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ConfigError, match=error):
        check_command(words.split())


@pytest.mark.parametrize(
    "words",
    [
        "--version", "distill --help", "distill @configs/gpu.toml --learner.lr $lr", "export runs/x --verify --out=y",
        "eval runs/x --eval.num-rows 3", "bench step --shape qwen3-4b", "compare a b c --json", "runs", "runs a",
    ],
)  # fmt: skip
def test_what_rayqd_takes_is_taken(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    check_command(words.split())


def test_markers_and_settings_files_are_read_from_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash needs a GPU\na\n```\n\n- ```bash\n  # on a cluster: needs a cloud\n  b\n  ```\n\n"
        "```bash\nc  # minutes\n```\n\n"
        '```toml\n# mine.toml, in the folder that you stand in\nname = "x"\n```\n\n```toml\n# no file\n```\n'
    )
    assert [(block.line, block.language, block.mark) for block in blocks(page)] == [
        (1, "bash", "needs a GPU"), (5, "bash", "needs a cloud"), (10, "bash", ""), (14, "toml", ""), (19, "toml", ""),
    ]  # fmt: skip
    assert list(settings_files(page)) == ["mine.toml"]
    assert set(MARKERS) >= {"needs a GPU", "needs a cloud"}
