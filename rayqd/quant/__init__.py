"""4-bit grids, the layers they apply to, and the files they are stored in."""

from rayqd.quant.grid import Grid, Quantized, make_grid
from rayqd.quant.select import quantizable_layers

__all__ = ["Grid", "Quantized", "make_grid", "quantizable_layers"]
