"""Policy inference: frames and random numbers in; actions, log-probabilities and values out. Plain Python, no Ray.

`start` launches, `finish` waits. With the policy on a GPU the caller can do other work in between.
"""

from collections.abc import Callable

import numpy as np
import torch

from common.games import OBSERVATION_SHAPE
from common.policy_network import PolicyNetwork, sample_actions
from common.precision import Precision, autocast

# int32 actions, float32 log-probabilities, float32 values, each [N].
Acted = tuple[np.ndarray, np.ndarray, np.ndarray]


class CpuInference:
    """Batches of N frames, one at a time; `start` does all the work."""

    def __init__(self, policy: PolicyNetwork):
        self.policy = policy
        self.acted: Acted | None = None

    def start(self, frames: np.ndarray, uniform: np.ndarray) -> None:
        """Takes uint8 `[N, 64, 64, 3]` and float32 `[N]` in [0, 1); the caller may then overwrite both."""
        logits, values = self.policy(torch.from_numpy(frames))
        actions, log_probs = sample_actions(logits, torch.from_numpy(uniform))
        self.acted = actions.to(torch.int32).numpy(), log_probs.numpy(), values.numpy()

    def finish(self) -> Acted:
        """Returns the result for the frames of the last `start`; valid until the next `start`."""
        assert self.acted is not None
        return self.acted


class GpuInference:
    """The same on a GPU, with pinned buffers and, if `captured`, a CUDA graph: one launch instead of about a hundred.

    Each object has its own CUDA stream, so that the halves of an actor do not wait for each other. Every replay
    reads the parameters, so new weights copied into them take effect immediately.
    """

    def __init__(self, policy: PolicyNetwork, batch_size: int, precision: Precision, captured: bool):
        device = next(policy.parameters()).device
        self.stream = torch.cuda.Stream(device)
        self.finished = torch.cuda.Event()
        self.host_frames = torch.zeros(batch_size, *OBSERVATION_SHAPE, dtype=torch.uint8, pin_memory=True)
        self.host_uniform = torch.zeros(batch_size, pin_memory=True)
        self.host_acted = torch.zeros(3, batch_size, pin_memory=True)
        self.frames = self.host_frames.to(device)
        self.uniform = self.host_uniform.to(device)
        self.acted = self.host_acted.to(device)

        def act() -> None:
            # No cache: the graph must round the weights itself, or it would keep those it was captured with.
            with torch.inference_mode(), autocast(device, precision, cache=False):
                logits, values = policy(self.frames)
                actions, log_probs = sample_actions(logits, self.uniform)
                self.acted.copy_(torch.stack([actions.float(), log_probs, values]))

        self.act = self._capture(act) if captured else act

    def _capture(self, act: Callable[[], None]) -> Callable[[], None]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):  # libraries choose algorithms and allocate memory in the first calls
                act()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            act()
        return graph.replay

    def start(self, frames: np.ndarray, uniform: np.ndarray) -> None:
        # The previous copies are complete: the caller has called `finish`.
        np.copyto(self.host_frames.numpy(), frames)
        np.copyto(self.host_uniform.numpy(), uniform)
        with torch.cuda.stream(self.stream):
            self.frames.copy_(self.host_frames, non_blocking=True)
            self.uniform.copy_(self.host_uniform, non_blocking=True)
            self.act()
            self.host_acted.copy_(self.acted, non_blocking=True)
            self.finished.record(self.stream)

    def finish(self) -> Acted:
        self.finished.synchronize()
        actions, log_probs, values = self.host_acted.numpy()
        return actions.astype(np.int32), log_probs, values


Inference = CpuInference | GpuInference


def make_inference(policy: PolicyNetwork, batch_size: int, precision: Precision, captured: bool) -> Inference:
    """Inference on the device of `policy`; `captured` has no effect on a CPU."""
    if next(policy.parameters()).is_cuda:
        return GpuInference(policy, batch_size, precision, captured)
    return CpuInference(policy)
