"""How is a model evaluated with the average of its weights over the last steps instead of those of the last one?

Lightning's `EMAWeightAveraging` keeps the average, validates with it and writes it into checkpoints. Three things have
to be added for the models of this package:

1. The network is built when the data are known, in `setup`; the average must be taken of it, so it is built first.
2. What validation chose (the decision threshold of a segmentation) belongs to the averaged weights it was chosen with.
   It is a buffer, and goes to the average as it is: a mean of thresholds is the threshold of no model.
3. After training, `test` loads a checkpoint for its averaged weights; Lightning would load those of the last step.

The average of Polyak and Juditsky (SIAM J. Control Optim. 1992) with exponential weights.
"""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks.weight_averaging import EMAWeightAveraging

from span_sparse.errors import ConfigError


class WeightAverage(EMAWeightAveraging):
    """Exponential moving average of the weights, for `trainer.callbacks`.

    Args:
        decay: share of the old average that stays at every step, in (0, 1); 0.999 averages over about 1,000 steps, so
            a training should have several thousand.
        update_starting_at_step: until then the average is the weights the network began with.

    Raises:
        ConfigError: a decay outside (0, 1).
    """

    def __init__(self, decay: float = 0.999, update_starting_at_step: int = 0) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"decay {decay} of WeightAverage must be between 0 and 1, for example 0.999")
        super().__init__(use_buffers=False, decay=decay, update_starting_at_step=update_starting_at_step)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Has the network built, then copies it."""
        if stage == "fit":
            pl_module.setup(stage)
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """What validation has chosen goes into the average, before a checkpoint is written."""
        if self._average_model is not None:
            chosen = dict(pl_module.named_buffers())
            for name, buffer in self._average_model.module.named_buffers():
                buffer.copy_(chosen[name])

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores weights and average of a training that goes on; else the checkpoint's averaged weights stay."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Training is over, the model has the averaged weights."""
        self._average_model = None
