"""FP4 as bitsandbytes has it: sign, two bits of exponent, one of mantissa, in an order and with a bias of its own.

Codes 0 and 8 both stand for 0 (+0.0). bitsandbytes' search puts 8 above 0, so that 8 is what small positive weights get
and 0 what exact zeros and small negative ones get.
"""

from rayqd.quant.blockwise import Codebook

# 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4 in float32
_MAGNITUDES = (0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25)

FP4 = Codebook(
    values=_MAGNITUDES + tuple(0.0 - value for value in _MAGNITUDES),
    ascending=(11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3),
)
