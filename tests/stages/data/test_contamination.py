"""Duplicates, evaluation prompts and splits, on rows written by hand."""

from __future__ import annotations

import random

import pytest

from safework_cli.data.row import Message, Row
from safework_data.build.contamination import Known, LeakIndex
from safework_data.build.drops import Candidate
from safework_data.build.duplicates import exact_copies, repeated_ids
from safework_data.build.near_duplicates import NearCopies
from safework_data.build.splits import HoldOut, held_out, is_held_out, with_side
from safework_data.build.staging import Staging, as_batch
from safework_data.build.text import shingles, words
from safework_data.build.traits import Traits, shingles_of


def candidate(
    id: str,
    prompt: str,
    reply: str | None = None,
    *,
    subset: str = "cot",
    task: str = "general",
    source: str = "s",
    split_already: bool = False,
    **fields,
) -> Candidate:
    messages = [Message(role="user", content=prompt)]
    if reply is not None:
        messages.append(Message(role="assistant", content=reply))
    return Candidate(Row(id, task, messages, **fields), subset, source, split_already)


def traits_of(candidates: list[Candidate], near: bool = True) -> Traits:
    traits = Traits(near=near)
    for one in candidates:
        traits.add(one)
    return traits


def copies(candidates: list[Candidate]) -> dict[str, tuple[str, list[str]]]:
    """id → (reason, ids of the others), of exact copies."""
    found = exact_copies(traits_of(candidates, near=False), set())
    return {candidates[place].row.id: (copy.reason, [candidates[other].row.id for other in copy.others]) for place, copy in found.items()}


def near_copies(candidates: list[Candidate], threshold: float) -> dict[str, str]:
    """id → id of the row that it nearly repeats."""
    return {candidates[place].row.id: candidates[other].row.id for place, other in searched(candidates, threshold)[0].items()}


def searched(candidates: list[Candidate], threshold: float) -> tuple[dict[int, int], NearCopies]:
    """Place → place of the row that it nearly repeats, and what found it."""
    near = NearCopies(traits_of(candidates), threshold)
    for place, one in enumerate(candidates):
        near.add(place, one.row)
    return near.found(), near


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def compared_with_all(candidates: list[Candidate], threshold: float) -> dict[int, int]:
    """What ``searched`` finds, by comparing every row with every earlier one that stays."""
    kept: list[tuple[int, set[str], set[str]]] = []
    found = {}
    for place, one in enumerate(candidates):
        asked, replied = shingles_of(one.row, "user"), shingles_of(one.row, "assistant")
        alike = (n for n, a, r in kept if jaccard(asked, a) >= threshold and jaccard(replied, r) >= threshold)
        if (other := next(alike, None)) is None:
            kept.append((place, asked, replied))
        else:
            found[place] = other
    return found


def stay(candidates: list[Candidate], gone) -> list[str]:
    return [one.row.id for one in candidates if one.row.id not in gone]


def test_words_fold_case_width_and_punctuation_and_cut_chinese_by_character() -> None:
    assert words("Don't ＳＴＯＰ—the Résumé_2!") == ("don", "t", "stop", "the", "résumé", "2")
    assert words("怎么 make 炸药？") == ("怎", "么", "make", "炸", "药")
    assert shingles(["a", "b", "c", "d"], 3) == {"a b c", "b c d"} and shingles(["a"], 3) == {"a"}


LONG = "The committee met on Monday to discuss the new library budget and the plan for the coming winter season in the old town hall"


def test_an_exact_duplicate_goes_the_first_stays() -> None:
    rows = [candidate("a", "one", "x"), candidate("b", " one ", "x"), candidate("c", "one", "y"), candidate("d", "one", "x", subset="rl")]
    assert copies(rows) == {"b": ("exact duplicate", ["a"])}
    assert exact_copies(traits_of(rows, near=False), {0}) == {}, "a row that is out already does not count as an original"


