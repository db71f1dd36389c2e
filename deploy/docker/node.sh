#!/bin/bash
# A container of actors: a Ray node that joins the head, and joins again when the head was away.
# HEAD: its name or address; NUM_CPUS: how many actors may run here; OBJECT_STORE_MEMORY: bytes, within shm_size.
set -eu
rm -rf /tmp/ray
# Waiting costs next to nothing, `ray start` seconds of a core.
trap 'exit 143' TERM
until (exec 3<>"/dev/tcp/$HEAD/6379") 2>/dev/null; do sleep 2 & wait $!; done
trap - TERM
# It ends when the head is gone; the restart policy brings it back to the line above.
exec ray start --address "$HEAD:6379" --node-ip-address "$(hostname -i)" --num-cpus "$NUM_CPUS" \
  --object-store-memory "$OBJECT_STORE_MEMORY" --metrics-export-port 8080 --disable-usage-stats --block
