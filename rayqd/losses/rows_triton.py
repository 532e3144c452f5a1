"""`closed_form` as one Triton kernel: loss and slope of a chunk of logits, with as few passes over memory as they need.

Shapes: C rows (tokens) of a chunk, V vocabulary. A program takes a row and goes over it two or three times:

    1  both sides' logsumexp, online; at beta 0 and 1 the loss comes out of it too: with logits s and t,
       KL(q || p) = sum q (t - s) - (lse t - lse s)
    2  0 < beta < 1: the two divergences to the mixture
    3  the slope, over the student's logits

Each pass runs against the direction of the one before it, so that it begins with what the L2 cache may still hold. All
arithmetic is float32, and logarithms are to base 2 until the end. Each thread keeps sums of its own until a pass ends:
inside a pass no thread waits for another.
"""

# Triton's language has no types that a strict reading could follow.
# pyright: basic, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rayqd.losses.closed_form import INFINITE_LOSS, MASKED_LOGIT, largest_log_ratio, slope_factor

# Columns of a row that a program has in hand: 8 a thread, which in 16 bits are one load of 16 bytes for each side.
BLOCK = 4096
NUM_WARPS = 16
NUM_STAGES = 1  # 2 or more: so many blocks less one are on their way through shared memory before they are needed

_WIDTH = tl.constexpr(8)
_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2.0))
_MASKED = tl.constexpr(MASKED_LOGIT)
_INFINITE = tl.constexpr(INFINITE_LOSS)
# The instruction lg2.approx: an absolute 2**-22 close to 1, and elsewhere that as a relative error.
_HAS_LG2 = tl.constexpr(torch.version.hip is None and not triton.knobs.runtime.interpret)
# From this weight of the far side on that is less than what rounded logits and sums leave of log q - log p.
_LEAST_WEIGHT_FOR_LG2 = 1 / 16


