"""`python -m learner`: reads the flags, wires actors, learner and evaluator together, and shuts them down cleanly."""

import logging
import sys
from contextlib import ExitStack

import torch
from rich.console import Console

from common.config import ConfigError
from common.limits import available_cores
from common.output import harmless_output, make_console
from common.process import prepare_process, restored_afterwards, set_file_modes
from common.storage.checkpoints import checkpoint_name, list_checkpoints
from common.storage.run_directory import RunDirectory
from common.text import format_count
from evaluator.levels.level_sets import draw_level_sets
from evaluator.scores.ranking import best_row
from learner.cluster import connection, nodes
from learner.cluster.target import ClusterError, ClusterTarget
from learner.evaluator_handle import RemoteEvaluator
from learner.ppo.learner import PPOLearner
from learner.reporting.bottleneck import Bottleneck
from learner.reporting.logs import RunLogging
from learner.reporting.operator_metrics import OperatorMetrics
from learner.reporting.progress import Progress
from learner.reporting.reporter import Reporter
from learner.reporting.run_log import RunLog
from learner.rollouts.failures import NoRollouts
from learner.rollouts.fleet import Fleet, FleetError
from learner.rollouts.stream import RolloutStream
from learner.run_state import RunState
from learner.startup import flags
from learner.startup.flags import CommandLine
from learner.startup.preparation import PreparedRun, ResumedRun, disk_failures_refused, prepare_run, require_memory
from learner.startup.supervision import Supervisor
from learner.stopping import StopRequested, StopSignals
from learner.training import Diverged, RunDirectoryFailed, Training

logger = logging.getLogger("learner")


def main(argv: list[str] | None = None, supervisor: Supervisor | None = None) -> int:
    """Runs training, or the doctor, and returns the exit code; this process is as before then, as a notebook needs."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["doctor"]:
        from learner.cluster import doctor  # training does not need it

        with restored_afterwards():
            return doctor.main(argv[1:])
    with harmless_output(), restored_afterwards():
        return run_command(argv, supervisor or Supervisor())


def run_command(argv: list[str], supervisor: Supervisor) -> int:
    """Runs training."""
    set_file_modes()
    command_line = flags.parse(argv)
    console = make_console()
    with RunLogging(console) as logs, ExitStack() as stack:
        try:
            prepared = prepare_run(command_line)
            stack.callback(prepared.close)
            _check_levels(prepared)
            require_memory(prepared.config)
            set_file_modes(prepared.config.group_readable)
            prepared.claim()
            supervisor.tell_run_directory(prepared.run.path)
            if missing := prepared.run.check_file_system():
                logger.warning("the file system of %s lacks features that runs use: %s", prepared.run.path, missing)
            with StopSignals(supervisor.tell_signal) as stop, connection.messages_of_ray_in_the_log():
                return train_on_cluster(prepared, command_line, stop, logs, console)
        except (ConfigError, ClusterError) as error:
            return fail(str(error), 2)


def _check_levels(prepared: PreparedRun) -> None:
    """Raises ConfigError if levels do not exist, or if the run's levels.json cannot be used, before anything starts."""
    draw_level_sets(prepared.config)
    if prepared.run.level_sets.exists():
        from evaluator.levels.level_file import read_level_sets  # it imports Procgen, which a new run need not wait for

        read_level_sets(prepared.run.level_sets, prepared.config)


def train_on_cluster(
    prepared: PreparedRun, command_line: CommandLine, stop: StopSignals, logs: RunLogging, console: Console
) -> int:
    """Trains on the cluster at --address, or on an embedded one, and leaves it."""
    target = ClusterTarget.from_flags(command_line.address, command_line.allow_unauthenticated)
    connection.require_no_ray()  # before `try`, at whose end Ray is shut down
    try:
        joined = connection.connect(target, prepared.config, stop.check)
        stop.install()  # Ray's C++ code has installed its own handlers
        stop.check()
        if target is not None:
            nodes.require_same_software(prepared.config.cluster_timeout, stop.check)
        return train(prepared, stop, logs, Progress(prepared.config, console), joined.describe())
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
        next_step = f"continue with --resume {prepared.run.path}" if can_resume else "training had not begun"
        return fail(f"stopped by {request}; {next_step}", request.exit_code)
    finally:
        connection.disconnect()


