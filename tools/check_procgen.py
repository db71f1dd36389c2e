"""Steps one real Procgen environment.

Exit status 3 and the library's name on standard output: a system library that Procgen needs is missing.
The import works without it; the first environment fails.
"""

import re
import sys


def main() -> int:
    import gym_notices.notices

    gym_notices.notices.notices.clear()  # procgen imports gym, which prints a long notice
    import numpy as np
    from procgen import ProcgenGym3Env

    try:
        env = ProcgenGym3Env(num=1, env_name="coinrun")
    except OSError as error:
        missing = re.search(r"(lib[^\s/:]+\.so[.\d]*): cannot open shared object file", str(error))
        if missing is None:
            raise
        print(missing[1])
        return 3
    env.observe()
    env.act(np.zeros(1, dtype=np.int32))
    _, observation, _ = env.observe()
    shape = observation["rgb"].shape
    if shape != (1, 64, 64, 3):
        raise RuntimeError(f"Procgen gave an observation of shape {shape} instead of (1, 64, 64, 3)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
