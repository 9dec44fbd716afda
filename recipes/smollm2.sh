#!/usr/bin/env bash
# The long run on SmolLM2-135M: every stage, trained for about two CPU hours, measured on public held-out sets. docs/results.md reports
# a run. Needs SAFEWORK_DATA, a folder of public sets (docs/evaluation.md says which file lies where). Run it again after any stop:
# finished stages are recognised, an unfinished one resumes.
set -euo pipefail
: "${SAFEWORK_DATA:?a folder of public sets}"
HERE=$(dirname "${BASH_SOURCE[0]}")
RECIPES=$HERE/smollm2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}

BASE=$(safework models pull smollm2)
DATA=$(safework data build -c "$RECIPES/data.yaml")
WIKI=$(safework data index -c "$HERE/quickstart/index.yaml")

# a judge in addition to the refusal phrases; it is not used as a reward
ANNOTATED=$(safework data build -c "$RECIPES/data.yaml" -c "$HERE/quickstart/xstest.yaml" --name smollm2-annotated)
JUDGE=$(safework verifier train -c "$HERE/quickstart/judge.yaml" model="$BASE" data="$ANNOTATED":judge --name smollm2-judge)

# the first model writes reasoned replies to HarmBench's validation behaviours and to harmless questions; the correct ones become training
# data of the second
SEED=$(safework sft -c "$RECIPES/sft.yaml" model="$BASE" data="$DATA":cot --name smollm2-seed)
WORKED=$(safework data cot -c "$RECIPES/worked.yaml" model="$SEED" data="$DATA":rl --name smollm2-worked)
BOTH=$(safework data build -c "$RECIPES/data.yaml" data.worked="$WORKED":cot --name smollm2-both)
SFT=$(safework sft -c "$RECIPES/sft.yaml" -c "$RECIPES/sft-worked.yaml" model="$SEED" data="$BOTH":cot --name smollm2-sft)
M3=$(safework rl m3 -c "$RECIPES/m3.yaml" model="$SFT" data="$DATA":rl)
EFFICIENT=$(safework rl efficient -c "$RECIPES/efficient.yaml" model="$M3" data="$DATA":rl)
SEARCH=$(safework rl search -c "$RECIPES/search-rl.yaml" model="$EFFICIENT" data="$DATA":rl index="$WIKI")

measure() { safework eval -c "$RECIPES/eval.yaml" suites_folder="$SAFEWORK_DATA" verifiers.judge="$JUDGE" model="$@"; }
FIRST=$(measure "$BASE")
for MODEL in "$SFT" "$M3" "$EFFICIENT" "$SEARCH"; do measure "$MODEL" against="$FIRST" >/dev/null; done
safework report --out "${OUT:-report.html}"
