#!/usr/bin/env bash
# Three judges and a value model on public sets, each with its card. Needs SAFEWORK_DATA, a folder of public sets (`safework data sets --json`
# says which file lies where). The value model's policy is a short SFT on the starter set.
set -euo pipefail
: "${SAFEWORK_DATA:?a folder of public sets}"
HERE=$(dirname "${BASH_SOURCE[0]}")
RECIPES=$HERE/verifiers
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}

BASE=$(safework models pull smollm2)
judge() { # TASK, then the recipe of its data
    local data
    data=$(safework data build -c "$RECIPES/$2")
    safework verifier train -c "$RECIPES/$1.yaml" model="$BASE" data="$data":verifier --name "smollm2-$1"
}
judge refusal xstest-refusal.yaml
VALUE=$(judge value value-data.yaml)
echo "$VALUE"
judge knowledge knowledge-data.yaml

DATA=$(safework data build -c "$HERE/quickstart/data.yaml")
POLICY=$(safework sft -c "$HERE/quickstart/sft.yaml" model="$BASE" data="$DATA":cot verdict_data="$DATA":dev --name smollm2-policy)
ROLLOUTS=$(safework verifier rollouts -c "$RECIPES/rollouts.yaml" model="$POLICY" data="$DATA":rl verifiers.value="$VALUE")
safework verifier values -c "$RECIPES/values.yaml" model="$POLICY" data="$ROLLOUTS"
