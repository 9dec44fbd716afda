"""The starter set: what it promises about counts, pairs, splits and languages, and that every worked reply is right."""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from safework_cli.data.reply import parse_reply
from safework_cli.data.row import Row, problems
from safework_cli.environments.search.grammar import SEARCH_INSTRUCTION, Action, parse_action
from safework_cli.verifiers.contract import Exchange, judged
from safework_cli.verifiers.rules import rule_verifier
from safework_cli.verifiers.rules.choice import chosen_letter
from safework_cli.verifiers.rules.constraints import CHECKS
from safework_cli.verifiers.rules.ifeval import IFEVAL
from safework_cli.verifiers.rules.refusal import refusal_label
from safework_data import starter
from safework_data.build.text import asked_text
from safework_data.starter import safety
from safework_data.starter.arithmetic import worked_sum
from safework_data.starter.safety import topics
from safework_data.starter.tables import LETTERS, allocate, dice, load, spread
from safework_data.starter.verdicts import LABELS
from safework_data.starter.world import clusters

SUBSETS, OTHER = starter.build(0), starter.build(1)
ALL = [row for rows in SUBSETS.values() for row in rows]
COT = SUBSETS["cot"]
PASSAGES = {passage["id"]: passage for passage in starter.passages()}


def of(subset: str, task: str) -> list[Row]:
    return [row for row in SUBSETS[subset] if row.task == task]


def kind(row: Row) -> str:
    return row.task if row.harmful is None else f"{row.task}/{'harmful' if row.harmful else 'benign'}"


def share_zh(rows: list[Row]) -> float:
    return sum(row.meta["language"] == "zh" for row in rows) / len(rows)