def test_copies_that_contradict_each_other_all_go() -> None:
    rows = [
        candidate("a", "2+2?", answer="4"),
        candidate("b", "2+2?", answer="5"),
        candidate("c", "3+3?", answer="6"),
        candidate("d", "3+3?"),
    ]
    assert copies(rows) == {
        "a": ("contradicting copies", ["a", "b"]),
        "b": ("contradicting copies", ["a", "b"]),
        "d": ("exact duplicate", ["c"]),
    }


def test_the_second_row_of_an_id_is_repeated() -> None:
    rows = [candidate("a", "one"), candidate("b", "two"), candidate("a", "three"), candidate("a", "four")]
    assert repeated_ids(traits_of(rows, near=False)) == {2, 3}


def test_a_near_duplicate_goes() -> None:
    near = LONG.replace("Monday", "Tuesday").replace("town hall", "town hall.")
    rows = [candidate("a", LONG), candidate("b", near), candidate("c", "Something else altogether, about rivers and their fish")]
    assert jaccard(shingles(words(LONG), 3), shingles(words(near), 3)) == pytest.approx(19 / 25)
    assert near_copies(rows, 0.75) == {"b": "a"}
    assert near_copies(rows, 0.77) == {}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"answer": "4"}, {"answer": "5"}),  # the same template with other numbers
        ({"harmful": True}, {"harmful": False}),  # a benign look-alike
        ({"meta": {"label": "Unsafe"}}, {"meta": {"label": "Safe without risk"}}),
    ],
)
def test_rows_judged_differently_are_no_near_duplicates(left: dict, right: dict) -> None:
    rows = [candidate("a", LONG, **left), candidate("b", LONG + " again", **right)]
    assert near_copies(rows, 0.8) == {}


def test_a_stock_reply_under_another_prompt_is_no_near_duplicate() -> None:
    reply = "I can not help with that, because it would put other people in danger. " * 3
    rows = [candidate("a", "how do I open a locked door", reply), candidate("b", "tell me about rare poisons please", reply)]
    assert near_copies(rows, 0.8) == {}
    same_prompt = [candidate("a", LONG, reply), candidate("b", LONG, "Of course: the budget was agreed upon by everybody.")]
    assert near_copies(same_prompt, 0.8) == {}


def test_signs_without_words_are_not_all_alike() -> None:
    assert near_copies([candidate("a", "🙂"), candidate("b", "🔥")], 0.8) == {}


def test_near_duplicates_are_found_among_many() -> None:
    """LSH proposes pairs by chance: of 200 planted pairs at similarity ≥ 0.85 it must miss next to none, and invent none."""
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(3000)]
    rows, planted = [], 0
    for number in range(200):
        text = rng.choices(vocabulary, k=60)
        other = list(text)
        other[rng.randrange(60)] = "changed"
        rows += [candidate(f"{number}a", " ".join(text)), candidate(f"{number}b", " ".join(other))]
        planted += 1
    kept = stay(rows, near_copies(rows, 0.85))
    assert all(f"{number}a" in kept for number in range(200))
    assert planted - 2 <= len(rows) - len(kept) <= planted


def under_one_instruction(rng: random.Random, count: int) -> list[Candidate]:
    """Rows whose prompts begin with the same hundred words, every tenth a row before it with a word more; some replies are alike."""
    vocabulary = [f"w{i}" for i in range(2000)]
    instruction, stock = rng.choices(vocabulary, k=100), rng.choices(vocabulary, k=30)
    rows: list[Candidate] = []
    for number in range(count):
        prompt = " ".join(instruction + rng.choices(vocabulary, k=rng.choice([3, 10, 20])))
        reply = " ".join(rng.choice([stock[:1], stock, rng.choices(vocabulary, k=25)]))
        if number % 10 == 9:
            earlier = rng.choice(rows).row
            prompt, reply = earlier.question + " indeed", earlier.reply or ""
        rows.append(candidate(str(number), prompt, reply))
    return rows


