"""Steps: groups without a signal are sampled again, and the numbers are of what was drawn first."""

from __future__ import annotations

import pytest

from safework_cli.core.errors import SafeworkError, TooManyFailed
from safework_cli.data.row import Row
from safework_cli.engines.protocol import Completion
from safework_cli.verifiers.contract import Exchange, Verdict, judged
from safework_cli.verifiers.rules import rule_verifier
from safework_rl.config import FormatSettings, LanguageSettings, RlConfig
from safework_rl.curriculum import Curriculum
from safework_rl.efficient.config import EfficientConfig
from safework_rl.measures import step_measures
from safework_rl.objectives import EfficientObjective, M3Objective, TaskRewards
from safework_rl.step import Episodes, StepContext, flat, step

CONFIG = RlConfig(num_generations=2, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_completion_length=8)


class Counting:
    """The engine and the judge of one another: replies count up, and a row's text says which of them are right."""

    name = "counting"

    def __init__(self, tokenizer):
        self.tokenizer, self.asked, self.seeds = tokenizer, [], []

    def generate_ids(self, prompts, sampling, n=1, visions=None, seeds=None):
        self.asked.append(len(prompts))
        self.seeds.append(sampling.seed)
        texts = [f"<think>t</think>{i % 2}" for i in range(len(prompts))]
        return [
            [Completion(t, list(range(3 + i % 2)), [0.0] * (3 + i % 2), "stop", p)]
            for i, (t, p) in enumerate(zip(texts, prompts, strict=True))
        ]

    def judge(self, exchanges):
        return [Verdict({"always": 1.0, "never": 0.0}.get(e.question, float(e.final))) for e in exchanges]


@pytest.fixture
def steps(tiny_model):
    from safework_cli.models.load import load_tokenizer

    def make(words, refill=2, judge=None, shorter=None, tasks=None, **settings):
        tasks = ["general"] * len(words) if tasks is None else tasks
        rows = [Row(str(i), task, [{"role": "user", "content": word}]) for i, (word, task) in enumerate(zip(words, tasks, strict=True))]
        one = Counting(load_tokenizer(tiny_model))
        verifiers = {"counting": judge or one, "format": rule_verifier("format")}
        rewards = TaskRewards({"general": {"counting": 1.0}, "safety": {}}, verifiers, FormatSettings(), LanguageSettings(mode="off"), 0.5)
        config = CONFIG.model_copy(update=settings)
        plan = Curriculum(rows, [(sorted(set(tasks)), 1.0)], 8, 2, {}, 0)

        def encode(row):
            return [1, 2], None

        objective = M3Objective(rewards, "std", True) if shorter is None else EfficientObjective(rewards, shorter)
        unrewarded = {"safety"} & set(tasks)
        return StepContext(config, objective, rows, plan, encode, refill=refill, unrewarded=unrewarded), one, rows

    return make


def test_a_group_without_a_signal_is_replaced_by_one_with_a_signal(steps):
    run, engine, rows = steps(["always", "mixed", "mixed", "mixed"])
    batch = step(engine, [0, 1], 0, run)
    assert engine.asked == [4, 2] and (batch.attempts, batch.replaced) == (2, 1)
    assert [group[0].row for group in batch.drawn] == [0, 1]
    assert batch.kept[0][0].row in (2, 3) and batch.kept[1] is batch.drawn[1]
    assert [sample.correct for sample in flat(batch.kept)] == [False, True, False, True]
    measures = step_measures(batch, rows)
    assert measures["correct"] == 0.75 and measures["reward"] == 0.75, "of what was drawn, not of what was chosen"
    assert measures["groups/zero_variance"] == 0.5 and measures["groups/replaced"] == 1
    assert measures["verifier/general/counting/std"] == pytest.approx(0.4330127)
    assert measures["completions/mean_length"] == 3.5


def test_groups_without_a_reward_are_not_replaced_and_replace_none(steps):
    """The KL trains on the task without a reward: its groups have no signal by their rewards, and are kept."""
    words, tasks = ["mixed", "always", *["mixed"] * 7], ["safety", "general", *["safety"] * 6, "general"]
    for number in range(6):  # spares are drawn at random
        run, engine, _ = steps(words, tasks=tasks)
        batch = step(engine, [0, 1], number, run)
        assert engine.asked == [4, 2] and batch.replaced == 1 and batch.kept[0] is batch.drawn[0]
        assert [group[0].row for group in batch.kept] == [0, 8], "the other prompts without a reward are no spares"


@pytest.mark.parametrize(("spread", "replaced", "learned"), [(0.3, 2, False), (0.1, 1, True)])
def test_efficient_replaces_right_replies_only_where_their_lengths_are_alike(steps, spread, replaced, learned):
    """Replies have 3 and 4 tokens: a spread of 0.2."""
    run, engine, _ = steps(["always", "never", "mixed", "mixed", "mixed"], shorter=EfficientConfig(min_length_spread=spread))
    batch = step(engine, [0, 1], 0, run)
    assert batch.replaced == replaced and (batch.kept[0] is batch.drawn[0]) is learned
    assert bool(batch.advantage_NG[0, 0] > 0) is learned, "the shorter one; in the group of a mixed row the first reply is wrong"


