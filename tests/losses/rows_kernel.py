"""Runs the Triton kernel of the cases in the file argv[1] and writes its answers to argv[2]. Not a test.

On a GPU if there is one, else in Triton's interpreter: in a process of its own, since Triton reads whether it
interprets when it is imported.
"""

import os
import sys

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from rayqd.losses import rows_triton  # noqa: E402 (after the choice)

if __name__ == "__main__":
    usual_block = rows_triton.BLOCK, rows_triton.NUM_WARPS
    answers = []
    for case in torch.load(sys.argv[1]):
        student = case["student"].to(DEVICE)
        is_wide = student.shape[-1] > 1000
        rows_triton.BLOCK, rows_triton.NUM_WARPS = usual_block if is_wide else (128, 1)  # several of it a row
        loss, factor = rows_triton.loss_and_slope_in_place(
            student, case["teacher"].to(DEVICE), case["beta"], case["temperature"], with_slope=case["with_slope"]
        )
        answers.append({"loss": loss.cpu(), "factor": factor.cpu(), "slope": student.cpu()})
    torch.save(answers, sys.argv[2])
