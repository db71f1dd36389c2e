#!/bin/bash
# The head's container: a Ray head of its own, and the learner in the foreground, whose exit code is the container's.
#   head.sh [FLAGS OF python -m learner]
# NUM_CPUS: how many actors may run here (0: none); OBJECT_STORE_MEMORY: bytes, within shm_size.
set -eu
# A container that is started again keeps its files: without the dead cluster's, nothing can be mistaken for it.
rm -rf /tmp/ray
# On a network without a way out Ray does not find its own address.
ray start --head --port 6379 --node-ip-address "$(hostname -i)" --num-cpus "$NUM_CPUS" \
  --object-store-memory "$OBJECT_STORE_MEMORY" --metrics-export-port 8080 --disable-usage-stats >/tmp/ray-start.log 2>&1 ||
  { cat /tmp/ray-start.log >&2; exit 1; }
# In place of this shell, so that SIGTERM reaches it: it writes a checkpoint and exits with 143.
exec python -m learner --address auto "$@"
