"""The gradient of one minibatch as the sum of micro-batch gradients, computed by several CPU threads.

A minibatch of 2,048 frames does not fit into the CPU's caches, and operators that are spread over all cores make the
cores wait for each other sixty times per pass. Instead, each thread processes whole micro-batches, forward and
backward, on a replica that shares the parameters' memory and has its own gradients. Gradients are added in the order of
the micro-batches, whichever thread computed them, so the sum is bit-exact whatever the timing.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch
from torch import Tensor

from common.policy_network import PolicyNetwork

# (policy, indices of the micro-batch) -> (loss to differentiate, statistics to add up)
LossFunction = Callable[[PolicyNetwork, Tensor], tuple[Tensor, Tensor]]


class MicroBatchGradients:
    """Writes the sum of micro-batch gradients into the `.grad` of `policy`. Called by the main thread."""

    def __init__(self, policy: PolicyNetwork, num_threads: int, compiled: bool = False):
        self.policy = policy
        self.replicas: SimpleQueue[PolicyNetwork] = SimpleQueue()
        for _ in range(num_threads):
            replica = _replica_sharing_memory(policy)
            if compiled:
                replica.compile(dynamic=False)
            self.replicas.put(replica)
        self.threads = ThreadPoolExecutor(num_threads, "gradients") if num_threads > 1 else None

    def accumulate(self, micro_batches: Sequence[Tensor], loss_function: LossFunction) -> Tensor:
        """Returns the sum of the micro-batches' statistics. `micro_batches` are index tensors; the losses that
        `loss_function` returns for them must add up to the loss of the minibatch.
        """

        def one(indices: Tensor) -> tuple[list[Tensor], Tensor]:
            replica = self.replicas.get()
            try:
                loss, statistics = loss_function(replica, indices)
                gradients = torch.autograd.grad(loss, list(replica.parameters()))
                return list(gradients), statistics
            finally:
                self.replicas.put(replica)

        results = self.threads.map(one, micro_batches) if self.threads else map(one, micro_batches)
        gradients, statistics = next(iter(results := iter(results)))
        for more_gradients, more_statistics in results:
            torch._foreach_add_(gradients, more_gradients)
            statistics = statistics + more_statistics
        for parameter, gradient in zip(self.policy.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return statistics

    def forward(
        self, micro_batches: Sequence[Tensor], function: Callable[[PolicyNetwork, Tensor], tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """`function` of every micro-batch, without gradients; what it returns, concatenated in their order."""

        @torch.no_grad()  # threads do not inherit it
        def one(micro_batch: Tensor) -> tuple[Tensor, ...]:
            replica = self.replicas.get()
            try:
                return function(replica, micro_batch)
            finally:
                self.replicas.put(replica)

        results = self.threads.map(one, micro_batches) if self.threads else map(one, micro_batches)
        return [torch.cat(parts) for parts in zip(*results, strict=True)]

    def close(self) -> None:
        """Ends the threads."""
        if self.threads:
            self.threads.shutdown()


def _replica_sharing_memory(policy: PolicyNetwork) -> PolicyNetwork:
    replica = copy.deepcopy(policy)
    for parameter, shared in zip(replica.parameters(), policy.parameters(), strict=True):
        parameter.data = shared.data
    return replica
