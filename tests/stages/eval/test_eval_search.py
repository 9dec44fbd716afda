"""Search suites: episodes over an index, what they are scored by, and how far their confidence can be relied on."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inspect_ai.log import read_eval_log
from rich.console import Console

from safework_cli.core.artifacts import Artifact, Store
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.progress import Progress, QuietDisplay
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.data.row import Message, Row, write_rows
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.engines.protocol import Completion
from safework_cli.environments.search.grammar import SEARCH_INSTRUCTION, episode_prompt
from safework_cli.environments.search.index import Passage, write_index
from safework_cli.environments.search.measures import JudgedEpisode
from safework_eval.conditions import differences, refuse_differences
from safework_eval.config import EvalConfig
from safework_eval.gates import Gate, failed_gates, gate_problem
from safework_eval.samples import RecordedReply, ScoredSample, read_samples
from safework_eval.search_measures import judged_episodes, search_changes, search_measures
from safework_eval.stage import stage
from safework_eval.table import summary_table

SUITE = {"name": "passages", "rows": {"task": "search"}}


def question(name: str, text: str, answer: str, passage: str = "keeper") -> Row:
    meta = {"answer_type": "contains", "passages": [passage], "group": passage}
    return Row(name, "search", [Message(role="user", content=text)], answer=answer, meta=meta)


ROWS = [
    question("right", "Who keeps the bridge?", "Ada"),
    question("wrong", "Who built the bridge?", "Bo"),
    question("unsure", "Who owns the bridge?", "Cy"),
    question("lost", "Who lost the bridge?", "Di"),
    Row("plain", "knowledge", [Message(role="user", content="Two?")], answer="2", meta={"answer_type": "exact"}),
]


@pytest.fixture
def inputs(store: Store, commit: Any, tiny_model: Path, tmp_path: Path) -> dict[str, Artifact]:
    folder = store.staging()
    passages = [Passage("keeper", "The bridge keeper", "Ada keeps the bridge.", "Ada."), Passage("river", "River", "A river.", "A river.")]
    write_index(folder, passages, k1=1.5, b=0.75)
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "a.parquet", ROWS)
    return {
        "model": store.resolve(str(tiny_model), ("model",)),
        "data": store.resolve(str(tmp_path / "rows"), ("dataset",)),
        "index": commit(folder, "index", "bridges"),
    }


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A policy that searches once and then answers, each question in its own way; the list holds what each call was shown."""
    calls: list[list[str]] = []

    def say(text: str) -> str:
        if "Two?" in text:
            return "2"
        if "Who lost" in text:
            return "I cannot say"
        if "<results>" not in text and "Ada." not in text:
            return "<think>I look.</think><search>bridge keeper</search>"
        sure = 1 if "Who owns" in text else 9
        return f"<think>It says so.</think><confidence>{sure}</confidence><answer>Ada</answer>"

    def generate(self: HFEngine, prompts: Any, sampling: Any, n: int = 1, visions: Any = None, seeds: Any = None) -> Any:
        shown = [self.tokenizer.decode(prompt) for prompt in prompts]
        calls.append(shown)
        made = []
        for prompt, text in zip(prompts, shown, strict=True):
            ids = [*self.tokenizer(say(text), add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
            made.append([Completion(self.text_of(prompt, ids), ids, [-0.1] * len(ids), "stop", prompt)])
        return made

    monkeypatch.setattr(HFEngine, "generate_ids", generate)
    return calls


def run(inputs: dict[str, Artifact], work: WorkDir, **config: Any) -> tuple[Any, dict[str, Any]]:
    settings = {"suites": [SUITE], "dtype": "float32", "batch_size": 2, "episode": {"turn_tokens": 160, "total_tokens": 1200}} | config
    parsed = EvalConfig.model_validate(settings)
    assert stage.plan(parsed, Inputs(inputs)).refusals == []
    outcome = stage.run(parsed, Inputs(inputs), work)
    return outcome, json.loads((work.output / "summary.json").read_text())


def test_episodes_are_judged_by_their_answers_and_by_their_confidence(inputs: Any, work: WorkDir, actor: Any) -> None:
    outcome, summary = run(inputs, work, suites=[SUITE, {"name": "knowledge", "rows": {"task": "knowledge"}}])
    record = summary["suites"]["passages"]
    # right and certain; certain and wrong; unsure and wrong; malformed to the end, which counts as unanswered and unreliable
    assert (record["metric"], record["value"], record["n"], record["failed"]) == ("search", 0.25, 4, 0)
    measures = {name: record["search"][name]["value"] for name in ("reliability", "false_certain", "certain", "answered")}
    assert measures == {"reliability": 0.5, "false_certain": 0.25, "certain": 0.5, "answered": 0.75}
    assert record["search"]["reliability"]["method"] == "wilson by group" and record["groups"] == 1
    assert outcome.metrics["passages.false_certain"]["value"] == 0.25 and outcome.metrics["passages.search"]["value"] == 0.25
    assert summary["conditions"]["index"] == inputs["index"].digest and summary["conditions"]["episode"]["turns"] == 4
    assert summary["suites"]["knowledge"]["value"] == 1.0 and "search" not in summary["suites"]["knowledge"]
    assert all(SEARCH_INSTRUCTION in text for shown in actor for text in shown if "bridge?" in text), (
        "every actor is instructed how to search"
    )
    samples = {sample["id"]: sample for sample in read_samples(work.output / "samples.parquet")}
    assert samples["right"]["answer"] == "Ada" and samples["right"]["confidence"] == 9 and samples["right"]["searches"] == 1
    assert "Ada" in " ".join(message["content"] for message in samples["right"]["episode"] if message["role"] == "user")
    assert samples["lost"]["confidence"] is None and not samples["lost"]["well_formed"] and samples["plain"]["episode"] is None
    log = read_eval_log(str(work.output / "logs" / "passages.eval"))
    scores = {score.name: score for score in log.results.scores}
    assert scores["rule:correctness"].scored_samples == 4
    assert scores["episode/false_certain"].metrics["mean"].value == 0.25
    assert {sample.id: len(sample.messages) for sample in log.samples}["right"] == 4, "question, search, results, answer"


def test_a_comparison_is_paired_by_question_with_a_model_and_with_an_evaluation(
    inputs: Any, work: WorkDir, actor: Any, tmp_path: Path, store: Store, commit: Any
) -> None:
    _, first = run(inputs, work)
    folder = store.staging()
    shutil.copytree(work.output, folder, dirs_exist_ok=True)
    evaluation = commit(folder, "evaluation", "first")
    for name, base in (("model", inputs["model"]), ("evaluation", evaluation)):
        place = tmp_path / name
        place.mkdir()
        progress = Progress(place, QuietDisplay())
        other = WorkDir(place, "0" * 64, progress, StopRequest())
        outcome, summary = run(inputs | {"against": base}, other, gates=[{"metric": "passages.false_certain", "change_max": -0.1}])
        progress.close()
        changes = summary["against"]["suites"]["passages"]["search"]
        assert set(changes) == set(first["suites"]["passages"]["search"])
        assert changes["false_certain"]["change"] == 0 and changes["false_certain"]["n"] == 4
        assert changes["auroc"]["change"] == 0 and changes["auroc"]["interval"][0] < 0
        assert outcome.failed_gates == ["change of passages.false_certain is 0, above -0.1"]
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(summary_table(summary))
        lines = {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}
        assert lines["false_certain"].split()[1:3] == ["↓", "25.0%"] and "+0.0 (" in lines["false_certain"]
        assert lines["auroc"].split()[1:3] == ["↑", "0.75"] and "+0.00 (" in lines["auroc"]


def test_a_change_of_episodes_is_this_model_less_the_base(
    inputs: Any, work: WorkDir, actor: Any, tmp_path: Path, commit: Any, store: Store
) -> None:
    """The base's episodes say that they are uncertain of everything; those of the model are certain and wrong in a quarter."""
    run(inputs, work)
    folder = store.staging()
    shutil.copytree(work.output, folder, dirs_exist_ok=True)
    table = pq.read_table(folder / "samples.parquet")
    place = table.schema.get_field_index("confidence")
    table = table.set_column(place, table.schema.field(place), pa.array([0.0] * len(table), table.schema.field(place).type))
    pq.write_table(table, folder / "samples.parquet")
    place = tmp_path / "second"
    place.mkdir()
    progress = Progress(place, QuietDisplay())
    _, summary = run(inputs | {"against": commit(folder, "evaluation", "first")}, WorkDir(place, "0" * 64, progress, StopRequest()))
    progress.close()
    assert summary["against"]["suites"]["passages"]["search"]["false_certain"]["change"] == 0.25


def test_a_killed_search_goes_on(inputs: Any, work: WorkDir, actor: Any) -> None:
    run(inputs, work)
    first = (work.output / "samples.parquet").read_bytes()
    archive = work.path / "samples.jsonl"
    archive.write_text("".join(archive.read_text().splitlines(keepends=True)[:3]))
    actor.clear()
    run(inputs, work)
    assert (work.output / "samples.parquet").read_bytes() == first and {len(shown) for shown in actor} <= {1, 2}
    assert len({text.split("Question:")[1][:20] for shown in actor for text in shown}) == 2, "the batch that was cut is played again"


@pytest.mark.parametrize(
    ("without", "config", "message"),
    [
        ("index", {}, "suite 'passages' needs an index"),
        ("", {"suites": [{"name": "k", "rows": {"task": "knowledge"}}]}, "the index is not used by any suite"),
        ("", {"episode": {"turn_tokens": 900}}, "exceeds episode.total_tokens=768"),
        ("", {"gates": [{"metric": "passages.reliable", "min": 0.5}]}, "did you mean 'passages.reliability'"),
    ],
)
def test_what_a_search_suite_needs(inputs: Any, without: str, config: dict[str, Any], message: str) -> None:
    inputs.pop(without, None)
    refusals = stage.plan(EvalConfig.model_validate({"suites": [SUITE]} | config), Inputs(inputs)).refusals
    assert refusals and message in str(refusals[0])


def test_an_index_of_other_passages_is_refused(inputs: Any, store: Store, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows" / "b.parquet", [question("else", "Who else?", "Ed", passage="elsewhere")])
    inputs["data"] = store.resolve(str(tmp_path / "rows"), ("dataset",))
    refusals = stage.plan(EvalConfig.model_validate({"suites": [SUITE]}), Inputs(inputs)).refusals
    assert [type(error) for error in refusals] == [InputError] and "1 of 5 questions" in str(refusals[0])


def test_a_plan_counts_an_episodes_tokens_where_questions_are_searched(inputs: Any) -> None:
    def sampling(*suites: dict[str, Any]) -> tuple[int, float]:
        config = EvalConfig.model_validate({"suites": list(suites), "max_tokens": 100, "episode": {"total_tokens": 700}})
        work = stage.plan(config, Inputs(inputs)).work
        assert work is not None and work.sampling is not None
        return work.sampling.reply, work.sampling.step_replies

    plain = {"name": "k", "rows": {"task": "knowledge"}}
    assert sampling(SUITE) == (700, 4)
    assert sampling(SUITE, plain) == (700, round((4 * 700 + 100) / 700))
    inputs.pop("index")
    assert sampling(plain) == (100, 1)


def test_another_index_or_other_limits_are_other_conditions(inputs: Any, work: WorkDir, actor: Any) -> None:
    _, summary = run(inputs, work)
    other = json.loads(json.dumps(summary))
    other["conditions"] |= {"index": "x", "episode": {**summary["conditions"]["episode"], "turns": 2}}
    assert set(differences(summary, other)) == {"index", "episode"}
    with pytest.raises(ConfigError, match=r"episode.turns: \d+ here, 2 there") as refused:
        refuse_differences(summary, other, "evaluation/x@v1", ["index"])
    assert "allow_differences='[episode]'" in str(refused.value.do)
    older = json.loads(json.dumps(summary))
    del older["conditions"]["episode"]["environment"]
    with pytest.raises(ConfigError, match=r"episode.environment: \d+ here, None there"):
        refuse_differences(summary, older, "evaluation/x@v1", [])


def test_questions_that_leave_no_room_for_an_episode_name_its_setting(inputs: Any, work: WorkDir) -> None:
    _, summary = run(inputs, work, episode={"total_tokens": 10**5})
    assert {"episode.total_tokens=100000" in error for error in summary["suites"]["passages"]["errors"]} == {True}


def test_what_the_environment_says_is_part_of_what_a_search_suite_asks_for() -> None:
    def digests(**suite: Any) -> dict[str, str]:
        return stage.external_digests(EvalConfig.model_validate({"suites": [{"name": "s", **suite}]}))

    assert "search environment" in digests(rows={"task": "search"}) and "search environment" in digests()
    assert "search environment" not in digests(rows={"task": "search"}, metric="knowledge")
    assert "search environment" not in digests(rows={"task": "value"}) and "search environment" not in digests(metric="general")


def test_gates_on_reliability(inputs: Any, work: WorkDir, actor: Any) -> None:
    outcome, summary = run(inputs, work, gates=[{"metric": "passages.false_certain", "max": 0.1}])
    assert outcome.failed_gates == ["passages.false_certain is 0.25, above 0.1"]
    gate = Gate(metric="passages.reliability", min=0.5)
    assert gate_problem(gate, {"passages": "search"}, False) is None and failed_gates([gate], summary) == []
    assert gate_problem(gate, {"passages": "knowledge"}, False) is not None


# ---------------------------------------------------------------- measures


def played(
    outcome: float | None, confidence: int | None, answer: str | None = "a", well_formed: bool = True, group: str = ""
) -> ScoredSample:
    row = Row(f"r{id(object())}", "search", [Message(role="user", content="?")], answer="a", meta={"group": group} if group else {})
    fields = {"answer": answer, "confidence": confidence, "well_formed": well_formed, "searches": 1, "reads": 0, "malformed": 0}
    reply = RecordedReply("", 1, 1, "stop", episode={**fields, "messages": []})
    return ScoredSample("s", row, reply, "j", outcomes={"j": outcome}, errors={"j": None if outcome is not None else "timed out"})


@pytest.mark.parametrize(
    ("sample", "reliable"),
    [
        (played(1.0, 5), True), (played(1.0, 4), False), (played(0.0, 4), True), (played(0.0, 5), False),
        (played(1.0, 9, well_formed=False), False), (played(0.0, None, answer=None, well_formed=False), False), (played(None, 9), None),
    ],
)  # fmt: skip
def test_reliable_is_certain_exactly_where_right(sample: ScoredSample, reliable: bool | None) -> None:
    episodes = list(judged_episodes([sample]).values())
    assert [episode.values(5)["reliability"] for episode in episodes] == ([] if reliable is None else [float(reliable)])


def test_what_could_not_be_scored_is_in_no_measure() -> None:
    samples = [played(1.0, 9), played(0.0, 9), played(None, 9), played(None, None, answer=None)]
    for number, sample in enumerate(samples):
        sample.row.id = f"r{number}"
    measures = search_measures(list(judged_episodes(samples).values()), 5)
    assert {name: (measure["value"], measure["n"]) for name, measure in measures.items()} == {
        "reliability": (0.5, 2), "true_certain": (0.5, 2), "false_certain": (0.5, 2), "certain": (1.0, 2), "answered": (1.0, 2),
        "auroc": (0.5, 2), "searches": (1.0, 2),
    }  # fmt: skip
    assert search_measures([], 5)["reliability"]["value"] is None


def episode(right: bool, confidence: int | None, searches: int = 1) -> JudgedEpisode:
    return JudgedEpisode(right, confidence, confidence is not None, searches, f"g{id(object())}")


def test_the_confidence_ranks_answers_and_what_gave_none_is_not_ranked() -> None:
    ranked = [episode(True, 9), episode(True, 7), episode(False, 7), episode(False, 2), episode(False, None)]
    measured = search_measures(ranked, 5)
    # pairs of a right and a wrong answer: (9, 7), (9, 2), (7, 2) in order, (7, 7) tied
    assert measured["auroc"]["value"] == 3.5 / 4 and measured["auroc"]["n"] == 4
    assert measured["answered"]["value"] == 0.8 and measured["true_certain"]["value"] == 0.4
    low, high = measured["auroc"]["interval"]
    assert 0 < low < 3.5 / 4 < high <= 1
    assert search_measures(ranked[:2], 5)["auroc"]["value"] is None, "there is no wrong answer to compare with"


def test_changes_are_paired_by_question() -> None:
    before = {"a": episode(False, 9, 2), "b": episode(True, 9, 2), "c": episode(False, 9, 2), "only here": episode(True, 9)}
    after = {"a": episode(False, 1, 1), "b": episode(True, 9, 1), "c": episode(False, 9, 1)}
    changes = search_changes(after, before, 5)
    assert changes["false_certain"]["change"] == pytest.approx(-1 / 3) and changes["false_certain"]["n"] == 3
    assert (changes["false_certain"]["gained"], changes["false_certain"]["lost"]) == (0, 1)
    assert changes["true_certain"]["change"] == 0 and changes["searches"]["change"] == -1
    assert changes["auroc"]["change"] == pytest.approx(0.75 - 0.5)
    low, high = changes["auroc"]["interval"]
    assert -1 <= low < 0.25 < high <= 1


def test_the_change_of_searches_is_that_of_a_count_also_where_nobody_searched_twice() -> None:
    before, after = {"a": JudgedEpisode(False, None, False, 0, "a")}, {"a": JudgedEpisode(False, None, False, 1, "a")}
    change = search_changes(after, before, 5)["searches"]
    assert (change["change"], change["interval"], change["method"], change["p"]) == (1.0, None, "none", None)


def test_a_row_that_brings_the_instruction_keeps_its_own() -> None:
    bare = question("q", "Who?", "a")
    made = episode_prompt(bare.prompt)
    assert made[-1]["content"].startswith(SEARCH_INSTRUCTION) and made[-1]["content"].endswith("Question: Who?")
    assert bare.messages[-1]["content"] == "Who?", "the row is left as it is"
    bare.messages = made
    assert episode_prompt(bare.prompt) == made


def test_a_gate_on_the_name_of_a_suite_is_shown_the_suite_s_metric():
    problem = gate_problem(Gate(metric="mine", min=0.5), {"mine": "general"}, False)
    assert problem == "no metric 'mine'; did you mean 'mine.general'?"
