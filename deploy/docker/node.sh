#!/bin/bash
# A container of actors: a Ray node that joins the head, and rejoins after a restart of the head.
# HEAD: its name or address; NUM_CPUS: number of actors here; OBJECT_STORE_MEMORY: bytes, less than shm_size.
set -eu
rm -rf /tmp/ray
# Wait for the head first: a failing `ray start` takes seconds of CPU time.
trap 'exit 143' TERM
until (exec 3<>"/dev/tcp/$HEAD/6379") 2>/dev/null; do sleep 2 & wait $!; done
trap - TERM
# This ends when the head is gone; the restart policy then runs this script again.
exec ray start --address "$HEAD:6379" --node-ip-address "$(hostname -i)" --num-cpus "$NUM_CPUS" \
  --object-store-memory "$OBJECT_STORE_MEMORY" --metrics-export-port 8080 --disable-usage-stats --block
