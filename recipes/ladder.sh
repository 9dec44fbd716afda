# The chain that quickstart.sh and tiny.sh share: every stage is one safework command, and the reference that it prints is the input of the
# next one. Sourced with RECIPES (a folder) and SOURCE (smollm2, tiny or hf:org/name) set; EXTRA_DATA may name a recipe overlay.
# Run it again after any crash or kill: finished stages are recognised, an unfinished one resumes.
set -euo pipefail
: "${RECIPES:?}" "${SOURCE:?}"
OUT=${OUT:-report.html}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}

section() { printf '\n\033[1m── %s\033[0m\n' "$1" >&2; }

section "the base model"
BASE=$(safework models pull "$SOURCE")
section "data: rows, checks, splits; and the search index"
DATA=$(safework data build -c "$RECIPES/data.yaml" ${EXTRA_DATA:+-c "$EXTRA_DATA"})
WIKI=$(safework data index -c "$RECIPES/index.yaml")
section "1 · chain-of-thought SFT"
SFT=$(safework sft -c "$RECIPES/sft.yaml" model="$BASE" data="$DATA":cot)
section "the safety verifier"
SAF=$(safework verifier train -c "$RECIPES/safety.yaml" model="$BASE" data="$DATA":verifier)
section "2 · M3-RL"
M3=$(safework rl m3 -c "$RECIPES/m3.yaml" model="$SFT" data="$DATA":rl verifiers.safety="$SAF")
section "3 · safe and efficient RL"
EFF=$(safework rl efficient -c "$RECIPES/efficient.yaml" model="$M3" data="$DATA":rl verifiers.safety="$SAF")
section "4 · deliberative-search RL"
DEL=$(safework rl search -c "$RECIPES/search-rl.yaml" model="$EFF" data="$DATA":rl index="$WIKI")
section "evaluation of every stage against the base"
FIRST=$(safework eval -c "$RECIPES/eval.yaml" model="$BASE" data="$DATA":heldout verifiers.safety="$SAF")
for MODEL in "$SFT" "$M3" "$EFF" "$DEL"; do
    safework eval -c "$RECIPES/eval.yaml" model="$MODEL" data="$DATA":heldout verifiers.safety="$SAF" against="$FIRST" >/dev/null
done
section "step-verified search at inference"
safework search -c "$RECIPES/guided.yaml" model="$DEL" prompts="$DATA":heldout guide.safety="$SAF" >/dev/null
section "the ladder"
safework report --out "$OUT"
