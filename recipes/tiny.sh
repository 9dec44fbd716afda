#!/usr/bin/env bash
# The chain of quickstart.sh on a tiny random model, with the tiny settings: every stage runs, nothing is learnt. For CI, and to try
# a change in a few minutes. It has a store of its own, to keep its artifacts apart from real models.
set -euo pipefail
RECIPES="$(dirname "${BASH_SOURCE[0]}")/tiny"
SOURCE=tiny
export SAFEWORK_STORE=${SAFEWORK_STORE:-artifacts-tiny}
OUT=${OUT:-report-tiny.html}
ROWS=${ROWS:-4} ROWS_BETWEEN=${ROWS_BETWEEN:-2}
. "$(dirname "${BASH_SOURCE[0]}")/ladder.sh"