def fail(message: str, exit_code: int) -> int:
    """Says why in one line on stderr and in learner.log."""
    print(f"learner: {message}", file=sys.stderr)
    logger.info("exit code %d: %s", exit_code, message)  # not as an error, which the screen would show again
    return exit_code


def train(prepared: PreparedRun, stop: StopSignals, logs: RunLogging, progress: Progress, connection_text: str) -> int:
    """Starts the three roles, trains to the end and says where the results are."""
    config, run, device = prepared.config, prepared.run, torch.device(prepared.config.device)
    resumed = prepared.checkpoint if isinstance(prepared, ResumedRun) else None
    # On a CPU the gradients have their own threads: torch must not spread each operator as well.
    num_threads = 1 if device.type == "cpu" else None
    prepare_process(num_threads, sees_gpu=device.type == "cuda", group_readable=config.group_readable)
    overlap = config.mode == "overlap"
    with ExitStack() as stack:
        learner = PPOLearner(config)
        stack.callback(learner.close)
        state = _restore(prepared, learner)
        _announce(prepared, learner, state, progress, connection_text)
        fleet = Fleet(config, learner.policy_version, state.counters, state.actors)
        stack.callback(fleet.stop)
        if resumed is not None:
            _begin(prepared, logs)  # before the evaluator reads which versions are scored
        # Started together with the actors: on two cores the first score comes several seconds earlier.
        evaluator = RemoteEvaluator(run.path, config)
        stack.callback(evaluator.stop)
        placed = fleet.wait_until_placed(config.cluster_timeout, stop.check)
        if placed < config.num_actors and not fleet.is_elastic:
            logger.warning(
                "%d of %d actors placed, %d missing: %s; the batch stays the same, each actor collects more of it",
                *(placed, config.num_actors, config.num_actors - placed, fleet.why_missing()),
            )
        stream = RolloutStream(
            config,
            fleet,
            max_policy_lag=config.max_policy_lag,
            first_batch=learner.policy_version,
            num_batches=config.num_updates,
            device=device,
            counters=state.counters,
        )
        stack.callback(stream.close)
        if resumed is None:
            _begin(prepared, logs)
        totals = {**state.state_dict()["counters"], "frames": learner.frames, "policy_version": learner.policy_version}
        reporter = Reporter(
            RunLog(run, purge_step=0 if resumed is None else learner.frames + 1),
            Bottleneck(config, overlap),
            progress,
            OperatorMetrics(run.path.name, config.num_actors, totals, stream.bytes_in_flight),
        )
        resumed_from = None if resumed is None else resumed.path
        progress.start(learner.frames)
        stack.callback(progress.stop)
        Training(config, run, learner, stream, evaluator, reporter, stop, state, resumed_from).run_to_end()
    if (bottleneck := reporter.bottleneck.describe()) is not None:
        progress.note(bottleneck)
    progress.note(f"results in {run.path}")
    progress.note(f"curves: tensorboard --logdir {run.tensorboard}")
    logger.info("exit code 0: finished")
    return 0


