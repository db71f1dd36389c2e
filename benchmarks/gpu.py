"""`python -m benchmarks.gpu`: what each optimization gains on a GPU. `bash benchmarks/gpu.sh` also runs the GPU tests.

    correctness   logits, values and the gradient of one minibatch compared with float64 on the CPU, for each lever
    learner       samples/s of whole updates (forward and backward): eager float32 in NCHW, then + channels-last,
                  + bfloat16, + torch.compile, + CUDA graphs
    actors        frames/s of one policy, batch 32 to 512, run eagerly and as a captured graph
    service       frames/s of `python -m learner --preset easy` with several settings

A lever that fails is reported with its error, and the others are still measured. The report, one JSON object, is
written after each measurement, so that nothing measured is lost if the machine goes away. `--device cpu --quick` tries
the script without a GPU.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.inference import make_inference
from benchmarks.processes import end_on_sigterm
from benchmarks.report import available_cores, machine, make_parser, rate
from benchmarks.throughput import random_batch, service, updating
from common.policy_network import PolicyNetwork
from common.precision import Precision, autocast
from common.process import prepare_process
from common.resolution import resolve
from learner.ppo.batch import TrainingBatch
from learner.ppo.learner import PPOLearner

ACTOR_BATCHES = (32, 64, 128, 256, 512)


@dataclasses.dataclass(frozen=True, slots=True)
class Lever:
    """Settings of a learner that are measured."""

    name: str
    precision: Precision
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False


LEVERS = (
    Lever("eager float32 NCHW", "float32", channels_last=False),
    Lever("+ channels-last", "float32"),
    Lever("+ bfloat16", "bfloat16"),
    Lever("+ torch.compile", "bfloat16", compile=True),
    Lever("+ CUDA graphs", "bfloat16", compile=True, cuda_graphs=True),
    Lever("bfloat16 + CUDA graphs, not compiled", "bfloat16", cuda_graphs=True),
)


def make_learner(lever: Lever, sizes: dict[str, int], device: torch.device) -> PPOLearner:
    """A learner of preset easy with this lever and `sizes`; without channels-last all tensors are copied to NCHW."""
    own = {"precision": lever.precision, "compile": lever.compile, "cuda_graphs": lever.cuda_graphs}
    learner = PPOLearner(resolve("easy", {**sizes, **own, "device": device.type, "learner_threads": 1}))
    if not lever.channels_last:
        # The network that the one thread computes gradients on shares the policy's memory, also afterwards.
        learner.gradients.replicas.put(replica := learner.gradients.replicas.get())
        for own_parameter, shared in zip(replica.parameters(), learner.policy.parameters(), strict=True):
            own_parameter.data = shared.data = shared.data.contiguous()
        for network in (learner.policy, replica):
            network.stages.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    return learner


def correctness(lever: Lever, sizes: dict[str, int], device: torch.device) -> dict[str, float]:
    """Relative errors ||ours - exact|| / ||exact||, where exact is the same network in float64 on the CPU."""
    learner = make_learner(lever, sizes, device)
    staged = random_batch(learner.config, device)
    staged.start_upload()
    batch = TrainingBatch.prepare(staged, learner.reward_transform, learner.config)
    indices = torch.arange(min(256, learner.config.minibatch_size), device=device)

    def loss_of(policy: PolicyNetwork, part: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(device, learner.config.precision, cache=False):
            logits, values = policy(batch.observations[part])
        return smooth_loss(logits, values, batch, part), torch.cat([logits.detach().flatten(), values.detach()])

    outputs = learner.gradients.accumulate([indices], loss_of)
    gradients = [parameter.grad for parameter in learner.policy.parameters() if parameter.grad is not None]
    learner.close()

    exact_policy = PolicyNetwork(learner.config.network).double()
    exact_policy.load_state_dict(learner.policy.state_dict())
    on_cpu = dataclasses.replace(batch, **{name: column.cpu() for name, column in batch.columns().items()})
    logits, values = exact_policy(on_cpu.observations[indices.cpu()])
    exact_gradients = torch.autograd.grad(
        smooth_loss(logits, values, on_cpu, indices.cpu()), list(exact_policy.parameters())
    )
    return {
        "outputs": relative_error([outputs], [torch.cat([logits.flatten(), values])]),
        "gradient": relative_error(gradients, exact_gradients),
    }


def smooth_loss(logits: Tensor, values: Tensor, batch: TrainingBatch, indices: Tensor) -> Tensor:
    """A loss that depends on every output, without clipping, whose kinks would magnify rounding errors."""
    log_probs = torch.log_softmax(logits, 1).gather(1, batch.actions[indices].unsqueeze(1)).squeeze(1)
    return (values.square() - log_probs * batch.advantages[indices]).mean()


def relative_error(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """||ours - exact|| / ||exact|| over all tensors together, in float64."""
    difference = torch.cat(
        [(a.detach().cpu().double() - b.detach()).flatten() for a, b in zip(ours, exact, strict=True)]
    )
    return float(difference.norm() / torch.cat([b.detach().flatten() for b in exact]).norm())


def acting(batch_size: int, captured: bool, device: torch.device, seconds: float) -> float:
    """Frames/s of one actor's policy, copies to and from the device included, without environments."""
    policy = PolicyNetwork(resolve("easy", {}).network).to(device).eval()
    inference = make_inference(policy, batch_size, "bfloat16", captured)
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (batch_size, 64, 64, 3), dtype=np.uint8)
    uniform = generator.random(batch_size, dtype=np.float32)

    def work() -> int:
        for _ in range(8):
            inference.start(frames, uniform)
            inference.finish()
        return 8 * batch_size

    with torch.inference_mode():
        return rate(work, seconds)


