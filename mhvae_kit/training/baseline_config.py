"""Settings of a compared method's training: its own, and a budget and schedule with the names of MHVAE's."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from typing import Any

from mhvae_kit.baselines.registry import check_method, preset_settings, saved_settings, settings_class
from mhvae_kit.baselines.translator import TranslatorConfig
from mhvae_kit.config import Preset, TrainingConfig, check_preset, from_dict
from mhvae_kit.errors import InputError, explain


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Everything that fixes the training of a compared method; budget and cadence have the names of `TrainingConfig`.

    Args:
        method: Its name in `baselines.registry`.
        settings: The method's own config.
        preset: Which geometry of the data to use.
        phantom: Phantom cohort to train on; None = that of the preset.
        seed: Decides order and flips of the slices (as in MHVAE's training), noise, dropout and initial weights.
        steps, batch_size: Steps, and slices a step.
        warmup_steps, final_learning_rate_share: Linear warm-up, then cosine from each optimiser's own learning rate to
            this share of it.
        ema_decay: Decay of the averaged weights that validation and the saved method use.
        log_every, validate_every, checkpoint_every, keep_checkpoints: In steps; how many checkpoints are kept.
        validation_slices: Slices of the validation patients that are scored each time.
    Raises:
        InputError: A value does not fit, or the settings are of another method.
    """

    method: str
    settings: TranslatorConfig
    preset: Preset
    phantom: str | None = None
    seed: int = 0
    steps: int
    batch_size: int
    warmup_steps: int
    final_learning_rate_share: float
    ema_decay: float
    log_every: int
    validate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    validation_slices: int

    def __post_init__(self) -> None:
        check_preset(self.preset)
        if not isinstance(self.settings, settings_class(self.method)):
            raise InputError(explain(f"these are no settings of {self.method}", got=type(self.settings).__name__))
        counts = ("steps", "batch_size", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints")
        for name in (*counts, "validation_slices"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(explain(f"{name} must be a whole number of at least 1", got=repr(value)))
        if self.warmup_steps < 0 or not 0 <= self.ema_decay < 1 or not 0 <= self.final_learning_rate_share <= 1:
            raise InputError(
                explain(
                    "the schedule does not fit",
                    got=f"warmup_steps={self.warmup_steps}, ema_decay={self.ema_decay}, "
                    f"final_learning_rate_share={self.final_learning_rate_share}",
                    expected="at least 0, in [0, 1) and in [0, 1]",
                )
            )

    @classmethod
    def from_preset(cls, method: str, preset: str, **overrides: Any) -> BaselineConfig:
        """The settings of a preset: budget, schedule and cadence are those of MHVAE's training at that preset.

        Args:
            method: Its name.
            preset: smoke, demo or paper.
            overrides: Any field of this class or, unless this class has one of that name, of the method's own config.
        Raises:
            InputError: The method, the preset or an override is unknown, or a value does not fit.
        """
        reference = TrainingConfig.from_preset(preset)
        names = {field.name for field in dataclasses.fields(cls)} - {"method", "preset"}
        own = {k: v for k, v in overrides.items() if k in names}
        rest = {k: v for k, v in overrides.items() if k not in names}
        known = {field.name for field in dataclasses.fields(settings_class(check_method(method)))}
        for key in rest:
            if key not in known:
                near = difflib.get_close_matches(key, known | names, n=1)
                raise InputError(
                    explain(
                        f"{method} has no setting {key!r}",
                        expected=f"perhaps {near[0]!r}" if near else ", ".join(sorted(known | names)),
                    )
                )
        values = {name: getattr(reference, name) for name in names if hasattr(reference, name)}
        values["final_learning_rate_share"] = reference.final_learning_rate / reference.learning_rate
        values["settings"] = preset_settings(method, preset, **rest)
        return cls(**{**values, "method": method, "preset": preset, **own})

    def to_dict(self) -> dict[str, Any]:
        """Nested dict of JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_saved(cls, values: dict[str, Any]) -> BaselineConfig:
        """The inverse of `to_dict`.

        Raises:
            InputError: These are settings of something else, or of an unknown method.
        """
        if "method" not in values or "settings" not in values:
            raise InputError(explain("these settings are not those of a compared method", expected="a method by name"))
        return from_dict(cls, {**values, "settings": saved_settings(values["method"], values["settings"])})