def loss_and_slope_in_place(
    student: Tensor, teacher: Tensor, beta: float, temperature: float, *, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss [C] in nats and the factor [C, 1] of the slope, which replaces `student` [C, V].

    d loss / d logits = slope * factor. In float16 the largest entry of each slope is 1, or small ones would be lost.
    Rows may be any distance apart, their entries must be neighbours; V is any number, a multiple of 16 is fastest.
    """
    num_rows, vocab_size = student.shape
    loss = torch.empty(num_rows, dtype=torch.float32, device=student.device)
    factor = torch.empty(num_rows, 1, dtype=torch.float32, device=student.device)
    if num_rows == 0:
        return loss, factor
    far_weight = min(beta, 1.0 - beta)
    kernel: Any = _row
    with torch.cuda.device_of(student):
        kernel[(num_rows,)](
            student,
            teacher,
            loss,
            factor,
            student.stride(0),
            teacher.stride(0),
            vocab_size,
            1.0 / temperature,
            slope_factor(beta, temperature),
            far_weight,
            largest_log_ratio(far_weight) * math.log2(math.e),
            FORWARD=beta == 0.0,
            REVERSE=beta == 1.0,
            STUDENT_IS_NEAR=beta <= 0.5,
            BALANCED=far_weight >= _LEAST_WEIGHT_FOR_LG2,
            WITH_SLOPE=with_slope,
            SCALED=student.dtype == torch.float16,
            BLOCK=BLOCK,
            STAGES=NUM_STAGES,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
    return loss, factor


@triton.jit
def _row(
    student,
    teacher,
    loss,
    factor,
    student_stride,
    teacher_stride,
    vocab_size,
    inverse_temperature,
    slope_factor,
    far_weight,
    largest_log_ratio,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    STUDENT_IS_NEAR: tl.constexpr,
    BALANCED: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    LANES: tl.constexpr = BLOCK // _WIDTH
    columns = tl.arange(0, LANES)[:, None] * _WIDTH + tl.arange(0, _WIDTH)[None, :]
    last = (vocab_size - 1) // BLOCK * BLOCK
    scale = inverse_temperature * _LOG2_E

    # 1
    student_tops = tl.full([LANES], _MASKED, tl.float32)
    teacher_tops = tl.full([LANES], _MASKED, tl.float32)
    student_sums = tl.zeros([LANES], tl.float32)
    teacher_sums = tl.zeros([LANES], tl.float32)
    # t - s, each less its top or else what the logits have in common would take digits; weighted by the KL's side.
    gaps = tl.zeros([LANES], tl.float32)
    for start in tl.range(0, vocab_size, BLOCK, num_stages=STAGES):
        s = _logits(student, start + columns, vocab_size)
        t = _logits(teacher, start + columns, vocab_size)
        student_top = tl.maximum(student_tops, tl.max(s, 1))
        teacher_top = tl.maximum(teacher_tops, tl.max(t, 1))
        student_rise = student_tops - student_top
        teacher_rise = teacher_tops - teacher_top
        student_shrink = tl.exp2(student_rise * scale)
        teacher_shrink = tl.exp2(teacher_rise * scale)
        s -= student_top[:, None]
        t -= teacher_top[:, None]
        student_terms = tl.exp2(s * scale)
        teacher_terms = tl.exp2(t * scale)
        if FORWARD:
            moved = gaps + teacher_sums * (teacher_rise - student_rise)
            gaps = moved * teacher_shrink + tl.sum(teacher_terms * (t - s), 1)
        if REVERSE:
            moved = gaps + student_sums * (teacher_rise - student_rise)
            gaps = moved * student_shrink + tl.sum(student_terms * (t - s), 1)
        student_sums = student_sums * student_shrink + tl.sum(student_terms, 1)
        teacher_sums = teacher_sums * teacher_shrink + tl.sum(teacher_terms, 1)
        student_tops, teacher_tops = student_top, teacher_top
    student_top = tl.max(student_tops, 0)
    teacher_top = tl.max(teacher_tops, 0)
    student_rises = student_tops - student_top
    teacher_rises = teacher_tops - teacher_top
    student_weights = tl.exp2(student_rises * scale)
    teacher_weights = tl.exp2(teacher_rises * scale)
    student_sum = tl.sum(student_sums * student_weights, 0)
    teacher_sum = tl.sum(teacher_sums * teacher_weights, 0)
    student_log = tl.log2(student_sum)
    teacher_log = tl.log2(teacher_sum)
    sum_gap = teacher_log - student_log

    # 2
    if FORWARD:
        gaps += teacher_sums * (teacher_rises - student_rises)
        value = tl.sum(gaps * teacher_weights, 0) / teacher_sum * scale - sum_gap
        student_kl = value
    elif REVERSE:
        gaps += student_sums * (teacher_rises - student_rises)
        value = sum_gap - tl.sum(gaps * student_weights, 0) / student_sum * scale
        student_kl = value
    else:
        far_sums = tl.zeros([LANES], tl.float32)
        near_sums = tl.zeros([LANES], tl.float32)
        for step in tl.range(0, vocab_size, BLOCK, num_stages=STAGES):
            offsets = last - step + columns
            p, q, log_ratio = _probabilities(
                student, teacher, offsets, vocab_size, scale,
                student_top, teacher_top, student_log, teacher_log, sum_gap,
            )  # fmt: skip
            far_log, near_log = _over_mixture(log_ratio, far_weight, largest_log_ratio, STUDENT_IS_NEAR, BALANCED)
            far_sums += tl.sum((q if STUDENT_IS_NEAR else p) * far_log, 1)
            near_sums += tl.sum((p if STUDENT_IS_NEAR else q) * near_log, 1)
        kl_far = tl.sum(far_sums, 0)
        kl_near = tl.sum(near_sums, 0)
        value = far_weight * kl_far + (1.0 - far_weight) * kl_near
        student_kl = kl_near if STUDENT_IS_NEAR else kl_far
    value *= _LN_2
    # What comparisons say of nan is false, so that it stays.
    value = tl.where(value < 0.0, 0.0, value)
    tl.store(loss + row, tl.where(value > _INFINITE, float("inf"), value))

    # 3
    if WITH_SLOPE:
        peak = 1.0
        if SCALED:
            peaks = tl.zeros([LANES], tl.float32)
            for start in tl.range(0, vocab_size, BLOCK):
                p, q, log_ratio = _probabilities(
                    student, teacher, start + columns, vocab_size, scale,
                    student_top, teacher_top, student_log, teacher_log, sum_gap,
                )  # fmt: skip
                slope = _slope(
                    p, q, log_ratio, student_kl, far_weight, largest_log_ratio,
                    FORWARD, REVERSE, STUDENT_IS_NEAR, BALANCED,
                )  # fmt: skip
                peaks = tl.maximum(peaks, tl.max(tl.abs(slope), 1))
            peak = tl.maximum(tl.max(peaks, 0), 1.1754944e-38)
        tl.store(factor + row, slope_factor * peak * (1.0 if FORWARD else _LN_2))
        for step in tl.range(0, vocab_size, BLOCK, num_stages=STAGES):
            offsets = (last - step if FORWARD or REVERSE else step) + columns
            p, q, log_ratio = _probabilities(
                student, teacher, offsets, vocab_size, scale,
                student_top, teacher_top, student_log, teacher_log, sum_gap,
            )  # fmt: skip
            slope = _slope(
                p, q, log_ratio, student_kl, far_weight, largest_log_ratio,
                FORWARD, REVERSE, STUDENT_IS_NEAR, BALANCED,
            )  # fmt: skip
            if SCALED:
                slope = slope / peak
            tl.store(student + offsets, slope.to(student.dtype.element_ty), mask=offsets < vocab_size)


@triton.jit
def _logits(row, offsets, vocab_size):
    """float32, with masked ones, and what lies beyond the row, finite: their differences must not be nan."""
    x = tl.load(row + offsets, mask=offsets < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.maximum(x, _MASKED, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _probabilities(
    student, teacher, offsets, vocab_size, scale, student_top, teacher_top, student_log, teacher_log, sum_gap
):
    """p and q, the sides' probabilities, and log q - log p to base 2."""
    s = _logits(student, offsets, vocab_size) - student_top
    t = _logits(teacher, offsets, vocab_size) - teacher_top
    return tl.exp2(s * scale - student_log), tl.exp2(t * scale - teacher_log), (t - s) * scale - sum_gap


@triton.jit
def _slope(
    p,
    q,
    log_ratio,
    student_kl,
    far_weight,
    largest_log_ratio,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    STUDENT_IS_NEAR: tl.constexpr,
    BALANCED: tl.constexpr,
):
    """closed_form's; except at beta 0 with logarithms to base 2, which the factor makes up for."""
    if FORWARD:
        slope = p - q
    elif REVERSE:
        slope = -p * (log_ratio + student_kl)
    else:
        far_log, near_log = _over_mixture(log_ratio, far_weight, largest_log_ratio, STUDENT_IS_NEAR, BALANCED)
        slope = p * ((near_log if STUDENT_IS_NEAR else far_log) - student_kl)
    return slope


@triton.jit
def _over_mixture(log_ratio, far_weight, largest, STUDENT_IS_NEAR: tl.constexpr, BALANCED: tl.constexpr):
    """log far - log m and log near - log m, as `closed_form` explains them, from log_ratio = log q - log p."""
    r = tl.minimum(log_ratio if STUDENT_IS_NEAR else -log_ratio, largest, propagate_nan=tl.PropagateNan.ALL)
    # exp - 1 cancels to 1e-7 where r is small: no more than what r, a difference of logits and of sums, is off by.
    u = far_weight * (tl.exp2(r) - 1.0)
    log_mixture = _lg2(1.0 + u) if BALANCED else _log2_1p(u)
    return r - log_mixture, -log_mixture


@triton.jit
def _lg2(x):
    if _HAS_LG2:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.log2(x)


@triton.jit
def _log2_1p(u):
    """log2(1 + u) for u in [-0.5, 2**60], within a relative 1e-7 also where u is small.

    1 + u = 2**k (1 + f), with f in [-0.25, 0.5) taken from u instead of the rounded sum; log(1 + f) is a polynomial.
    """
    # The bits of 0.75, the mask 0xff800000 of sign and exponent, and the bits of 1.
    exponent = ((1.0 + u).to(tl.int32, bitcast=True) - 0x3F400000) & -0x00800000
    power = (0x3F800000 - exponent).to(tl.float32, bitcast=True)  # 2**-k
    f = u * power + (power - 1.0)
    series = 0.05412997677922249 * f - 0.12067165225744247
    series = series * f + 0.14983917772769928
    series = series * f - 0.1682283878326416
    series = series * f + 0.19977079331874847
    series = series * f - 0.24993440508842468
    series = series * f + 0.3333354890346527
    series = series * f - 0.5000005960464478
    return (exponent >> 23).to(tl.float32) + (f * f * series + f) * _LOG2_E
