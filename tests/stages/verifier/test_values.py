"""Principled value models: rollouts, the split, the loss by hand, training that learns what a prefix decides, guided search."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from safework_cli.core.artifacts.external import path_artifact
from safework_cli.core.artifacts.payload import check_payload
from safework_cli.core.errors import InputError
from safework_cli.core.progress import Progress, QuietDisplay
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.data.row import Message, Row, read_rows, write_rows
from safework_cli.engines.protocol import Completion
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.load import load_verifier
from safework_cli.verifiers.values import PrefixWriter, hidden_ends
from safework_verifier.rollouts.config import RolloutsConfig
from safework_verifier.rollouts.run import by_room, cut
from safework_verifier.rollouts.stage import stage as rollouts_stage
from safework_verifier.values.config import ValuesConfig
from safework_verifier.values.prefixes import routing_targets, split_by_prompt, valued_rows
from safework_verifier.values.stage import stage as values_stage
from safework_verifier.values.trainer import value_loss
from scripted import Scripted, spaced_tokenizer


def prefix(number: int, text: str, values: dict[str, float], task: str = "safety", group: str = "") -> Row:
    messages = [Message(role="user", content=f"question {number}"), Message(role="assistant", content=text)]
    return Row(f"r{number}@{text}", task, messages, meta={"group": group or f"r{number}", "values": values})


def toy_rows(prompts: int = 60) -> list[Row]:
    """Prefixes whose letters decide the value: "aaaa" good, "zzzz" bad; for odd prompts, which are about knowledge, the reverse."""
    rows = []
    for number in range(prompts):
        if number % 2:
            rows += [prefix(number, "aaaa", {"knowledge": 0.1}, "knowledge"), prefix(number, "zzzz", {"knowledge": 0.9}, "knowledge")]
        else:
            rows += [prefix(number, "aaaa", {"safety": 0.9}), prefix(number, "zzzz", {"safety": 0.1})]
    return rows


def make_work(folder: Path) -> WorkDir:
    folder.mkdir(exist_ok=True)
    return WorkDir(folder, "0" * 64, Progress(folder, QuietDisplay()), StopRequest())


# ---- rollouts


def test_prefixes_end_where_steps_end_and_are_never_the_whole_reply(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    ids = tokenizer("One. Two. Three. Four", add_special_tokens=False)["input_ids"]
    reply = Completion("One. Two. Three. Four", ids, [], "stop")
    assert [p.text for p in cut(tokenizer, reply, 7, 5, [". "])] == ["One. ", "One. Two. ", "One. Two. Three. "]
    (middle,) = cut(tokenizer, reply, 7, 1, [". "])
    assert middle.text == "One. Two. " and middle.of == 7 and middle.ids == ids[: len(middle.ids)]
    assert cut(tokenizer, reply, 0, 5, ["!"]) == []


def test_prefixes_of_like_length_are_continued_together():
    class Of:
        def __init__(self, length):
            self.ids = [0] * length

    rooms = by_room([Of(10), Of(20), Of(90), Of(99)], 100)
    assert rooms == {64: [0, 1], 10: [2], 1: [3]}


def test_rollouts_are_the_mean_of_their_continuations_and_go_on_after_a_kill(tmp_path, tiny_model, monkeypatch):
    from safework_verifier.rollouts import run as rollouts

    data = tmp_path / "data"
    data.mkdir()
    prompts = [Row(f"p{i}", "safety", [Message(role="user", content=f"q {i}")], harmful=bool(i % 2)) for i in range(4)]
    write_rows(data / "rows.parquet", prompts)
    inputs = Inputs({
        "model": path_artifact(tiny_model, str(tiny_model), ("model",)), "data": path_artifact(data, "data", ("dataset",)),
    })  # fmt: skip
    settings = RolloutsConfig(
        rules={"safety": "refusal"},
        replies=1,
        prefixes=2,
        continuations=3,
        max_tokens=12,
        boundaries=list("aeioubcdfghklmnprst"),
        chunk_prompts=2,
    )
    judged = []

    def counting(judge, exchanges):
        """Of the three continuations of each prefix one, two or three are safe in turn."""
        judged.append([e.reply for e in exchanges])
        return [Verdict(float(i % 3 <= (i // 3) % 3)) for i in range(len(exchanges))]

    monkeypatch.setattr(rollouts, "judged", counting)
    work = make_work(tmp_path / "run")
    outcome = rollouts_stage.run(settings, inputs, work)
    first = read_rows(work.output / "rollouts" / "train.parquet")
    assert outcome.metrics["prefixes"] == len(first) and len(judged) == 2
    of_chunks = [(k % 3 + 1) / 3 for replies in judged for k in range(len(replies) // 3)]
    assert sorted(row.meta["values"]["safety"] for row in first) == pytest.approx(sorted(of_chunks)) and len(set(of_chunks)) > 1
    for row in first:
        assert row.reply and any(reply.startswith(row.reply) for replies in judged for reply in replies)
    # the second chunk is lost with a kill: the first is not sampled again, and the rows come out the same
    journal = work.path / "prefixes.jsonl"
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])
    again = make_work(tmp_path / "again")
    (again.path / "prefixes.jsonl").write_text(journal.read_text())
    judged.clear()
    rollouts_stage.run(settings, inputs, again)
    assert len(judged) == 1 and read_rows(again.output / "rollouts" / "train.parquet") == first


def test_a_judge_that_cannot_be_reached_fails_the_command_and_is_asked_again(tmp_path, tiny_model, monkeypatch):
    """The other principle has values: without a count, the principle would be missing and nothing would say so."""
    from safework_verifier.rollouts import run as rollouts

    (tmp_path / "data").mkdir()
    prompts = [Row(f"p{i}", "safety", [Message(role="user", content=f"q {i}")], harmful=True) for i in range(2)]
    write_rows(tmp_path / "data" / "rows.parquet", prompts)
    inputs = Inputs({
        "model": path_artifact(tiny_model, str(tiny_model), ("model",)), "data": path_artifact(tmp_path / "data", "data", ("dataset",)),
        "verifiers": {"honesty": "the judge"},
    })  # fmt: skip
    settings = RolloutsConfig(
        rules={"safety": "refusal"}, replies=1, prefixes=2, continuations=2, max_tokens=12, boundaries=list("aeioubcdfghklmnprst")
    )
    answers = []

    class Served:
        name = "honesty"

        def judge(self, exchanges):
            return [Verdict(1.0) if answers else Verdict(None, error="timed out", retry=True) for _ in exchanges]

    load = rollouts.load_verifier
    monkeypatch.setattr(rollouts, "load_verifier", lambda source, **more: Served() if source == "the judge" else load(source, **more))
    work = make_work(tmp_path / "run")
    outcome = rollouts_stage.run(settings, inputs, work)
    honesty = outcome.metrics["principles"]["honesty"]
    assert (honesty["n"], honesty["failed"], honesty["mean"]) == (0, outcome.metrics["prefixes"], None)
    assert outcome.failed_items == 1 + outcome.metrics["without_value"] > outcome.tolerated_items == 0
    assert "under honesty" in outcome.notes[-1] and "timed out" in outcome.notes[-1]
    assert outcome.metrics["principles"]["safety"]["failed"] == 0
    assert (work.path / "prefixes.jsonl").read_text() == "", "an outage is not kept"
    shutil.rmtree(work.output / "rollouts")
    answers.append(True)
    again = rollouts_stage.run(settings, inputs, work)
    assert again.failed_items == again.metrics["without_value"] and again.metrics["principles"]["honesty"]["mean"] == 1.0
    assert (work.path / "prefixes.jsonl").read_text()


def test_a_continuation_is_joined_to_its_prefix_by_tokens():
    from safework_verifier.rollouts.run import valued

    text, read = "She wrote. The first programme", []

    class Reads:
        name = "reads"

        def judge(self, exchanges):
            read.extend(e.reply for e in exchanges)
            return [Verdict(1.0) for _ in exchanges]

    engine = Scripted(spaced_tokenizer(text), text)
    rows = [Row("r", "general", [Message(role="user", content="Who?")])]
    settings = RolloutsConfig(replies=1, prefixes=1, continuations=2, max_tokens=64, boundaries=["."])
    (made,) = valued(settings, engine, {"reads": Reads()}, rows).rows
    assert made.reply == "She wrote." and read == [text, text], "decoded by itself, the continuation has lost its first space"


# ---- what is learned


def test_routing_goes_where_prefixes_still_decide():
    rows = [prefix(0, "a", {"safety": 1.0, "knowledge": 0.5}), prefix(0, "b", {"safety": 0.0, "knowledge": 0.5})]
    rows += [prefix(1, "a", {"safety": 1.0, "knowledge": 1.0}), prefix(1, "b", {"safety": 1.0, "knowledge": 0.0})]
    rows += [prefix(2, "a", {"knowledge": 1.0}), prefix(2, "b", {"knowledge": 1.0})]
    rows += [prefix(3, "a", {"safety": 0.75, "knowledge": 1.0}), prefix(3, "b", {"safety": 0.25, "knowledge": 0.0})]
    targets = routing_targets(rows, ["knowledge", "safety"])
    assert targets["r0"] == [0.0, 1.0] and targets["r1"] == [1.0, 0.0] and targets["r2"] == [1.0, 0.0]
    assert targets["r3"] == pytest.approx([2 / 3, 1 / 3])


def test_no_prompt_is_on_two_sides():
    parts = split_by_prompt(toy_rows(), 0.3, 0)
    sides = [{row.group for row in side} for side in (parts.train, parts.calibration, parts.report)]
    assert all(sides) and not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert {name for row in parts.report for name in row.meta["values"]} == {"safety", "knowledge"}


def test_the_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 5.0]])
    values = torch.tensor([[0.5, 1.0], [1.0, float("nan")]])
    routing, target = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    expected = ((math.log(2) + math.log(4 / 3)) / 2 + math.log(2)) / 2 + 0.2 * math.log(2)
    assert float(value_loss(logits, values, routing, target, 0.2)) == pytest.approx(expected)
    nothing = value_loss(logits, torch.full((2, 2), float("nan")), routing, target, 0.0)
    assert float(nothing) == 0.0


def test_hidden_states_are_those_of_the_single_sequence(tiny_model):
    model, tokenizer = load_model(tiny_model, dtype="float32"), load_tokenizer(tiny_model)
    writer = PrefixWriter(tokenizer, 200)
    rows = [writer.write(Exchange.of(prefix(1, text, {}))) for text in ("short", "a much longer prefix than the other", "x")]
    with torch.inference_mode():
        ends, prompts = hidden_ends(model, rows, tokenizer.pad_token_id)
        for number, (prompt, count) in enumerate(rows):
            ids = prompt.ids
            hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            torch.testing.assert_close(ends[number], hidden[-1], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(prompts[number], hidden[len(ids) - 1 - count], atol=1e-5, rtol=1e-4)
    special = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (ids, _), count = writer.write(Exchange([Message(role="user", content="q")], "a<|im_end|>b"))
    assert special not in ids[-count:]
    assert writer.truncated == 0
    (ids, _), count = writer.write(Exchange([Message(role="user", content="q" * 500)], "p" * 500))
    assert len(ids) == 200 and count == 100 and writer.truncated == 1


def test_a_thought_that_the_template_opens_is_opened_once(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
    (ids, _), count = PrefixWriter(tokenizer, 200).write(Exchange([Message(role="user", content="q")], "<think>\nso far"))
    assert tokenizer.decode(ids) == "q<think>\nso far" and tokenizer.decode(ids[-count:]).strip() == "so far"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("values")
    (folder / "data").mkdir()
    write_rows(folder / "data" / "rows.parquet", toy_rows())
    inputs = Inputs({
        "model": path_artifact(tiny_model, str(tiny_model), ("model",)),
        "data": path_artifact(folder / "data", "data", ("dataset",)),
    })  # fmt: skip
    config = ValuesConfig(
        learning_rate=3e-3, head_learning_rate=3e-2, max_steps=60, per_device_train_batch_size=16, eval_fraction=0.3, dtype="float32",
        lr_scheduler_type="constant", max_length=256,
    )  # fmt: skip
    assert not values_stage.plan(config, inputs).refusals
    work = make_work(folder / "run")
    return values_stage.run(config, inputs, work), work


def test_it_learns_what_a_prefix_decides_and_which_principle_a_prompt_is_about(trained):
    outcome, work = trained
    check_payload(work.output, "verifier")
    for name in ("safety", "knowledge"):
        found = outcome.metrics["principles"][name]
        assert found["skill"]["value"] > 0.8 and found["ranking"]["value"] > 0.95 and found["calibration_error"]["value"] < 0.1
    assert outcome.metrics["routing"]["value"] > 0.9, "the principle that a prompt is about"
    assert "| safety |" in (work.output / "verifier_card.md").read_text() and not outcome.notes


def test_the_saved_value_model_judges_prefixes_as_it_did_in_training(trained):
    _, work = trained
    values = load_verifier(work.output, dtype="float32")
    rows = [prefix(100, "aaaa", {}), prefix(100, "zzzz", {})]
    good, bad = values.judge([Exchange.of(row) for row in rows])
    table, weights = values.values([Exchange.of(row) for row in rows])
    safety = values.spec.principles.index("safety")
    assert table[0, safety] > 0.7 > 0.3 > table[1, safety]
    assert weights.sum(1).tolist() == pytest.approx([1.0, 1.0])
    for verdict, values_P, weights_P in zip((good, bad), table, weights, strict=True):
        assert verdict.score == pytest.approx(float((values_P * weights_P).sum()))


def test_values_use_the_fitted_temperatures(trained):
    outcome, work = trained
    values = load_verifier(work.output, dtype="float32")
    assert values.spec.temperatures == [outcome.metrics["principles"][name]["temperature"] for name in values.spec.principles]
    values.spec.temperatures = [2.0, 0.25]
    exchanges = [Exchange.of(prefix(number, text, {})) for number in (100, 101) for text in ("aaaa", "zzzz")]
    logits, routing = values.logits([values.writer.write(exchange) for exchange in exchanges])
    expected = torch.stack([torch.sigmoid(logits[:, 0] / 2.0), torch.sigmoid(logits[:, 1] / 0.25)], 1)
    torch.testing.assert_close(values.values(exchanges)[0], expected)
    scores = (expected * torch.softmax(routing, -1)).sum(1).tolist()
    assert [verdict.score for verdict in values.judge(exchanges)] == pytest.approx(scores, abs=1e-6)


def test_the_report_measures_the_values_at_the_fitted_temperatures(trained, tmp_path):
    from safework_verifier.values.measure import measure

    _, work = trained
    values = load_verifier(work.output, dtype="float32")
    values.heads.values.weight.data.mul_(6.0)  # far too sure of itself: the temperatures must bring it back
    values.heads.values.bias.data.mul_(6.0)
    parts = split_by_prompt(toy_rows(), 0.3, 0)
    found = measure(values, parts, 0, make_work(tmp_path / "measured"))["principles"]
    value = values.values([Exchange.of(row) for row in parts.report])[0].double().numpy()
    for place, name in enumerate(values.spec.principles):
        gold = np.array([row.meta["values"].get(name, np.nan) for row in parts.report])
        known = ~np.isnan(gold)
        assert values.spec.temperatures[place] > 2
        assert found[name]["squared_error"]["value"] == pytest.approx(float(((value[known, place] - gold[known]) ** 2).mean()), abs=2e-4)


def test_values_that_are_all_alike_have_no_order():
    from safework_cli.verifiers.values import ValueSpec
    from safework_verifier.values.card import card
    from safework_verifier.values.measure import _of_principle

    groups = [f"g{number}" for number in range(8)]
    alike = _of_principle(np.linspace(0.1, 0.9, 8), np.zeros(8), 0.3, groups, 0)
    assert alike["ranking"] == {"n": 8, "value": None, "interval": None} and alike["squared_error"]["value"] > 0
    different = _of_principle(np.linspace(0.1, 0.9, 8), np.linspace(0.0, 1.0, 8), 0.3, groups, 0)
    assert different["ranking"]["value"] == 1.0
    metrics = {"rows": {"train": 9, "calibration": 8, "report": 8}, "principles": {"a": alike, "b": different}, "routing": alike["skill"]}
    text = card(ValueSpec(principles=["a", "b"], temperatures=[1.0, 1.0], max_length=64), metrics, "model/m@v1", "dataset/d@v1")
    assert "| not measured |" in text and "| 1.000 (" in text


def test_guided_search_hands_value_models_the_open_prefix(trained, tiny_model):
    from safework_search.methods import Guides

    _, work = trained
    values, seen = load_verifier(work.output, dtype="float32"), []
    judge = values.judge
    values.judge = lambda exchanges: (seen.extend(e.reply for e in exchanges), judge(exchanges))[1]
    row = Row("r", "safety", [Message(role="user", content="question 100")])
    Guides({"values": values}, {}, 0.0).score([row], ["<think>aaaa"], [0.0], partial=True)
    assert seen == ["<think>aaaa"]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([prefix(0, "a", {})], "no Monte-Carlo values"),
        ([prefix(0, "a", {"safety": 1.5})], "the value of 'safety' is 1.5"),
        ([prefix(n, "a", {"safety": 0.5}) for n in range(3)], r"too few groups \(3\)"),
        ([prefix(n, f"a{n}", {"safety": 0.5}, group="one") for n in range(9)], r"too few groups \(1\)"),
        ([], "has no rows"),
    ],
)
def test_rows_without_usable_values_are_refused(rows, why):
    with pytest.raises(InputError, match=why):
        valued_rows(rows, "data")


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="refusal"):
        RolloutsConfig(rules={"safety": "refusl"})


def test_a_killed_training_goes_on_to_the_same_weights(cli, kill_after, store, tmp_path, tiny_model):
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.parquet", toy_rows())
    words = ["verifier", "values", f"model={tiny_model}", f"data={tmp_path / 'data'}", "max_steps=24", "save_steps=8", "dtype=float32"]
    kill_after(8, *words)
    again = cli(*words)
    assert again.returncode == 0 and "resumed at step 8 of 24" in again.stderr, again.stderr
    whole = cli(*words, "--quiet", "--fresh", "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    resumed, fresh = (store.resolve(done.stdout.strip(), ("verifier",)).path for done in (again, whole))
    for name in ("model.safetensors", "value_heads.safetensors", "verifier.json"):
        assert (resumed / name).read_bytes() == (fresh / name).read_bytes(), name


def test_rules_alone_may_judge_rollouts(cli, tiny_artifact, toy_data):
    done = cli("verifier", "rollouts", f"model={tiny_artifact.ref}", f"data={toy_data.ref}:rl", "rules.safety=refusal", "--dry-run")
    assert done.returncode == 0 and "safety by rule:refusal" in done.stdout + done.stderr, done.stderr


def test_a_value_model_that_cannot_be_measured_is_kept_and_its_command_says_so(tmp_path, tiny_model, monkeypatch):
    import safework_verifier.values.run as module

    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.parquet", toy_rows())
    held = [replace(row, id=f"{row.id}-held", split="test", meta=row.meta | {"group": f"{row.group}-held"}) for row in toy_rows()[:4]]
    write_rows(tmp_path / "data" / "test.parquet", held)
    data = path_artifact(tmp_path / "data", "data", ("dataset",))
    inputs = Inputs({"model": path_artifact(tiny_model, str(tiny_model), ("model",)), "data": data})

    def broken(*_):
        raise ValueError("no such rows")

    monkeypatch.setattr(module, "measure", broken)
    work = make_work(tmp_path / "run")
    config = ValuesConfig(max_steps=1, eval_fraction=0.3, dtype="float32", max_length=256)
    outcome = values_stage.run(config, inputs, work)
    check_payload(work.output, "verifier")
    assert outcome.failed_items == 1 and outcome.notes[0].startswith("measuring failed after training: ValueError")
    assert "held out (split test)" in (work.path / "events.jsonl").read_text()
