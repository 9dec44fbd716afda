# The chain that quickstart.sh and tiny.sh share: every stage is one safework command, and the reference that it prints is the input of the
# next one. Sourced with RECIPES (a folder) and SOURCE (smollm2, tiny or hf:org/name) set. Run it again after any crash or kill: finished
# stages are recognised, an unfinished one resumes.
#   EXTRA_DATA  a recipe overlay for the data
#   SEED        of every training (0)
#   ROWS        rows of each suite for the base and the last stage (96), ROWS_BETWEEN for the stages between (48)
#   TIMES       a file that takes a line for each command: name, seconds, reference
set -euo pipefail
: "${RECIPES:?}" "${SOURCE:?}"
OUT=${OUT:-report.html}
SEED=${SEED:-0} ROWS=${ROWS:-96} ROWS_BETWEEN=${ROWS_BETWEEN:-48}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}
SPENT=() # name, seconds and reference of each command, separated by tabs

section() { printf '\n\033[1m── %s\033[0m\n' "$1" >&2; }

step() { # VARIABLE NAME ARGUMENTS…: runs safework with the arguments, keeps its reference in the variable and its time under the name
    local variable=$1 name=$2 start=$SECONDS reference
    shift 2
    reference=$(safework "$@")
    printf -v "$variable" %s "$reference"
    SPENT+=("$name"$'\t'"$((SECONDS - start))"$'\t'"$reference")
}

times() { # seconds of each command and of all, for people; and for TIMES
    local total=0 name seconds reference line
    section "seconds"
    for line in "${SPENT[@]}"; do
        IFS=$'\t' read -r name seconds reference <<<"$line"
        printf '%7d  %-16s %s\n' "$seconds" "$name" "$reference" >&2
        total=$((total + seconds))
    done
    printf '%7d  %-16s %d min %02d s\n' "$total" all $((total / 60)) $((total % 60)) >&2
    if [ -n "${TIMES:-}" ]; then printf '%s\n' "${SPENT[@]}" >"$TIMES"; fi
}

section "the base model"
step BASE base models pull "$SOURCE"
section "data: rows, checks, splits; and the search index"
step DATA data data build -c "$RECIPES/data.yaml" ${EXTRA_DATA:+-c "$EXTRA_DATA"}
step WIKI wiki data index -c "$RECIPES/index.yaml"
section "1 · chain-of-thought SFT"
step SFT sft sft -c "$RECIPES/sft.yaml" model="$BASE" data="$DATA":cot verdict_data="$DATA":dev seed="$SEED"
section "the safety verifier"
step SAF safety verifier train -c "$RECIPES/safety.yaml" model="$BASE" data="$DATA":verifier seed="$SEED"
section "the independent judge: no stage is trained against it, and it shares no prompts with the rewards' verifier"
step JUDGE judge verifier train -c "$RECIPES/judge.yaml" model="$BASE" data="$DATA":judge --name judge seed="$SEED"
section "2 · M3-RL"
step M3 m3 rl m3 -c "$RECIPES/m3.yaml" model="$SFT" data="$DATA":rl verifiers.safety="$SAF" seed="$SEED"
section "3 · safe and efficient RL"
step EFF efficient rl efficient -c "$RECIPES/efficient.yaml" model="$M3" data="$DATA":rl verifiers.safety="$SAF" seed="$SEED"
section "4 · deliberative-search RL"
step DEL search rl search -c "$RECIPES/search-rl.yaml" model="$EFF" data="$DATA":rl index="$WIKI" seed="$SEED"

section "evaluation of every stage against the base, on rows that nothing was trained on or chosen by"
evaluate() { # VARIABLE NAME ROWS MODEL [against=REFERENCE]
    local variable=$1 name=$2 rows=$3 model=$4
    shift 4
    step "$variable" "eval-$name" eval -c "$RECIPES/eval.yaml" model="$model" data="$DATA":heldout verifiers.judge="$JUDGE" limit="$rows" "$@"
}
evaluate EVAL base "$ROWS" "$BASE"
evaluate _ sft "$ROWS_BETWEEN" "$SFT" against="$EVAL"
evaluate _ m3 "$ROWS_BETWEEN" "$M3" against="$EVAL"
evaluate _ efficient "$ROWS_BETWEEN" "$EFF" against="$EVAL"
evaluate _ search "$ROWS" "$DEL" against="$EVAL"
section "step-verified search at inference"
step _ guided search -c "$RECIPES/guided.yaml" model="$DEL" prompts="$DATA":heldout guide.safety="$SAF"
section "the ladder"
times
safework report --out "$OUT"
