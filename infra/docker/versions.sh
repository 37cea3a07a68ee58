#!/bin/sh
# Print the lines of requirements.lock for the named packages; fail if one is not in it.
set -eu
for name in "$@"; do
    grep -i "^$name==" requirements.lock || { echo "$name is not in requirements.lock" >&2; exit 1; }
done
