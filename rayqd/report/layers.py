"""How far each layer's output is from the original's, by arm: the error over the layers' numbers, a line a kind."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from rayqd.events import ArmResult
from rayqd.report import page
from rayqd.report.chart import Line, Point, arrange_charts, draw_line_chart
from rayqd.report.page import COLOURS

_REST = "others"  # of more kinds than there are colours


def layers_section(rows: Sequence[ArmResult]) -> Markup:
    """Draw a chart for each of `rows` that has errors by layer, all on one scale; empty where none has."""
    measured = [(row.arm.name, row.layer_errors) for row in rows if row.layer_errors]
    if not measured:
        return page.EMPTY
    by_kind = {arm: group_by_kind(errors) for arm, errors in measured}
    kinds = list(dict.fromkeys(kind for lines in by_kind.values() for kind in lines))
    most = max(y for lines in by_kind.values() for points in lines.values() for _, y in points)
    drawn = [
        draw_line_chart(
            f"Error by layer, {arm}",
            [Line(name=kind, points=lines[kind], colour=kinds.index(kind)) for kind in kinds if kind in lines],
            unit="relative; number of the layer",
            form=".3f",
            from_zero=True,
            up_to=most,
            across="layer",
        )
        for arm, lines in by_kind.items()
    ]
    means = "; ".join(f"{arm} {_mean_square([*errors.values()]):.3f}" for arm, errors in measured)
    note = (
        "How far what leaves a layer is from what leaves it in the original model, ‖y − y*‖ / ‖y*‖, on the first "
        "tokens of a held-out row: root mean square over the tokens. Errors of the layers before it are in "
        f"it. In the legend the last layer. Over all layers, root mean square: {means}."
    )
    return page.section("Layers", arrange_charts(drawn), note=note)


def group_by_kind(errors: Mapping[str, float]) -> dict[str, list[Point]]:
    """Return the errors as points (layer's number, error) by the last part of the layer's name, in order.

    Several layers of one kind and number, as experts are, come as their root mean square; a layer without a number,
    outside the decoder, is left out.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for name, error in errors.items():
        if number := re.search(r"\.(\d+)\.", name):
            found.setdefault(name.rpartition(".")[2], {}).setdefault(int(number[1]), []).append(error)
    kinds = list(found)
    if len(kinds) > COLOURS:
        rest: dict[int, list[float]] = {}
        for kind in kinds[COLOURS - 1 :]:
            for number, values in found.pop(kind).items():
                rest.setdefault(number, []).extend(values)
        found[_REST] = rest
    return {kind: [(n, _mean_square(values)) for n, values in sorted(ys.items())] for kind, ys in found.items()}


def _mean_square(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum(value**2 for value in values) / len(values))
