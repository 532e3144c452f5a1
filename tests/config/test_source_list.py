"""data.sources in files, on the command line and in sweeps."""

import tomllib
from pathlib import Path

import pytest

from rayqd.cli import main
from rayqd.config import Config, differences, load_config, to_toml
from rayqd.config.recipe import command_line, given_settings
from rayqd.config.resolved import with_absolute_paths
from rayqd.config.source_list import source_fields
from rayqd.config.sweep import load_sweep
from rayqd.errors import ConfigError

SOURCES = """
[[data.sources]]
source = "a.jsonl"
weight = 3

[[data.sources]]
source = "some/set"
name = "chat"
split = "train[:5%]"
subset = "en"
limit = 100
columns = {prompt = "q", completion = "a"}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mix.toml").write_text(SOURCES)
    return f"@{tmp_path / 'mix.toml'}"


def weights(*words: str) -> list[float]:
    return [source.weight for source in load_config(words).data.sources]


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tables_of_a_file_are_the_sources(file: str) -> None:
    first, second = load_config([file]).data.sources
    assert (first.source, first.split, first.weight, first.limit, first.label) == ("a.jsonl", "train", 3, None, "a")
    assert (second.source, second.split, second.subset, second.limit) == ("some/set", "train[:5%]", "en", 100)
    assert (second.weight, second.label, second.columns) == (1, "chat", {"prompt": "q", "completion": "a"})


@pytest.mark.parametrize("text", ["a.jsonl,b.jsonl", '["a.jsonl", "b.jsonl"]', '[{"source": "a.jsonl"}, "b.jsonl"]'])
def test_a_flag_names_them_alone_or_in_json(text: str) -> None:
    sources = load_config(["--data.sources", text]).data.sources
    assert [(source.source, source.weight) for source in sources] == [("a.jsonl", 1), ("b.jsonl", 1)]


def test_one_field_is_given_by_position_or_by_name_and_a_later_one_wins(file: str, tmp_path: Path) -> None:
    assert weights(file, "--data.sources.1.weight", "0.5") == [3, 0.5]
    assert weights(file, "--data.sources.chat.weight=2", "--data.sources.a.weight", "7") == [7, 2]
    assert weights(file, "--data.sources.0.weight", "5", "--data.sources.a.weight", "6") == [6, 1]
    assert weights(file, "--data.sources.0.weight", "5", "--data.sources", "x,y") == [1, 1]
    (tmp_path / "over.toml").write_text("[data.sources.chat]\nweight = 4\nsubset = 'none'\n")
    second = load_config([file, f"@{tmp_path / 'over.toml'}"]).data.sources[1]
    assert (second.weight, second.subset, second.limit) == (4, None, 100)


def test_several_take_the_place_of_one_that_an_earlier_file_names_and_the_other_way_round(
    file: str, tmp_path: Path
) -> None:
    (tmp_path / "one.toml").write_text('data = {source = "one.jsonl", split = "train[:10]"}')
    one = f"@{tmp_path / 'one.toml'}"
    several = load_config([one, file]).data
    assert (len(several.sources), several.source, several.split) == (2, Config().data.source, "train")
    assert load_config([file, one]).data == load_config([one]).data
    assert load_config([file, "--data.source", "x.jsonl"]).data.each_source[0].source == "x.jsonl"


def test_both_at_once_are_refused(file: str, tmp_path: Path) -> None:
    (tmp_path / "both.toml").write_text('data = {source = "one.jsonl", sources = ["a", "b"]}')
    both = refusal(f"@{tmp_path / 'both.toml'}")
    assert "data.source is of one data set and data.sources names several: leave one of the two out" in both
    assert refusal(file, "--data.split", "test").startswith("flag --data.split=test: data.split is of one data set")
    default = Config().data.source
    (tmp_path / "both.toml").write_text(f'data = {{source = "{default}", sources = ["a", "b"]}}')
    assert "leave one of the two out" in refusal(f"@{tmp_path / 'both.toml'}")


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ('source = "a.jsonl"\nweight = 0', "data.sources[0] (a.jsonl): weight = 0 must be a number above 0"),
        ('source = "a.jsonl"\nweight = -1.5', "data.sources[0] (a.jsonl): weight = -1.5 must be a number above 0"),
        ('source = "a.jsonl"\nweight = nan', "data.sources[0] (a.jsonl): weight = nan must be a number above 0"),
        ('source = "a.jsonl"\nweight = inf', "data.sources[0] (a.jsonl): weight = inf must be a number above 0"),
        ('source = "a.jsonl"\nlimit = 0', "data.sources[0] (a.jsonl): limit = 0 must be a whole number of at least 1"),
        ('source = "a.jsonl"\nwieght = 1', "data.sources[0] (a.jsonl): unknown field wieght; did you mean weight?"),
        ('source = "a.jsonl"\ncolumns = {x = "y"}', "data.sources[0] (a.jsonl): columns: x must be one of messages,"),
        ("weight = 1", "data.sources[0]: has no source"),
    ],
)
def test_what_is_wrong_with_a_source_is_a_line_with_its_name(table: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(f"[[data.sources]]\n{table}\n")
    assert refusal(f"@{tmp_path / 'bad.toml'}").startswith(f"{tmp_path / 'bad.toml'}: {line}")


def test_a_wrong_flag_of_one_field_is_named(file: str) -> None:
    assert refusal(file, "--data.sources.1.weight", "0") == (
        "flag --data.sources.1.weight=0: weight must be a number above 0"
    )
    assert refusal(file, "--data.sources.1.wieght", "1") == (
        "flag --data.sources.1.wieght=1: unknown setting data.sources.1.wieght; did you mean data.sources.1.weight?"
    )
    assert refusal(file, "--data.sources.2.weight", "1") == (
        "flag --data.sources.2.weight=1: data.sources has no 2; it has 0 (a), 1 (chat)"
    )
    assert refusal("--data.sources.0.weight", "1").endswith("data.sources has no 0; it has no data sets")
    assert refusal("--data.sources", "[1]") == (
        "flag --data.sources=[1]: data.sources[0] must be a table with source, or a data set's name"
    )
    assert refusal("--data.sources", "{").endswith("must be a list of tables, or of names")


def test_the_resolved_toml_and_the_command_read_back_to_the_same(file: str, tmp_path: Path) -> None:
    config = load_config([file, "--data.sources.0.weight", "0.25"])
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config([f"@{tmp_path / 'config.toml'}"]) == config
    assert "source" not in tomllib.loads(to_toml(config))["data"]
    given = given_settings(config, "distill")
    assert list(given) == ["data.sources"]
    flag = command_line(given.items(), "distill").partition("--data.sources ")[2].strip("'")
    assert load_config(["--data.sources", flag]) == config


def test_python_takes_them_as_tables_names_or_objects() -> None:
    from rayqd.config.sections.sources import SourceConfig

    config = Config(data={"sources": [{"source": "a.jsonl", "weight": 2}, "b.jsonl"]})
    assert [source.weight for source in config.data.sources] == [2, 1]
    assert (
        Config(data={"sources": [SourceConfig(source="a.jsonl", weight=2), SourceConfig(source="b.jsonl")]}) == config
    )
    with pytest.raises(ConfigError, match=r"data\.sources\[0\] \(a\): weight = 0 must be a number above 0"):
        Config(data={"sources": [{"source": "a", "weight": 0}]})
    with pytest.raises(ConfigError, match=r"\(a\): weight = 0 must be a number above 0"):
        SourceConfig(source="a", weight=0)
    with pytest.raises(ConfigError, match=r"wieght; did you mean weight\?"):
        SourceConfig(source="a", wieght=0)


def test_other_weights_are_another_run(file: str) -> None:
    (line,) = differences(load_config([file]), load_config([file, "--data.sources.0.weight", "4"]))
    assert line.startswith('data.sources: [{source = "a.jsonl", weight = 3.0}')


def test_paths_of_sources_are_made_absolute(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    sources = with_absolute_paths(load_config([file])).data.sources
    assert [source.source for source in sources] == [str(tmp_path / "a.jsonl"), "some/set"]


def test_a_weight_is_swept(file: str) -> None:
    sweep = load_sweep([file, "--eval.source", "h.jsonl", "--sweep.over.data.sources.chat.weight", "1,2.5"])
    configs = [
        sweep.config({"data.sources.chat.weight": weight}) for weight in sweep.sweep.over["data.sources.chat.weight"]
    ]
    assert [[source.weight for source in config.data.sources] for config in configs] == [[3, 1], [3, 2.5]]
    ranged = load_sweep(
        [file, "--eval.source=h", "--sweep.search=random", "--sweep.over.data.sources.0.weight.low=1",
         "--sweep.over.data.sources.0.weight.high=9", "--sweep.over.data.sources.0.weight.log"]
    )  # fmt: skip
    assert ranged.sweep.over["data.sources.0.weight"].log  # type: ignore[union-attr]


def test_a_swept_weight_needs_rows_to_measure_on_and_a_source_that_is_there(file: str) -> None:
    for words, line in [
        (["--sweep.over.data.sources.0.weight", "1,2"], "changes which rows are held out"),
        (["--sweep.over.data.sources.0.wieght", "1,2"], "did you mean data.sources.0.weight?"),
        (
            ["--eval.source=h", "--sweep.over.data.sources.7.weight", "1,2"],
            "data.sources has no 7; it has 0 (a), 1 (chat)",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_sweep([file, *words])
        assert line in str(caught.value)


def test_help_has_the_fields_of_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "data.sources"]) == 0
    out = capsys.readouterr().out
    assert all(f"--data.sources.N.{name} " in out for name in source_fields())
    assert main(["help", "data.sources.0.weight"]) == 0
    assert capsys.readouterr().out.startswith("  --data.sources.0.weight X\n")
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert "## `[[data.sources]]`" in page
    assert "| `data.sources.N.weight` | `1.0` | a number above 0 |" in page
