#!/usr/bin/env bash
# A comparison: rl m3 with three seeds, and the same budget with GRPO and with CPGD without its drift. Run recipes/smollm2.sh first.
set -euo pipefail
: "${SAFEWORK_DATA:?a folder of public sets}"
RECIPES=$(dirname "${BASH_SOURCE[0]}")/smollm2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}

m3() { # NAME, then settings
    local name=$1 model
    shift
    model=$(safework rl m3 -c "$RECIPES/m3.yaml" -c "$RECIPES/short.yaml" model=smollm2-sft data=smollm2-ladder:rl --name "$name" "$@")
    safework eval -c "$RECIPES/eval-short.yaml" suites_folder="$SAFEWORK_DATA" model="$model" >/dev/null
}

for SEED in 0 1 2; do
    m3 "m3-cpgd-$SEED" seed=$SEED
    m3 "m3-grpo-$SEED" seed=$SEED algorithm=grpo
    m3 "m3-no-drift-$SEED" seed=$SEED loss.drift_coef=0
done
