#!/bin/sh
# Creates a certificate authority and a certificate and key for each node, for Ray's TLS (docs/security.md).
#   certificates.sh DIR ADDRESS...
# ADDRESS: a node's IP address or name, as other nodes reach it. Copy DIR/ADDRESS/ to that node. Run the script again to
# create more certificates with DIR/ca.key; do not copy ca.key to any node.
set -eu
umask 077
command -v openssl >/dev/null || { echo "openssl is not installed" >&2; exit 1; }
# openssl req reports progress on stderr, which is shown only if it fails.
openssl_req() { message=$(openssl req "$@" 2>&1) || { echo "$message" >&2; exit 1; }; }
[ $# -ge 2 ] || { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
directory=$1
shift
days=${DAYS:-365}
mkdir -p "$directory"
[ -e "$directory/ca.key" ] || openssl_req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$days" \
  -subj "/CN=heldout cluster" -addext "keyUsage=critical,keyCertSign,cRLSign" \
  -keyout "$directory/ca.key" -out "$directory/ca.crt"
for address in "$@"; do
  node=$directory/$address
  mkdir -p "$node"
  # An IP address has only digits and dots, or a colon and only hexadecimal digits, colons and dots.
  if echo "$address" | grep -Eq '^([0-9.]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)$'; then name="IP:$address"; else name="DNS:$address"; fi
  # Ray's processes on one node also communicate over loopback.
  openssl_req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$address" \
    -keyout "$node/node.key" -out "$node/node.csr"
  printf 'subjectAltName=%s,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:false\n' \
    "$name" >"$node/extensions"
  openssl x509 -req -in "$node/node.csr" -CA "$directory/ca.crt" -CAkey "$directory/ca.key" -CAcreateserial \
    -days "$days" -extfile "$node/extensions" -out "$node/node.crt" 2>"$node/errors" || { cat "$node/errors" >&2; exit 1; }
  rm "$node/errors"
  rm "$node/node.csr" "$node/extensions"
  cp "$directory/ca.crt" "$node/ca.crt"
  echo "$node"
done
