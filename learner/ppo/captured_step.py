"""The optimizer step as a CUDA graph: one launch instead of several hundred."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from learner.ppo.batch import TrainingBatch

# (batch, int64 indices of a minibatch) -> statistics of the minibatch; writes the parameters' gradients.
Gradient = Callable[[TrainingBatch, Tensor], Tensor]


class CapturedStep:
    """`gradient`, then `apply`, captured once and replayed for every minibatch.

    A graph reads and writes fixed addresses: batch and indices are copied into the graph's own memory, and parameters,
    gradients and the optimizer's state must keep the addresses they had at capture. `apply` must be safe to capture.
    """

    def __init__(self, gradient: Gradient, apply: Callable[[], object], batch: TrainingBatch, minibatch_size: int):
        self.batch = dataclasses.replace(batch, **{name: column.clone() for name, column in batch.columns().items()})
        self.indices = torch.arange(minibatch_size, device=batch.actions.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries choose algorithms and allocate in the first calls
                gradient(self.batch, self.indices)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Another thread uploads the next batch meanwhile; by default some of its calls could make the capture fail.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.statistics = gradient(self.batch, self.indices)
            apply()

    def load(self, batch: TrainingBatch) -> None:
        """Copies the data of the next update into the graph's memory."""
        for name, column in batch.columns().items():
            getattr(self.batch, name).copy_(column)

    def __call__(self, indices: Tensor) -> Tensor:
        """Makes one optimizer step; the next one overwrites the statistics."""
        self.indices.copy_(indices)
        self.graph.replay()
        return self.statistics
