"""The environments of one actor, as one Procgen batch or two, with the statistics of their episodes."""

from dataclasses import dataclass

import numpy as np

from common.config import Config
from common.messages import ActorState
from common.procgen_env import ProcgenEnvs, envs_from_states, make_envs


@dataclass(frozen=True, slots=True)
class FinishedEpisode:
    """One episode that ended during a rollout."""

    episode_return: float
    length: int
    level: int


class EnvGroup:
    """A Procgen batch that is never reset between rollouts; it owns `columns` of the actor's `[T, B]` arrays."""

    def __init__(self, envs: ProcgenEnvs, columns: slice):
        self.envs = envs
        self.columns = columns
        num_envs = columns.stop - columns.start
        self.running_return = np.zeros(num_envs, np.float64)
        self.running_length = np.zeros(num_envs, np.int32)

    def count_episodes(self, rewards: np.ndarray, dones: np.ndarray, finished: list[FinishedEpisode]) -> None:
        """Accounts for one step's float32 rewards and bool dones `[N]`; appends the episodes it ended to `finished`."""
        self.running_return += rewards
        self.running_length += 1
        if not dones.any():
            return
        info = self.envs.infos()
        for i in np.flatnonzero(dones):
            level = info[i]["prev_level_seed"]
            episode = FinishedEpisode(float(self.running_return[i]), int(self.running_length[i]), level)
            finished.append(episode)
        self.running_return[dones] = 0
        self.running_length[dones] = 0


def make_env_groups(config: Config, rand_seed: int, halves: bool, state: ActorState | None = None) -> list[EnvGroup]:
    """All `envs_per_actor` environments: one group on the caller's thread, or two halves with a C++ thread each.

    Both play exactly the same. The environments continue from `state`, or start with levels drawn from `rand_seed`.
    """
    num_envs = config.envs_per_actor
    halves = halves and num_envs >= 2
    if state is not None:
        saved = state.split_env_states()
    else:
        envs = make_envs(num_envs, config.game, config.start_level, config.num_levels, rand_seed=rand_seed)
        if not halves:
            return [EnvGroup(envs, slice(0, num_envs))]
        envs.observe()
        saved = envs.get_state()
        envs.close()
    middle = num_envs // 2 if halves else num_envs
    groups = [
        EnvGroup(envs_from_states(config.game, saved[columns], num_threads=1 if halves else 0), columns)
        for columns in (slice(0, middle), slice(middle, num_envs))
        if columns.start < columns.stop
    ]
    if state is not None:
        for group in groups:
            group.running_return[:] = state.running_return[group.columns]
            group.running_length[:] = state.running_length[group.columns]
    return groups
