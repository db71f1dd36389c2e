#!/bin/sh
# Creates a certificate authority and a certificate and key for each node, for Ray's TLS (docs/security.md).
#   certificates.sh DIR ADDRESS...
# ADDRESS: a node's IP address or name, as other nodes reach it. Copy DIR/ADDRESS/ to that node. Run the script again to
# create more certificates with DIR/ca.key, or to renew them; do not copy ca.key to any node.
set -eu
umask 077
fail() { echo "certificates.sh: $1" >&2; exit "${2:-1}"; }
# openssl reports progress on stderr, which is shown only if it fails, as one line.
quietly() { message=$(openssl "$@" 2>&1) || fail "openssl $1: $(echo "$message" | tr '\n' ' ')"; }
command -v openssl >/dev/null || fail "openssl is not installed"
[ $# -ge 2 ] || { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
directory=$1
shift
days=${DAYS:-365}
case $days in 0* | *[!0-9]* | ??????*) fail "DAYS=$days is not a number of days from 1 to 99999" 2 ;; esac

# Files are complete when they get their names.
mkdir -p "$directory"
work=$(mktemp -d "$directory/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
new_key() { quietly genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$1"; }

label='[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?'
for address in "$@"; do
  # An IP address, which openssl checks, has only digits and dots, or a colon and hexadecimal digits, colons and dots.
  if echo "$address" | grep -Eqx '[0-9.]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*'; then
    name=IP:$address
  elif echo "$address" | grep -Eqx "$label(\.$label)*" && [ "${#address}" -le 253 ]; then
    name=DNS:$address
  else
    fail "$address is neither an IP address nor a host name" 2
  fi
  node=$work/$address
  mkdir -p "$node"
  # The common name may have 64 characters, and Ray looks at the alternative names only.
  new_key "$node/node.key"
  openssl req -new -key "$node/node.key" -subj "/CN=heldout node" -addext "subjectAltName=$name" -out "$node/csr" \
    2>/dev/null || fail "$address is not an address: openssl refuses $name" 2
  # Ray's processes on one node also communicate over loopback.
  printf '%s\n' "subjectAltName=$name,DNS:localhost,IP:127.0.0.1" extendedKeyUsage=serverAuth,clientAuth \
    basicConstraints=CA:false >"$node/extensions"
done

key=$directory/ca.key authority=$directory/ca.crt
if [ ! -e "$key" ] && [ ! -e "$authority" ]; then
  new_key "$work/ca.key"
  quietly req -x509 -key "$work/ca.key" -days 3650 -subj "/CN=heldout cluster" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -out "$work/ca.crt"
  mv "$work/ca.key" "$work/ca.crt" "$directory/"
fi
for file in "$key" "$authority"; do
  [ -f "$file" ] || fail "$file is missing: bring it back, or create a new authority in another directory"
done
quietly x509 -in "$authority" -noout
if ! openssl x509 -in "$authority" -noout -checkend $((days * 86400)) >/dev/null; then
  end=$(openssl x509 -in "$authority" -noout -enddate)
  fail "$authority, the authority, ends on ${end#*=}, before a certificate of $days days would: set DAYS to fewer, or \
create a new authority in another directory"
fi

for address in "$@"; do
  node=$work/$address
  [ -d "$node" ] || continue  # named twice
  quietly x509 -req -in "$node/csr" -CA "$authority" -CAkey "$key" -set_serial "0x$(openssl rand -hex 16)" \
    -days "$days" -extfile "$node/extensions" -out "$node/node.crt"
  cp "$authority" "$node/ca.crt"
  mkdir -p "$directory/$address"
  mv "$node/node.key" "$node/node.crt" "$node/ca.crt" "$directory/$address/"
  rm -r "$node"
  echo "$directory/$address"
done
