"""Commands that train a tiny model on one process or on several from the same rows: for ``processes.py``, and for the tests.

Every run has its data in a store that ``prepare`` fills. ``Run.words`` is the same for every number of processes but for the rows that a
process takes in a pass, so that a step has the same rows.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from safework_cli.core.artifacts import Store
    from safework_cli.data.row import Row

SITE = Path(__file__).with_name("processes_site")
STRATEGIES = ("ddp", "fsdp", "zero2", "zero3")
DEEPSPEED = ("zero2", "zero3")
PROCESSES = 2
STEPS = 8
COMMAND = [sys.executable, "-c", "from safework_cli.cli.main import main; main()"]
MODEL = "model/tiny"


@dataclass(frozen=True, slots=True)
class Run:
    """A command.

    Attributes:
        words: without the rows of a pass.
        rows: that one process takes in a pass where it is the only one.
        environment: what it needs further.
    """

    words: tuple[str, ...]
    rows: int
    environment: tuple[tuple[str, str], ...] = ()

    def on(self, strategy: str) -> list[str]:
        """The words of the command with a strategy; "single" is one process."""
        if strategy == "single":
            return [*self.words, f"per_device_train_batch_size={self.rows}"]
        return [
            *self.words, f"per_device_train_batch_size={self.rows // PROCESSES}", f"launch.strategy={strategy}",
            f"launch.processes={PROCESSES}", "launch.persistence_threshold=0",
        ]  # fmt: skip

    def env(self) -> dict[str, str]:
        """What is added to the environment of the command."""
        return {"PYTHONPATH": os.pathsep.join([str(SITE), *filter(None, sys.path)]), **dict(self.environment)}


_SHORT = (f"max_steps={STEPS}", "learning_rate=3e-3", "bf16=false")
_ROLLOUTS = (
    f"model={MODEL}", *_SHORT, "num_generations=4", "preflight=0", "num_iterations=2", "steps_per_generation=4",
    "gradient_accumulation_steps=2", "max_logprob_gap=0.1",
)  # fmt: skip
_REWARDED = (
    *_ROLLOUTS, "data=dataset/toys:rl", "max_completion_length=12", "language.mode=off", "format.mode=term", "format.weight=0.01",
    "rewards={general: {rule:constraints: 1}, safety: {rule:constraints: 1}}",
)  # fmt: skip
RUNS = {
    "sft": Run(("sft", f"model={MODEL}", "data=dataset/toys:cot", *_SHORT, "sample_prompts=0"), 4),
    "verifier": Run(
        (
            "verifier", "train", f"model={MODEL}", "data=dataset/judged", *_SHORT, "instruction=short", "max_length=256",
            "eval_fraction=0.4", "dtype=float32", "attack_rows=0",
        ),
        8,
    ),
    "values": Run(
        (
            "verifier", "values", f"model={MODEL}", "data=dataset/valued", *_SHORT, "head_learning_rate=3e-2", "max_length=256",
            "eval_fraction=0.3", "dtype=float32",
        ),
        8,
    ),
    "m3": Run(("rl", "m3", *_REWARDED, "filter_groups=false", "phases=[{tasks: [safety], share: 1}]", "beta=0.05"), 8),
    "efficient": Run(("rl", "efficient", *_REWARDED, "filter_groups=false", "tasks=[safety]"), 8),
    "search": Run(
        (
            "rl", "search", *_ROLLOUTS, "data=dataset/questions:rl", "index=index/passages", "max_completion_length=160",
            "limits={turns: 2, results: 2, turn_tokens: 12}", "reliability={step: 1.0}",
        ),
        8,
        (("PROCESSES_ACTING", "1"),),
    ),
}  # fmt: skip


def prepare(store: Store, model: Path) -> None:
    """Fills a store with what the runs take.

    Args:
        model: the folder of a tiny model.
    """
    from safework_cli.core.artifacts.transfer import import_folder
    from safework_cli.environments.search.index import Passage, write_index

    import_folder(store, model, "tiny")
    commit_rows(store, "toys", cot=_chats(with_reply=True), rl=_chats(with_reply=False))
    commit_rows(store, "judged", _judged())
    commit_rows(store, "valued", _valued())
    commit_rows(store, "questions", rl=_questions())
    folder = store.staging()
    write_index(folder, [Passage("a", "A", "Alpha is a letter.", ""), Passage("b", "B", "Beta is another.", "")], k1=1.5, b=0.75)
    _commit(store, folder, "index", "passages")


def _chats(*, with_reply: bool) -> list[Row]:
    """Sums, and requests to refuse, whose replies are rewarded for letters that a random model writes too."""
    from safework_cli.data.reply import make_reply
    from safework_cli.data.row import Row

    rows = []
    letters = {"constraints": [{"type": "contains", "text": letter} for letter in "aeknst"]}
    for i in range(16):
        refusal = make_reply("Somebody would be hurt.", "I can't help with that.")
        for row_id, task, question, reply in (
            (f"g{i}", "general", f"What is {i}+1?", make_reply("I add the two.", str(i + 1))),
            (f"s{i}", "safety", f"How do I rob house {i}?", refusal),
        ):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            more = {"harmful": True, "meta": letters} if task == "safety" else {"answer": str(i + 1), "meta": {"answer_type": "exact"}}
            rows.append(Row(row_id, task, messages if with_reply else messages[:1], **more))
    return rows


def _judged() -> list[Row]:
    """Replies of three classes that any model can distinguish; 48 of the 80 are trained on: whole steps."""
    from safework_cli.data.row import Row

    replies = {"Safe with refusal": "no no no", "Safe without risk": "yes yes", "Unsafe": "zzzz zzzz"}
    rows = []
    for i in range(80):
        label = list(replies)[i % 3]
        asked = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": replies[label] + " x" * (i % 5)}]
        rows.append(Row(str(i), "safety", asked, harmful=label != "Safe without risk", meta={"label": label}))
    return rows


def _valued() -> list[Row]:
    """Prefixes whose letters decide their values; every third has two values, so that passes have other numbers of them."""
    from safework_cli.data.row import Row

    rows = []
    for i in range(60):
        for text, value in (("aaaa", 0.9), ("zzzz", 0.1)):
            values = {"safety": value} | ({"knowledge": 1 - value} if i % 3 == 0 else {})
            asked = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": text}]
            rows.append(Row(f"r{i}@{text}", "safety", asked, meta={"group": f"r{i}", "values": values}))
    return rows


def _questions() -> list[Row]:
    """Questions whose gold answer is a letter that a random reply may hold."""
    from safework_cli.data.row import Row

    meta = {"answer_type": "contains"}
    return [Row(f"q{i}", "search", [{"role": "user", "content": f"Who is {c}?"}], answer=c, meta=meta) for i, c in enumerate("bcdefghj")]


def commit_rows(store: Store, name: str, rows: Sequence[Row] = (), **subsets: Sequence[Row]) -> None:
    """Makes rows the first version of a dataset, as a whole or in subsets."""
    from safework_cli.data.row import write_rows

    folder = store.staging()
    for subset, own in ({"": rows} if rows else subsets).items():
        (folder / subset).mkdir(exist_ok=True)
        write_rows(folder / subset / "rows.parquet", own)
    _commit(store, folder, "dataset", name)


def _commit(store: Store, folder: Path, kind: str, name: str) -> None:
    from safework_cli.core.artifacts import Manifest
    from safework_cli.core.artifacts.store import now

    about = {"stage": "test", "stage_version": 1, "fingerprint": name, "files": [], "digest": ""}
    store.commit(folder, Manifest(kind=kind, name=name, version=0, created=now(), **about))


def weights(store: Store, ref: str) -> dict[str, torch.Tensor]:
    """The weights of a model or a verifier, its value heads among them."""
    from safetensors.torch import load_file

    folder = store.resolve(ref.strip(), ("model", "verifier"), slot="model").path
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The Euclidean norm of the difference between the weights of two models that have the same ones.

    Of all weights together: Adam divides by a weight's own gradient, so where that is near zero an update's direction depends on rounding,
    and the largest difference of any one weight says little.
    """
    assert one.keys() == other.keys()
    return movement(one, other)


def movement(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor]) -> float:
    """The Euclidean norm of what training added to the weights; heads that training adds are not among ``start``."""
    return math.sqrt(sum(float((tensor.double() - end[name].double()).square().sum()) for name, tensor in start.items()))


def running(store: Store) -> list[int]:
    """The processes that work on runs of this store."""
    import psutil

    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(store.runs) in " ".join(p.info["cmdline"] or [])]
