"""The learning rate as a function of the step: warm-up, plateau, linear decay.

Source: docs/model.md section 2 (100 steps of warm-up or 5 % of a short run; decay to 0.1 over the last half).
"""

from cognate.config import TrainingConfig


def lr_scale(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Share of the peak rate for update number `step`, counted from 1 to `total_steps`."""
    warmup = min(training.warmup_steps, max(1, total_steps // 20))
    if step <= warmup:
        return step / warmup
    decay_from = total_steps * (1 - training.decay_fraction)
    if step <= decay_from:
        return 1.0
    remaining = (total_steps - step) / (total_steps - decay_from)
    return training.final_lr_fraction + (1 - training.final_lr_fraction) * remaining
