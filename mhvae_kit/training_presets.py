"""Settings of training that a preset changes from the defaults of `TrainingConfig`."""

from __future__ import annotations

from typing import Any

TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "steps": 20,
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "discriminator_channels": 8,
        "discriminator_layers": 2,
        "log_every": 2,
        "validate_every": 10,
        "checkpoint_every": 5,
        "validation_slices": 4,
    },
    # A budget a hundred times smaller than the paper's asks for a larger learning rate (docs/decisions/0005).
    "demo": {
        "learning_rate": 6e-3,
        "adversarial_weight": 8.0,
        "discriminator_learning_rate": 4e-4,
        "discriminator_channels": 32,
        "discriminator_layers": 3,
        "ema_decay": 0.998,
    },
    # 56 training patients x 1000 epochs of one 16-slice step each: the paper's budget.
    "paper": {"steps": 56_000, "batch_size": 16, "warmup_steps": 500, "log_every": 50, "validate_every": 2_000},
}
TRAINING_PRESETS["paper"] |= {"checkpoint_every": 1_000, "validation_slices": 96}
