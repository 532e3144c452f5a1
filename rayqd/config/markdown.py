"""docs/configuration.md: the reference of every setting, from the texts in config.sections."""

from __future__ import annotations

from collections.abc import Iterator

from rayqd.config.comparison.fields import comparison_group
from rayqd.config.sections.markers import SameResult
from rayqd.config.settings import Group, Setting, value_text
from rayqd.config.source_list import all_groups, source_group
from rayqd.config.sweep.fields import sweep_group

_HEAD = """\
# Configuration

<!-- `make docs` writes this page from rayqd/config/sections; a test fails where the two differ. -->

Every setting can stand in a TOML file, which the command line names as `@file.toml`, or be a flag. Later files win over
earlier ones, flags over files:

```toml
# mine.toml
name = "mine"

[quant]
format = "nf4"
double_quant = true
```

```bash
rayqd config @configs/gpu.toml @mine.toml --learner.lr 1e-4 --no-quant.double_quant
```

`rayqd config` prints what that comes to. `--section.field VALUE` and `--section.field=VALUE` are alike, and so are
`group-size` and `group_size`. Lists are `A,B` or `'["A", "B"]'`; what may be unset takes `none`. A switch alone turns
on, `--no-section.field` turns off. An unknown key or a wrong value is refused in one line with the nearest right one.

A run keeps all of its settings in `config.toml` of its directory, and the same settings resume it. Others are refused,
except for those marked ↻: they change where and how fast it runs, not what comes out.

`rayqd sweep` alone has the section `[sweep]`, and in `[sweep.over]` the settings that its trials differ in: see
[sweeps.md](sweeps.md); `rayqd compare` alone has `[compare]`, with its arms in `[compare.arms]`: see
[compare.md](compare.md).
"""


def settings_markdown() -> str:
    """Return the whole page."""
    return (
        "\n".join(
            [_HEAD, *(line for group in (*all_groups(), sweep_group(), comparison_group()) for line in _section(group))]
        )
        + "\n"
    )


def _section(group: Group) -> Iterator[str]:
    title = "[[data.sources]]" if group.name == source_group().name else f"[{group.name}]"
    yield f"## `{title}`" if group.name else "## The run itself"
    yield ""
    yield group.text
    yield ""
    yield "| setting | default | must be | |"
    yield "| --- | --- | --- | --- |"
    for setting in group.settings:
        cells = (f"`{setting.key}`{' ↻' if setting.marker(SameResult) else ''}", _default(setting), _must_be(setting))
        yield f"| {' | '.join((*cells, _cell(setting.text)))} |"
    yield ""


def _default(setting: Setting) -> str:
    if setting.is_required:
        return "required"
    return "none" if setting.default is None else f"`{value_text(setting.default)}`"


def _must_be(setting: Setting) -> str:
    if setting.choices:
        others = [
            *([f"`{setting.other_form}`"] if setting.other_form else []),
            *(["none"] if setting.optional else []),
        ]
        return ", ".join([*(f"`{choice}`" for choice in setting.choices), *others])
    kind, form, pattern = setting.must_be.partition(" of the form ")
    none = ", or none" if setting.optional else ""
    return _cell(f"{kind}{form}`{pattern.removesuffix(none)}`{none}" if form else kind)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
