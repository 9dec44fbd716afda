"""Every text stage on a tiny model of each family: its chat template, its special tokens, its end of turn.

The models learn nothing here. The tests check that no stage refuses or loses the template, that replies are parsed in the one format, and
that the template is the same from the first model to the last. ``make test`` runs the families whose templates differ most;
``make test-all`` runs all.
"""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from families import FAMILIES, family_model
from safework_cli.core.artifacts import Store
from safework_cli.core.config import resolve
from safework_cli.core.prepare import prepare
from safework_cli.core.registry import load_stage
from safework_cli.core.runtime import execute
from safework_cli.data.reply import make_reply
from safework_cli.data.row import Row, write_rows

DIFFERENT = ("deepseek-r1-distill", "qwen3", "gemma", "mistral", "think is special")
EVERY = [pytest.param(name, marks=() if name in DIFFERENT else pytest.mark.slow) for name in FAMILIES]
STEP = [
    "max_steps=1", "num_generations=2", "per_device_train_batch_size=4", "gradient_accumulation_steps=1", 
    "require_gradient=false", "preflight=0", "learning_rate=1e-4",
]  # fmt: skip


@pytest.fixture
def data(store: Store, commit):
    """Subsets cot (one turn, several turns, episodes), rl, verifier and heldout."""
    cot, rl, labelled = [], [], []
    for i in range(12):
        asked = {"role": "user", "content": f"What is {i}+1?"}
        answered = {"role": "assistant", "content": make_reply("I add one.", str(i + 1))}
        again = [{"role": "user", "content": "And one more?"}, {"role": "assistant", "content": make_reply("Once more.", str(i + 2))}]
        meta = {"answer_type": "exact", "group": f"g{i}"}
        cot.append(Row(f"one{i}", "general", [asked, answered], answer=str(i + 1), meta=dict(meta)))
        cot.append(Row(f"two{i}", "general", [asked, answered, *again], answer=str(i + 2), meta=dict(meta)))
        searched = [
            {"role": "user", "content": f"Who built tower {i}?"},
            {"role": "assistant", "content": make_reply("Look.", "<search>tower</search>")},
            {"role": "user", "content": "Results:\n1. Tower: Ada built it."},
            {"role": "assistant", "content": make_reply("Found.", "<confidence>9</confidence><answer>Ada</answer>")},
        ]
        cot.append(Row(f"search{i}", "search", searched, answer="Ada", meta=dict(meta)))
        rl.append(Row(f"rl{i}", "general", [asked], answer=str(i + 1), meta=dict(meta)))
        rl.append(Row(f"history{i}", "knowledge", [asked, answered, again[0]], answer=str(i + 2), meta=dict(meta)))
        rl.append(Row(f"tower{i}", "search", [{"role": "user", "content": f"Who built tower {i}?"}], answer="Ada", meta=dict(meta)))
        for label in ("good", "bad"):
            labelled.append(Row(f"{label}{i}", "value", [asked, answered], meta={"label": label, "group": f"g{i}"}))
    folder = store.staging()
    for subset, rows in {"cot": cot, "rl": rl, "verifier": labelled, "heldout": rl[:6]}.items():
        (folder / subset).mkdir()
        write_rows(folder / subset / "train.parquet", rows)
    return commit(folder, "dataset", "rows").ref


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EVERY)
def test_every_text_stage_works_with_the_template(store: Store, data: str, tiny_model, tmp_path, name):
    family = FAMILIES[name]
    base = str(family_model(tiny_model, family, tmp_path / "base"))

    def run(stage_name: str, *words: str) -> str:
        stage = load_stage(stage_name)
        result = execute(prepare(stage, resolve(stage, [], list(words), {}), store), store, quiet=True)
        assert result.exit_code == 0, (stage_name, result.artifact.manifest.failed_gates)
        return result.artifact.ref

    def model(ref: str):
        return store.resolve(ref, ("model",))

    passages = tmp_path / "passages.jsonl"
    passages.write_text('{"id": "1", "title": "Tower", "text": "Ada built the tower."}\n')
    index = run("data index", f'sources=[{{kind: file, path: "{passages}"}}]')
    sft = run("sft", f"model={base}", f"data={data}:cot", "max_steps=1", "sample_prompts=2", "sample_max_tokens=8", "max_dropped=0")
    judge = run(
        "verifier train", f"model={base}", f"data={data}:verifier", "task=value", "instruction=short", "max_steps=1", "eval_fraction=0.3",
        "attack_rows=2",
    )  # fmt: skip
    rewards = "rewards={general: {correctness: 1}, knowledge: {correctness: 1}}"
    judged = "rewards={general: {correctness: 1, value: 0.5}, knowledge: {correctness: 1}}"
    phases = "phases=[{tasks: [general, knowledge], share: 1}]"
    m3 = run("rl m3", f"model={sft}", f"data={data}:rl", f"verifiers.value={judge}", phases, judged, "max_completion_length=16", *STEP)
    efficient = run(
        "rl efficient", f"model={m3}", f"data={data}:rl", "tasks=[general, knowledge]", rewards, "max_completion_length=16", *STEP
    )
    limits = "limits={turns: 3, results: 1, turn_tokens: 8}"
    last = run("rl search", f"model={efficient}", f"data={data}:rl", f"index={index}", limits, "max_completion_length=600", *STEP)
    suites = "suites=[{name: g, rows: {task: general}}, {name: k, rows: {task: knowledge}}]"
    evaluation = run("eval", f"model={last}", f"data={data}:heldout", suites, "max_tokens=8")
    run("search", f"model={last}", f"prompts={data}:heldout", f"guide.value={judge}", "candidates=2", "max_tokens=16", "step_tokens=8")
    rollouts = (
        "replies=1",
        "prefixes=1",
        "continuations=2",
        "max_tokens=24",
        "tasks=[general]",
        "boundaries=[a, e, i, o, s, t, n]",
        "max_failed=1",
    )
    run("verifier rollouts", f"model={last}", f"data={data}:rl", f"verifiers.value={judge}", *rollouts)
    run("data cot", f"model={base}", f"data={data}:rl", "rules=[]", "samples=2", "max_tokens=500", "max_failed=1", "tasks=[general]")

    hashes = {model(ref).manifest.chat_template_hash for ref in (sft, m3, efficient, last)}
    assert len(hashes) == 1 and (model(last).path / "chat_template.jinja").read_text().strip() == family.text.strip()
    samples = pq.read_table(store.resolve(evaluation, ("evaluation",)).path / "samples.parquet").to_pylist()
    assert len(samples) == 4 and all(sample["reply"].startswith("<think>") == family.opens for sample in samples)
