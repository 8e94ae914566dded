"""The task level: image-to-text and text-to-image retrieval agree on the distribution over the same pairs."""

import torch

from .instance_level import ContrastRows
from .losses import task_loss
from .step import Step


def task_term(rows: ContrastRows, step: Step) -> torch.Tensor:
    """`L_task` of a micro-batch, scalar: the KL divergence between the two directions of the same comparisons."""
    return (step.weights * task_loss(rows.image_to_text, rows.text_to_image)).sum()