def service_settings(device: torch.device, cores: int, quick: bool) -> Iterator[tuple[str, list[str]]]:
    """Names and flags of the runs whose frames/s are measured."""
    common = ["--preset", "easy", "--device", device.type]
    if quick:
        small = ["--num-actors", "2", "--envs-per-actor", "4", "--unroll-length", "16", "--num-minibatches", "2"]
        yield "quick", [*common, *small]
        return
    overlap = [*common, "--mode", "overlap"]
    actors = max(n for n in (1, 2, 4, 8, 16) if n <= cores)
    yield f"{actors} actors on CPUs", [*overlap, "--num-actors", str(actors)]
    if device.type == "cpu":
        return
    graphs = [*overlap, "--cuda-graphs"]
    for number in (n for n in (4, 8, 16) if n <= cores):
        share = ["--num-actors", str(number), "--actor-gpus", f"{1 / number:g}"]
        yield f"{number} actors on the GPU, CUDA graphs", [*graphs, *share]
    wide = ["--num-actors", "8", "--envs-per-actor", "64", "--actor-gpus", "0.125", "--num-minibatches", "8"]
    yield "8 actors of 64 environments on the GPU, CUDA graphs", [*graphs, *wide]


class Report:
    """The growing JSON object and its file."""

    def __init__(self, path: Path):
        self.path = path
        self.parts: dict[str, dict[str, Any]] = {}

    def add(self, part: str, name: str, measure: Callable[..., Any], *arguments: Any) -> None:
        """Measures one thing, or records why that failed; then writes the whole file."""
        started = time.perf_counter()
        try:
            result = measure(*arguments)
        except Exception as error:
            message = str(error).partition("\n")[0]
            result = {"failed": f"{type(error).__name__}: {message}"}
        self.parts.setdefault(part, {})[name] = result
        text = json.dumps(self.parts, indent=2)
        self.path.write_text(text + "\n")
        print(f"{part}: {name}: {json.dumps(result)}  ({time.perf_counter() - started:.0f} s)", file=sys.stderr)


def gpu_name(device: torch.device) -> dict[str, Any]:
    """The name and the driver of the device."""
    if device.type != "cuda":
        return {"device": "cpu"}
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True)
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "driver": driver.stdout.decode().strip(),
    }


def main() -> None:
    """Writes the report to --out and prints it."""
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where the learner trains")
    parser.add_argument("--seconds", type=float, default=5, help="how long to measure each figure")
    parser.add_argument("--quick", action="store_true", help="tiny sizes to try the script; the figures mean nothing")
    arguments = parser.parse_args()
    end_on_sigterm()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA GPU; use --device cpu --quick to try the script without a GPU")
    prepare_process(num_threads=None, sees_gpu=device.type == "cuda")
    small = {"num_actors": 2, "envs_per_actor": 16, "unroll_length": 16, "num_minibatches": 2}
    sizes = small if arguments.quick else {}
    cores = available_cores()
    report = Report(arguments.out)
    report.add("machine", "host", machine)
    report.add("machine", "gpu", gpu_name, device)
    for lever in LEVERS:
        report.add("correctness", lever.name, correctness, lever, sizes, device)
    for lever in LEVERS:
        report.add("learner", lever.name, lambda it=lever: updating(make_learner(it, sizes, device), arguments.seconds))
    for captured in (False, True):
        for size in ACTOR_BATCHES[:1] if arguments.quick else ACTOR_BATCHES:
            name = f"batch {size}, {'captured' if captured else 'eager'}"
            report.add("actors", name, acting, size, captured, device, arguments.seconds / 2)
    for name, flags in service_settings(device, cores, arguments.quick):
        report.add("service", name, service, 2 if arguments.quick else 12, *flags)
    print(json.dumps(report.parts, indent=2))


if __name__ == "__main__":
    main()