def test_it_looks_no_longer_than_it_may_and_no_further_than_there_are_rows(steps):
    run, engine, _ = steps(["always", "never", *["always"] * 20], refill=3)
    batch = step(engine, [0, 1], 0, run)
    assert engine.asked == [4, 4, 4, 4] and batch.replaced == 0 and batch.kept == batch.drawn
    run, engine, _ = steps(["always", "never"], refill=3)
    assert step(engine, [0, 1], 0, run).attempts == 1
    run, engine, _ = steps(["always", "mixed", "mixed"], refill=0)
    assert step(engine, [0, 1], 0, run).attempts == 1 and engine.asked == [4]


def test_one_unscorable_spare_does_not_stop_the_step(steps):
    """Of the replies that replace others, those of a group that could not be scored whole are left aside."""

    class Failing(Counting):
        def judge(self, exchanges):
            known = super().judge
            return [Verdict(None, error="no") if e.question == "broken" and e.final == "1" else known([e])[0] for e in exchanges]

    run, engine, _ = steps(["always", "mixed", "broken"], judge=Failing(None), max_unscorable=0.0)
    batch = step(engine, [0, 1], 0, run)
    assert engine.asked == [4, 2] and batch.replaced == 0 and [group[0].row for group in batch.kept] == [0, 1]


def test_a_long_reply_pays_before_its_group_is_compared(steps):
    run, engine, _ = steps(["always"], max_completion_length=4, overlong=CONFIG.overlong.model_copy(update={"buffer": 2, "factor": 0.4}))
    assert [sample.reward for sample in step(engine, [0], 0, run).drawn[0]] == pytest.approx([0.8, 0.6])


def test_each_round_and_attempt_has_draws_of_its_own_and_the_same_ones_again(steps):
    words = ["always", "never", *["always"] * 20]
    run, engine, _ = steps(words)
    step(engine, [0, 1], 0, run)
    step(engine, [2, 3], 1, run)
    assert len(engine.seeds) == 6 and len(set(engine.seeds)) == 6, "three attempts in each of two rounds"
    again, other, _ = steps(words)
    step(other, [2, 3], 1, again)
    assert other.seeds == engine.seeds[3:], "whatever was drawn before"
    seeded, third, _ = steps(words, seed=1)
    step(third, [2, 3], 1, seeded)
    assert not set(third.seeds) & set(engine.seeds)


def test_retrieved_text_counts_towards_the_limit_that_a_long_reply_pays_at(steps, monkeypatch):
    """The limit is the context's, so the penalty is over all tokens after the prompt; the length that is reported is the policy's own."""
    from safework_cli.environments.search.runner import Transcript

    def episodes(engine, index, prompts, limits, sampling, seeds=None, encoded=None):
        read = Transcript([1, 2], [], token_ids=[5] * 8, mask=[1, 1, 0, 0, 0, 0, 1, 1], logprobs=[0.0] * 8, answer="1", ending="answered")
        short = Transcript([1, 2], [], token_ids=[5] * 4, mask=[1] * 4, logprobs=[0.0] * 4, answer="1", ending="answered")
        return [read, short]

    monkeypatch.setattr("safework_rl.step.run_episodes", episodes)
    monkeypatch.setattr("safework_rl.step.exchange_text", lambda transcript: "<think>t</think>1")
    run, engine, _ = steps(["always"], max_completion_length=10, overlong=CONFIG.overlong.model_copy(update={"buffer": 4, "factor": 1.0}))
    run.search = Episodes(None, None, None)
    (group,) = step(engine, [0], 0, run).drawn
    assert [sample.length for sample in group] == [4, 4]
    assert [sample.reward for sample in group] == pytest.approx([0.5, 1.0])


class Misbehaving:
    name = "misbehaving"

    def __init__(self, bad, what):
        self.bad, self.what = bad, what

    def judge(self, exchanges):
        return [self.one(e) for e in exchanges]

    def one(self, exchange):
        if exchange.final != self.bad:
            return Verdict(1.0)
        if self.what == "nan":
            return Verdict(float("nan"))
        if self.what == "raise":
            raise ZeroDivisionError("no words")
        return None


EXCHANGES = [Exchange([], f"<think>t</think>{i}") for i in range(3)]


@pytest.mark.parametrize(
    ("what", "why"),
    [("nan", "ValueError: score nan"), ("raise", "ZeroDivisionError: no words"), ("none", "which is not a verdict")],
)
def test_one_bad_row_does_not_cost_its_neighbours_their_verdicts(what, why):
    verdicts = judged(Misbehaving("1", what), EXCHANGES)
    assert [v.score for v in verdicts] == [1.0, None, 1.0] and why in verdicts[1].error


def test_too_few_verdicts_are_refused():
    class Short:
        name = "short"

        def judge(self, exchanges):
            return [Verdict(1.0)]

    with pytest.raises(SafeworkError, match="'short' returned 1 verdicts for 3 exchanges"):
        judged(Short(), EXCHANGES)


def test_unscorable_replies_are_left_out_up_to_a_limit(steps):
    run, engine, rows = steps(["mixed", "mixed"], judge=Misbehaving("1", "raise"), max_unscorable=0.5)
    batch = step(engine, [0, 1], 0, run)
    measures = step_measures(batch, rows)
    assert measures["unscorable"] == 0.5 and measures["correct"] == 1.0, "what could not be scored is neither right nor wrong"
    run, engine, _ = steps(["mixed", "mixed"], judge=Misbehaving("1", "raise"), max_unscorable=0.4)
    with pytest.raises(TooManyFailed, match=r"2 of 4 replies .*'counting': ZeroDivisionError: no words"):
        step(engine, [0, 1], 0, run)
