# What differs between sites, for train.sbatch and study.sbatch: change it here, or set the variables in the environment
# of sbatch. The current directory, $home, is Heldout's.
# shellcheck shell=bash disable=SC2034 # the scripts use the variables

# module load python/3.11
environment=${HELDOUT_ENV:-$home/.venv}             # a virtual or conda environment, at the same path on every node
local_directory=${HELDOUT_TMP:-/tmp}                # for sockets and logs: local to each node, a short path
object_store=${HELDOUT_OBJECT_STORE:-2147483648}    # bytes of shared memory per node; part of the job's memory

# Prints the address of this node, the first one, for the others: that of the interface through which it reaches $1, the
# last node's address. The other nodes use the interface through which they reach this one.
head_address() {
  python -c '
import socket, sys
try:
    with socket.socket(type=socket.SOCK_DGRAM) as route:
        route.connect((sys.argv[1], 9))
        print(route.getsockname()[0])
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")' "$1"
}
