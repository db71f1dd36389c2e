"""`python -m learner`: reads the flags, wires actors, learner and evaluator together, and ends in order."""

import dataclasses
import os
import sys

from common.config import ConfigError
from common.process import keep_files_private, prepare_process
from evaluator.levels.level_sets import draw_level_sets
from learner.cluster import connection, nodes
from learner.cluster.connection import ClusterError
from learner.evaluator_handle import RemoteEvaluator
from learner.ppo.learner import PPOLearner
from learner.reporting.operator_metrics import OperatorMetrics
from learner.reporting.progress import Progress, scores_text
from learner.rollouts.fleet import Fleet, FleetError
from learner.rollouts.stream import NoRollouts, RolloutStream
from learner.run_state import RunState
from learner.startup import flags
from learner.startup.flags import CommandLine
from learner.startup.preparation import PreparedRun, prepare_run
from learner.stopping import StopRequested, StopSignals
from learner.training import Diverged, RunDirectoryFailed, Training


def main(argv: list[str] | None = None) -> int:
    """Runs training, or the doctor, and returns the exit code."""
    keep_files_private()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["doctor"]:
        from learner.cluster import doctor  # training has no use for it

        return doctor.main(argv[1:])
    command_line = flags.parse(argv)
    prepared = None
    try:
        prepared = prepare_run(command_line)
        draw_level_sets(prepared.config)  # levels that do not exist are refused now, not when they are to be scored
        with StopSignals() as stop:
            return train_on_cluster(prepared, command_line, stop)
    except (ConfigError, ClusterError) as error:
        return fail(str(error), 2)
    finally:
        if prepared is not None:
            prepared.close()


def train_on_cluster(prepared: PreparedRun, command_line: CommandLine, stop: StopSignals) -> int:
    """Trains on the cluster at --address, or on an embedded one, and leaves it."""
    try:
        where = connection.connect(prepared.config, command_line.address, command_line.allow_unauthenticated)
        stop.install()  # Ray installed handlers of its own
        if connection.address_to_join(command_line.address) is not None:
            nodes.require_same_software(prepared.config.cluster_timeout)
        return train(prepared, stop, where, has_operators=connection.address_to_join(command_line.address) is not None)
    except FleetError as error:
        if error.details:
            print(error.details, file=sys.stderr)
        return fail(str(error), 2)
    except NoRollouts as error:
        return fail(f"{error}; continue with --resume {prepared.run.path}", 1)
    except (RunDirectoryFailed, Diverged) as error:
        return fail(str(error), 1)
    except StopRequested as request:
        can_resume = prepared.run.config.exists()
        after = f"continue with --resume {prepared.run.path}" if can_resume else "training had not begun"
        return fail(f"stopped by {request}; {after}", request.exit_code)
    finally:
        connection.disconnect()


def fail(message: str, exit_code: int) -> int:
    """Says why in one line on stderr."""
    print(f"learner: {message}", file=sys.stderr)
    return exit_code


def train(prepared: PreparedRun, stop: StopSignals, where: str, has_operators: bool) -> int:
    """Starts the three roles, trains to the end and says where the results are.

    With `has_operators`, of a cluster that was joined, the run's numbers are on Ray's Prometheus endpoint too.
    """
    config, run, device = prepared.config, prepared.run, prepared.device
    num_threads = config.learner_threads or len(os.sched_getaffinity(0))
    # On a CPU the gradients have threads of their own: torch must not spread each operator as well.
    prepare_process(num_threads=1 if device.type == "cpu" else None, sees_gpu=device.type == "cuda")
    overlap = config.mode == "overlap" or (config.mode == "auto" and device.type == "cuda")
    learner = PPOLearner(config, device, num_threads)
    resumed, state = prepared.resumed, _restore(prepared, learner)
    progress = Progress(config)
    progress.note(
        f"{config.env_name} {config.distribution_mode}, preset {config.preset}, "
        f"{'overlap' if overlap else 'sync'} mode, learner on {device} in {learner.precision}, {where}"
    )
    progress.note(f"run directory {run.path}")
    if resumed is not None:
        progress.note(
            f"resumed at policy_version {learner.policy_version}, {learner.frames:,} frames; "
            f"{_continuation(prepared, state, overlap)}"
        )

    fleet = Fleet(config, learner.policy_version, state.counters, state.actors)
    evaluator, stream = None, None
    try:
        if resumed is not None:
            prepared.store()  # before the evaluator reads which versions are scored
        # While actors start: on two cores that brings the first score several seconds forward.
        evaluator = RemoteEvaluator.start(run.path, config) if config.evaluator else None
        placed = fleet.wait_until_placed(config.cluster_timeout, stop.check)
        if placed < config.num_actors and not fleet.is_elastic:
            progress.warn(
                f"{placed} of {config.num_actors} actors placed, {config.num_actors - placed} missing: the cluster has "
                "too few CPUs; the batch stays the same, each actor collects more of it"
            )
        stream = RolloutStream(
            config,
            fleet,
            max_policy_lag=1 if overlap else 0,
            first_batch=learner.policy_version,
            num_batches=config.num_updates,
            device=device,
            counters=state.counters,
        )
        if resumed is None:
            prepared.store()
        resumed_from = None if resumed is None else resumed.path
        metrics = None
        if has_operators:
            totals = {
                **dataclasses.asdict(state.counters),
                "frames": learner.frames,
                "policy_version": learner.policy_version,
            }
            metrics = OperatorMetrics(run.path.name, config.num_actors, totals, stream.bytes_in_flight)
        training = Training(config, run, learner, stream, evaluator, progress, stop, state, resumed_from, metrics)
        score = training.run_to_end()
    finally:
        progress.stop()
        if stream is not None:
            stream.close()
        learner.close()
        fleet.stop()
        if evaluator is not None:
            evaluator.stop()
    if score is not None:
        progress.note(f"final score: {scores_text(score)}")
    if (advice := training.advice()) is not None:
        progress.note(advice)
    progress.note(f"results in {run.path}")
    progress.note(f"curves: tensorboard --logdir {run.tensorboard}")
    return 0


def _restore(prepared: PreparedRun, learner: PPOLearner) -> RunState:
    """Brings the learner to where the run stood; returns what else there is to go on from."""
    if prepared.resumed is None or prepared.resumed.learner_state is None:
        return RunState()
    learner.load_state_dict(prepared.resumed.learner_state["learner"])
    state = RunState.from_state_dict(prepared.resumed.learner_state["run"])
    if not prepared.environments_continue:
        state.actors.clear()
    return state


def _continuation(prepared: PreparedRun, state: RunState, overlap: bool) -> str:
    """How faithfully a resumed run goes on."""
    if not prepared.environments_continue:
        return "environments begin anew (another number of actors or environments)"
    there, needed = len(state.actors), prepared.config.num_actors
    if prepared.resumed is not None and prepared.resumed.policy_version and there < needed:
        return f"environments of {there} of {needed} actors continue, the others begin anew"
    if overlap:
        return "environments continue; not bit for bit, since in overlap mode rollouts were under way"
    return "it continues bit for bit where machine and settings are the same"


if __name__ == "__main__":
    sys.exit(main())
