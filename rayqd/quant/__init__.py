"""4-bit grids, the layers they apply to, and the methods that round without training."""

from rayqd.quant.formats import make_grid, pack, unpack
from rayqd.quant.grid import Grid, Quantized
from rayqd.quant.select import quantizable_layers

__all__ = ["Grid", "Quantized", "make_grid", "pack", "quantizable_layers", "unpack"]
