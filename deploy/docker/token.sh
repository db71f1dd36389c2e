#!/bin/sh
# Creates the cluster's Ray token at RAY_AUTH_TOKEN_PATH, unless the file exists. Never prints it.
set -eu
umask 077
[ -s "$RAY_AUTH_TOKEN_PATH" ] && exit 0
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH.new"
sync "$RAY_AUTH_TOKEN_PATH.new"
mv "$RAY_AUTH_TOKEN_PATH.new" "$RAY_AUTH_TOKEN_PATH"
echo "token created"
