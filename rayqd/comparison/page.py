"""compare.html: the verdict first, then the numbers, the curves, quality against cost, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from rayqd.comparison.cells import cells_of
from rayqd.comparison.charts import draw_curves, draw_pareto
from rayqd.comparison.findings import ArmFinding, Findings
from rayqd.comparison.verdict import budget_text, evidence, own_evidence, own_sentence, sentence
from rayqd.config import Config, to_toml
from rayqd.config.settings import value_text
from rayqd.console.progress import duration
from rayqd.console.result_table import short_path
from rayqd.report import page
from rayqd.report.chart import arrange_charts
from rayqd.report.page import Column, joined
from rayqd.report.time import all_of_it
from rayqd.runs.environment import collect_environment

_STYLES = ".name { white-space: nowrap; }\n"
_COLOURS = {"rollout": 1, "teacher": 2, "learner": 0}


def render_page(findings: Findings, base: Config, directory: Path, price: float | None) -> str:
    """Return the text of the page."""
    model = Path(base.model.name).name if base.model.name.startswith("/") else base.model.name
    said = " ".join(filter(None, (sentence(findings), own_sentence(findings))))
    basis = " ".join(filter(None, (evidence(findings), own_evidence(findings))))
    about = f"{model} as {base.quant.format.upper()} in groups of {base.quant.group_size}. {basis}"
    failed = [run.job.name for arm in findings.failed for run in arm.outcome.failed]
    notice = f"Failed: {', '.join(failed)}; the end of each log is below." if failed else ""
    body = [
        page.header(f"rayqd compare · {budget_text(findings)}", findings.name, said, notice, about=about),
        _table(findings, price),
        _figures(findings),
        _cost(findings, price),
        *_failures(findings),
        _arms(findings),
        _commands(base, directory),
    ]
    version = collect_environment().versions.get("rayqd", "")
    return page.page(f"{findings.name} · rayqd", body, f"Made by rayqd {version}.", styles=_STYLES)


def _table(findings: Findings, price: float | None) -> Markup:
    reference, own = findings.reference.arm.name, findings.own_texts
    titles = ["", "KL to teacher", "back", f"against {reference}", ""]
    titles += ["KL on own text", f"there against {reference}", ""] if own else []
    titles += ["perplexity", "bits/weight", "tokens", "time"]
    titles += ["accelerator-seconds", *(["cost"] if price is not None else [])]
    columns = [Column(title=title, kind="number" if i and title else "text") for i, title in enumerate(titles)]
    rows: list[list[object]] = []
    chosen = None
    for i, finding in enumerate(findings.arms):
        c = cells_of(finding, findings, price)
        if finding is findings.reference:
            chosen = i
        beside: list[object] = []
        if own:
            difference = _with(c.own_difference, c.own_difference_interval)
            beside = [_with(c.own_kl, c.own_kl_interval), difference, _verdict(c.own_verdict)]
        rows.append(
            [
                _name(c.arm), _with(c.kl, c.kl_interval), _with(c.recovered, c.recovered_interval),
                _with(c.difference, c.difference_interval), _verdict(c.verdict), *beside, c.perplexity, c.bits,
                c.tokens, c.time, c.accelerator_seconds, *([c.money] if price is not None else []),
            ]
        )  # fmt: skip
    note = (
        f"KL(teacher‖arm) in nats a token, over {findings.num_rows:,} held-out rows of {findings.num_tokens:,} tokens; "
        "under a number its 95 % interval, over rows and seeds together. Back: the share of rounding's damage that is "
        "gone. Bits/weight are over the whole model. Time, accelerator-seconds and cost are of one seed, the mean, "
        "idle included."
    )
    return page.section("Result", page.table(columns, rows, chosen=chosen), note=note)


def _figures(findings: Findings) -> Markup:
    drawn = [figure for figure in (draw_curves(findings), draw_pareto(findings)) if figure]
    if not drawn:
        return Markup("")
    note = "Whiskers are 95 % intervals, over rows and seeds together. Lower is better; of two at one price, the lower."
    if names := [each.arm.name for each in findings.arms if each.arm.is_made_elsewhere]:
        note += f" What is not known here: what {', '.join(names)} cost, made elsewhere."
    return page.section("Quality, tokens and price", arrange_charts(drawn), note=note)


def _cost(findings: Findings, price: float | None) -> Markup:
    shown = [each for each in findings.arms if each.cost and each.cost.seconds]
    if not shown:
        return Markup("")
    blocks = [_cost_of_arm(each, price) for each in shown]
    note = (
        "All finished runs of an arm together. The parts follow each other and add up to the wall time; under them, "
        "how long the workers of each role worked, and idle, how long they waited."
    )
    return page.section("What it cost", *blocks, note=note)


def _cost_of_arm(finding: ArmFinding, price: float | None) -> Markup:
    cost = finding.cost
    assert cost is not None
    money = f", {cost.price(price):,.2f} at {price:g} an accelerator-hour" if price is not None else ""
    title = f"{finding.arm.name}: {duration(cost.seconds)}, {cost.accelerator_seconds:,.0f} accelerator-seconds{money}"
    parts = [all_of_it(cost.parts)]
    if cost.roles:
        longest = max(role.busy_seconds + role.idle_seconds for role in cost.roles.values())
        rows = [
            (
                name,
                [role.busy_seconds, role.idle_seconds],
                Markup("<strong>{}</strong>, idle {}, {} tokens").format(
                    duration(role.busy_seconds), duration(role.idle_seconds), f"{role.tokens:,}"
                ),
            )
            for name, role in cost.roles.items()
        ]
        parts.append(page.bars(rows, longest, [_COLOURS.get(name, 3) for name in cost.roles]))
    return page.details(title, *parts)


def _failures(findings: Findings) -> list[Markup]:
    blocks = [
        page.details(f"{run.job.name}: {run.error}", page.code(run.log or "it printed nothing"))
        for arm in findings.failed
        for run in arm.outcome.failed
    ]
    unmeasured = findings.own_texts.errors if findings.own_texts else {}
    blocks += [
        page.details(f"{name}: its own text was not measured", page.code(why)) for name, why in unmeasured.items()
    ]
    return [page.section("What failed", *blocks)] if blocks else []


def _arms(findings: Findings) -> Markup:
    columns = [Column(title="arm"), Column(title="kind"), Column(title="its own settings"), Column(title="runs")]
    rows = [[_name(each.arm.name), _name(each.arm.kind), _settings(each), _links(each)] for each in findings.arms]
    return page.section("Arms", page.table(columns, rows, tight=True))


def _settings(finding: ArmFinding) -> Markup:
    own = {"path": finding.arm.path} if finding.arm.path else {}
    texts = [f"{key} = {value_text(value)}" for key, value in {**own, **finding.arm.settings}.items()]
    return joined([page.inline_code(text) for text in texts], "<br>")


def _links(finding: ArmFinding) -> Markup:
    link = Markup('<a href="{0}/report.html">{0}</a>')
    runs: Sequence[str] = [run.job.name for run in finding.outcome.runs if run.result]
    return joined([link.format(name) for name in runs], "<br>")


def _commands(base: Config, directory: Path) -> Markup:
    again = page.code(f"rayqd compare {short_path(directory)}/*-seed=*")
    shared = page.details("What all arms share", page.code(to_toml(base).rstrip()))
    return page.section("Look closer", again, shared)


def _with(text: str, interval: str) -> Markup | str:
    return Markup("{}<small>{}</small>").format(text, interval) if interval else text


def _name(text: str) -> Markup:
    return Markup('<span class="name">{}</span>').format(text)


def _verdict(text: str) -> Markup | str:
    colour = {"better": "good", "worse": "bad", "failed": "bad"}.get(text)
    return Markup('<span class="{}">{}</span>').format(colour, text) if colour else text
