"""Runs the Triton kernel of the cases in the file argv[1], on a CPU, and writes its answers to argv[2]. Not a test.

A process of its own, because Triton reads whether it interprets when it is imported.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from rayqd.losses import rows_triton

rows_triton.BLOCK = 128  # several of it a row

if __name__ == "__main__":
    answers = []
    for case in torch.load(sys.argv[1]):
        student = case["student"]
        loss, factor = rows_triton.loss_and_slope_in_place(
            student, case["teacher"], case["beta"], case["temperature"], with_slope=case["with_slope"]
        )
        answers.append({"loss": loss, "factor": factor, "slope": student})
    torch.save(answers, sys.argv[2])
