"""How does a checkpoint reach the disk whole or not at all?

Lightning writes to a temporary file of the system's temporary folder and moves it; where that is another file system,
moving is copying, and a job killed meanwhile leaves half a checkpoint under the final name, the earlier one gone.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from span_sparse.errors import CheckpointError
from span_sparse.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their final name, flushes them to the disk and renames them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: tensors and plain values.
            path: final name.
            storage_options: not used.

        Raises:
            CheckpointError: it cannot be written; a checkpoint that was there remains.
        """
        content = io.BytesIO()  # torch.save on a file turns a full disk into an internal error without the reason
        torch.save(checkpoint, content)
        try:
            with replacing(Path(path)) as stream:
                stream.write(content.getbuffer())
        except OSError as error:
            raise CheckpointError(
                f"{path}: the checkpoint ({content.getbuffer().nbytes / 2**20:.1f} MiB) cannot be written: "
                f"{error.strerror}; earlier checkpoints remain. Make room and run the same command again"
            ) from error
