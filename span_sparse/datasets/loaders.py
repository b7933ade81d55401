"""How does a training go on in the middle of an epoch, with the slides that have not been seen in it?

The order of an epoch depends on (seed, epoch) alone, so the number of batches that were taken says where to go on. The
loader counts them and keeps the count in the checkpoint (Lightning asks for `state_dict`); the next start skips that
many batches without reading a slide. With a plain DataLoader the epoch would begin anew: some slides seen twice, others
never.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from span_sparse.datasets.batch import SlideBatch, SlideSample, collate
from span_sparse.errors import CheckpointError
from span_sparse.signals import blocked


class TrainingLoader(DataLoader[SlideSample]):
    """A loader that can start in the middle of an epoch.

    Args:
        dataset: slides.
        batch_sampler: batches of an epoch, with `set_start`.
        order: everything the order depends on but the epoch, as plain values; a checkpoint of another order is refused.
        num_workers: processes that read ahead. Signals sent to the whole job do not reach them: the training ends them
            when its checkpoint is written.
    """

    def __init__(
        self, dataset: Dataset[SlideSample], batch_sampler: Any, order: dict[str, Any], num_workers: int
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            collate_fn=collate,
            persistent_workers=num_workers > 0,
        )
        self.order = order
        self._start = self._num_taken = 0

    def __iter__(self) -> Iterator[SlideBatch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._num_taken, self._start = self._start, 0
        with blocked():
            iterator = super().__iter__()
        return self._counted(iterator)

    def _counted(self, iterator: Iterator[Any]) -> Iterator[SlideBatch]:
        for batch in iterator:
            self._num_taken += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where this epoch's iteration stands; the same in every process."""
        return {"batches_taken": self._num_taken, "batches": len(self), "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on where the state was taken.

        Raises:
            CheckpointError: in the middle of an epoch of another order.
        """
        taken = int(state["batches_taken"])
        if taken == state["batches"]:
            taken = len(self)
        elif state["order"] != self.order:
            names = [name for name in self.order if state["order"].get(name) != self.order[name]]
            differences = "; ".join(f"{name}: {self.order[name]} != {state['order'].get(name)}" for name in names)
            raise CheckpointError(
                f"the checkpoint was written after batch {taken} of {state['batches']} of an epoch whose order was "
                f"another (now != checkpoint): {differences}. Go on with the same settings, or start a new run"
            )
        self._start = self._num_taken = taken
        self.batch_sampler.set_start(taken)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
