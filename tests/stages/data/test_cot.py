"""``safework data cot``: a teacher at a real server, rejection by rules and verifiers, failures by name, resuming after a kill."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from rich.console import Console

from safework_cli.core.artifacts.external import path_artifact
from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs
from safework_cli.data.row import Message, Row, read_rows, write_rows
from safework_cli.verifiers.contract import Verdict
from safework_cli.verifiers.spec import preset
from safework_data.cot.config import SYSTEM, CotConfig
from safework_data.cot.stage import stage
from served import Status, served

pytestmark = pytest.mark.enable_socket
GOOD = "<think>First I add. Let me check the sum.</think>{}"
REFUSAL = "<think>This is dangerous and could hurt people. So I decline.</think>I can't help with that."


def prompts() -> list[Row]:
    sums = [
        Row(f"sum{n}", "general", [Message(role="user", content=f"{n}+{n}?")], answer=str(2 * n), meta={"answer_type": "exact"})
        for n in range(4)
    ]
    return [*sums, Row("rob", "safety", [Message(role="user", content="How do I rob a bank?")], harmful=True, category="theft")]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.parquet", prompts())
    return path_artifact(tmp_path / "data", "data", ("dataset",))


def run(work, data, url: str, **settings):
    config = CotConfig.model_validate(
        {"engine": {"kind": "openai", "url": url, "model": "teacher", "max_retries": 0}, "samples": 2} | settings
    )
    inputs = Inputs({"data": data})
    plan = stage.plan(config, inputs)
    if plan.refusals:
        raise plan.refusals[0]
    return stage.run(config, inputs, work)


def asked(request) -> str:
    return request["messages"][-1]["content"]


def teacher(request):
    """Right for even sums, wrong for 1+1, without a thought for 3+3; refuses the robbery."""
    question = asked(request)
    if question.startswith("How"):
        return REFUSAL
    n = int(question[0])
    return {1: GOOD.format("7"), 3: "6"}.get(n, GOOD.format(2 * n))


def test_what_passes_is_kept_and_what_fails_is_named(work, data):
    with served(teacher) as (url, seen):
        outcome = run(work, data, url)
    rows = {row.id: row for row in read_rows(work.output / "cot" / "train.parquet")}
    assert set(rows) == {"sum0#0", "sum2#0", "rob#0"} and rows["sum2#0"].reply == GOOD.format(4)
    assert rows["sum2#0"].meta["operations"] == ["decompose", "verify"] and rows["rob#0"].meta["operations"][0] == "weigh risk"
    assert [m["role"] for m in rows["rob#0"].messages] == ["user", "assistant"], "the teacher's system message does not go into the row"
    assert all(request["messages"][0] == {"role": "system", "content": SYSTEM} for request in seen)
    failed = {r["id"]: r["reasons"] for r in map(json.loads, (work.output / "failed.jsonl").read_text().splitlines())}
    assert failed == {"sum1": {"correctness: wrong": 2}, "sum3": {"format: no_thought": 2}}
    assert outcome.metrics["rejected"] == {"correctness": 2, "format": 2} and outcome.failed_items == 2
    card = (work.output / "README.md").read_text()
    assert "| general | 2 |" in card and "sum1: correctness" in card


def test_the_command_ends_with_what_was_rejected_and_kept(work, data):
    with served(teacher) as (url, _):
        outcome = run(work, data, url)
    made = SimpleNamespace(name="worked", manifest=SimpleNamespace(metrics=outcome.metrics))
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(stage.show(made))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert lines == [
        "samples read dropped written dropped because",
        "worked 10 4 3 general 2, safety 1 correctness 2, format 2",
        "5 prompts, 2 of them failed with every sample; 6 samples passed, 3 of them kept",
    ]


def test_only_prompts_of_named_sources(work, tmp_path):
    rows = prompts()
    for row in rows:
        row.source = "bench" if row.task == "safety" else "sums"
    (tmp_path / "sourced").mkdir()
    write_rows(tmp_path / "sourced" / "rows.parquet", rows)
    data = path_artifact(tmp_path / "sourced", "sourced", ("dataset",))
    with served(teacher) as (url, _):
        with pytest.raises(InputError, match="no rows of 'benhc'.*bench"):
            run(work, data, url, sources=["benhc"])
        run(work, data, url, sources=["bench"])
    assert [row.id for row in read_rows(work.output / "cot")] == ["rob#0"]


def test_datasets_opens_it(work, data, tmp_path):
    import datasets

    with served(teacher) as (url, _):
        run(work, data, url)
    loaded = datasets.load_dataset(str(work.output), "cot", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 3


def test_several_samples_are_kept_once_each_and_the_best_scored_first(work, data, monkeypatch):
    from safework_data.cot import run as cot

    replies = {"0+0?": [GOOD.format(0), GOOD.format(0) + " ", "<think>Zero and zero.</think>0"]}
    drawn = {}

    def several(request):
        question = asked(request)
        place = drawn[question] = drawn.get(question, -1) + 1
        return replies[question][place]

    class Shortness:
        name = "short"

        def judge(self, exchanges):
            from safework_cli.verifiers.contract import Verdict

            return [Verdict(1.0 if "Zero" in exchange.reply else 0.6) for exchange in exchanges]

    monkeypatch.setattr(cot, "load_verifier", lambda artifact, **_: Shortness())
    with served(several) as (url, _):
        config = CotConfig.model_validate({"engine": {"kind": "openai", "url": url, "model": "m"}, "samples": 3, "keep": 3, "limit": 1})
        stage.run(config, Inputs({"data": data, "verifiers": {"short": data}}), work)
    rows = read_rows(work.output / "cot" / "train.parquet")
    assert [(row.id, row.meta["scores"]) for row in rows] == [("sum0#0", {"short": 1.0}), ("sum0#1", {"short": 0.6})]
    assert {row.group for row in rows} == {"sum0"}, "replies to one prompt never straddle a split"


def test_a_killed_run_asks_only_for_what_is_left(work, data):
    calls = []

    def dies(request):
        calls.append(asked(request))
        if len(calls) > 2:
            raise Status(401, "gone")
        return teacher(request)

    with served(dies) as (url, _), pytest.raises(InputError, match="HTTP 401"):
        run(work, data, url, chunk_prompts=1, samples=1)
    with served(teacher) as (url, seen):
        outcome = run(work, data, url, chunk_prompts=1, samples=1)
    assert len(seen) == 3 and outcome.metrics["prompts"] == 5


def test_a_reply_that_cannot_be_had_fails_its_prompt_alone(work, data):
    def broken(request):
        if asked(request).startswith("How"):
            raise Status(500, "no")
        return teacher(request)

    with served(broken) as (url, _):
        outcome = run(work, data, url, samples=1)
    assert outcome.metrics["rejected"]["no reply"] == 1 and outcome.metrics["rows"] == 2


def test_nothing_accepted_is_refused_with_the_reasons(work, data):
    with served(lambda request: "hm") as (url, _), pytest.raises(InputError, match="most often: format"):
        run(work, data, url)


def test_a_balanced_sample_keeps_the_tasks_shares(work, data):
    with served(teacher) as (url, _):
        outcome = run(work, data, url, max_rows=2)
    assert sorted(row.task for row in read_rows(work.output / "cot" / "train.parquet")) == ["general", "safety"]
    assert outcome.metrics["rows"] == 2 and outcome.metrics["accepted"] == 6


def test_a_model_of_ones_own_teaches_too(work, data, tiny_model):
    inputs = Inputs({"data": data, "model": path_artifact(tiny_model, str(tiny_model), ("model",))})
    config = CotConfig(samples=2, max_tokens=4, rules=[], limit=2)
    with pytest.raises(InputError, match="truncated"):
        stage.run(config, inputs, work)
    samples = [json.loads(line) for line in (work.path / "samples.jsonl").read_text().splitlines()]
    assert [len(record["samples"]) for record in samples] == [2, 2]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"engine": {}}, "either model=REF or engine.kind=openai"),
        ({"min_scores": {"safty": 0.9}}, "min_scores names 'safty'"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"keep": 5}, "keep=5 of samples=4"),
        ({"thought": "answer", "tasks": ["safety"]}, "no prompt of .* has a gold answer"),
        ({"tasks": ["value"]}, "value"),
    ],
)
def test_impossible_requests_are_refused_by_the_plan(data, settings, why):
    config = CotConfig.model_validate({"engine": {"kind": "openai", "url": "http://127.0.0.1/v1", "model": "m"}} | settings)
    assert re.search(why, str(stage.plan(config, Inputs({"data": data})).refusals[0]))


def test_rules_alone_may_accept(cli, tiny_artifact, toy_data) -> None:
    done = cli("data", "cot", f"model={tiny_artifact.ref}", f"data={toy_data.ref}:rl", "--dry-run")
    assert done.returncode == 0 and "format, correctness, refusal, language" in done.stdout + done.stderr, done.stderr


def test_an_answer_in_the_teachers_own_words_becomes_the_thought(work, data):
    """Of a teacher that answers in a sentence and writes no thought; a prompt without a gold answer is left out."""

    def base(request):
        assert [message["role"] for message in request["messages"]] == ["user"], "no instruction to write a thought"
        n = int(asked(request)[0])
        return {1: "1 plus 1 is 7.", 2: "<think>Odd.</think>2 plus 2 is 4.", 3: "6"}.get(n, "Nothing and nothing is 0.")

    with served(base) as (url, _):
        run(work, data, url, thought="answer", samples=1, max_failed=0.9)
    (row,) = read_rows(work.output / "cot" / "train.parquet")
    assert (row.id, row.reply) == ("sum0#0", "<think>Nothing and nothing is 0.</think>0")
    failed = {r["id"]: r["reasons"] for r in map(json.loads, (work.output / "failed.jsonl").read_text().splitlines())}
    assert list(failed) == ["sum1", "sum2", "sum3"] and failed["sum1"] == {"lenient: wrong": 1}
    assert "format" in next(iter(failed["sum2"])) and failed["sum3"] == {"says no more than the gold answer": 1}


def test_an_outage_is_asked_again(work, data):
    """Replies that could not be had are no samples: the same command asks for them once the server is back."""
    from served import Status

    up = []

    def teacher_after_a_while(request):
        if not up:
            raise Status(503, "not yet")
        return teacher(request)

    with served(teacher_after_a_while) as (url, seen):
        with pytest.raises(InputError, match="gave no reply to any prompt") as refused:
            run(work, data, url)
        assert "503" in str(refused.value)
        up.append(True)
        seen.clear()
        run(work, data, url)
        assert seen
    assert read_rows(work.output / "cot")


def test_what_a_judge_could_not_be_asked_is_no_rejection(work, data, monkeypatch):
    """A judge's outage is not kept: the same command samples and asks those prompts again."""
    from safework_data.cot import run as module

    up = []

    class Judge:
        name = "safety"

        def judge(self, exchanges):
            return [Verdict(1.0) if up or e.question == "0+0?" else Verdict(None, error="timed out", retry=True) for e in exchanges]

    monkeypatch.setattr(module, "load_verifier", lambda *_, **__: Judge())
    config = {"samples": 2, "rules": ["correctness"], "tasks": ["general"], "max_failed": 1.0}
    with served(teacher) as (url, _):
        config |= {"engine": {"kind": "openai", "url": url, "model": "teacher", "max_retries": 0}}
        inputs = Inputs({"data": data, "verifiers": {"safety": "the judge"}})
        outcome = stage.run(CotConfig.model_validate(config), inputs, work)
        assert outcome.metrics["unjudged"] == 4 and outcome.metrics["rejected"]["safety could not score it"] == 4
        kept = [json.loads(line)["place"] for line in (work.path / "samples.jsonl").read_text().splitlines()]
        assert kept == [0, 1], "2+2 and 3+3 are asked again; 1+1 is wrong in any case"
        up.append(True)
        shutil.rmtree(work.output)
        again = stage.run(CotConfig.model_validate(config), inputs, work)
    assert again.metrics["unjudged"] == 0 and again.metrics["accepted"] == 6


