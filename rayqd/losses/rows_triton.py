"""`closed_form` as one Triton kernel: loss and slope of a chunk of logits, at about the cost of reading them.

Shapes: C rows (tokens) of a chunk, V vocabulary. A program takes a row and goes over it two or three times:

    1  both sides' logsumexp, online; at beta 0 and 1 the loss comes out of it too: with logits s and t,
       KL(q || p) = sum q (t - s) - (lse t - lse s)
    2  0 < beta < 1: the two divergences to the mixture
    3  the slope, over the student's logits

Each pass runs against the direction of the one before it, so that it begins with what the L2 cache still holds. All
arithmetic is float32. Sums are kept for each of a block's columns and joined at the end of a pass: no thread waits for
another inside a pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rayqd.losses.closed_form import INFINITE_LOSS, MASKED_LOGIT, largest_log_ratio, slope_factor

# 8 columns a thread are a load of 16 bytes for each side in 16 bits. A thread may use 64 registers, which is what 1024
# threads of a multiprocessor have: two programs of 16 warps, each of which covers the other's ends of passes.
BLOCK = 4096
NUM_WARPS = 16
NUM_STAGES = 2  # blocks that are loaded ahead

_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2.0))
_MASKED = tl.constexpr(MASKED_LOGIT)
_INFINITE = tl.constexpr(INFINITE_LOSS)


def loss_and_slope_in_place(
    student: Tensor, teacher: Tensor, beta: float, temperature: float, *, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """Loss [C] in nats, and the factor [C, 1] of the slope, which takes the place of `student` [C, V].

    d loss / d logits = slope * factor. In float16 the largest entry of each slope is 1, or small ones would be lost.
    Rows may be any distance apart, their entries must be neighbours; V is any number, a multiple of 8 is fastest.
    """
    num_rows, vocab_size = student.shape
    loss = torch.empty(num_rows, dtype=torch.float32, device=student.device)
    factor = torch.empty(num_rows, 1, dtype=torch.float32, device=student.device)
    if num_rows == 0:
        return loss, factor
    kernel: Any = _row
    with torch.device(student.device):
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
            min(beta, 1.0 - beta),
            largest_log_ratio(min(beta, 1.0 - beta)),
            FORWARD=beta == 0.0,
            REVERSE=beta == 1.0,
            STUDENT_IS_NEAR=beta <= 0.5,
            WITH_SLOPE=with_slope,
            SCALED=student.dtype == torch.float16,
            BLOCK=BLOCK,
            STAGES=NUM_STAGES,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
    return loss, factor


@triton.jit
def _row(  # noqa: PLR0917
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
    WITH_SLOPE: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    columns = tl.arange(0, BLOCK)
    last = (vocab_size - 1) // BLOCK * BLOCK
    scale = inverse_temperature * _LOG2_E

    # 1
    student_tops = tl.full([BLOCK], _MASKED, tl.float32)
    teacher_tops = tl.full([BLOCK], _MASKED, tl.float32)
    student_sums = tl.zeros([BLOCK], tl.float32)
    teacher_sums = tl.zeros([BLOCK], tl.float32)
    gaps = tl.zeros([BLOCK], tl.float32)  # of the logits, weighted by the side from which the KL is seen
    for start in tl.range(0, vocab_size, BLOCK, num_stages=STAGES):
        s = _logits(student, start + columns, vocab_size)
        t = _logits(teacher, start + columns, vocab_size)
        student_tops, keep_student, add_student = _online(student_tops, s, scale)
        teacher_tops, keep_teacher, add_teacher = _online(teacher_tops, t, scale)
        student_sums = student_sums * keep_student + add_student
        teacher_sums = teacher_sums * keep_teacher + add_teacher
        if FORWARD:
            gaps = gaps * keep_teacher + add_teacher * (t - s)
        if REVERSE:
            gaps = gaps * keep_student + add_student * (s - t)
    student_top = tl.max(student_tops, 0)
    teacher_top = tl.max(teacher_tops, 0)
    student_weights = tl.exp2((student_tops - student_top) * scale)
    teacher_weights = tl.exp2((teacher_tops - teacher_top) * scale)
    student_sum = tl.sum(student_sums * student_weights, 0)
    teacher_sum = tl.sum(teacher_sums * teacher_weights, 0)
    student_log2 = tl.log2(student_sum)
    teacher_log2 = tl.log2(teacher_sum)
    top_gap = teacher_top - student_top
    sum_gap = (teacher_log2 - student_log2) * _LN_2
    lse_gap = top_gap * inverse_temperature + sum_gap

    # 2
    if FORWARD:
        value = tl.sum(gaps * teacher_weights, 0) / teacher_sum * inverse_temperature - lse_gap
    elif REVERSE:
        value = tl.sum(gaps * student_weights, 0) / student_sum * inverse_temperature + lse_gap
    else:
        far_terms = tl.zeros([BLOCK], tl.float32)
        near_terms = tl.zeros([BLOCK], tl.float32)
        for reverse in tl.range(0, vocab_size, BLOCK, num_stages=STAGES):
            offsets = last - reverse + columns
            s = _logits(student, offsets, vocab_size)
            t = _logits(teacher, offsets, vocab_size)
            p = tl.exp2((s - student_top) * scale - student_log2)
            q = tl.exp2((t - teacher_top) * scale - teacher_log2)
            log_ratio = (t - s - top_gap) * inverse_temperature - sum_gap
            far_log, near_log = _less_mixture(log_ratio, far_weight, largest_log_ratio, STUDENT_IS_NEAR)
            if STUDENT_IS_NEAR:
                near_terms += p * near_log
                far_terms += q * far_log
            else:
                near_terms += q * near_log
                far_terms += p * far_log
        kl_far = tl.sum(far_terms, 0)
        kl_near = tl.sum(near_terms, 0)
        value = far_weight * kl_far + (1.0 - far_weight) * kl_near
        student_kl = kl_near if STUDENT_IS_NEAR else kl_far
    # A comparison with nan is false, so that nan stays.
    value = tl.where(value < 0.0, 0.0, value)
    value = tl.where(value > _INFINITE, float("inf"), value)
    tl.store(loss + row, value)
    if FORWARD or REVERSE:
        student_kl = value

    # 3
    if WITH_SLOPE:
        peak = 1.0
        if SCALED:
            peaks = tl.zeros([BLOCK], tl.float32)
            for start in tl.range(0, vocab_size, BLOCK):
                offsets = start + columns
                s = _logits(student, offsets, vocab_size)
                t = _logits(teacher, offsets, vocab_size)
                p = tl.exp2((s - student_top) * scale - student_log2)
                q = tl.exp2((t - teacher_top) * scale - teacher_log2)
                log_ratio = (t - s - top_gap) * inverse_temperature - sum_gap
                slope = _slope(
                    p, q, log_ratio, student_kl, far_weight, largest_log_ratio, FORWARD, REVERSE, STUDENT_IS_NEAR
                )
                peaks = tl.maximum(peaks, tl.abs(slope))
            peak = tl.maximum(tl.max(peaks, 0), 1.1754944e-38)
        tl.store(factor + row, slope_factor * peak)
        for step in tl.range(0, vocab_size, BLOCK, num_stages=STAGES):
            offsets = (last - step if FORWARD or REVERSE else step) + columns
            s = _logits(student, offsets, vocab_size)
            t = _logits(teacher, offsets, vocab_size)
            p = tl.exp2((s - student_top) * scale - student_log2)
            q = tl.exp2((t - teacher_top) * scale - teacher_log2)
            log_ratio = (t - s - top_gap) * inverse_temperature - sum_gap
            slope = _slope(
                p, q, log_ratio, student_kl, far_weight, largest_log_ratio, FORWARD, REVERSE, STUDENT_IS_NEAR
            )
            if SCALED:
                slope = slope / peak
            tl.store(student + offsets, slope.to(student.dtype.element_ty), mask=offsets < vocab_size)


@triton.jit
def _logits(row, offsets, vocab_size):
    """float32, with masked ones, and what lies beyond the row, finite: their differences must not be nan."""
    x = tl.load(row + offsets, mask=offsets < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.maximum(x, _MASKED, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _online(tops, x, scale):
    """New maxima, and what a sum under the old ones and its new term are to be multiplied by: one of the two is 1."""
    grown = x > tops
    shrink = tl.exp2(-tl.abs(x - tops) * scale)
    return tl.where(grown, x, tops), tl.where(grown, shrink, 1.0), tl.where(grown, 1.0, shrink)


@triton.jit
def _slope(
    p, q, log_ratio, student_kl, far_weight, largest_log_ratio, FORWARD: tl.constexpr, REVERSE: tl.constexpr,
    STUDENT_IS_NEAR: tl.constexpr,
):
    if FORWARD:
        return p - q
    elif REVERSE:
        return -p * (log_ratio + student_kl)
    else:
        far_log, near_log = _less_mixture(log_ratio, far_weight, largest_log_ratio, STUDENT_IS_NEAR)
        if STUDENT_IS_NEAR:
            return p * (near_log - student_kl)
        else:
            return p * (far_log - student_kl)


@triton.jit
def _less_mixture(log_ratio, far_weight, largest, STUDENT_IS_NEAR: tl.constexpr):
    """log far - log m and log near - log m, as `closed_form` explains them, from log_ratio = log q - log p."""
    r = tl.minimum(log_ratio if STUDENT_IS_NEAR else -log_ratio, largest, propagate_nan=tl.PropagateNan.ALL)
    # exp - 1 cancels where r is small, to 1e-7: no more than what r, a difference of logits and sums, is off by.
    log_mixture = _log1p(far_weight * (tl.exp2(r * _LOG2_E) - 1.0))
    return r - log_mixture, -log_mixture


@triton.jit
def _log1p(u):
    """log(1 + u) for u in [-0.5, 2**60], to a relative 1e-7 also where u is small: lg2.approx would leave nothing there.

    1 + u = 2**k (1 + f), with f in [-0.25, 0.5) taken from u instead of the rounded sum; and a polynomial in f.
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
    return (exponent >> 23).to(tl.float32) * _LN_2 + (f * f * series + f)
