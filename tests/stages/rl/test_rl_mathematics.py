"""CPGD, advantages and the multiplier, against numbers worked by hand and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from safework_rl.config import FormatSettings, LanguageSettings
from safework_rl.efficient.config import EfficientConfig
from safework_rl.lagrange import Multiplier
from safework_rl.losses.contract import reference_kl
from safework_rl.losses.cpgd import cpgd_loss, epsilon_schedule
from safework_rl.objectives import (
    EfficientObjective,
    TaskRewards,
    canon,
    ddca,
    group_mean,
    mixed_groups,
    overlong_penalty,
    relative_spread,
)

NAN = math.nan


def loss_of(logp, old, advantage, *, mask=None, denominator=None, epsilon=0.2, alpha=0.0, cap=2.0):
    logp = torch.as_tensor(logp, dtype=torch.float64)
    mask = torch.ones_like(logp) if mask is None else torch.as_tensor(mask)
    total = mask.sum().expand(len(logp)) if denominator is None else torch.as_tensor(denominator)
    return cpgd_loss(
        logp,
        torch.as_tensor(old, dtype=torch.float64),
        torch.as_tensor(advantage, dtype=torch.float64),
        mask,
        total,
        epsilon_BT=torch.full_like(logp, epsilon),
        drift_coef=alpha,
        drift_cap=cap,
    )


def gradient(logp, old, advantage, **options):
    tensor = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    loss_of(tensor, old, advantage, **options).loss.backward()
    return tensor.grad


def test_on_policy_the_gradient_is_minus_the_advantage_over_the_tokens():
    assert torch.allclose(gradient([[-1.0, -2.0]], [[-1.0, -2.0]], [3.0]), torch.tensor([[-1.5, -1.5]], dtype=torch.float64))


def test_tokens_of_another_engine_weigh_by_their_ratio():
    logp, ones = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True), torch.ones(1, 2, dtype=torch.float64)
    made = cpgd_loss(
        logp, logp.detach(), torch.tensor([3.0], dtype=torch.float64), ones, torch.tensor([2.0]), epsilon_BT=0.2 * ones, drift_coef=0.0,
        drift_cap=2.0, engine_ratio_BT=torch.tensor([[0.5, 2.0]], dtype=torch.float64),
    )  # fmt: skip
    made.loss.backward()
    assert torch.allclose(logp.grad, torch.tensor([[-0.75, -3.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "expected"),
    [
        (math.log(1.5), 1.0, 0.0),  # above the clip and still rewarded: no more
        (math.log(1.5), -1.0, 1.0),  # above the clip, punished: back down
        (math.log(0.5), -1.0, 0.0),  # below the clip and still punished: no more
        (math.log(0.5), 1.0, -1.0),  # below the clip, rewarded: back up
        (math.log(1.1), 1.0, -1.0),  # inside
        (math.log(0.82), -1.0, 1.0),  # inside below, too: the bound is ln(1−ε) = −0.22, and not −ln(1+ε) = −0.18
        (math.log(0.79), -1.0, 0.0),
        (math.log(1.21), 1.0, 0.0),
    ],
)
def test_the_clip_stops_the_favoured_side_alone(log_ratio, advantage, expected):
    assert gradient([[log_ratio - 1]], [[-1.0]], [advantage]).item() == pytest.approx(expected)


def test_the_drift_gradient_is_the_capped_ratio_minus_one():
    for ratio, expected in ((1.0, 0.0), (2.5, 1.5), (10.0, 2.0), (0.5, -0.5)):
        found = gradient([[math.log(ratio)]], [[0.0]], [0.0], alpha=0.1).item()
        assert found == pytest.approx(0.1 * expected)  # descending it pushes a ratio above 1 down, one below 1 up


def test_inside_the_clip_the_gradient_is_that_of_finite_differences():
    old, advantage, logp = [[-1.0, -0.5], [-2.0, -0.1]], [0.7, -1.3], [[-1.05, -0.45], [-1.95, -0.12]]
    analytic = gradient(logp, old, advantage)
    step = 1e-6
    for i in range(2):
        for j in range(2):
            up, down = [row[:] for row in logp], [row[:] for row in logp]
            up[i][j] += step
            down[i][j] -= step
            slope = (loss_of(up, old, advantage).loss - loss_of(down, old, advantage).loss) / (2 * step)
            assert analytic[i, j].item() == pytest.approx(slope.item(), rel=1e-6)


def test_the_loss_is_the_mean_over_groups_of_the_token_mean_however_it_is_split():
    logp, advantage = [[-0.9, -1.2, 0.0], [-0.4, 0.0, 0.0], [-2.0, -1.0, -3.0], [-1.0, -1.0, 0.0]], [1.0, -1.0, 0.5, -0.5]
    old = [[-1.0, -1.1, 0.0], [-0.5, 0.0, 0.0], [-2.1, -1.0, -2.9], [-1.0, -1.1, 0.0]]
    mask = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]
    denominators = [3 * 2, 3 * 2, 5 * 2, 5 * 2]  # tokens of the group × groups
    whole = loss_of(logp, old, advantage, mask=mask, denominator=denominators).loss
    parts = sum(loss_of([logp[i]], [old[i]], [advantage[i]], mask=[mask[i]], denominator=[denominators[i]]).loss for i in range(4))
    by_hand = -((0.1 - 0.1) * 1 + 0.1 * -1) / 3 / 2 - ((0.1 + 0 - 0.1) * 0.5 + (0.0 + 0.1) * -0.5) / 5 / 2
    assert whole.item() == pytest.approx(parts.item()) == pytest.approx(by_hand)


def test_clip_share_and_drift_are_measured():
    parts = loss_of([[math.log(1.5), 0.0]], [[0.0, 0.0]], [1.0])
    assert parts.clip_share.item() == 0.5
    assert parts.drift.item() == pytest.approx((1.5 - 1 - math.log(1.5)) / 2)
    assert parts.log_ratio.item() == pytest.approx(math.log(1.5) / 2)


def test_the_reference_kl_is_the_official_scripts_k3():
    """exp(ref − new) − 1 − (ref − new), averaged as the loss averages tokens; its gradient is 1 − exp(ref − new)."""
    logp = torch.tensor([[-1.2, -0.5, -9.0]], dtype=torch.float64, requires_grad=True)
    found = reference_kl(logp, torch.tensor([[-1.0, -0.9, 0.0]]), torch.tensor([[1, 1, 0]]), torch.tensor([4.0]))
    assert found.item() == pytest.approx((math.exp(0.2) - 1.2 + math.exp(-0.4) - 0.6) / 4, abs=1e-7)
    found.backward()
    assert logp.grad.tolist()[0] == pytest.approx([(1 - math.exp(0.2)) / 4, (1 - math.exp(-0.4)) / 4, 0.0], abs=1e-7)


def test_tight_to_loose_widths():
    found = epsilon_schedule(torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1]]), 0.2, 0.5)
    assert torch.allclose(found, torch.tensor([[0.125, 0.15, 0.175, 0.2], [0.15, 0.2, 0.2, 0.2], [0.15, 0.15, 0.15, 0.2]]))
    assert torch.allclose(epsilon_schedule(torch.ones(1, 4), 0.2, 1.0), torch.full((1, 4), 0.2))


def test_the_overlong_penalty_falls_in_a_line():
    found = overlong_penalty(torch.tensor([10, 60, 80, 100, 120]), limit=100, buffer=40, factor=0.5)
    assert found.tolist() == pytest.approx([0.0, 0.0, -0.25, -0.5, -0.5])
    assert overlong_penalty(torch.tensor([100]), 100, 0, 1.0).tolist() == [0.0]


def test_group_mean_weightings():
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    assert torch.allclose(group_mean(reward, "equal")[0], torch.tensor([0.5, -0.5, -0.5, 0.5]))
    root = math.sqrt(3 / 4)  # the sample's deviation, as in TRL, siiRL and LightRFT: √(G/(G−1)) of the population's
    assert torch.allclose(group_mean(reward, "std")[0], torch.tensor([root, -root, -root, root]), atol=1e-4)
    trl = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
    assert torch.allclose(group_mean(reward, "std"), trl)
    assert torch.allclose(group_mean(reward, "clip_filter")[0], torch.tensor([0.75, -0.75, -0.75, 0.75]))  # 3 groups, 2 of them vary
    for weighting in ("equal", "std", "clip_filter"):
        assert (group_mean(reward, weighting)[1] == 0).all()


def test_the_weight_for_groups_without_a_signal_is_capped():
    reward = torch.cat([torch.tensor([[1.0, 0.0]]), torch.ones(9, 2)])
    assert torch.allclose(group_mean(reward, "clip_filter")[0], torch.tensor([1.5, -1.5])), "1 of 10 groups varies: 3, not 10"
    assert torch.allclose(group_mean(reward, "clip_filter", cap=4.0)[0], torch.tensor([2.0, -2.0]))
    assert torch.allclose(group_mean(reward[:2], "clip_filter")[0], torch.tensor([1.0, -1.0])), "1 of 2: 2"


def test_the_deviation_is_that_of_the_scored_replies():
    found = group_mean(torch.tensor([[1.0, NAN, 0.0, 0.5]]), "std")
    assert torch.allclose(found, torch.tensor([[1.0, 0.0, -1.0, 0.0]]), atol=1e-5), "three of them: the root of 0.5/2"


def test_an_unscored_completion_moves_nothing_and_no_one():
    found = group_mean(torch.tensor([[1.0, NAN, 0.0]]), "equal")
    assert torch.allclose(found, torch.tensor([[0.5, 0.0, -0.5]]))
    assert (group_mean(torch.tensor([[NAN, NAN]]), "std") == 0).all()
    assert torch.isfinite(
        canon(
            torch.tensor([[1.0, NAN, 0.0, 1.0]]),
            torch.tensor([[1, 2, 3, 4]]),
            torch.tensor([[True, False, False, True]]),
            mu=1.0,
            alpha=0.9,
        )
    ).all()


def test_canon_by_hand():
    reward, length = torch.tensor([[1.0, 0.0, 1.0, 1.0]]), torch.tensor([[10, 40, 30, 20]])
    correct = reward > 0.5
    # short half: 10 and 20 (rewards 1, 1), long half: 30 and 40 (rewards 1, 0); m_S = 1, m_L = 0.5
    assert torch.allclose(canon(reward, length, correct, mu=1.0, alpha=1.0), torch.tensor([[0.5, -1.0, 0.0, 0.5]]))
    # alpha = 0.5: long right 0.5·1 − 1 = −0.5; short right 1 − 0.5·0.5 = 0.75; long wrong −1 either way
    assert torch.allclose(canon(reward, length, correct, mu=1.0, alpha=0.5), torch.tensor([[0.75, -1.0, -0.5, 0.75]]))


def test_canon_at_one_half_is_proportional_to_the_centred_reward():
    generator = torch.Generator().manual_seed(0)
    reward, length = torch.rand(5, 8, generator=generator), torch.randint(1, 100, (5, 8), generator=generator)
    found = canon(reward, length, reward > 0.5, mu=0.5, alpha=1.0)
    assert torch.allclose(found, reward - reward.mean(1, keepdim=True), atol=1e-6)


def test_canon_ties_are_split_in_the_given_order():
    found = canon(
        torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[5, 5, 5, 5]]), torch.tensor([[True, True, False, False]]), mu=1.0, alpha=1.0
    )
    assert torch.allclose(found, torch.tensor([[1.0, 1.0, -1.0, -1.0]]))


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_brevity_never_pays_where_the_reply_is_not_right(alpha):
    refusals = torch.full((1, 4), 0.1)  # bare refusals earn 0.1 each: being the shorter one must not help
    found = canon(refusals, torch.tensor([[1, 2, 30, 40]]), torch.zeros(1, 4, dtype=torch.bool), mu=1.0, alpha=alpha)
    assert (found <= 1e-7).all()
    right = canon(torch.ones(1, 4), torch.tensor([[1, 2, 30, 40]]), torch.ones(1, 4, dtype=torch.bool), mu=1.0, alpha=alpha)
    assert (right[0, :2] > 0).all() and (right[0, 2:] < 0).all()


def test_ddca_is_zero_sum_among_the_right_and_silent_elsewhere():
    reward, length = torch.tensor([[1.0, 1.0, 1.0, 0.0]]), torch.tensor([[10, 20, 30, 5]])
    correct = reward > 0.5
    extra = ddca(reward, length, correct, beta=0.2) - ddca(reward, length, correct, beta=0.0)
    assert extra[0, :3].sum().item() == pytest.approx(0, abs=1e-6)
    assert extra[0, 0] > 0 > extra[0, 2] and extra[0, 3] == 0
    z = (10 - 20) / math.sqrt(200 / 2)
    sigmoid = 1 / (1 + math.exp(-z))
    assert extra[0, 0].item() == pytest.approx(-0.2 * (sigmoid - 0.5) * 3 / 4, abs=1e-5)


@pytest.mark.parametrize(("reward", "length"), [([1.0, 0, 0, 0], [1, 2, 3, 4]), ([1.0, 1, 0, 0], [7, 7, 3, 4])])
def test_ddca_vanishes_with_one_right_reply_or_equal_lengths(reward, length):
    reward = torch.tensor([reward])
    assert torch.equal(
        ddca(reward, torch.tensor([length]), reward > 0.5, beta=0.2), ddca(reward, torch.tensor([length]), reward > 0.5, beta=0.0)
    )


def test_groups_are_filtered_on_correctness_not_on_reward():
    groups = [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, NAN], [NAN, 0.0]]
    assert mixed_groups(torch.tensor(groups)).tolist() == [False, True, False, False, False]


def efficient(form="ddca", **settings):
    config = EfficientConfig(length_advantage=form, **settings)
    return EfficientObjective(TaskRewards({}, {}, FormatSettings(), LanguageSettings(), 0.5), config)


BOTH_FORMS = pytest.mark.parametrize("form", [{"form": "canon", "alpha": 0.5}, {"form": "ddca", "ddca_beta": 1.0}])
RIGHT = torch.ones(1, 4)
DECIMALS = torch.tensor([[0.991, 0.992, 0.993, 0.994]])


def test_the_spread_of_lengths_is_relative_to_their_mean_and_of_those_that_are_compared():
    length = torch.tensor([[90, 110, 5, 1000], [7, 7, 7, 7], [3, 9, 9, 9]])
    compared = torch.tensor([[True, True, False, False], [True] * 4, [True, False, False, False]])
    assert relative_spread(length, compared).squeeze(1).tolist() == pytest.approx([math.sqrt(200) / 100, 0.0, 0.0])


@BOTH_FORMS
def test_a_token_more_and_the_decimals_of_a_verifier_do_not_move_replies_that_are_all_right(form):
    objective = efficient(**form)
    for length in ([60, 60, 60, 60], [60, 61, 60, 62]):
        length = torch.tensor([length])
        assert not objective.wanted(RIGHT, length).any() and (objective.advantages(DECIMALS, length, RIGHT) == 0).all()
    papers = efficient(**form, filter_groups=False, min_length_spread=0)
    assert papers.wanted(RIGHT, length).all() and papers.advantages(DECIMALS, length, RIGHT).abs().max() > 0.4


@BOTH_FORMS
def test_among_right_replies_only_length_decides(form):
    length = torch.tensor([[90, 30, 80, 40]])
    found = efficient(**form).advantages(DECIMALS, length, RIGHT)
    assert efficient(**form).wanted(RIGHT, length).all()
    assert (found[0, [1, 3]] > 0.1).all() and (found[0, [0, 2]] < -0.1).all()
    assert torch.allclose(found, efficient(**form).advantages(DECIMALS.flip(1), length, RIGHT), atol=1e-2), "not the verifier's decimals"


@BOTH_FORMS
def test_where_right_and_wrong_meet_rewards_are_compared_and_where_all_is_wrong_nothing_is(form):
    length, mixed = torch.tensor([[60, 61, 60, 62]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    found = efficient(**form).advantages(mixed, length, mixed)
    assert efficient(**form).wanted(mixed, length).all() and (found[0, [0, 2]] > 0).all() and (found[0, [1, 3]] < 0).all()
    wrong, apart = torch.zeros(1, 4), torch.tensor([[10, 20, 90, 90]])
    assert not efficient(**form).wanted(wrong, apart).any() and (efficient(**form).advantages(DECIMALS / 9, apart, wrong) == 0).all()


@BOTH_FORMS
def test_a_reply_without_a_score_stays_out_of_both_comparisons(form):
    scores, right = torch.tensor([[0.9, NAN, 0.95, 1.0]]), torch.tensor([[1.0, NAN, 1.0, 1.0]])
    found = efficient(**form).advantages(scores, torch.tensor([[90, 30, 80, 20]]), right)
    assert torch.isfinite(found).all() and found[0, 3] > 0 and found[0, 1] == 0


def test_the_multiplier_rises_while_the_constraint_is_violated():
    one = Multiplier(0.1, threshold=0.9, step=0.1, low=1e-3, high=5.0, decay=0.0)
    assert one.update(0.4) == pytest.approx(0.1 * math.exp(0.1 * 0.5))
    assert one.update(1.0) == pytest.approx(0.1 * math.exp(0.1 * 0.5) * math.exp(-0.1 * 0.1))
    for _ in range(2000):
        one.update(0.0)
    assert one.value == 5.0 and one.pinned
    averaged = Multiplier(0.1, 0.9, 0.1, 1e-3, 5.0, decay=0.9)
    averaged.update(1.0)
    averaged.update(0.0)
    assert averaged.mean == pytest.approx(0.9)
    assert averaged.state() == {"value": averaged.value, "mean": averaged.mean}
    before = averaged.value
    assert averaged.update(NAN) == before


def test_the_multiplier_finds_the_price_on_a_bandit():
    """A policy that is reliable with probability λ/(1+λ): the multiplier must converge to where that is the threshold, at λ = 4."""
    one = Multiplier(0.1, threshold=0.8, step=0.5, low=1e-3, high=50.0, decay=0.5)
    for _ in range(400):
        one.update(one.value / (1 + one.value))
    assert one.value == pytest.approx(4.0, rel=1e-3)