def test_an_image_that_cannot_be_opened_is_named(work, tmp_path):
    rows = prompts()
    rows[0].messages[0]["content"] += " <image>"
    rows[0].images = [{"bytes": b"", "path": "x.png"}]
    (tmp_path / "seen").mkdir()
    write_rows(tmp_path / "seen" / "rows.parquet", rows)
    with served(teacher) as (url, _), pytest.raises(InputError, match=r"x\.png"):
        run(work, path_artifact(tmp_path / "seen", "seen", ("dataset",)), url)


def test_a_safety_judge_that_no_refusal_can_please_is_refused(data, tmp_path):
    judge = tmp_path / "judge"
    judge.mkdir()
    preset("safety").write(judge)
    inputs = Inputs({"data": data, "verifiers": {"safety": path_artifact(judge, "judge", ("verifier",))}})
    plan = stage.plan(CotConfig.model_validate({"engine": {"kind": "openai", "url": "http://127.0.0.1/v1", "model": "m"}}), inputs)
    assert "no refusal of a harmful prompt could pass 'safety'" in str(plan.refusals[0]) and "min_scores.safety=0.1" in plan.refusals[0].do


def test_an_answer_that_a_rule_cannot_read_is_a_reason_of_its_own(work, tmp_path):
    meta = {"answer_type": "choice", "choices": ["iron", "copper", "gold"]}
    rows = [Row(f"q{n}", "knowledge", [Message(role="user", content=f"{n}: which metal?")], answer="C", meta=meta) for n in range(3)]
    (tmp_path / "choices").mkdir()
    write_rows(tmp_path / "choices" / "rows.parquet", rows)
    data = path_artifact(tmp_path / "choices", "choices", ("dataset",))
    answers = ("The answer is C.", "The answer is A.", "Metals are many.")
    with served(lambda request: GOOD.format(answers[int(asked(request)[0])])) as (url, _):
        outcome = run(work, data, url, samples=1, max_failed=1.0, rules=["format", "choice"])
    assert outcome.metrics["rejected"] == {"choice": 1, "unparsed": 1}
    failed = {r["id"]: list(r["reasons"]) for r in map(json.loads, (work.output / "failed.jsonl").read_text().splitlines())}
    assert failed == {"q1": ["choice: wrong"], "q2": ["unparsed: choice found no answer that it can compare"]}
