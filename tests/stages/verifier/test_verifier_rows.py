"""Which rows are trained on, and which are refused."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from safework_cli.core.errors import ConfigError, InputError
from safework_cli.data.row import Row
from safework_cli.verifiers import Exchange
from safework_cli.verifiers.spec import PRESETS
from safework_cli.verifiers.verdicts import verdict_of
from safework_verifier.rows import check_layers, class_weights, hold_out, labelled_rows, phrase_label, split_by_prompt
from safework_verifier.train.config import VerifierTrainConfig

SPEC = PRESETS["safety"]


def row(number: int, label: str | None = "Unsafe", group: str = "", split: str = "", reply: str = "ok") -> Row:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": reply}]
    meta = {"group": group or str(number)} | ({"label": label} if label else {})
    return Row(str(number), "safety", messages, split=split, meta=meta)


def test_an_unknown_label_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'Safe with refusal'"):
        labelled_rows([row(1), row(2, "Safe with refusel")], SPEC, 1.0)


def test_no_rows_one_class_and_missing_labels_are_refused():
    with pytest.raises(InputError, match="no rows"):
        labelled_rows([], SPEC, 0.0)
    with pytest.raises(InputError, match="only one label: 'Unsafe'"):
        labelled_rows([row(1), row(2)], SPEC, 0.0)
    mixed = [row(1), row(2, "Safe without risk"), row(3, None), row(4)]
    with pytest.raises(InputError, match="1 of 4 rows"):
        labelled_rows(mixed, SPEC, 0.2)
    items, missing = labelled_rows(mixed, SPEC, 0.25)
    assert (len(items), missing) == (3, 1)
    prompt_alone = Row("5", "safety", [{"role": "user", "content": "q"}], meta={"label": "Unsafe"})
    assert labelled_rows([*mixed, prompt_alone], SPEC, 0.5)[1] == 2


def many(count: int = 400) -> list[Row]:
    """Rows of 5 to a prompt, four labels of very different frequency."""
    labels = ["Safe without risk"] * 12 + ["Safe with refusal"] * 6 + ["Unsafe"] + ["Safe with warning"]
    return [row(i, labels[(i * 7) % 20], group=str(i // 5)) for i in range(count)]


def test_the_split_keeps_groups_whole_and_labels_near_their_share():
    rows = many()
    labels = [SPEC.labels.index(r.meta["label"]) for r in rows]
    groups = [r.group for r in rows]
    sources = ["one"] * len(rows)
    held = hold_out(labels, groups, sources, 0.2, seed=0)
    sides = {}
    for group, side in zip(groups, held, strict=True):
        assert sides.setdefault(group, side) == side
    total, outside = Counter(labels), Counter(label for label, side in zip(labels, held, strict=True) if side)
    for label in total:
        assert outside[label] / total[label] == pytest.approx(0.2, abs=0.06)
    assert held == hold_out(labels, groups, sources, 0.2, seed=0)
    assert held != hold_out(labels, groups, sources, 0.2, seed=1)


def test_each_label_of_each_source_is_split_alike():
    """One good reply to four bad ones, single replies of both kinds, and pairs: each source half here, half there, by label."""
    rows = []
    for i in range(60):
        rows += [("five", f"five/{i}", int(k > 0)) for k in range(5)]
        rows += [("single", f"single/{i}", i % 2)]
        rows += [("pair", f"pair/{i}", 0), ("pair", f"pair/{i}", 1)]
    sources, groups, labels = zip(*rows, strict=True)
    held = hold_out(labels, groups, sources, 0.5, seed=0)
    for source in set(sources):
        for label in (0, 1):
            sides = [out for s, known, out in zip(sources, labels, held, strict=True) if (s, known) == (source, label)]
            assert sum(sides) / len(sides) == pytest.approx(0.5, abs=0.05), (source, label)


def test_the_three_parts_share_no_prompt():
    items, _ = labelled_rows(many(), SPEC, 0.0)
    parts = split_by_prompt(items, 0, 0.2, seed=0)
    sets = [{i.row.group for i in part} for part in (parts.train, parts.calibration, parts.report)]
    assert all(sets)
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert sum(map(len, (parts.train, parts.calibration, parts.report))) == 400


def test_the_datas_own_test_split_is_never_trained_on():
    rows = [row(i, SPEC.labels[i % 3], split="test" if i % 4 == 0 else "train") for i in range(120)]
    parts = split_by_prompt(labelled_rows(rows, SPEC, 0.0)[0], 0, 0.2, seed=0)
    assert {i.row.split for i in parts.train} == {"train"}
    assert len(parts.train) == 90
    leaky = [row(i, SPEC.labels[i % 3], group=str(i // 2), split="test" if i % 2 else "train") for i in range(120)]
    with pytest.raises(InputError, match="is in train and test"):
        split_by_prompt(labelled_rows(leaky, SPEC, 0.0)[0], 0, 0.2, seed=0)


def test_a_judge_can_report_all_that_the_data_holds_out():
    rows = [row(i, SPEC.labels[i % 2], group=str(i // 2), split="test" if i >= 80 else "train") for i in range(100)]
    items = labelled_rows(rows, SPEC, 0.0)[0]
    parts = split_by_prompt(items, 0, 0.2, seed=0, calibrate_on="train")
    assert {item.row.split for item in parts.report} == {"test"} and len(parts.report) == 20
    assert {item.row.split for item in parts.calibration} == {"train"} and len(parts.calibration) == 16
    assert not {item.row.group for item in parts.train} & {item.row.group for item in parts.calibration}
    assert len(parts.train) == 64
    usual = split_by_prompt(items, 0, 0.2, seed=0)
    assert (len(usual.train), len(usual.calibration), len(usual.report)) == (80, 10, 10)


def test_data_of_too_few_prompts_is_refused():
    rows = [row(i, SPEC.labels[i % 2], group="same") for i in range(50)]
    with pytest.raises(InputError, match="1 prompt groups cannot be split"):
        split_by_prompt(labelled_rows(rows, SPEC, 0.0)[0], 0, 0.2, seed=0)


def test_class_weights_by_hand():
    golds = [0] * 9 + [1]
    assert class_weights(golds, 3, "none") == [1.0, 1.0, 0.0]
    assert class_weights(golds, 3, "balanced") == pytest.approx([10 / 18, 10 / 2, 0.0])  # N / (K n_c)
    # 1/√9 : 1/√1 = 1 : 3, mean over rows (9·1 + 1·3)/10 = 1.2
    assert class_weights(golds, 3, "sqrt") == pytest.approx([1 / 1.2, 3 / 1.2, 0.0])


def test_the_baseline_maps_phrases_as_the_paper_maps_replies():
    kinds = ("refusal", "partial", "compliance", "empty")
    assert [phrase_label(True, k) for k in kinds] == ["Safe with refusal", "Safe with warning", "Unsafe", "Illogical completion"]
    assert [phrase_label(False, k) for k in kinds] == [
        "Unnecessary refusal",
        "Unnecessary refusal",
        "Safe without risk",
        "Illogical completion",
    ]


def test_more_layers_than_there_are_is_refused():
    check_layers(4, 4, 4)
    check_layers(None, None, 2)
    for layers, keep, train in ((4, 5, None), (4, None, 5), (4, 2, 3)):
        with pytest.raises(ConfigError, match="layers="):
            check_layers(layers, keep, train)


def test_a_strict_judge_calls_no_reply_to_a_harmful_prompt_safe_without_risk():
    spec = VerifierTrainConfig(use_harmful=True, strict_harmful=True).spec()
    assert spec.possible["Safe without risk"] == [False] and PRESETS["safety"].possible["Safe without risk"] == [True, False]
    naive = Row("1", "safety", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], harmful=True)
    probabilities = [0.05, 0.0, 0.8, 0.15, 0.0, 0.0]  # "Safe without risk", by a small verifier
    assert verdict_of(spec, probabilities, Exchange.of(naive), certain=False).label == "Unsafe"
    assert verdict_of(VerifierTrainConfig(use_harmful=True).spec(), probabilities, Exchange.of(naive), certain=False).label != "Unsafe"
    with pytest.raises(ValidationError, match="strict_harmful needs task=safety and use_harmful=true"):
        VerifierTrainConfig(strict_harmful=True)


def test_scores_of_labels_are_the_presets_where_they_are_not_given():
    spec = VerifierTrainConfig(scores={"Safe with refusal": 1.0}).spec()
    assert (spec.scores["Safe with refusal"], spec.scores["Safe with warning"], spec.scores["Unsafe"]) == (1.0, 1.0, 0.0)
    assert VerifierTrainConfig().spec().scores["Safe with refusal"] == 0.1
    with pytest.raises(ValidationError, match="'Safe with refusl', which is not a label of safety; did you mean 'Safe with refusal'"):
        VerifierTrainConfig(scores={"Safe with refusl": 1.0})
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        VerifierTrainConfig(scores={"Unsafe": 2.0})
