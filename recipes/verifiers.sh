#!/usr/bin/env bash
# Three judges and a value model on public sets, each with its card. Needs SAFEWORK_DATA, a folder of public sets (docs/evaluation.md says which
# file lies where); the value model learns from the policy of recipes/smollm2.sh, which has to be run first.
set -euo pipefail
: "${SAFEWORK_DATA:?a folder of public sets}"
RECIPES=$(dirname "${BASH_SOURCE[0]}")/verifiers
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}

BASE=$(safework models pull smollm2)
judge() { # TASK, then the recipe of its data
    local data
    data=$(safework data build -c "$RECIPES/$2")
    safework verifier train -c "$RECIPES/$1.yaml" model="$BASE" data="$data":verifier --name "smollm2-$1"
}
judge refusal xstest-refusal.yaml
judge value value-data.yaml
judge knowledge knowledge-data.yaml

ROLLOUTS=$(safework verifier rollouts -c "$RECIPES/rollouts.yaml" model=smollm2-sft data=smollm2-ladder:rl)
safework verifier values -c "$RECIPES/values.yaml" model=smollm2-sft data="$ROLLOUTS"
