"""What became of a run after a fault: one row of the drill's table, and how its files are judged."""

from dataclasses import dataclass

from benchmarks.report import Column
from common.storage.checkpoints import load_newest_complete
from common.storage.run_directory import RunDirectory
from drills.trainee import Row


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table. `frames_lost` had been collected or trained on and had to be collected again. `survived`
    says whether the newest update did, "n.a." if the learner did not end.
    """

    fault: str
    happened: str
    seconds: float
    frames_lost: int
    adds_up: str
    survived: str


COLUMNS: dict[str, Column] = {
    "fault": "{fault!s}",
    "what happened": "{happened!s}",
    "seconds": "{seconds:.1f}",
    "frames lost": "{frames_lost}",
    "adds up": "{adds_up!s}",
    "newest update survived": "{survived!s}",
}


def newest_update_survived(run: RunDirectory, newest: int) -> str:
    """Whether the run can be resumed at its `newest` update or the one before: "yes" or "no", from its files."""
    directories = (run.checkpoints, run.resume_points)
    found = [load_newest_complete(directory, on_damaged=lambda line: None) for directory in directories]
    return "yes" if max((one.policy_version for one in found if one), default=-1) >= newest - 1 else "no"


def adds_up(rows: list[Row], before: Row, after: Row, counted: dict[str, int], batch: int) -> str:
    """ "yes", or what does not add up."""
    wrong = []
    if [row["policy_version"] for row in rows] != list(range(1, len(rows) + 1)):
        wrong.append("versions have gaps or duplicates")
    if any(row["frames"] != row["policy_version"] * batch for row in rows):
        wrong.append("frames are not versions times batch")
    for name in ("actor_restarts", "actors_hung", "dropped_for_lag", "skipped_updates"):
        increase = after[name] - before[name]
        if increase != counted.get(name, 0):
            wrong.append(f"{name} +{increase} instead of +{counted.get(name, 0)}")
    lost, most = after["lost_rollouts"] - before["lost_rollouts"], counted.get("actor_restarts", 0)
    if lost > most:
        wrong.append(f"lost_rollouts +{lost}, at most {most}")
    return "; ".join(wrong) or "yes"
