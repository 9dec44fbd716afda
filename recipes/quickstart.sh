#!/usr/bin/env bash
# SmolLM2-135M through every stage of SafeLadder on a CPU (quickstart/ladder.yaml); ends with a table and report.html. Downloads one
# wheel, nothing else. Run it again after any crash or kill: finished stages are recognised, an unfinished one resumes.
# SAFEWORK_DATA may name a folder of public data sets: the verifier then also learns from XSTest's annotated replies.
#   bash recipes/quickstart.sh [VARIABLE=VALUE]…   such as seed=1 out=report-1.html
set -euo pipefail
HERE="$(dirname "${BASH_SOURCE[0]}")"
FILES=(-c "$HERE/quickstart/ladder.yaml")
if [ -n "${SAFEWORK_DATA:-}" ] && [ -d "$SAFEWORK_DATA/xstest/completions" ]; then
    FILES+=(-c "$HERE/quickstart/with-xstest.yaml")
else
    unset SAFEWORK_DATA # empty, or without that set: not used
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}
exec safework ladder "${FILES[@]}" recipes="$HERE/quickstart" "$@"