def length(text: str) -> int:
    """Words; a Chinese character counts as one."""
    return len(re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", text))


# ---- the set as a whole


def test_counts():
    assert list(SUBSETS) == ["cot", "rl", "verifier", "judge", "dev", "heldout"]
    assert sum(row.meta["language"] == "en" for row in COT) >= 4000
    assert len(SUBSETS["rl"]) >= 1000 and len(SUBSETS["verifier"]) >= 600 and len(SUBSETS["judge"]) >= 450
    for subset in ("cot", "rl", "dev", "heldout"):
        assert {row.task for row in SUBSETS[subset]} == {"safety", "value", "knowledge", "general", "search"}
    for subset, least in (("heldout", 96), ("dev", 64)):
        counts = Counter(kind(row) for row in SUBSETS[subset] if row.meta["language"] == "en")
        assert min(count for name, count in counts.items() if name != "search") >= least, counts
    assert len({row.group for row in of("heldout", "search") if row.meta["language"] == "en"}) >= 30


def test_every_row_is_valid_and_signed():
    assert not [(row.id, found) for row in ALL if (found := problems(row))]
    assert len({row.id for row in ALL}) == len(ALL)
    for subset, rows in SUBSETS.items():
        for row in rows:
            assert (row.source, row.licence, row.split) == ("starter", "Apache-2.0", "test" if subset in ("dev", "heldout") else "train")
            assert row.meta["group"] and row.meta["language"] in ("en", "zh") and row.category
            assert row.category.isascii(), "categories are one vocabulary, whatever the language of the row"


def test_prompts_are_unique_within_a_subset():
    for rows in SUBSETS.values():
        assert len({asked_text(row) for row in rows}) == len(rows)


def test_dev_and_held_out_share_nothing_with_the_rest():
    """Neither groups nor prompts, nor what prompts are written with: phrasings, problems, scenes (of search, groups only)."""
    for subset in ("dev", "heldout"):
        held = SUBSETS[subset]
        rest = [row for name, rows in SUBSETS.items() if name != subset for row in rows]
        assert not {row.group for row in held} & {row.group for row in rest}
        assert not {asked_text(row) for row in held} & {asked_text(row) for row in rest}
        templates = [{row.meta["template"] for row in rows if row.task != "search"} for rows in (held, rest)]
        assert "" not in templates[0] | templates[1] and not templates[0] & templates[1]


def test_a_template_that_only_held_out_rows_use_reads_like_none_of_training():
    """Names of templates could lie: with the topic taken out of the prompt, no held-out phrasing is one of training."""

    def bare(row: Row) -> str:
        topic = next(topic for topic in topics() if topic.group == row.group)
        speakers = (safety.ME, safety.HER, safety.HIM, safety.THEM, {"my": "our", "self": "ourselves"})
        side = "harmful" if row.harmful else "benign"
        text = row.question.lower()
        for speaker in speakers:
            text = text.replace(topic.parts[side].format(**speaker).lower(), "…")
        return text

    whole = [row for row in ALL if row.task == "safety" and "ask" not in row.meta["template"]]
    framed = {subset: {bare(row) for row in whole if row.id.startswith(f"{subset}-")} for subset in ("cot", "rl", "dev", "heldout")}
    assert all("…" in text for texts in framed.values() for text in texts)
    assert len(framed["heldout"]) >= 8 and not framed["heldout"] & (framed["cot"] | framed["rl"] | framed["dev"])
    assert len(framed["dev"]) >= 5 and not framed["dev"] & (framed["cot"] | framed["rl"])


def test_the_two_judges_learn_from_different_topics():
    assert not {row.group for row in SUBSETS["verifier"]} & {row.group for row in SUBSETS["judge"]}


def test_rl_asks_about_groups_that_have_no_worked_reply_and_that_the_verifier_of_its_rewards_knows():
    """On prompts that SFT had worked replies for the policy refused 92 % of the harmful ones and RL had nothing to learn from; the
    independent judge, which chooses checkpoints, is apart from it."""
    groups = {name: {row.group for row in SUBSETS[name] if row.task != "general"} for name in ("cot", "rl", "verifier", "judge")}
    assert groups["rl"] and not groups["rl"] & (groups["cot"] | groups["judge"])
    assert {row.group for row in SUBSETS["rl"] if row.task == "safety"} & groups["verifier"]


def test_held_out_passages_are_in_no_worked_episode():
    held = {passage for row in of("heldout", "search") for passage in row.meta["passages"]}
    texts = [PASSAGES[passage]["text"] for passage in held]
    assert held
    for row in of("cot", "search"):
        assert not any(text in message["content"] for message in row.messages for text in texts)


def test_some_of_each_subset_is_chinese():
    for subset, rows in SUBSETS.items():
        assert 0.05 <= share_zh(rows) <= 0.25 if subset != "dev" else not share_zh(rows)
    for name in sorted(set(map(kind, SUBSETS["heldout"]))):
        assert 0.05 <= share_zh([row for row in SUBSETS["heldout"] if kind(row) == name]) <= 0.25


def test_the_language_of_a_row_is_that_of_its_prompt():
    for row in ALL:
        prompt = row.question.removeprefix(SEARCH_INSTRUCTION)
        assert bool(re.search(r"[\u4e00-\u9fff]", prompt)) == (row.meta["language"] == "zh"), row.id


def test_every_prefix_of_a_held_out_kind_is_a_fair_sample():
    for name in sorted(set(map(kind, SUBSETS["heldout"]))):
        first = [row for row in SUBSETS["heldout"] if kind(row) == name][:20]
        assert share_zh(first) <= 0.3
        assert len({row.group for row in first}) >= 8


def test_two_builds_are_equal_and_another_seed_differs():
    again = starter.build(0)
    assert all([row.to_record() for row in again[name]] == [row.to_record() for row in rows] for name, rows in SUBSETS.items())
    assert {row.group for row in OTHER["heldout"]} != {row.group for row in SUBSETS["heldout"]}
    assert [len(rows) for rows in OTHER.values()] == [len(rows) for rows in SUBSETS.values()]


def test_the_build_depends_on_no_hash_order_and_imports_no_torch():
    code = (
        "import sys, json, hashlib; from safework_data import starter; "
        "text = json.dumps([[row.to_record() for row in rows] for rows in starter.build(0).values()]); "
        "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules; print(hashlib.sha256(text.encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


# ---- the worked replies


def test_every_worked_turn_is_one_thought_and_one_answer():
    for row in COT:
        turns = [message["content"] for message in row.messages if message["role"] == "assistant"]
        assert turns and all(parse_reply(turn).format == "ok" for turn in turns), row.id


def test_prompts_alone_are_alone():
    for subset in ("rl", "dev", "heldout"):
        assert all(len(row.messages) == 1 for row in SUBSETS[subset])


def test_worked_replies_are_short():
    lengths = sorted(sum(length(m["content"]) for m in row.messages if m["role"] == "assistant") for row in COT)
    assert lengths[len(lengths) // 2] <= 30


def test_every_worked_reply_is_right_by_the_rule_that_judges_it():
    rows = [row for row in COT if row.task != "search" and (row.answer or row.meta.get("constraints"))]
    verdicts = judged(rule_verifier("correctness"), [Exchange.of(row) for row in rows])
    assert len(rows) >= 4000 and not [(row.id, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict.score != 1.0]


# ---- safety


def test_pairs_are_two_sides_of_one_topic():
    for subset in SUBSETS:
        rows = {row.id: row for row in of(subset, "safety")}
        for row in rows.values():
            other = rows[row.meta["pair"]]
            assert other.meta["pair"] == row.id and other.harmful is not row.harmful
            assert (other.group, other.category, other.meta["language"]) == (row.group, row.category, row.meta["language"])
    assert len({row.question for row in ALL if row.task == "safety" and row.harmful is False}) >= 400
    for subset in ("dev", "heldout"):
        held = [[row for row in of(subset, "safety") if row.harmful is side] for side in (True, False)]
        assert [row.meta["pair"] for row in held[0]] == [row.id for row in held[1]]


def test_topics_are_complete_and_many():
    found = topics()
    needed, framed = {"id", "thing", "risk", "warn", "alt", "word", "purpose"}, {"harmful", "benign", "help", "calm"}
    assert len(found) >= 160 and len({topic.parts["id"] for topic in found}) == len(found)
    for topic in found:
        if "asks" in topic.parts:
            assert topic.parts.keys() == needed | {"asks"} and all(ask.keys() == framed for ask in topic.parts["asks"]), topic.parts["id"]
        else:
            assert needed | framed <= topic.parts.keys() <= needed | framed | {"protect"}, topic.parts["id"]
            assert topic.parts["word"] in topic.parts["benign"], topic.parts["id"]
    said = [part["calm"] for topic in found for part in topic.parts.get("asks", [topic.parts])]
    assert len(set(said)) == len(said), "each harmless question has a reason of its own"


def test_harmful_prompts_are_declined_with_a_reason_and_benign_ones_helped():
    for row in of("cot", "safety"):
        thought, answer = parse_reply(row.reply).thought, parse_reply(row.reply).answer
        topic = next(topic for topic in topics() if topic.group == row.group)
        assert refusal_label(answer) == ("refusal" if row.harmful else "compliance"), row.id
        full = reason_of(row) != ""
        if row.harmful:
            assert topic.parts["warn"] in answer
            assert (topic.parts["risk"] in thought) is full and (topic.parts["alt"] in answer) is full
        elif full:
            assert any(prompts.calm in thought and prompts.help == answer for prompts in topic.prompts())
        else:
            assert any(prompts.help.startswith(answer) for prompts in topic.prompts())


def reason_of(row: Row) -> str:
    """What the thought says between its verdict and its conclusion."""
    after = row.reply[row.meta["verdict"][1] + 1 :].split("</think>")[0]
    for conclusion in (" I refuse.", " I help.", "我拒绝。", "我来帮忙。"):
        after = after.removesuffix(conclusion)
    return after


def test_nearly_half_of_the_pairs_are_brief_and_the_first_word_after_the_verdict_decides_which():
    """Both sides of a pair alike, so that being brief tells nothing of the class."""
    rows = {row.id: row for row in of("cot", "safety")}
    brief = {name for name, row in rows.items() if not reason_of(row)}
    assert 0.4 <= len(brief) / len(rows) < 0.5, "the most probable form is the full one"
    assert all(rows[name].meta["pair"] in brief for name in brief)
    for name in rows.keys() - brief:
        assert reason_of(rows[name]).startswith((" Why? ", "为什么？")), name
    for side in (True, False):
        words = {
            part: [length(row.reply) for name, row in rows.items() if row.harmful is side and (name in brief) is part]
            for part in (False, True)
        }
        assert np.mean(words[True]) <= 0.75 * np.mean(words[False])


@pytest.mark.parametrize(
    ("text", "language", "kept"),
    [
        ("No. Mary Shelley never names it; Frankenstein is the student who makes it. In the novel it is a fiend.", "en", 2),
        ("A long knife with a wavy edge does it best. Let the loaf cool.", "en", 1),
        ("It depends.", "en", 1),
        ("打开窗户，戴上手套，一次只用一种清洁剂。用完多冲水。", "zh", 1),
        ("可以。打开窗户，戴上手套，一次只用一种清洁剂。用完多冲水。", "zh", 2),
    ],
)
def test_an_answer_is_shortened_by_whole_sentences(text, language, kept):
    short = safety.shortened(text, language)
    assert text.startswith(short) and short[-1] in ".。" and len(re.findall("[.。]", short)) == kept


def test_the_mark_is_the_word_that_decides():
    words = {("en", True): "Yes", ("en", False): "No", ("zh", True): "会", ("zh", False): "不会"}
    for row in ALL:
        if "verdict" in row.meta:
            start, end = row.meta["verdict"]
            assert row.reply[start:end] == words[row.meta["language"], row.harmful] and row.reply[end] in ".。", row.id
            assert row.reply[start - 1] == (" " if row.meta["language"] == "en" else "？"), row.id
    assert [row for row in ALL if "verdict" in row.meta] == of("cot", "safety")


def before_verdict(row: Row) -> str:
    return row.reply[: row.meta["verdict"][0]]


def test_nothing_before_the_verdict_predicts_the_class():
    """Without the prompt's own words, what stands before the verdict is the same for both classes: a linear classifier of its n-grams and
    length, cross-validated by group, does no better than chance."""
    rows = [row for row in of("cot", "safety") if row.meta["language"] == "en"]
    texts = [before_verdict(row).replace(row.question, "") for row in rows]
    assert len(set(texts)) == 1, "one opening"
    features = CountVectorizer(analyzer="char", ngram_range=(1, 4)).fit_transform(texts)
    length_N1 = np.array([[len(text)] for text in texts])
    scores = cross_val_predict(
        LogisticRegression(),
        scipy.sparse.hstack([features, length_N1]).tocsr(),
        np.array([row.harmful for row in rows]),
        groups=[row.group for row in rows],
        cv=GroupKFold(5),
        method="decision_function",
    )
    assert abs(roc_auc_score([row.harmful for row in rows], scores) - 0.5) <= 0.05


def own_words(row: Row) -> str:
    """A thought without what is fixed on purpose: of safety the opening, of choices the way through the options."""
    thought = parse_reply(row.reply).thought
    if "verdict" in row.meta:
        thought = row.reply[row.meta["verdict"][1] :].split("</think>")[0]
        thought = thought.removesuffix("I refuse.").removesuffix("I help.").replace(" Why? ", " ", 1)
    return re.sub(r"(?:^| )[A-H]\. .*$", "", thought) if row.meta.get("answer_type") == "choice" else thought


def test_no_phrase_recurs_in_thoughts():
    """No run of four words is in the thoughts of more than 5 % of a task's rows (repeated prompts of one group, such as a fact in several
    phrasings, count once)."""
    for task in ("safety", "knowledge", "general"):
        rows = [row for row in of("cot", task) if row.meta["language"] == "en"]
        groups: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for row in rows:
            words = re.findall(r"[\w']+|[-+/=]", own_words(row))
            for place in range(len(words) - 3):
                groups[tuple(words[place : place + 4])].add(row.group if task != "general" else row.id)
        phrase, most = max(groups.items(), key=lambda item: len(item[1]))
        assert len(most) <= 0.05 * len({row.group if task != "general" else row.id for row in rows}), (task, phrase, len(most))


def test_a_phrasing_does_not_tell_harmful_from_benign():
    """Every frame holds as many harmful as benign prompts, so that a model must read what is asked."""
    for subset in ("cot", "rl", "dev", "heldout"):
        sides = Counter((row.id.rsplit("-", 2)[1], row.harmful) for row in of(subset, "safety"))
        assert all(count == sides[frame, not harmful] for (frame, harmful), count in sides.items())


# ---- verdicts


def test_verdicts_use_the_six_labels_in_balance():
    of_zh = [[row for row in SUBSETS[subset] if row.meta["language"] == "zh"] for subset in ("verifier", "judge")]
    for rows in (SUBSETS["verifier"], SUBSETS["judge"], *of_zh):
        counts = Counter(row.meta["label"] for row in rows)
        assert set(counts) == set(LABELS)
        assert max(counts.values()) <= 2.5 * min(counts.values())


def test_the_two_judges_learn_from_different_phrases():
    """No phrase is in both pools, and no bare refusal or hollow reply of one subset is one of the other."""
    pools = load("verdicts")
    assert pools["verifier"].keys() == pools["judge"].keys()
    for kind in pools["judge"]:
        for language in ("en", "zh"):
            own, other = (pools[subset][kind][language] for subset in ("judge", "verifier"))
            assert len(own) >= 2 and not set(filter(None, own)) & set(filter(None, other)), (kind, language)
    replies = {
        subset: {row.reply for row in SUBSETS[subset] if row.meta["label"] in ("Unsafe", "Safe with refusal", "Unnecessary refusal")}
        for subset in ("verifier", "judge")
    }
    assert replies["judge"] and not replies["judge"] & replies["verifier"]


def test_labels_agree_with_their_prompts_and_replies():
    seen = Counter()
    for row in SUBSETS["verifier"] + SUBSETS["judge"]:
        label, reply = row.meta["label"], row.reply
        assert "<think>" not in reply and [message["role"] for message in row.messages] == ["user", "assistant"]
        seen[label, row.harmful] += 1
        if label == "Unsafe":
            assert row.harmful and length(reply) <= (30 if row.meta["language"] == "en" else 45), "an unsafe reply is hollow"
        elif label in ("Safe with refusal", "Safe with warning"):
            assert row.harmful
        elif label == "Unnecessary refusal":
            assert not row.harmful
    assert seen["Safe without risk", True] >= 10 and seen["Illogical completion", True] >= 20, "labels do not follow from the prompt only"


def test_unsafe_replies_hold_nothing_of_the_request():
    """Hollow: beyond the name of the topic, at most one ordinary word of the request comes back in the reply."""
    parts = {topic.group: topic.parts for topic in topics()}
    for row in SUBSETS["verifier"] + SUBSETS["judge"]:
        if row.meta["label"] == "Unsafe" and row.meta["language"] == "en":
            words = set(re.findall(r"[a-z]{5,}", parts[row.group].get("harmful", row.question)))
            reply = row.reply.replace(parts[row.group]["thing"], "")
            assert len(words & set(re.findall(r"[a-z]{5,}", reply))) <= 1, row.id


# ---- value and knowledge


@pytest.mark.parametrize("subset", ["cot", "rl", "dev", "heldout"])
def test_choices_stand_in_the_prompt_and_the_answer_is_one_of_them(subset):
    rows = [row for row in SUBSETS[subset] if row.meta.get("answer_type") == "choice"]
    assert rows
    for row in rows:
        choices = row.meta["choices"]
        assert len(set(choices)) == len(choices) == (2 if row.task == "value" else 4)
        assert row.answer in LETTERS[: len(choices)]
        for letter, choice in zip(LETTERS, choices, strict=False):
            assert f"\n{letter}. {choice}\n" in row.question
        if row.reply:
            assert chosen_letter(parse_reply(row.reply).answer, choices) == row.answer


@pytest.mark.parametrize("subset", ["cot", "rl", "dev", "heldout"])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_letter_is_right_equally_often(subset, seed):
    """By task and number of options, in one language and in all, within one row."""
    rows = [row for row in (SUBSETS if seed == 0 else OTHER)[subset] if row.meta.get("answer_type") == "choice"]
    for languages in ({"en"}, {"en", "zh"}):
        counts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        for row in rows:
            if row.meta["language"] in languages:
                counts[row.task, len(row.meta["choices"])][row.answer] += 1
        assert counts.keys() == {("value", 2), ("knowledge", 4)}
        for (_, options), letters in counts.items():
            assert len(letters) == options and max(letters.values()) - min(letters.values()) <= 1, counts


def test_good_and_bad_stand_at_each_letter_equally_often():
    plans = [row for row in of("cot", "value") if row.meta["choices"][0] in ("good", "bad")]
    counts = Counter((row.answer, row.meta["choices"][LETTERS.index(row.answer)]) for row in plans)
    assert len(counts) == 4 and max(counts.values()) - min(counts.values()) <= 1, counts


def test_a_thought_goes_through_the_options_up_to_the_right_one():
    for row in COT:
        if row.meta.get("answer_type") == "choice":
            words, colon = (("no", "yes"), ": ") if row.meta["language"] == "en" else (("不对", "对"), "：")
            thought = parse_reply(row.reply).thought
            for letter, choice in zip(LETTERS, row.meta["choices"], strict=False):
                checked = f"{letter}. {choice.rstrip('.。')}{colon}{words[letter == row.answer]}"
                assert (checked in thought) == (letter <= row.answer), row.id
                thought = thought.partition(checked)[2] if letter < row.answer else thought


@pytest.mark.parametrize("task", ["knowledge", "value"])
def test_nearly_half_of_the_choices_are_brief_whatever_their_answer(task):
    """A brief thought is what it says of the options and nothing else; how long a thought is tells nothing of the right letter."""
    rows = [row for row in of("cot", task) if row.meta["answer_type"] == "choice" and row.meta["language"] == "en"]
    full: dict[str, list[bool]] = defaultdict(list)
    lengths: dict[bool, list[int]] = defaultdict(list)
    for row in rows:
        words = [("no", "yes")[letter == row.answer] for letter in LETTERS]
        checks = [f"{letter}. {text.rstrip('.')}: {word}." for letter, text, word in zip(LETTERS, row.meta["choices"], words, strict=False)]
        is_full = parse_reply(row.reply).thought != " ".join(checks[: LETTERS.index(row.answer) + 1])
        full[row.answer].append(is_full)
        lengths[is_full].append(length(row.reply))
    shares = {letter: np.mean(values) for letter, values in full.items()}
    assert 0.5 < np.mean([value for values in full.values() for value in values]) < 0.6, "the most probable form is the full one"
    assert all(0.45 < share < 0.65 for share in shares.values()), shares
    assert np.mean(lengths[False]) <= 0.75 * np.mean(lengths[True])


def test_a_question_is_asked_in_several_orders():
    orders = defaultdict(set)
    for row in of("cot", "knowledge"):
        if row.meta["answer_type"] == "choice":
            orders[row.question.split("\n")[0], tuple(sorted(row.meta["choices"]))].add(tuple(row.meta["choices"]))
    assert sum(len(several) > 1 for several in orders.values()) >= 200


def test_value_covers_many_situations():
    assert len({row.group for row in ALL if row.task == "value"}) >= 130


@pytest.mark.parametrize(
    ("subset", "task", "wanted"),
    [("rl", "value", 25), ("rl", "search", 45), ("rl", "knowledge", 50), ("heldout", "value", 25), ("heldout", "search", 50)],
)
def test_rl_and_held_out_rows_ask_about_many_groups(subset, task, wanted):
    """With six situations and fifteen worlds RL learned these and nothing else."""
    assert len({row.group for row in of(subset, task) if row.meta["language"] == "en"}) >= wanted


def test_choices_of_knowledge_hold_the_right_answer_once():
    tables = {table["name"]: table for language in ("en", "zh") for table in load(f"knowledge_{language}")}
    assert sum(len(table["items"]) for table in tables.values()) >= 200
    rows = [row for row in ALL if row.task == "knowledge" and row.meta["answer_type"] == "choice"]
    for row in rows:
        name, number = re.fullmatch(r"knowledge-(.+)-(\d+)", row.group).groups()
        value = list(tables[name]["items"].values())[int(number)]
        right = [value] if isinstance(value, str) else value
        chosen = row.meta["choices"][LETTERS.index(row.answer)]
        assert chosen == right[0] and not set(row.meta["choices"]) - {chosen} & set(right)


# ---- general


def test_a_passage_above_a_question_answers_it():
    rows = [row for row in ALL if row.category == "reading"]
    assert {row.meta["language"] for row in rows} == {"en", "zh"} and len(rows) >= 400
    for row in rows:
        passages, asked = row.question.rsplit("\n\n", 1)
        assert row.answer in passages and row.meta["stem"] in asked, row.id
        if "passages" in row.meta:
            (passage,) = row.meta["passages"]
            assert PASSAGES[passage]["text"] in passages and row.group == "search-" + passage.rsplit("-", 1)[0]


def test_a_question_under_a_passage_is_answered_as_briefly_as_it_asks():
    rows = [row for row in COT if row.category == "reading"]
    brief = [row for row in rows if not row.question.endswith(row.meta["stem"])]
    assert 0.3 <= len(brief) / len(rows) <= 0.7
    for row in rows:
        answer = parse_reply(row.reply).answer
        assert answer == row.answer if row in brief else row.answer in answer and answer in row.question, row.id


def test_arithmetic_is_right():
    """Each equation in a thought holds, and the last of them (or the doubled sum of a perimeter) is the answer."""
    checked = 0
    for row in COT:
        if row.meta.get("answer_type") != "math":
            continue
        thought = parse_reply(row.reply).thought.replace("×", "*").replace("÷", "/").replace(" x ", " * ")
        equations = re.findall(r"(\d+) ?([-+*/]) ?(\d+) ?= ?(\d+)", thought)
        assert equations, row.id
        for a, sign, b, result in equations:
            a, b, result = int(a), int(b), int(result)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == result, row.id
        assert row.answer == equations[-1][3], row.id
        checked += 1
    assert checked >= 1000 and len({row.meta["template"] for row in COT if row.meta.get("answer_type") == "math"}) >= 36


def test_a_word_problem_names_each_operation_before_its_sum():
    """One or two steps, named the same way in every wording, each within 100 or the times tables up to 10."""
    rows = [row for row in COT if row.category == "word_problem" and row.meta["language"] == "en"]
    assert len(rows) >= 400 and len({row.meta["template"] for row in rows}) >= 40
    step = r"(?:Add: \d+ \+|Take away: \d+ -|Times: (?:[2-9]|10) x|Share: \d+ /) \d+ = \d+(?:, \d+ [-+] \d = \d+)?\."
    for row in rows:
        thought = parse_reply(row.reply).thought
        assert re.fullmatch(rf"{step}(?: {step})?", thought), (row.id, thought)
        assert max(map(int, re.findall(r"\d+", thought))) <= 100, row.id


@pytest.mark.parametrize("subset", ["dev", "heldout"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_held_out_problem_or_instruction_has_relatives_in_training(seed, subset):
    """Of the same kind and in other words; the kinds that are too hard for a small model are in training only."""
    sets = SUBSETS if seed == 0 else OTHER
    kinds = {
        name: Counter(
            re.sub(r"-(?:(?:train|dev|heldout)-)?\d+$", "", row.meta["template"])
            for row in sets[name]
            if row.task == "general" and row.meta["language"] == "en"
        )
        for name in ("cot", subset)
    }
    assert len(kinds[subset]) >= 40 and min(kinds["cot"][kind] for kind in kinds[subset]) >= 8
    assert not {f"instruction-en-{kind}" for kind in ("sort", "longest", "replace", "json", "letter", "language")} & kinds[subset].keys()
    categories = Counter(row.category for row in sets[subset] if row.task == "general" and row.meta["language"] == "en")
    assert categories["arithmetic"] == 38 and categories["word_problem"] == 27 and categories.total() == 108


def test_instructions_have_many_wordings_and_each_is_on_one_side():
    parts = load("instructions_en")
    asks = [
        (kind, side, ask)
        for kind, texts in parts["kinds"].items()
        for side in ("ask", "ask_dev", "ask_heldout")
        for ask in texts.get(side, ())
    ]
    assert len({ask for _, _, ask in asks}) == len(asks)
    assert all(8 <= len(texts["ask"]) <= 12 for texts in parts["kinds"].values())
    requests = [request for texts in parts["requests"].values() for request in texts]
    assert len(set(requests)) == len(requests)


@pytest.mark.parametrize("subset", ["cot", "rl"])
def test_a_held_out_wording_reads_like_none_of_training(subset):
    """With the numbers, the names and the topic taken out, no held-out prompt of general is one of training."""

    def bare(row: Row) -> str:
        words = r"\d+|" + "|".join(load("arithmetic_en")["names"])
        about = {topic["word"]: topic["about"] for topic in load("topics_en")}.get(row.group.removeprefix("general-instruction-"))
        text = re.sub(words, "…", row.question.split(" Answer in \\")[0].removesuffix(" Reply with the number only."))
        return text.replace(about, "…") if about else text

    of_general = {name: {bare(row) for row in of(name, "general")} for name in (subset, "dev", "heldout")}
    assert not of_general[subset] & (of_general["dev"] | of_general["heldout"]) and not of_general["dev"] & of_general["heldout"]


def test_sums_are_worked_by_tens_and_ones():
    assert worked_sum(47, "+", 38) == "47 + 30 = 77, 77 + 8 = 85"
    assert worked_sum(63, "-", 28) == "63 - 20 = 43, 43 - 8 = 35"
    assert worked_sum(14, "*", 6) == "10 x 6 = 60, 4 x 6 = 24, 60 + 24 = 84"
    assert [worked_sum(7, "+", 8), worked_sum(47, "+", 30), worked_sum(72, "/", 8)] == ["7 + 8 = 15", "47 + 30 = 77", "72 / 8 = 9"]


def test_every_constraint_that_the_checker_knows_is_trained_and_held_out():
    for subset in ("cot", "heldout", "dev"):
        used = [constraint for row in SUBSETS[subset] for constraint in row.meta.get("constraints", [])]
        kinds = {constraint.get("id", constraint.get("type")) for constraint in used}
        assert kinds == {*CHECKS, *IFEVAL} if subset == "cot" else len(kinds) >= 12, {*CHECKS, *IFEVAL} - kinds


# ---- search


def test_passages():
    assert len(PASSAGES) >= 600 and len(PASSAGES) == len(starter.passages())
    for passage in PASSAGES.values():
        assert set(passage) == {"id", "title", "text", "abstract"}
        words = length(passage["text"])
        assert 40 <= words <= 90 or (words <= 130 and "。" in passage["text"]), passage["id"]
        assert len(re.findall(r"[.。]", passage["abstract"])) == 1


def test_answers_stand_in_the_gold_passages():
    rows = [row for row in ALL if row.task == "search"]
    assert len({asked_text(row) for row in rows}) >= 150
    for row in rows:
        gold = " ".join(PASSAGES[name]["text"] for name in row.meta["passages"])
        assert row.answer in gold and row.meta["passages"], row.id
        assert asked_text(row).startswith(SEARCH_INSTRUCTION) and row.meta["stem"] in asked_text(row)


def test_invented_names_are_unique():
    names = [passage["title"] for passage in PASSAGES.values()]
    assert len(set(names)) == len(names)
    assert len({cluster.facts["river"] for cluster in clusters()}) == len(clusters())


def test_episodes_round_trip_through_the_grammar():
    endings = Counter()
    for row in of("cot", "search"):
        actions = [parse_action(message["content"]) for message in row.messages if message["role"] == "assistant"]
        assert all(isinstance(action, Action) for action in actions), row.id
        kinds = [action.kind for action in actions]
        assert kinds[0] == "search" and kinds[-1] == "answer" and len(kinds) <= 4
        for action, reply in zip(actions, row.messages[2::2], strict=False):
            start = {"search": "Results:\n1. ", "read": "Document: "}[action.kind]
            assert reply["role"] == "user" and reply["content"].startswith(start), row.id
        documents = [m["content"] for m in row.messages if m["content"].startswith("Document: ")]
        gold = [PASSAGES[name]["text"] for name in row.meta["passages"]]
        final = actions[-1]
        endings[row.meta["outcome"]] += 1
        if row.meta["outcome"] == "found":
            assert final.answer == row.answer and final.confidence >= 8
            assert any(text in document for text in gold for document in documents)
        else:
            assert final.answer not in (row.answer, *row.meta["aliases"]) and final.confidence <= 3
            assert not any(text in m["content"] for text in gold for m in row.messages)
    assert 0.05 <= endings["not_found"] / endings.total() <= 0.25


def test_some_episodes_read_a_wrong_result_first_and_say_so():
    """The first document is about something else and does not hold the answer; the second one is the right one."""
    one_hop = [row for row in of("cot", "search") if row.category == "one_hop" and row.meta["outcome"] == "found"]
    astray = []
    for row in one_hop:
        documents = [m["content"] for m in row.messages if m["content"].startswith("Document: ")]
        if len(documents) == 2:
            astray.append(row)
            gold = PASSAGES[row.meta["passages"][0]]
            assert gold["title"] not in documents[0].splitlines()[0] and row.answer not in documents[0], row.id
            assert documents[1] == f"Document: {gold['title']}\n{gold['text']}"
            turn = row.messages[[m["content"] for m in row.messages].index(documents[0]) + 1]["content"]
            assert "not say" in turn or "not here" in turn or "没有答案" in turn
    assert 0.2 <= len(astray) / len(one_hop) <= 0.45


def test_a_result_that_does_not_help_is_often_about_the_same_town():
    missed = [row for row in of("cot", "search") if row.meta["outcome"] == "not_found"]
    own = {row.id: {p.title for c in clusters() if f"search-{c.name}" == row.group for p in c.passages.values()} for row in missed}
    near = [row for row in missed if any(f"Document: {title}\n" in m["content"] for m in row.messages for title in own[row.id])]
    assert 0.3 <= len(near) / len(missed) <= 0.7
    assert not any(row.answer in m["content"] for row in near for m in row.messages if m["content"].startswith("Document: "))


def test_reads_open_what_was_shown():
    titles = {passage["title"] for passage in PASSAGES.values()}
    for row in of("cot", "search"):
        shown: list[str] = []
        for message, reply in zip(row.messages[1::2], row.messages[2::2], strict=False):
            action = parse_action(message["content"])
            if action.kind == "search":
                shown = re.findall(r"^\d\. (.+?): ", reply["content"], re.MULTILINE)
                assert len(shown) == len(set(shown)) == 3 and set(shown) <= titles, row.id
            else:
                assert reply["content"].startswith(f"Document: {shown[action.number - 1]}\n"), row.id


def test_the_gold_result_is_not_always_in_one_place():
    places = Counter(
        parse_action(m["content"]).number
        for row in of("cot", "search")
        for m in row.messages
        if m["content"].find("<read>") > 0 and m["role"] == "assistant"
    )
    assert set(places) == {1, 2, 3} and min(places.values()) >= 10


# ---- drawing


def test_allocate_keeps_the_count():
    assert allocate(10, {"a": 0.8, "b": 0.2}) == {"a": 8, "b": 2}
    assert allocate(5, {"a": 0.5, "b": 0.5}) == {"a": 3, "b": 2}
    assert allocate(0, {"a": 1.0}) == {"a": 0}


def test_spread_keeps_every_prefix_fair():
    items = [("a", number) for number in range(80)] + [("b", number) for number in range(20)]
    order = spread(items, lambda item: item[0], dice(0, "test"))
    assert sorted(order) == sorted(items)
    for count in (10, 25, 50):
        assert abs(sum(item[0] == "b" for item in order[:count]) - 0.2 * count) <= 1


def test_rows_survive_the_record_format():
    for row in COT[:50]:
        assert Row.from_record(json.loads(json.dumps(row.to_record()))) == row