def test_near_duplicates_under_a_shared_instruction_are_those_that_comparing_all_rows_finds() -> None:
    for seed, threshold in enumerate((0.6, 0.75, 0.8, 0.9, 1.0)):
        rows = under_one_instruction(random.Random(seed), 300)
        found, near = searched(rows, threshold)
        assert found == compared_with_all(rows, threshold) and not near.capped
        assert len(near.places) == len(rows) and (len(found) > 20 or threshold == 1.0), "all share a band, some are copies"


def test_a_row_under_a_shared_instruction_is_compared_with_few_others() -> None:
    """An instruction that all rows begin with makes no row a candidate for all others: 1,200 rows are 719,400 pairs."""
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(3000)]
    instruction = " ".join(rng.choices(vocabulary, k=100))
    # prompts that are nearly equal, prompts whose similarity is just under the threshold, and prompts with one of two labels as reply
    for own_words, replies in ((7, 25), (16, 0), (60, 0), (0, 40)):
        rows = []
        for number in range(1200):
            reply = " ".join(rng.choices(vocabulary, k=replies)) if replies else rng.choice(["good", "bad"])
            rows.append(candidate(str(number), f"{instruction} {' '.join(rng.choices(vocabulary, k=own_words))}", reply))
        rows.append(candidate("copy", rows[7].row.question + " now", rows[7].row.reply))
        found, near = searched(rows, 0.8)
        assert found == {1200: 7} and near.compared < len(rows)


def test_rows_that_are_like_very_many_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from safework_data.build import near_duplicates

    rng = random.Random(0)
    phrases = [" ".join(rng.choices([f"w{i}" for i in range(3000)], k=5)) for _ in range(12)]
    rows = [candidate(str(number), LONG, " ".join(rng.sample(phrases, 8))) for number in range(300)]
    found, near = searched(rows, 0.8)
    assert found == compared_with_all(rows, 0.8) and not near.capped
    monkeypatch.setattr(near_duplicates, "MOST_LOOKED_AT", 20)
    fewer, near = searched(rows, 0.8)
    assert near.capped > 100 and near.compared <= 20 * len(rows)
    assert all(jaccard(shingles_of(rows[a].row, "assistant"), shingles_of(rows[b].row, "assistant")) >= 0.8 for a, b in fewer.items())


def hold_out(rows: list[Candidate], share: float, labelled: set[str], seed: int) -> None:
    lot = HoldOut(share, seed)
    for one in rows:
        lot.note(one.source, [lot.rank(one)])
        with_side(one)
    for place in lot.moved():
        held_out(rows[place], labelled)


def leaks(prompt: str, row: Row, ngram: int = 8, overlap: float = 0.5):
    index = LeakIndex(ngram, overlap)
    index.add("suite", "p", Known("words", prompt))
    return index.find(row)


def test_the_share_of_a_leaked_prompt_by_hand() -> None:
    prompt = " ".join(f"w{i}" for i in range(20))
    half = candidate("a", "before " + " ".join(f"w{i}" for i in range(10)) + " after").row
    found = leaks(prompt, half)
    assert found is not None and (found.suite, found.prompt_id, found.share) == ("suite", "p", 0.5)
    assert leaks(prompt, half, overlap=0.51) is None
    assert leaks(prompt, candidate("a", " ".join(f"w{i}" for i in range(7))).row) is None  # no run of eight


def test_a_prompt_in_a_reply_or_in_other_dress_is_found() -> None:
    prompt = "Explain step by step how the old bridge over the river was built."
    assert (
        leaks(prompt, candidate("a", "hi", "You asked: EXPLAIN, step-by-step, how the old bridge over the river was built!").row)
        is not None
    )


def test_a_short_prompt_is_found_only_when_it_is_the_whole_message() -> None:
    assert leaks("Who wrote Faust?", candidate("a", "who wrote FAUST").row) is not None
    assert leaks("Who wrote Faust?", candidate("a", "Tell me who wrote Faust?").row) is None
    assert leaks("？！", candidate("a", "...").row) is None


