#!/usr/bin/env bash
# The chain of quickstart.sh on a tiny random model, with the tiny settings: every rung runs, nothing is learnt. For CI, and to try
# a change in a minute or two. Its store is a folder of its own, so that it never mixes with a real ladder.
set -euo pipefail
RECIPES="$(dirname "${BASH_SOURCE[0]}")/tiny"
SOURCE=tiny
export SAFEWORK_STORE=${SAFEWORK_STORE:-artifacts-tiny}
OUT=${OUT:-report-tiny.html}
. "$(dirname "${BASH_SOURCE[0]}")/ladder.sh"
