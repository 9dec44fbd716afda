# The chain that quickstart.sh and tiny.sh share: every rung is one safework command, and the reference that it prints is the next
# one's input. Sourced with RECIPES (a folder) and SOURCE (smollm2, tiny or hf:org/name) set; EXTRA_DATA may name a recipe overlay.
# Run again after any crash or kill: what is done is recognised, what was begun continues.
set -euo pipefail
: "${RECIPES:?}" "${SOURCE:?}"
OUT=${OUT:-report.html}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}

rung() { printf '\n\033[1m── %s\033[0m\n' "$1" >&2; }

rung "the base model"
BASE=$(safework models pull "$SOURCE")
rung "data: rows, checks, splits; and the search index"
DATA=$(safework data build -c "$RECIPES/data.yaml" ${EXTRA_DATA:+-c "$EXTRA_DATA"})
WIKI=$(safework data index -c "$RECIPES/index.yaml")
rung "1 · chain-of-thought SFT"
SFT=$(safework sft -c "$RECIPES/sft.yaml" model="$BASE" data="$DATA":cot)
rung "the safety verifier"
SAF=$(safework verifier train -c "$RECIPES/safety.yaml" model="$BASE" data="$DATA":verifier)
rung "2 · M3-RL"
M3=$(safework rl m3 -c "$RECIPES/m3.yaml" model="$SFT" data="$DATA":rl verifiers.safety="$SAF")
rung "3 · safe and efficient RL"
EFF=$(safework rl efficient -c "$RECIPES/efficient.yaml" model="$M3" data="$DATA":rl verifiers.safety="$SAF")
rung "4 · deliberative-search RL"
DEL=$(safework rl search -c "$RECIPES/search-rl.yaml" model="$EFF" data="$DATA":rl index="$WIKI")
rung "evaluation of every rung against the base"
FIRST=$(safework eval -c "$RECIPES/eval.yaml" model="$BASE" data="$DATA":heldout verifiers.safety="$SAF")
for MODEL in "$SFT" "$M3" "$EFF" "$DEL"; do
    safework eval -c "$RECIPES/eval.yaml" model="$MODEL" data="$DATA":heldout verifiers.safety="$SAF" against="$FIRST" >/dev/null
done
rung "step-verified search at inference"
safework search -c "$RECIPES/guided.yaml" model="$DEL" prompts="$DATA":heldout guide.safety="$SAF" >/dev/null
rung "the ladder"
safework report --out "$OUT"
