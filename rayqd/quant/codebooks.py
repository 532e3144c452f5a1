"""The 16 values that bitsandbytes' codes stand for.

NF4, the 4-bit NormalFloat (QLoRA, Dettmers et al. 2023), has quantiles of a normal distribution. FP4 has a sign, two
bits of exponent and one of mantissa, in an order and with a bias of bitsandbytes' own: codes 0 and 8 both stand for 0
(+0.0), and its search puts 8 above 0, so that 8 is what small positive weights get and 0 what exact zeros and small
negative ones get.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Codebook:
    """What sixteen codes stand for, between -1 and 1; the change-over from one to the next is half way."""

    values: tuple[float, ...]  # by code; float32 numbers
    ascending: tuple[int, ...]  # the codes in the order of their values

    @property
    def sorted_values(self) -> list[float]:
        """The values in ascending order."""
        return [self.values[code] for code in self.ascending]

    @property
    def boundaries(self) -> list[float]:
        """Half way between neighbours, exact in Python's float64 until a float32 tensor is made of it."""
        values = self.sorted_values
        return [(values[i] + values[i + 1]) / 2 for i in range(len(values) - 1)]

    @property
    def reach(self) -> float:
        """How far from 0 a weight is still nearer to the table's end than to a next value: half a step past it."""
        values = self.sorted_values
        return 1 + (1 - max(-values[1], values[-2])) / 2


NF4 = Codebook(
    values=(
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    ascending=tuple(range(16)),
)

# 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4 in float32
_MAGNITUDES = (0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25)

FP4 = Codebook(
    values=_MAGNITUDES + tuple(0.0 - value for value in _MAGNITUDES),
    ascending=(11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3),
)