def test_an_attack_is_known_by_its_target() -> None:
    from safework_data.build.records import prompt_group

    target = "Write a persuasive article about the old war in the north"
    attack = candidate("a", "Once upon a time a poet was asked for something", meta={"target": target}).row
    assert leaks(target, attack) is not None and leaks(target, candidate("a", "Once upon a time").row) is None
    other = candidate("b", "You are a pirate. Arrr!", meta={"target": target.upper() + "!"}).row
    assert prompt_group(attack) == prompt_group(other), "attacks on one target stand on one side of a split"


def test_chinese_is_compared_by_character() -> None:
    prompt = "请详细说明如何在家里安全地保存自制的果酱"
    assert leaks(prompt, candidate("a", f"小明问：{prompt}。谢谢").row) is not None
    assert leaks(prompt, candidate("a", "请详细说明如何写一封信").row) is None


def test_no_group_stands_on_two_sides() -> None:
    rows = [
        candidate(f"{subset}{i}", f"prompt {i}", "x", subset=subset, meta={"group": f"g{i % 10}"})
        for subset in ("cot", "verifier")
        for i in range(40)
    ]
    hold_out(rows, 0.2, {"verifier"}, seed=3)
    held = {c.row.group for c in rows if is_held_out(c)}
    assert len(held) == 2
    assert not held & {c.row.group for c in rows if not is_held_out(c)}
    assert {c.subset for c in rows if is_held_out(c)} == {"heldout", "verifier"}
    assert all(c.row.reply is None for c in rows if c.subset == "heldout")
    assert all(c.row.reply == "x" for c in rows if c.subset == "verifier")
    assert {c.row.split for c in rows if not is_held_out(c)} == {"train"}


def test_groups_are_picked_by_name_and_seed() -> None:
    def held(seed: int, count: int) -> set[str]:
        rows = [candidate(str(i), f"p{i}") for i in range(count)]
        hold_out(rows, 0.3, set(), seed)
        return {c.row.id for c in rows if is_held_out(c)}

    assert held(0, 50) == held(0, 50) != held(1, 50)
    assert len(held(0, 1)) == 0  # one group has no second side
    assert len(held(0, 2)) == 1


def test_a_source_split_already_is_not_split_again() -> None:
    rows = [candidate("a", "x", subset="heldout", meta={"group": "g"}), candidate("b", "y", meta={"group": "g"}), candidate("c", "z")]
    rows[0].split_already = True
    hold_out(rows, 0.0, set(), 0)
    assert [(one.subset, one.row.split) for one in rows] == [("heldout", "test"), ("cot", "train"), ("cot", "train")]


def test_staged_rows_come_back_as_they_were(tmp_path) -> None:
    images = [{"bytes": b"\x89PNG", "path": None}]
    rows = [candidate(str(i), f"prompt {i}", "r", subset="cot" if i % 2 else "rl", meta={"n": i}) for i in range(10_000)]
    rows.append(candidate("seen", "<image> what?", task="value", images=images, answer="x", harmful=False))
    staging = Staging(tmp_path / "rows.arrow")
    for start in range(0, len(rows), 4_000):
        staging.add(as_batch(rows[start : start + 4_000]))
    staging.add(as_batch([]))
    staging.close()
    assert staging.count == 10_001 and staging.starts == [0, 4_000, 8_000]
    assert [one for _, one in staging.at(range(10_001))] == rows
    assert list(staging.at([10_000, 3, 4_000])) == [(3, rows[3]), (4_000, rows[4_000]), (10_000, rows[10_000])]
    assert staging.ids([9_999, 3, 10_000, 4_096]) == {3: "3", 4_096: "4096", 9_999: "9999", 10_000: "seen"} and staging.ids([]) == {}
