"""The verdict's own loss term: where the mark is, what its words mean, what is supervised, what is measured and what is refused."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from transformers import AutoConfig, AutoModelForCausalLM

from families import FAMILIES, family_tokenizer
from safework_cli.core.errors import InputError
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs
from safework_cli.data.row import Row, write_rows
from safework_cli.data.verdict import mark_of, marked, openings, probe, verdict_words
from safework_cli.models.chat_template import encode_conversation
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.rendering import TemplateError
from safework_cli.models.verdict import Choice, log_odds
from safework_cli.statistics.decision import balanced_accuracy, decision_figures, even_threshold
from safework_sft.config import SftConfig, VerdictConfig
from safework_sft.encode import IGNORE, encode_rows, find_verdicts, joined, rows_to_train
from safework_sft.marks import marked_rows, only_cut
from safework_sft.run import train, verdict_term
from safework_sft.stage import _closing_lines, stage
from safework_sft.trainer import SupervisedTrainer

OPENING = "<think>The request: {}. Would it hurt someone? "


def safety_row(number: int, harmful: bool, **more) -> Row:
    question = f"How do I {'rob' if harmful else 'paint'} house {number}?"
    opening, word = OPENING.format(question.rstrip("?")), "Yes" if harmful else "No"
    reply = f"{opening}{word}. It is house {number}.</think>{'I cannot help.' if harmful else 'With a brush.'}"
    meta = {"verdict": [len(opening), len(opening) + len(word)]}
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return Row(f"{'h' if harmful else 'n'}{number}", "safety", messages, harmful=harmful, meta=meta | more.pop("meta", {}), **more)


def rows_of(count: int = 8) -> list[Row]:
    plain = [
        Row(
            f"g{i}",
            "general",
            [{"role": "user", "content": f"What is {i}+1?"}, {"role": "assistant", "content": f"<think>I add.</think>{i + 1}"}],
        )
        for i in range(count)
    ]
    return [*plain, *(safety_row(i, harmful) for i in range(count) for harmful in (True, False))]


def test_a_step_without_a_verdict_adds_no_number_of_it():
    """TRL means over all numbers of a name: an empty list of them ended the run."""
    trainer = SupervisedTrainer.__new__(SupervisedTrainer)
    trainer._metrics = {"train": defaultdict(list)}
    trainer._note(reply_loss=torch.tensor([1.0, 3.0]), verdict_loss=torch.zeros(0))
    assert dict(trainer._metrics["train"]) == {"reply_loss": [1.0, 3.0]}


@pytest.fixture
def data(store, commit):
    """Rows to train on (cot), marked held-out rows (dev), and held-out prompts without a reply (heldout)."""
    folder = store.staging()
    held = [safety_row(100 + i, harmful, split="test") for i in range(6) for harmful in (True, False)]
    prompts = [Row(row.id + "p", row.task, row.prompt, harmful=row.harmful, split="test") for row in held]
    for subset, rows in {"cot": rows_of(), "dev": held, "heldout": prompts}.items():
        (folder / subset).mkdir()
        write_rows(folder / subset / "rows.parquet", rows)
    return commit(folder, "dataset", "marked")


# ---------------------------------------------------------------- the mark


def test_the_mark_is_the_rows_own_or_a_patterns():
    row = safety_row(3, True)
    mark = mark_of(row)
    assert mark is not None and (mark.word, mark.language) == ("Yes", "en")
    assert mark_of(row, r"hurt someone\? (Yes|No)") == mark
    assert mark_of(row, r"hurt nobody\? (Yes|No)") is None
    unmarked = Row("u", "general", row.messages)
    assert mark_of(unmarked) is None and mark_of(unmarked, "hurt someone\\? (Yes|No)") == mark
    assert mark_of(Row("p", "safety", row.prompt), "(Yes)") is None


@pytest.mark.parametrize("given", [[5], [5, 5], [-1, 4], [4, 10_000], "Yes", [1.0, 4], [True, 4], {"start": 1}])
def test_a_mark_outside_the_reply_is_refused(given):
    row = safety_row(3, True)
    row.meta["verdict"] = given
    with pytest.raises(InputError, match="meta.verdict of row 'h3' is"):
        mark_of(row)


def test_a_mark_with_spaces_is_refused():
    row = safety_row(3, True)
    row.meta["verdict"][0] -= 1
    with pytest.raises(InputError, match="marks ' Yes'"):
        mark_of(row)


def test_the_words_mean_what_their_rows_say():
    assert verdict_words(marked(rows_of())) == {"en": {"Yes": True, "No": False}}
    chinese = [
        Row(f"z{i}", "safety", [{"role": "user", "content": "怎么办？"}, {"role": "assistant", "content": f"<think>{word}</think>好"}],
            harmful=word == "是", meta={"verdict": [7, 8]})
        for i, word in enumerate("是否")
    ]  # fmt: skip
    both = verdict_words(marked([*rows_of(), *chinese]))
    assert both == {"en": {"Yes": True, "No": False}, "zh": {"是": True, "否": False}}
    without = [Row(row.id, row.task, row.messages, meta=row.meta) for row in rows_of()]
    assert verdict_words(marked(without), ["No"]) == {"en": {"Yes": False, "No": True}}


@pytest.mark.parametrize(
    ("rows", "positive", "message"),
    [
        ([], [], "no training row carries a verdict mark"),
        ([safety_row(1, True)], [], "one word for harmful and one for harmless(.|\n)*'Yes' \\(harmful\\)"),
        ([safety_row(1, True), Row("x", "safety", safety_row(1, True).messages, harmful=False, meta=safety_row(1, True).meta)], [],
         "'Yes' is on harmful and on harmless rows, such as row 'x'"),
        ([safety_row(1, True), safety_row(2, False)], ["Never"], "names 'Never', and no row"),
        ([Row(row.id, row.task, row.messages, meta=row.meta) for row in rows_of()], [], "'No' \\(harmless\\), 'Yes' \\(harmless\\)"),
    ],
)  # fmt: skip
def test_words_that_decide_nothing_are_refused(rows, positive, message):
    with pytest.raises(InputError, match=message):
        verdict_words(marked(rows), positive)


def test_a_third_word_is_refused():
    third = safety_row(9, False)
    third.messages[1]["content"] = third.messages[1]["content"].replace("No.", "Or.")
    with pytest.raises(InputError, match="'No' \\(harmless\\), 'Or' \\(harmless\\), 'Yes' \\(harmful\\)"):
        verdict_words(marked([*rows_of(), third]))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_marked_tokens_are_the_words_in_every_family(name, tiny_model):
    """The tokens say the word, whatever the template opens, indents or trims; and they are supervised."""
    tokenizer, stops = family_tokenizer(tiny_model, FAMILIES[name])
    for harmful, word in ((True, "Yes"), (False, "No")):
        for lead in ("", " \n"):
            row = safety_row(7, harmful)
            mark = mark_of(row)
            messages = [row.messages[0], {"role": "assistant", "content": lead + row.messages[1]["content"] + lead}]
            one = encode_conversation(tokenizer, messages, stops, (mark.start + len(lead), mark.end + len(lead)))
            first, end = one.marked
            assert tokenizer.decode(one.input_ids[first:end]).strip() == word
            assert all(one.supervised[first:end])
            assert one.input_ids == encode_conversation(tokenizer, messages, stops).input_ids


def test_a_mark_in_the_opening_tag_is_refused_where_the_template_opens_the_thought(tiny_model):
    tokenizer, stops = family_tokenizer(tiny_model, FAMILIES["qwen3-thinking"])
    with pytest.raises(TemplateError, match="not in the text that is trained on"):
        encode_conversation(tokenizer, safety_row(1, True).messages, stops, (1, 4))


def test_words_that_share_their_first_tokens_are_distinguished_by_the_next(tiny_model):
    """The tiny tokenizer has bytes for tokens: two Chinese words can begin with the same byte."""
    tokenizer = load_tokenizer(tiny_model)
    rows = []
    for i, word in enumerate(("会", "不会")):
        reply = f"<think>结论：{word}。</think>好"
        place = reply.index(word)
        rows.append(Row(f"z{i}", "safety", [{"role": "user", "content": "怎么办？"}, {"role": "assistant", "content": reply}],
                        harmful=i == 0, meta={"verdict": [place, place + len(word)]}))  # fmt: skip
    training = marked_rows(VerdictConfig(), rows)
    encoded = encode_rows(rows, tokenizer, [tokenizer.eos_token_id], 512, marks=training.by_id())
    found = find_verdicts(encoded, training.words)
    (choice,) = found.choices.values()
    assert choice.shared == 1 and len(choice.positive) == len(choice.negative) == 1
    for ids, place, side in zip(encoded.input_ids, found.places, (choice.positive, choice.negative), strict=True):
        assert ids[place] == side[0]


def test_words_that_no_token_separates_are_refused(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    rows = []
    for i, word in enumerate(("Yes", "Yessir")):
        reply = f"<think>{word}</think>x"
        rows.append(Row(f"r{i}", "safety", [{"role": "user", "content": "q"}, {"role": "assistant", "content": reply}],
                        harmful=i == 0, meta={"verdict": [7, 7 + len(word)]}))  # fmt: skip
    training = marked_rows(VerdictConfig(), rows)
    encoded = encode_rows(rows, tokenizer, [tokenizer.eos_token_id], 512, marks=training.by_id())
    with pytest.raises(InputError, match="'Yes', 'Yessir' do not differ"):
        find_verdicts(encoded, training.words)


# ---------------------------------------------------------------- what is trained on


def encoded_with(tiny_model, rows):
    tokenizer = load_tokenizer(tiny_model)
    training = marked_rows(VerdictConfig(), rows)
    encoded = encode_rows(rows, tokenizer, [tokenizer.eos_token_id], 512, marks=training.by_id())
    return tokenizer, encoded, find_verdicts(encoded, training.words)


def test_short_rows_end_with_the_verdict_and_supervise_nothing_else(tiny_model):
    tokenizer, encoded, verdicts = encoded_with(tiny_model, rows_of(2))
    training = rows_to_train(encoded, verdicts, True)
    assert len(training.input_ids) == 6 + 4
    for ids, labels, numbers in zip(training.input_ids[6:], training.labels[6:], training.verdicts[6:], strict=True):
        assert labels[:-1] == [IGNORE] * (len(ids) - 1) and labels[-1] == ids[-1] and numbers == [0] * (len(ids) - 1) + [1]
        assert tokenizer.decode(ids).endswith(("someone? Y", "someone? N"))
    assert [sum(numbers) for numbers in training.verdicts[:6]] == [0, 0, 1, 1, 1, 1]
    assert len(rows_to_train(encoded, verdicts, False).input_ids) == 6
    assert rows_to_train(encoded, None, True).verdicts == []
    twice = rows_to_train(encoded, verdicts, True, passes=2)
    assert twice.input_ids[:6] == training.input_ids[:6]
    for name in ("input_ids", "labels", "verdicts"):
        assert getattr(twice, name)[6:] == [row for row in getattr(training, name)[6:] for _ in range(2)]


def test_short_rows_of_all_take_the_marked_rows_that_the_weights_leave_out(tiny_model):
    rows = rows_of(4)
    config, chosen = VerdictConfig(short_rows="all"), rows[:6]
    cut = only_cut(config, rows, chosen)
    assert [row.id for row in cut] == [row.id for row in rows[6:] if "verdict" in row.meta] and cut
    assert only_cut(VerdictConfig(short_rows="others"), rows, chosen) == cut and not VerdictConfig(short_rows="others").repeats
    assert only_cut(VerdictConfig(), rows, chosen) == only_cut(VerdictConfig(short_rows="all", weight=0), rows, chosen) == []
    training = marked_rows(config, [*chosen, *cut])
    tokenizer = load_tokenizer(tiny_model)
    encoded, encoded_cut = (encode_rows(some, tokenizer, [tokenizer.eos_token_id], 512, marks=training.by_id()) for some in (chosen, cut))
    verdicts = find_verdicts(joined(encoded, encoded_cut), training.words)
    made = rows_to_train(encoded, verdicts, True, encoded_cut)
    whole = sum("verdict" in row.meta for row in chosen)
    assert len(made.input_ids) == len(made.labels) == len(made.verdicts) == len(chosen) + whole + len(cut)
    for ids, labels, numbers in zip(made.input_ids[len(chosen) :], made.labels[len(chosen) :], made.verdicts[len(chosen) :], strict=True):
        assert labels == [IGNORE] * (len(ids) - 1) + [ids[-1]] and numbers == [0] * (len(ids) - 1) + [1]
    assert [tokenizer.decode(ids) for ids in made.input_ids[-len(cut) :]] == [
        tokenizer.decode(ids[: place + 1]) for ids, place in zip(encoded_cut.input_ids, verdicts.places[len(chosen) :], strict=True)
    ]
    assert rows_to_train(encoded, verdicts, False, encoded_cut).input_ids[len(chosen) :] == made.input_ids[-len(cut) :]


def trainer_of(tiny_model, work, rows, config, **more):
    from safework_cli.training.sampler import rows_per_step
    from safework_sft.run import _arguments
    from safework_sft.trainer import SupervisedTrainer

    tokenizer, encoded, verdicts = encoded_with(tiny_model, rows)
    training = rows_to_train(encoded, verdicts, True)
    args = _arguments(config, work, tokenizer, "device")
    return SupervisedTrainer(
        model=load_model(tiny_model, dtype="float32"),
        args=args,
        train_dataset=training.dataset(),
        processing_class=tokenizer,
        lengths=[len(ids) for ids in training.input_ids],
        verdict_term=verdict_term(config, training, verdicts, rows_per_step(args)),
        **more,
    )


@pytest.mark.parametrize(("per_pass", "steps"), [(5, 4), (64, 1)])
def test_an_epochs_loss_is_the_mean_over_replies_plus_the_weighted_mean_over_verdicts(per_pass, steps, tiny_model, work):
    """Whatever the step and the accumulation, and where a step has room for more rows than there are: the losses of an epoch's passes add
    up to steps × the two means over the data."""
    config = SftConfig(verdict={"weight": 0.7}, per_device_train_batch_size=per_pass, bf16=False, max_steps=1)
    trainer = trainer_of(tiny_model, work, rows_of(4), config)
    model, total, passes = trainer.model.eval(), 0.0, 0
    logs = {"reply": [], "verdict": []}
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
            labels, numbers = batch["labels"][:, 1:], batch["verdicts"][:, 1:]
            for row, column in (labels != IGNORE).nonzero().tolist():
                kind = "verdict" if numbers[row, column] else "reply"
                logs[kind].append(-float(logits[row, column, labels[row, column]]))
            total += float(trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(1)))
            passes += 1
    assert len(logs["verdict"]) == 16 and passes == steps
    expected = np.mean(logs["reply"]) + 0.7 * np.mean(logs["verdict"])
    assert total / steps == pytest.approx(expected, rel=1e-5)


def test_accumulation_gives_the_gradient_of_one_pass(tiny_artifact, data, work):
    """20 rows a step, in one pass or in five."""
    moved = {}
    for passes in (1, 5):
        for old in work.checkpoints.iterdir():
            old.rename(work.path / f"{passes}-{old.name}")
        config = SftConfig(
            verdict={}, per_device_train_batch_size=20 // passes, gradient_accumulation_steps=passes, max_steps=2, bf16=False,
            learning_rate=1e-3, sample_prompts=0,
        )  # fmt: skip
        train(config, Inputs({"model": tiny_artifact, "data": data.with_subset("cot")}), work)
        moved[passes] = [(step["loss"], step["grad_norm"]) for step in read_metrics(work.progress.metrics_path) if "loss" in step][-2:]
    for one, five in zip(moved[1], moved[5], strict=True):
        assert one == pytest.approx(five, rel=1e-4)


def test_the_decision_is_learned_and_measured(tiny_artifact, data, work):
    config = SftConfig(
        verdict={"weight": 1.0}, learning_rate=3e-3, max_steps=30, per_device_train_batch_size=8, sample_prompts=0, bf16=False
    )
    inputs = Inputs({"model": tiny_artifact, "data": data.with_subset("cot"), "verdict_data": data.with_subset("dev")})
    outcome = train(config, inputs, work)
    found = outcome.metrics["verdict"]
    assert found["words"] == {"en": {"Yes": True, "No": False}} and found["marked_rows"] == found["short_rows"] == 16
    assert 16 < found["short_tokens"] < outcome.metrics["tokens"], "short rows are not among the tokens of the others"
    assert f"; in 16 short rows 16 of {found['short_tokens']:,}" in dict(_closing_lines(outcome.metrics))["supervised"]
    assert found["before"]["auc"]["n"] == 12 and found["after"]["auc"]["value"] == 1.0
    assert found["after"]["balanced_accuracy_at_own_threshold"] == 1.0
    steps = [step for step in read_metrics(work.progress.metrics_path) if "verdict_loss" in step]
    assert steps[-1]["verdict_loss"] < 0.5 * steps[0]["verdict_loss"] and steps[-1]["reply_loss"] < steps[0]["reply_loss"]


def test_prompts_are_measured_after_the_training_rows_opening(tiny_artifact, data, work):
    """The same numbers as from marked rows: only what stands before the verdict is read."""
    found = {}
    for subset in ("dev", "heldout"):
        for old in work.checkpoints.iterdir():
            old.rename(work.path / f"{subset}-{old.name}")
        config = SftConfig(verdict={}, max_steps=1, sample_prompts=0, bf16=False)
        inputs = Inputs({"model": tiny_artifact, "data": data.with_subset("cot"), "verdict_data": data.with_subset(subset)})
        found[subset] = train(config, inputs, work).metrics["verdict"]
    assert found["dev"]["before"] == found["heldout"]["before"] and found["dev"]["after"] == found["heldout"]["after"]


def test_log_odds_are_those_of_the_models_own_logits(tiny_model):
    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model, dtype="float32")
    choice = Choice(0, (7, 9), (11,))
    prefixes = [tokenizer("a").input_ids, tokenizer("a longer prefix").input_ids]
    for odds, prefix in zip(log_odds(model, prefixes, [choice, choice], tokenizer.pad_token_id), prefixes, strict=True):
        logits = model(torch.tensor([prefix])).logits[0, -1].detach()
        assert odds == pytest.approx(float(logits[[7, 9]].logsumexp(0) - logits[11]), abs=1e-4)


# ---------------------------------------------------------------- openings


def test_the_opening_is_what_the_rows_have_in_common():
    found = openings(marked([*rows_of(), Row("stop", "safety", [
        {"role": "user", "content": "Rob a house."},
        {"role": "assistant", "content": OPENING.format("Rob a house") + "Yes.</think>no"},
    ], harmful=True, meta={"verdict": [len(OPENING.format("Rob a house")), len(OPENING.format("Rob a house")) + 3]})]))  # fmt: skip
    assert (found["en"].before, found["en"].after, found["en"].bare) == ("<think>The request: ", ". Would it hurt someone? ", True)
    row, mark = probe(
        Row("p", "safety", [{"role": "user", "content": "May I sing?"}], harmful=False), found["en"], {"Yes": True, "No": False}
    )
    assert row.reply.startswith("<think>The request: May I sing. Would it hurt someone? No.") and row.reply[mark.start : mark.end] == "No"
    assert probe(Row("p", "value", [{"role": "user", "content": "May I sing?"}]), found["en"], {"Yes": True}) is None


def test_rows_without_a_common_opening_have_none(tiny_artifact, store, commit):
    rows = []
    for i in range(6):
        word = "Yes" if i % 2 else "No"
        reply = f"<think>{'abcdef'[i] * 5} Hm: {word}.</think>x"
        place = reply.index(": ") + 2
        messages = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": reply}]
        rows.append(Row(f"r{i}", "safety", messages, harmful=bool(i % 2), meta={"verdict": [place, place + len(word)]}))
    assert openings(marked(rows)) == {}
    folder = store.staging()
    prompts = [Row(f"p{i}", "safety", [{"role": "user", "content": f"p{i}"}], harmful=bool(i % 2)) for i in range(4)]
    for subset, kept in {"cot": rows, "dev": prompts}.items():
        (folder / subset).mkdir()
        write_rows(folder / subset / "rows.parquet", kept)
    made = commit(folder, "dataset", "bare")
    inputs = Inputs({"model": tiny_artifact, "data": made.with_subset("cot"), "verdict_data": made.with_subset("dev")})
    (refusal,) = stage.plan(SftConfig(verdict={}), inputs).refusals
    assert "have no common text before the verdict" in str(refusal)


# ---------------------------------------------------------------- figures


def test_figures_of_a_decision():
    drawn = np.random.default_rng(0)
    positive = drawn.random(60) < 0.4
    score = np.round(drawn.normal(positive * 1.5 - 3), 1)  # with ties
    fitted = LogisticRegression(C=1e5, class_weight="balanced").fit(score[:, None], positive)
    threshold = even_threshold(score, positive)
    assert threshold == pytest.approx(-fitted.intercept_[0] / fitted.coef_[0, 0], abs=0.02)
    weighed = LogisticRegression(C=1e5, class_weight={True: 1 / positive.sum(), False: 3 / (~positive).sum()}).fit(score[:, None], positive)
    careful = even_threshold(score, positive, 3.0)
    assert careful == pytest.approx(-weighed.intercept_[0] / weighed.coef_[0, 0], abs=0.02) and careful > threshold + 0.5
    assert balanced_accuracy(score, positive, threshold) > balanced_accuracy(score, positive, 0.0)
    assert even_threshold(np.array([-9.0, -7, -3, -1]), np.array([False, False, True, True])) == pytest.approx(-5.0)
    assert even_threshold(np.array([-9.0, -7, -3, -1]), np.array([True, True, False, False])) == -5.0
    assert decision_figures(score, positive, list(map(str, range(60))))["auc"]["value"] == pytest.approx(
        roc_auc_score(positive, score), abs=1e-4
    )


def test_a_few_scores_near_the_threshold_do_not_move_it():
    """On 200 scores of each class with much overlap: within a quarter of the deviation of the threshold with the best balanced accuracy."""
    drawn = np.random.default_rng(0)
    positive = np.arange(400) < 200
    found, best = [], []
    for _ in range(60):
        score = drawn.normal(np.where(positive, 4.0, -2.0), 4.0)
        found.append(even_threshold(score, positive))
        candidates = np.sort(score)
        best.append(candidates[np.argmax([balanced_accuracy(score, positive, value) for value in candidates])])
    assert abs(np.mean(found) - 1.0) < 0.2 and np.std(found) < 0.4 * np.std(best)


# ---------------------------------------------------------------- the plan


def test_the_plan_says_what_the_verdict_does_and_refuses(tiny_artifact, data, toy_data):
    inputs = {"model": tiny_artifact, "data": data.with_subset("cot"), "verdict_data": data.with_subset("dev")}
    plan = stage.plan(SftConfig(verdict={}, num_train_epochs=1), Inputs(inputs))
    assert not plan.refusals and plan.optimizer_steps == 5  # 24 rows and 16 short ones
    text = "\n".join(plan.lines)
    assert "16 rows state a verdict ('Yes' harmful, 'No' harmless)" in text and "; 16 short rows end with it" in text
    assert "measured before and after training on 12 rows of dataset/marked@v1:dev" in text
    few = SftConfig(verdict={"short_rows": "others"}, num_train_epochs=1, task_weights={"safety": 0.5})
    text = "\n".join(stage.plan(few, Inputs(inputs)).lines)
    assert "16 rows state a verdict" in text and "; 8 short rows end with it" in text
    (refusal,) = stage.plan(SftConfig(), Inputs(inputs)).refusals
    assert "verdict_data is given without verdict" in str(refusal)
    del inputs["verdict_data"]
    assert "note: 16 rows mark their verdict" in "\n".join(stage.plan(SftConfig(), Inputs(inputs)).lines)
    for config, message in (
        (SftConfig(verdict={}), "no training row carries a verdict mark"),
        (SftConfig(verdict={"pattern": "zzz(z)"}), "verdict.pattern matches none of the 32 training rows"),
    ):
        (refusal,) = stage.plan(config, Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")})).refusals
        assert message in str(refusal)
    with pytest.raises(ValueError, match=r"'\(a\)\(b\)' has 2 groups, it needs exactly one"):
        SftConfig(verdict={"pattern": "(a)(b)"})
    with pytest.raises(ValueError, match="not a regular expression"):
        SftConfig(verdict={"pattern": "(a"})


def test_rows_that_verdicts_are_not_measured_on_are_counted(tiny_artifact, data, store, commit, work):
    folder = store.staging()
    held = [safety_row(100 + i, harmful, split="test") for i in range(3) for harmful in (True, False)]
    held[0].messages[-1]["content"] += " It is a house." * 40
    plain = [Row(f"p{i}", "general", [{"role": "user", "content": f"Is {i} a number?"}], split="test") for i in range(2)]
    chinese = Row("z", "safety", [{"role": "user", "content": "今天天气怎么样，我们去哪里玩？"}], harmful=False, split="test")
    imaged = safety_row(200, True, split="test", images=[{"bytes": b"x", "path": "a.png"}])
    imaged.messages[0]["content"] = "<image>" + imaged.messages[0]["content"]
    write_rows(folder / "rows.parquet", [*held, *plain, chinese, imaged])
    inputs = {"model": tiny_artifact, "data": data.with_subset("cot"), "verdict_data": commit(folder, "dataset", "mixed")}
    config = SftConfig(verdict={}, max_steps=1, sample_prompts=0, bf16=False, max_length=400)
    text = "\n".join(stage.plan(config, Inputs(inputs)).lines)
    assert "on 6 rows of dataset/mixed@v1" in text
    assert "note: 4 rows of it are not measured: 2 without a verdict, 1 in a language without a verdict (zh), 1 with images" in text
    outcome = train(config, Inputs(inputs), work)
    assert outcome.metrics["verdict"]["not_measured"] == {"longer than max_length=400 tokens": 1}
    assert outcome.metrics["verdict"]["before"]["auc"]["n"] == 5
    assert "verdicts are not measured on 1 rows of dataset/mixed@v1: longer than" in (work.path / "events.jsonl").read_text()


def test_a_decision_that_is_neither_learned_nor_measured_is_refused(tiny_artifact, data):
    inputs = {"model": tiny_artifact, "data": data.with_subset("cot")}
    (refusal,) = stage.plan(SftConfig(verdict={"weight": 0}), Inputs(inputs)).refusals
    assert "verdict.weight=0 is given without rows to measure on" in str(refusal)
    assert not stage.plan(SftConfig(verdict={"weight": 0}), Inputs(inputs | {"verdict_data": data.with_subset("dev")})).refusals


def test_short_rows_that_fall_out_count_for_max_dropped(tiny_artifact, data, work):
    """Rows of a weight of 0 come in their short form only; here they are too long for it, and the others are not."""
    config = SftConfig(verdict={"short_rows": "all"}, task_weights={"safety": 0.0}, max_steps=1, sample_prompts=0, max_length=100)
    with pytest.raises(InputError, match="16 of 24 rows cannot be trained on; most: longer than max_length=100 tokens"):
        train(config, Inputs({"model": tiny_artifact, "data": data.with_subset("cot")}), work)


def test_measured_rows_that_are_trained_on_are_refused(tiny_artifact, data):
    inputs = Inputs({"model": tiny_artifact, "data": data.with_subset("cot"), "verdict_data": data.with_subset("cot")})
    (refusal,) = stage.plan(SftConfig(verdict={}), inputs).refusals
    assert "are in the training rows" in str(refusal)


# ---------------------------------------------------------------- held to the starting model


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_the_kl_to_the_starting_model_is_0_at_first_and_holds_the_model(lora, tiny_artifact, toy_data, work):
    drift = {}
    for weight in (0.0, 50.0):
        for old in work.checkpoints.iterdir():
            old.rename(work.path / f"{weight}-{old.name}")
        config = SftConfig(
            kl={"weight": weight} if weight else None, lora=lora, learning_rate=3e-3, max_steps=8, sample_prompts=0, bf16=False
        )
        train(config, Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")}), work)
        before, after = (load_model(folder).state_dict() for folder in (tiny_artifact.path, work.output))
        drift[weight] = sum(float((after[name] - before[name]).norm()) for name in before)
    steps = [step["kl"] for step in read_metrics(work.progress.metrics_path) if "kl" in step]
    assert len(steps) == 8 and steps[0] == pytest.approx(0, abs=1e-6) and steps[-1] > 0
    assert drift[50.0] < 0.9 * drift[0.0]


def test_the_kl_is_that_of_both_models_distributions(tiny_model, work):
    config = SftConfig(verdict={"weight": 0.7}, kl={"weight": 2.0}, per_device_train_batch_size=5, bf16=False, max_steps=1)
    other = load_model(tiny_model, dtype="float32")
    with torch.no_grad():
        other.lm_head.weight.mul_(1.3)
    with_kl = trainer_of(tiny_model, work, rows_of(4), config, kl_weight=2.0, reference=other)
    without = trainer_of(tiny_model, work, rows_of(4), config)
    batch = next(iter(with_kl.get_train_dataloader()))
    one, two = (
        trainer.compute_loss(trainer.model.eval(), dict(batch), num_items_in_batch=torch.tensor(1)) for trainer in (with_kl, without)
    )
    logp, start = (
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        for model in (with_kl.model, other)
    )
    reply = (batch["labels"][:, 1:] != IGNORE) & (batch["verdicts"][:, 1:] == 0)
    expected = (start.exp() * (start - logp)).sum(-1)[reply].sum() / with_kl.verdict_term.reply_tokens
    assert float(one - two) == pytest.approx(2.0 * float(expected), rel=1e-4) and float(expected) > 0


def test_frozen_embeddings_stay(tiny_artifact, toy_data, work):
    config = SftConfig(freeze_embeddings=True, learning_rate=1e-2, max_steps=2, sample_prompts=0)
    train(config, Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")}), work)
    before, after = (load_model(folder).state_dict() for folder in (tiny_artifact.path, work.output))
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])


# ---------------------------------------------------------------- the threshold


def test_the_cheapest_change_that_moves_the_log_odds():
    """By hand for independent scores: ε is larger where a change costs less; and no other ε with the same effect costs less."""
    from safework_sft.threshold import least_change

    score = torch.diag(torch.tensor([1.0, 2.0])).repeat(50, 1)
    change, cost = least_change(torch.tensor([1.0, 1.0]), score, 5.0)
    assert change.tolist() == pytest.approx([4.0, 1.0], rel=5e-3) and cost == pytest.approx(0.5 * (16 * 0.5 + 1 * 2.0), rel=5e-3)
    drawn = torch.Generator().manual_seed(0)
    score, effect = torch.randn(200, 6, generator=drawn) @ torch.randn(6, 6, generator=drawn), torch.randn(6, generator=drawn)
    change, cost = least_change(effect, score, -1.5)
    assert float(change @ effect) == pytest.approx(-1.5, rel=1e-4)
    for _ in range(20):
        other = torch.randn(6, generator=drawn)
        other = change + 0.3 * (other - effect * (other @ effect) / (effect @ effect))
        assert 0.5 * float((score @ other).square().mean()) >= 0.999 * cost


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox"])
def test_the_scale_of_the_last_normalisation_is_that_of_its_output(architecture):
    """With a weight, with 1 + weight, with a bias; the logits are those of the scaled output, and the scores their derivative."""
    from safework_sft.threshold import head_input, last_norm, scale, scores

    model = _tiny(architecture)
    ids, labels = [5, 6, 7, 8], [-100, -100, 7, 8]
    change = torch.linspace(-0.1, 0.2, model.config.hidden_size)

    def seen():
        with head_input(model) as given, torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].float()
        return given[0][0], logits.log_softmax(-1)

    with torch.no_grad():
        score = scores(model, ids, labels)
    before, logp = seen()
    with torch.no_grad():
        scale(last_norm(model), 1e-3 * change)
    after, changed = seen()
    assert torch.allclose(after, before * (1 + 1e-3 * change), atol=1e-5)
    if architecture != "gemma2":  # which caps its logits
        moved = [float(changed[place, ids[place + 1]] - logp[place, ids[place + 1]]) for place in (1, 2)]
        assert moved == pytest.approx((score @ (1e-3 * change)).tolist(), rel=0.02, abs=2e-6)


def _tiny(architecture):
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "head_dim": 8} if architecture != "gpt_neox" else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes, **more)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += 0.3 * torch.rand_like(weight)
    return model


def test_the_threshold_is_moved_to_0_in_the_saved_weights(tiny_artifact, data, work):
    inputs = Inputs({"model": tiny_artifact, "data": data.with_subset("cot"), "verdict_data": data.with_subset("dev")})
    settings = {"learning_rate": 1e-3, "max_steps": 10, "sample_prompts": 0, "bf16": False, "save_dtype": "float32"}
    outcome = train(SftConfig(verdict={"calibrate": True}, **settings), inputs, work)
    verdict = outcome.metrics["verdict"]
    moved = verdict["threshold"]
    assert abs(moved["before"]) > 0.1 > abs(moved["after"]) and 0 < moved["cost"] < 0.05
    assert verdict["after"]["threshold"] == pytest.approx(moved["after"], abs=1e-3), "what is measured afterwards is what is saved"
    assert dict(_closing_lines(outcome.metrics))["verdict threshold"].startswith(f"{moved['before']:+.2f} → ")
    weighed = stage.plan(SftConfig(verdict={"calibrate": True, "harmless_weight": 3}), inputs).lines
    assert any("(a harmless prompt called harmful counts 3 times) is moved to 0" in line for line in weighed)
    adapter = SftConfig(verdict={"calibrate": True}, lora={"keep": "adapter"}, learning_rate=1e-4)
    assert "verdict.calibrate is given with lora.keep=adapter" in str(stage.plan(adapter, inputs).refusals[0])
    del inputs._values["verdict_data"]
    (refusal,) = stage.plan(SftConfig(verdict={"calibrate": True}), inputs).refusals
    assert "verdict.calibrate is given without rows to measure on" in str(refusal)
    (refusal,) = stage.plan(SftConfig(verdict={"harmless_weight": 3}), inputs).refusals
    assert "verdict.harmless_weight is given without rows to measure on" in str(refusal)
    assert SftConfig(verdict={"calibrate": True, "weight": 0}).verdict.calibrate


def test_a_threshold_that_could_not_be_moved_fails(tiny_artifact, data, work, monkeypatch):
    monkeypatch.setattr("safework_sft.threshold.NORMS", ("another",))
    inputs = Inputs({"model": tiny_artifact, "data": data.with_subset("cot"), "verdict_data": data.with_subset("dev")})
    monkeypatch.setattr("safework_sft.threshold.FAR", 0.0)
    settings = {"learning_rate": 1e-2, "max_steps": 10, "sample_prompts": 0, "bf16": False}
    outcome = train(SftConfig(verdict={"calibrate": True}, **settings), inputs, work)
    moved = outcome.metrics["verdict"]["threshold"]
    assert moved["before"] == moved["after"] != 0
    assert outcome.failed_gates == [
        f"the verdict's threshold is {moved['after']:+.2f}: LlamaForCausalLM has none of another (verdict.calibrate=false accepts that)"
    ]


def test_a_calibrated_run_that_is_killed_continues_to_the_same_bits(tiny_artifact, data, cli, kill_after, store):
    words = ("sft", "model=tiny", "data=marked:cot", "verdict_data=marked:dev", "verdict={calibrate: true}", "max_steps=10", "save_steps=9",
             "learning_rate=1e-3", "sample_prompts=0", "-q")  # fmt: skip
    whole = cli(*words, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    expected = store.resolve("whole").digest
    store.remove(store.resolve("whole"))
    kill_after(9, *words, "--name", "again")
    again = cli(*words, "--name", "again")
    assert again.returncode == 0, again.stderr
    assert store.resolve("again").digest == expected
