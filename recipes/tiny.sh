#!/usr/bin/env bash
# The quickstart's ladder on a tiny random model, with the tiny settings: every stage runs, nothing is learnt. For CI, and to try a change
# in a few minutes. It has a store of its own, to keep its artifacts apart from real models.
#   bash recipes/tiny.sh [VARIABLE=VALUE]…
set -euo pipefail
HERE="$(dirname "${BASH_SOURCE[0]}")"
export SAFEWORK_STORE=${SAFEWORK_STORE:-artifacts-tiny}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}
exec safework ladder -c "$HERE/quickstart/ladder.yaml" -c "$HERE/tiny/ladder.yaml" recipes="$HERE/tiny" "$@"
