#!/bin/bash
# The head's container: a Ray head, and the learner in the foreground, whose exit code is the container's.
#   head.sh [FLAGS OF python -m learner]
# NUM_CPUS: number of actors in this container (0: none); OBJECT_STORE_MEMORY: bytes, less than shm_size.
set -eu
# A restarted container keeps its files: remove those of the dead cluster, so that Ray does not find it.
rm -rf /tmp/ray
# On an internal network Ray does not find its own address.
ray start --head --port 6379 --node-ip-address "$(hostname -i)" --num-cpus "$NUM_CPUS" \
  --object-store-memory "$OBJECT_STORE_MEMORY" --metrics-export-port 8080 --disable-usage-stats >/tmp/ray-start.log 2>&1 ||
  { cat /tmp/ray-start.log >&2; exit 1; }
# `exec`, so that SIGTERM reaches the learner, which writes a checkpoint and exits with 143.
exec python -m learner --address auto "$@"