def _announce(
    prepared: PreparedRun, learner: PPOLearner, state: RunState, progress: Progress, connection_text: str
) -> None:
    """Says what is about to be trained, where, and what about it may surprise."""
    config = prepared.config
    progress.note(
        f"{config.game}, preset {config.preset}, {config.mode} mode, learner on {config.device} in {config.precision}, "
        f"{connection_text}"
    )
    progress.note(f"run directory {prepared.run.path}")
    if "total_frames" in prepared.requested and config.total_frames % config.batch_size:
        updates = format_count(config.num_updates, "update")
        progress.note(
            f"training {config.num_updates * config.batch_size:,} frames ({updates}): "
            f"--total-frames {config.total_frames:,} is rounded up to whole updates of {config.batch_size:,} frames"
        )
    if isinstance(prepared, ResumedRun):
        progress.note(
            f"resumed at policy_version {learner.policy_version}, {learner.frames:,} frames; "
            f"{_continuation(prepared, state)}"
        )
        if prepared.preset_change is not None:
            progress.note(prepared.preset_change)
        if prepared.procgen_change is not None:
            progress.note(prepared.procgen_change)
    if config.learner_threads > (cores := available_cores()):
        logger.warning("--learner-threads %d is more than the %d available cores", config.learner_threads, cores)
    minibatch = config.batch_size // config.num_minibatches
    if "micro_batch" in prepared.requested and config.micro_batch > minibatch:
        logger.warning("--micro-batch %d exceeds the minibatch of %d samples", config.micro_batch, minibatch)
    if config.objective == "standard" and config.max_policy_lag:
        # The figures are counted from vwxyzjn/cleanba, static/cleanba/sync_or_not_sync.csv.
        logger.warning(
            "--objective standard does not correct for rollouts up to %d versions old, which costs score: on 57 "
            "Atari games Cleanba's PPO with lag beat PPO without it on 14 (median ratio .89); use --objective "
            "decoupled",
            config.max_policy_lag,
        )


def _begin(prepared: PreparedRun, logs: RunLogging) -> None:
    prepared.begin()
    with disk_failures_refused(prepared.run):
        _require_best(prepared.run)
    logs.open(prepared.run.learner_log)


def _require_best(run: RunDirectory) -> None:
    """Points `best` to the best of the scored checkpoints if it was set aside: there may be no evaluator to do so."""
    if run.best_checkpoint() is None:
        versions = {int(path.name) for path in list_checkpoints(run.checkpoints)}
        best = best_row(row for row in run.read_evaluations() if row["policy_version"] in versions)
        if best is not None:
            run.set_best_checkpoint(checkpoint_name(best["policy_version"]))


def _restore(prepared: PreparedRun, learner: PPOLearner) -> RunState:
    """Restores the learner of a resumed run; returns the rest of the run's state."""
    if not isinstance(prepared, ResumedRun) or prepared.checkpoint.learner_state is None:
        return RunState.new(prepared.config)
    learner.load_state_dict(prepared.checkpoint.learner_state["learner"])
    state = RunState.from_state_dict(prepared.checkpoint.learner_state["run"], prepared.config)
    if not prepared.environments_continue:
        state.forget_environments()
    state.keep_weights(_versions_in_flight(prepared) if prepared.config.repeatable else ())
    return state


def _versions_in_flight(prepared: ResumedRun) -> range:
    """The versions before the checkpoint's that a repeatable run collects its next batches with."""
    version = prepared.checkpoint.policy_version
    return range(max(0, version - prepared.config.max_policy_lag), version)


def _continuation(prepared: ResumedRun, state: RunState) -> str:
    """How exactly a resumed run continues."""
    config = prepared.config
    if not prepared.environments_continue:
        return "environments start again (the number of actors or environments changed)"
    restored, needed = len(state.actors), config.num_actors
    if prepared.checkpoint.policy_version and restored < needed:
        return f"environments of {restored} of {needed} actors continue, the others start again"
    if not config.repeatable and config.mode == "overlap":
        return (
            "environments continue; not bit for bit, because actors use the newest weights (--repeatable no, or a "
            "varying number of actors)"
        )
    if list(state.weights) != list(_versions_in_flight(prepared)):
        return (
            "environments continue; not bit for bit, because the checkpoint lacks the weights that rollouts in flight "
            "were collected with: it was written with another --mode, --max-policy-lag or --repeatable"
        )
    if config.min_actors < config.num_actors:
        return (
            f"environments continue; bit for bit only while all {config.num_actors} actors are ready, because the "
            f"number of actors varies (--num-actors {config.min_actors}:{config.num_actors})"
        )
    if config.device == "cuda" or config.actor_gpus:
        return "it continues with the same environments and the same state, but a GPU's algorithms need not repeat bits"
    return "it continues bit for bit if the machine, the software and the settings are the same"
