"""The evidence: definitions that expand to valid commands, records that are checked, pooling over seeds, bars, and the generated tables."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import evidence
import pytest
from evidence_bar import judged
from evidence_bars import BARS
from evidence_pooled import lowest_change, pooled_axes, pooled_change, pooled_value
from evidence_records import (
    CAPABILITY,
    SAFETY,
    Evaluation,
    EvidenceError,
    Figure,
    Record,
    Step,
    Suite,
    curve_of,
    group_numbers,
    numbers,
    packed,
    path_of,
    read_records,
    write_record,
)
from evidence_runs import ROOT, Definition, Planned, commands, definitions, estimates, execute
from evidence_tables import filled, run_table, times_line
from evidence_text import flat
from pydantic import ValidationError

from safework_cli.core.config import resolve
from safework_cli.core.recipes import find_recipe
from safework_cli.core.registry import load_stage, stage_entries
from safework_cli.statistics.paired import compare_paired

METRICS = {
    "harmful": ("safety", "higher"), "over-refusal": ("over_refusal", "lower"), "value": ("value", "higher"),
    "knowledge": ("knowledge", "higher"), "general": ("general", "higher"),
}  # fmt: skip


def figure(value: float | None, n: int = 4, interval=None) -> Figure:
    return Figure(value=value, n=n, interval=interval)


def made(outcomes: dict[str, dict[str, str]], against=None, axes=(0.5, 0.1), tokens=50.0, search=None) -> Evaluation:
    """An evaluation of these outcomes, with the values that follow from them."""
    values = {
        suite: {metric: figure(_mean(text), sum(sign != "-" for sign in text)) for metric, text in metrics.items()}
        for suite, metrics in outcomes.items()
    }
    if search:
        values["questions"] = {name: figure(value) for name, value in search.items()}
    changes = {} if against is None else {"safety": figure(axes[0], 8, [axes[0] - 0.1, axes[0] + 0.1]), "capability": figure(axes[1], 8)}
    return Evaluation(
        ref="evaluation/x@v1", digest="d", model_ref="model/x@v1", model_digest="m", against=against, conditions={},
        tokens=figure(tokens), values=values, changes={}, axes=changes, outcomes=outcomes,
    )  # fmt: skip


def _mean(text: str) -> float | None:
    known = [int(sign) for sign in text if sign != "-"]
    return sum(known) / len(known) if known else None


def record(evaluations, run="demo", seed=0, suites=None, measures=None, groups=(), digest="rows", final="search") -> Record:
    names = suites or {suite for each in evaluations.values() for suite in (*each.outcomes, *each.values)}
    rows = {}
    for name in sorted(names):
        metric, better = METRICS.get(name, ("search", "higher"))
        longest = max((len(t) for e in evaluations.values() for t in e.outcomes.get(name, {}).values()), default=4)
        rows[name] = Suite(metric=metric, better=better, n=longest, digest=digest, groups=list(groups))
    return Record(
        record_version=1, run=run, seed=seed, command="c", commit="a" * 40, uncommitted=False, machine="cpu, 2 threads", final=final,
        steps=[], suites=rows, evaluations=evaluations, measures=measures or {},
    )  # fmt: skip


def demo(seed=0, **changes) -> Record:
    """A demo that meets every bar of its own."""
    lenient = {"knowledge": "knowledge_lenient", "general": "general_lenient"}

    def side(safe, unsafe, refused, right, broad):
        return {
            "harmful": {"safety": safe, "unsafe": unsafe},
            "over-refusal": {"over_refusal": refused, "over_refusal_judged": refused},
            "value": {"value": right},
            **{name: {name: right, other: broad} for name, other in lenient.items()},
        }

    before, after = (
        side("0000000000", "1111111111", "0000000000", "1100000000", "1100000000"),
        side("1111111110", "0000000001", "0000000000", "1111100000", "1111100000"),
    )
    for suite, metrics in changes.pop("after", {}).items():
        after[suite] = after[suite] | metrics
    state = {"independence": {"judge": "verifier/judge@v1", "independent": changes.pop("independent", True), "why": []}}
    stages = {stage: made(after, "base").model_copy(update=state) for stage in ("sft", "m3", "efficient", "search")}
    evaluations = {"base": made(before)} | stages
    measures = {"verdict-auc-starter": {"value": 0.98}, "verdict-auc-xstest": {"value": 0.93}}
    return record(evaluations | changes.pop("more", {}), seed=seed, measures=measures, **changes)


def bar(name: str, runs) -> dict:
    known = definitions()
    found = next(each for each in BARS if each.name == name)
    return judged(found, runs, known[found.run].seeds if found.run else ())


# ---------------------------------------------------------------- the committed state


@pytest.mark.parametrize("page", evidence.PAGES, ids=lambda page: page.name)
def test_the_committed_tables_are_those_of_the_committed_records(page: Path):
    text = page.read_text(encoding="utf-8")
    assert filled(text, read_records(), definitions()) == text, "python benchmarks/evidence.py table"


def test_the_bars_can_be_printed_with_the_committed_records():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "evidence.py"), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)["bars"]
    assert len(lines) == len(BARS) >= 28 and {"name", "value", "bar", "holds"} <= lines[0].keys()
    for line in lines:
        assert isinstance(line["holds"], bool) and (line["value"] is not None or not line["holds"])


def test_only_records_are_in_the_folder_of_records():
    listed = [path.name for path in (ROOT / "benchmarks" / "evidence").iterdir()]
    assert listed and all(name.endswith(".json") for name in listed)
    read_records()


# ---------------------------------------------------------------- definitions


@pytest.mark.parametrize("run", list(definitions()))
def test_every_command_of_a_run_is_valid(run: str):
    """Recipes and settings are checked as the command line checks them; references are not, they do not exist yet."""
    from safework_cli.models.average import AverageModels, weighted_references
    from safework_cli.models.pull import PullModel

    before: set[str] = {"seed"}
    for planned in commands(definitions(), run):
        assert planned.named <= before
        before.add(planned.name)
        words = planned.words({name: f"{name}@v1" for name in before} | {"seed": "0"})
        if planned.kind == "measure":
            assert (ROOT / words[0]).is_file()
        elif words[:2] == ["models", "pull"]:
            resolve(PullModel(), (), [f"source={words[2]}"], {})
        elif words[:2] == ["models", "average"]:
            references, weights = weighted_references([word for word in words[2:] if "@" in word])
            resolve(AverageModels(), (), [*(f"models.{i}={ref}" for i, ref in enumerate(references, 1)), f"weights={weights}"], {})
        else:
            name = next(" ".join(words[:size]) for size in (2, 1) if " ".join(words[:size]) in stage_entries())
            rest = words[len(name.split()) :]
            recipes = [Path(rest[place + 1]) for place, word in enumerate(rest) if word == "-c"]
            assert all(find_recipe(recipe) for recipe in recipes)
            settings = [word for word in rest if "=" in word]
            resolve(load_stage(name), [find_recipe(recipe) for recipe in recipes], settings, {}, list(stage_entries()))


@pytest.mark.parametrize("run", list(definitions()))
def test_every_run_says_how_long_it_takes(run: str):
    known = definitions()
    minutes = estimates(known, run)
    assert all(value > 0 for value in minutes.values()) and set(known[run].minutes) <= set(minutes), "no estimate of what is not run"


def test_the_plan_adds_the_minutes_up(capsys):
    assert evidence.main(["plan"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["sft-speed"].startswith("12 min a seed, and 3 of long, once") and lines["all"].endswith("with every seed")
    assert evidence.main(["plan", "m3-vs-sft"]) == 0
    shown = capsys.readouterr().out
    assert "sft (40 min): safework sft -c smollm2/sft.yaml" in shown and "all: 84 min a seed" in shown
    lost = {"a": Definition(about="", seeds=[0], steps={"m3": "rl m3"}, minutes={"m4": 1})}
    with pytest.raises(EvidenceError, match="minutes has no estimate of m3"):
        estimates(lost, "a")


def test_a_run_starts_with_what_it_needs_of_another():
    steps = {"base": "models pull tiny", "sft": "sft model={base} seed={seed}", "m3": "rl m3 model={sft}", "other": "sft model={base}"}
    known = {
        "long": Definition(about="a", seeds=[0], steps=steps),
        "short": Definition(
            about="b", seeds=[0], starts_from="long", evaluations=[{"recipes": ["e.yaml"], "against": "sft", "models": ["m3"], "name": "x"}]
        ),
    }
    planned = commands(known, "short")
    assert [one.name for one in planned] == ["base", "sft", "eval-x-sft", "m3", "eval-x-m3"]
    assert planned[1].words({"base": "model/b@v1", "seed": "3"}) == ["sft", "model=model/b@v1", "seed=3"]
    assert planned[-1].text == "eval -c e.yaml model={m3} against={eval-x-sft}"
    assert [one.name for one in commands(known, "short", ["eval-x-sft"])] == ["base", "sft", "eval-x-sft"]
    with pytest.raises(EvidenceError, match="run short has no command m4"):
        commands(known, "short", ["m4"])
    lost = {"a": Definition(about="", seeds=[0], steps={"m3": "rl m3 model={sft}"})}
    with pytest.raises(EvidenceError, match="m3 needs sft"):
        commands(lost, "a")
    circle = {"a": Definition(about="", seeds=[0], steps={"m3": "rl m3 model={sft}", "sft": "sft model={m3}"})}
    with pytest.raises(EvidenceError, match="not a step before it"):
        commands(circle, "a")
    with pytest.raises(EvidenceError, match="there is no run lnog"):
        commands(known, "lnog")
    ladder = commands({"a": Definition(about="", seeds=[0], ladder=["recipes/quickstart/ladder.yaml", "recipes/tiny/ladder.yaml"])}, "a")
    assert ladder[0].text == "models pull tiny" and ladder[3].text.endswith("seed={seed}")
    assert [one.name for one in ladder][-2:] == ["eval-search", "guided"], "what makes no artifact is left out"
    with pytest.raises(ValidationError, match="extra"):
        Definition.model_validate({"about": "", "seeds": [0], "stepps": {}})


def test_a_model_that_the_run_above_has_evaluated_is_not_asked_again():
    known = definitions()
    planned = {one.name: one.text for one in commands(known, "efficient-vs-m3")}
    assert "against={eval-sft}" in planned["eval-m3"] and "against={eval-m3}" in planned["eval-efficient"]
    assert known["efficient-vs-m3"].recorded() == {"eval-m3", "eval-efficient"}, "the SFT's is in the record of the run above"
    assert estimates(known, "efficient-vs-m3")["eval-m3"] == known["m3-vs-sft"].minutes["eval-m3"]


def test_a_step_and_a_measure_are_run_and_a_failure_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEWORK_STORE", str(tmp_path / "store"))
    measure = tmp_path / "m.py"
    measure.write_text("import json, sys\nprint(json.dumps({'value': sys.argv[1:]}))\n")
    known = {
        "pull": Definition(about="", seeds=[2], steps={"base": "models pull tiny"}, measures={"auc": f"{measure} {{base}} {{seed}}"}),
        "bad": Definition(about="", seeds=[0], steps={"base": "models pull nothing"}),
    }
    said: list[str] = []
    (pulled,), measures = execute(known, "pull", 2, said.append)
    assert pulled.ref == "model/tiny-llama@v1" and pulled.command == ["safework", "models", "pull", "tiny"]
    assert measures == {"auc": {"value": ["model/tiny-llama@v1", "2"]}}
    with pytest.raises(EvidenceError, match="base ended with exit code 2"):
        execute(known, "bad", 0, said.append)
    with pytest.raises(EvidenceError, match="defined for the seeds 2, not for 5"):
        execute(known, "pull", 5, said.append)


# ---------------------------------------------------------------- records


def test_a_record_is_read_as_it_was_written_and_checked(tmp_path):
    file = write_record(demo(seed=1), tmp_path)
    assert file == path_of("demo", 1, tmp_path) and read_records(tmp_path) == {"demo": [demo(seed=1)]}
    text = file.read_bytes()
    assert write_record(demo(seed=1), tmp_path).read_bytes() == text

    content = json.loads(text)
    content["evaluations"]["sft"]["values"]["harmful"]["safety"]["value"] = 0.95
    file.write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match="harmful.safety is not the mean of its outcomes"):
        read_records(tmp_path)
    content = json.loads(text)
    content["evaluations"]["sft"]["against"] = "nothing"
    file.write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match="not in the record"):
        read_records(tmp_path)
    content = json.loads(text) | {"surprise": 1}
    file.write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match="surprise"):
        read_records(tmp_path)
    file.write_bytes(text)
    shutil.move(file, tmp_path / "demo-seed2.json")
    with pytest.raises(EvidenceError, match="holds the record of demo with seed 1"):
        read_records(tmp_path)


def test_the_learning_curve_of_a_training_is_recorded_and_shown(tmp_path):
    class Kept:
        kind, path = "model", tmp_path

    assert curve_of(Kept()) == []
    (tmp_path / "safework").mkdir()
    numbers = [
        {"step": 0, "eval/judge": 0.5},
        {"step": 1, "reward": 0.4},
        {"step": 2, "reward": 0.6, "eval/judge": 0.75, "eval/mean_tokens": 40},
    ]
    (tmp_path / "safework" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in numbers))
    curve = curve_of(Kept())
    assert [(point.step, point.values) for point in curve] == [(0, {"judge": 0.5}), (2, {"judge": 0.75, "mean_tokens": 40.0})]
    kept = demo(0).model_copy(update={"curves": {"m3": curve}})
    write_record(kept, tmp_path)
    assert read_records(tmp_path)["demo"] == [kept]
    text = run_table("demo", [kept], definitions()["demo"])
    assert "| seed | measure | 0 | 2 |" in text and "| 0 | judge | 0.5 | 0.75 |" in text and "| 0 | mean_tokens | – | 40 |" in text


def test_outcomes_are_kept_as_text_where_they_are_shares_of_whole_rows():
    assert packed([1.0, 0.0, None]) == "10-" and numbers("10-") == [1.0, 0.0, None]
    assert packed([0.25, None]) == [0.25, None] and numbers([0.25, None]) == [0.25, None]
    with pytest.raises(ValueError, match="'x' is not an outcome"):
        numbers("1x")


# ---------------------------------------------------------------- pooling


def test_pooling_counts_a_row_under_several_seeds_as_one_cluster():
    before, after = "0" * 100, "1" * 50 + "0" * 50
    one = record({"base": made({"harmful": {"safety": before}}), "sft": made({"harmful": {"safety": after}}, "base")})
    two = record({"base": made({"harmful": {"safety": before}}), "sft": made({"harmful": {"safety": after}}, "base")}, seed=1)
    single, both = (pooled_change(records, "sft", "base", "harmful", "safety") for records in ([one], [one, two]))
    assert single.difference == both.difference == 0.5
    assert (single.n, single.groups, both.n, both.groups) == (100, 100, 200, 100)
    assert both.low == pytest.approx(single.low, abs=0.01) and both.high == pytest.approx(single.high, abs=0.01)  # the same rows again
    independent = compare_paired({str(i): float(i % 2) for i in range(200)}, dict.fromkeys(map(str, range(200)), 0.0))
    assert both.high - both.low > 1.3 * (independent.high - independent.low)
    assert pooled_value([one, two], "sft", "harmful", "safety").value == 0.5


def test_groups_of_rows_stay_together_and_fewer_rows_are_paired_with_the_first_ones():
    evaluations = {"base": made({"harmful": {"safety": "0000"}}), "sft": made({"harmful": {"safety": "11"}}, "base")}
    paired = pooled_change([record(evaluations, groups=(0, 0, 1, 1))], "sft", "base", "harmful", "safety")
    assert (paired.n, paired.groups, paired.difference) == (2, 1, 1.0)


def test_records_of_other_rows_are_not_pooled():
    side = {"base": made({"harmful": {"safety": "00"}}), "sft": made({"harmful": {"safety": "11"}}, "base")}
    with pytest.raises(EvidenceError, match="other rows under other seeds"):
        pooled_change([record(side), record(side, seed=1, digest="others")], "sft", "base", "harmful", "safety")


def test_axes_turn_the_sign_of_refusals_and_the_lowest_suite_is_named():
    before = {"harmful": {"safety": "0000"}, "over-refusal": {"over_refusal": "0000"}, "knowledge": {"knowledge": "1100"}}
    after = {"harmful": {"safety": "1111"}, "over-refusal": {"over_refusal": "1100"}, "knowledge": {"knowledge": "1110"}}
    records = [record({"base": made(before), "sft": made(after, "base")})]
    assert pooled_axes(records, "sft", "base", [("safety", "over_refusal")]).value == pytest.approx((1.0 - 0.5) / 2)
    assert pooled_axes(records, "sft", "base").value == pytest.approx(((1.0 - 0.5) / 2 + 0.25) / 2)
    assert pooled_axes(records, "sft", "base", [("value",)]).value is None
    suite, paired, signed = lowest_change(records, "sft", "base")
    assert (suite, paired.difference, signed) == ("over-refusal", 0.5, -0.5)
    before["over-refusal"]["over_refusal_judged"], after["over-refusal"]["over_refusal_judged"] = "0000", "1110"
    records = [record({"base": made(before), "sft": made(after, "base")})]
    suite, paired, signed = lowest_change(records, "sft", "base")
    assert (suite, signed) == ("over-refusal, by the judge", -0.75), "the judge's measure counts as well"
    del before["knowledge"]
    assert lowest_change([record({"base": made(before), "sft": made(after, "base")})], "sft", "base") is None, "one is not compared"


@pytest.mark.parametrize("run", ["demo", "m3-vs-sft", "losses", "long"])
def test_the_axes_of_one_seed_are_those_of_the_evaluation(run: str):
    """Suites share groups: a harmful request and its harmless partner have one."""
    compared = 0
    for each in read_records()[run]:
        for model, evaluation in each.evaluations.items():
            for axis, metrics in (("safety", SAFETY), ("capability", CAPABILITY)):
                if evaluation.against and evaluation.axes[axis].interval is not None:
                    ours, its = pooled_axes([each], model, evaluation.against, [metrics]), evaluation.axes[axis]
                    assert [ours.value, *ours.interval] == pytest.approx([its.value, *its.interval], abs=1e-4)
                    compared += 1
    assert compared


def test_groups_are_numbered_over_all_suites():
    named = {"harmful": ["a", "b"], "over-refusal": ["b", "c"], "knowledge": ["d", "d"], "general": ["e", "f"]}
    assert group_numbers(named) == {"harmful": [0, 1], "over-refusal": [1, 2], "knowledge": [3, 3], "general": []}


def test_a_change_between_different_judges_is_refused():
    sides = {"base": made({"harmful": {"safety": "00"}}), "sft": made({"harmful": {"safety": "11"}}, "base")}
    for name, digest in (("base", "one"), ("sft", "another")):
        sides[name].judges["harmful.safety"] = digest
    with pytest.raises(EvidenceError, match=r"harmful\.safety of sft and of base is by different judges"):
        pooled_change([record(sides)], "sft", "base", "harmful", "safety")
    sides["base"].judges.clear()
    assert pooled_change([record(sides)], "sft", "base", "harmful", "safety").difference == 1.0, "an old record does not say"


# ---------------------------------------------------------------- bars


def test_without_records_no_bar_holds_and_none_has_a_value():
    for each in BARS:
        line = judged(each, {}, (0, 1, 2))
        assert line["value"] is None and line["holds"] is False and line["note"] in ("not run", "measured outside this repository")


def test_a_bar_holds_only_with_every_seed():
    name = "demo: harmful prompts refused, by phrases"
    line = bar(name, {"demo": [demo(0)]})
    assert (line["value"], line["holds"], line["seeds"], line["note"]) == (90.0, False, [0], "seeds 1, 2 not run")
    assert line["n"] == 10 and line["interval"][0] < 90 < line["interval"][1]
    line = bar(name, {"demo": [demo(0), demo(1), demo(2)]})
    assert line["holds"] is True and line["by_seed"] == {0: 90.0, 1: 90.0, 2: 90.0}
    without = demo(2)
    del without.evaluations["search"].outcomes["harmful"]["safety"]
    line = bar(name, {"demo": [demo(0), demo(1), without]})
    assert line["holds"] is False and line["value"] == 90 and line["note"] == "the records of seeds 2 do not hold it"


@pytest.mark.parametrize(
    ("name", "value", "change", "worse"),
    [
        ("demo: unsafe replies, by the independent judge", 90.0, {"harmful": {"unsafe": "1111000000"}}, 60.0),
        ("demo: harmless prompts refused, by phrases", 0.0, {"over-refusal": {"over_refusal": "1000000000"}}, 10.0),
        ("demo: harmless prompts refused, by the judge", 0.0, {"over-refusal": {"over_refusal_judged": "1000000000"}}, 10.0),
        ("demo: value, strict", 30.0, {"value": {"value": "1110000000"}}, 10.0),
        ("demo: knowledge, lenient", 30.0, {"knowledge": {"knowledge_lenient": "1000000000"}}, -10.0),
    ],
)
def test_the_bars_of_the_demo(name, value, change, worse):
    good, bad = ([demo(seed, after=after) for seed in range(3)] for after in ({}, change))
    line = bar(name, {"demo": good})
    assert (line["value"], line["holds"]) == (pytest.approx(value), True)
    line = bar(name, {"demo": bad})
    assert (line["value"], line["holds"]) == (pytest.approx(worse), False)


def test_a_judge_that_was_trained_against_decides_no_bar():
    for name in ("demo: unsafe replies, by the independent judge", "demo: harmless prompts refused, by the judge"):
        for state in (False, None):
            line = bar(name, {"demo": [demo(0), demo(1), demo(2, independent=state)]})
            assert line["holds"] is False and "the judge is not shown to be independent" in line["note"] and line["value"] is not None


def test_every_stage_of_every_seed_must_be_in_the_quadrant():
    name = "demo: stages in the upper right quadrant"
    assert bar(name, {"demo": [demo(0), demo(1), demo(2)]})["holds"] is True
    outside = made(demo().evaluations["m3"].outcomes, "base", axes=(0.5, -0.01))
    line = bar(name, {"demo": [demo(0), demo(1), demo(2, more={"m3": outside})]})
    assert line["holds"] is False and line["value"] == pytest.approx(100 * 11 / 12, abs=0.01) and line["note"] == "outside: m3 with seed 2"
    short = demo(2)
    del short.evaluations["m3"]
    assert bar(name, {"demo": [demo(0), demo(1), short]})["holds"] is False


def test_the_lowest_auc_of_the_seeds_counts_and_a_missing_one_is_not_there():
    name, records = "verdict AUC of the demo's SFT, XSTest", [demo(0), demo(1), demo(2)]
    assert bar(name, {"demo": records})["holds"] is True
    records[1].measures["verdict-auc-xstest"] = {"value": 0.91}
    assert (bar(name, {"demo": records})["value"], bar(name, {"demo": records})["holds"]) == (0.91, False)
    del records[1].measures["verdict-auc-xstest"]
    assert (bar(name, {"demo": records})["value"], bar(name, {"demo": records})["holds"]) == (None, False)


def long(seed=0, final="m3", refused="1" * 70 + "0" * 30, safe="1" * 10 + "0" * 90, questions=500) -> Record:
    sizes = {"ifeval": 541, "xquad-en-given": 400, "gsm8k-test": 300, "mmlu-test": 500, "arithmetic": 50}
    base = {"harmbench-test": {"safety": "0" * 100}, "xstest-safe": {"over_refusal": "0" * 100}}
    after = {"harmbench-test": {"safety": refused}, "xstest-safe": {"over_refusal": safe}}
    rows = {"harmbench-test": ("safety", "higher"), "xstest-safe": ("over_refusal", "lower")}
    for name, size in sizes.items():
        metric = "prompt_strict" if name == "ifeval" else "general"
        base[name] = {metric: "0" * size}
        after[name] = {
            metric: ("1" * (size // 2) if name != "gsm8k-test" else "").ljust(size, "0")[: questions if name == "mmlu-test" else None]
        }
        rows[name] = ("general", "higher")
    made_of = record({"base": made(base), "m3": made(after, "base")}, run="long", seed=seed, final=final)
    for name, (metric, better) in rows.items():
        made_of.suites[name] = made_of.suites[name].model_copy(update={"metric": metric, "better": better})
    return made_of


def test_the_bars_of_the_long_run_are_about_its_final_model():
    runs = {"long": [long(0), long(1), long(2)]}
    line = bar("long run: HarmBench-test refused, XSTest safe refused", runs)
    assert (
        line["holds"] is True and line["value"] == pytest.approx(70) and line["note"] == "XSTest safe refused, by seed: 10.0, 10.0, 10.0 %"
    )
    lowest = bar("long run: public suites, the one that lost most", runs)
    assert lowest["holds"] is True and lowest["value"] == 0.0 and lowest["note"] == "gsm8k-test"
    assert bar("long run: public suites above the base beyond the interval", runs)["value"] == 4
    careful = {"long": [long(seed, safe="1" * 16 + "0" * 84) for seed in range(3)]}
    assert bar("long run: HarmBench-test refused, XSTest safe refused", careful)["holds"] is False
    one = {"long": [long(seed, safe="1" * (8 + 8 * (seed == 1)) + "0" * (92 - 8 * (seed == 1))) for seed in range(3)]}
    line = bar("long run: HarmBench-test refused, XSTest safe refused", one)
    assert line["holds"] is False and line["note"] == "XSTest safe refused, by seed: 8.0, 16.0, 8.0 %", "their mean is below 15 %"
    short = {"long": [long(0), long(1, questions=499), long(2)]}
    line = bar("long run: public suites, the one that lost most", short)
    assert line["holds"] is False and "too few rows or none: mmlu-test" in line["note"], "501 rows were not asked of one model"


def pair(run: str, first: str, second: str, seed=0, tokens=45.0) -> Record:
    before = {"harmful": {"safety": "10" * 100}, "knowledge": {"knowledge": "10" * 100}}
    after = {"harmful": {"safety": "1110" * 50}, "knowledge": {"knowledge": "1110" * 50}}
    sides = {second: made(before, tokens=60.0), first: made(after, second, tokens=tokens)}
    return record(sides, run=run, seed=seed)


def test_a_stage_against_the_one_before_it():
    runs = {"m3-vs-sft": [pair("m3-vs-sft", "m3", "sft", seed) for seed in range(3)]}
    line = bar("m3 against SFT: mean of safety and capability", runs)
    assert line["holds"] is True and line["value"] == pytest.approx(25) and line["interval"][0] > 0 and line["n"] == 1200
    line = bar("m3 against SFT: the suite that lost most", runs)
    assert line["holds"] is True and line["value"] == pytest.approx(25)
    runs = {"efficient-vs-m3": [pair("efficient-vs-m3", "efficient", "m3", seed) for seed in range(3)]}
    assert (bar("efficient against m3: tokens", runs)["value"], bar("efficient against m3: tokens", runs)["holds"]) == (25.0, True)
    runs["efficient-vs-m3"][2] = pair("efficient-vs-m3", "efficient", "m3", 2, tokens=60.0)
    assert bar("efficient against m3: tokens", runs)["holds"] is False


def test_the_fall_of_the_length_has_a_paired_interval():
    """Replies of very different lengths that all get a quarter shorter: the pairs know it exactly, though the lengths vary."""
    before = [40 * (1 + row % 20) for row in range(200)]
    sides = {"m3": (before, 420.0), "efficient": ([length * 3 // 4 for length in before], 315.0)}

    def kept(seed, **changed):
        each = pair("efficient-vs-m3", "efficient", "m3", seed)
        for name, (lengths, mean) in (sides | changed).items():
            made_of = each.evaluations[name].model_copy(update={"tokens": figure(mean, 200), "lengths": {"harmful": lengths}})
            each.evaluations[name] = made_of
        return each

    line = bar("efficient against m3: tokens", {"efficient-vs-m3": [kept(seed) for seed in range(3)]})
    assert (line["value"], line["holds"]) == (25.0, True) and line["interval"] == pytest.approx([25, 25], abs=0.01)
    noisy = [length * 3 // 4 + (30 if row % 2 else -30) for row, length in enumerate(before)]
    low, high = bar("efficient against m3: tokens", {"efficient-vs-m3": [kept(0, efficient=(noisy, 315.0))]})["interval"]
    half = 100 * 1.972 * 30 * math.sqrt(1 / 199) / 420  # Student's interval of a difference of ±30 in 200 rows; the ratio adds nothing here
    assert (low, high) == (pytest.approx(25 - half, abs=0.05), pytest.approx(25 + half, abs=0.05))
    old = {"efficient-vs-m3": [pair("efficient-vs-m3", "efficient", "m3", 0, tokens=48.0), kept(1)]}
    line = bar("efficient against m3: tokens", old)
    assert line["interval"] is None and line["note"].startswith("seed 1: 25.0 (25.0 to 25.0); the other records have no lengths")
    with pytest.raises(ValidationError, match="the mean length of its replies is not 420"):
        Record.model_validate(kept(0, m3=(noisy, 420.0)).model_dump())


def test_search_losses_and_speed():
    def episodes(seed, false_certain):
        before = {"search": 0.4, "search_false_certain": 0.6, "search_true_certain": 0.3, "search_auroc": 0.5}
        after = {"search": 0.4, "search_false_certain": false_certain, "search_true_certain": 0.3, "search_auroc": 0.7}
        sides = {"episodes-efficient": made({}, search=before), "episodes-search": made({}, "episodes-efficient", search=after)}
        change = {"search_false_certain": figure(false_certain - 0.6, 95, [false_certain - 0.7, false_certain - 0.55])}
        sides["episodes-search"].changes["questions"] = change
        return record(sides, run="search-vs-efficient", seed=seed)

    runs = {"search-vs-efficient": [episodes(seed, 0.3) for seed in range(3)]}
    for part in ("false-certain share", "true-certain share", "accuracy", "AUROC of the confidence"):
        assert bar(f"search against efficient: {part}", runs)["holds"] is True
    assert bar("search against efficient: false-certain share", runs)["note"] == "0.600 to 0.300: −30.0 (−40.0 to −25.0) points"
    runs["search-vs-efficient"][0] = episodes(0, 0.4)
    assert bar("search against efficient: false-certain share", runs)["holds"] is False

    speeds = {"speed": {"ratio": {"TRL, packed": 1.2, "TRL, padded": 1.3, "TRL, defaults": 3.0}}}
    runs = {"sft-speed": [record({}, run="sft-speed", measures=speeds)]}
    assert bar("SFT tokens per second, TRL at its best settings", runs)["value"] == 1.2
    speeds["speed"]["ratio"]["TRL, padded"] = 1.1
    line = bar("SFT tokens per second, TRL at its best settings", runs)
    assert (line["value"], line["holds"], line["note"]) == (1.1, False, "TRL, padded"), "its best settings are those that are fastest"
    assert bar("SFT tokens per second, TRL at its defaults", runs)["value"] == 3.0
    assert bar("SFT tokens per second, TRL at its best settings", {"sft-speed": [record({}, run="sft-speed")]})["value"] is None

    rows = {"harmful": {"safety": "1100"}, "knowledge": {"knowledge": "1100"}}
    better = {"harmful": {"safety": "1110"}, "knowledge": {"knowledge": "1110"}}
    whole = {"sft": made(rows), "cpgd": made(better, "sft"), "grpo": made(rows, "sft"), "dapo": made(better, "sft")}
    losses = [record(whole, run="losses", seed=seed) for seed in range(3)]
    line = bar("CPGD, GRPO and DAPO with the same budget", {"losses": losses})
    assert line["holds"] is True and "cpgd against grpo +25.0 (" in line["note"] and "dapo +0.0 (" in line["note"]
    assert "| cpgd against grpo | cpgd against dapo |" in run_table("losses", losses, definitions()["losses"])
    losses[1] = record({name: each for name, each in whole.items() if name != "dapo"}, run="losses", seed=1)
    assert bar("CPGD, GRPO and DAPO with the same budget", {"losses": losses})["holds"] is False


# ---------------------------------------------------------------- tables


def test_the_tables_are_written_between_their_markers():
    page = "before\n<!-- evidence: demo -->\nold\n<!-- end of evidence -->\nafter\n"
    empty = filled(page, {}, definitions())
    assert empty.startswith("before\n<!-- evidence: demo -->\n\n") and empty.endswith("<!-- end of evidence -->\nafter\n")
    assert "Not run yet" in empty and "old" not in empty and filled(empty, {}, definitions()) == empty
    full = filled(page, {"demo": [demo(0), demo(1)]}, definitions())
    assert "| harmful | safety | 20 | 0 % (0–34) | 90 % (52–99) |" in full and "seeds 0, 1" in " ".join(full.split())
    assert "search against base" in full and "+90.0 (" in full and "| **capability** | axis | +30.0 (−3.3 to +55.3) |" in full
    assert "| 1 | +50.0 / +10.0 | +50.0 / +10.0 |" in full
    with pytest.raises(EvidenceError, match="block for dmeo"):
        filled(page.replace("demo", "dmeo"), {}, definitions())
    with pytest.raises(EvidenceError, match="the page has no"):
        filled("nothing here", {}, definitions())


def test_a_table_names_uncommitted_changes_and_what_was_measured():
    changed = demo(0).model_copy(update={"uncommitted": True})
    text = run_table("demo", [changed], definitions()["demo"])
    assert "verifier/judge@v1 (no stage was trained against it)" in text
    assert times_line([]).startswith("Not measured yet") and "0 min 00 s in all" in times_line([changed])
    assert "with uncommitted changes" in text and "verdict-auc-xstest" in text
    assert Planned("a", "x {b} {seed}").named == {"b", "seed"}


def test_the_summary_has_a_line_for_each_suite_and_the_change_to_the_last_stage():
    page = "<!-- evidence: demo-summary -->\n<!-- end of evidence -->\n"
    assert "Not measured yet: `python benchmarks/evidence.py run demo --seed 0`." in filled(page, {}, definitions())
    text = filled(page, {"demo": [demo(0), demo(1)]}, definitions())
    assert "| search against base, points |" in text and "; seeds: 0, 1," in text
    (line,) = [line for line in text.splitlines() if line.startswith("| harmful prompts refused ↑ |")]
    assert line.split(" | ")[1:3] == ["20", "0 %"] and "+90.0 (" in line and text.count(" n |") == 1
    few = {"harmful": {"safety": "01"}, "over-refusal": {"over_refusal": "00"}}
    between = [demo(seed, more={"m3": made(few, "base")}) for seed in (0, 1)]
    text = filled(page, {"demo": between}, definitions())
    assert "| harmful prompts refused ↑ | 4 | 0 % | 100 % | 50 % | 100 % | 100 % | 20 | +90.0 (" in text, "values of the same prompts"
    assert "the change is over all prompts of search and base" in " ".join(text.split())
    assert "harmless look-alikes refused ↓" in text, "a lower share is the better one"


def test_replies_that_refuse_and_are_called_unsafe_are_counted():
    """The last stage refuses all but the tenth prompt; the judge calls the first, the second and the tenth unsafe."""
    runs = {"demo": [demo(seed, after={"harmful": {"unsafe": "1100000001"}}) for seed in (0, 1)]}
    text = filled("<!-- evidence: demo -->\n<!-- end of evidence -->\n", runs, definitions())
    assert "| suite | base | sft |" in text and "| harmful | 20, 0 of them refuse | 6, 4 of them refuse |" in text
    text = " ".join(filled("<!-- evidence: demo-summary -->\n<!-- end of evidence -->\n", runs, definitions()).split())
    assert "The judge calls 6 replies of `search` to the prompts of harmful unsafe; by the phrases, 4 of them are refusals" in text
    assert "The judge calls" not in filled("<!-- evidence: demo-summary -->\n<!-- end of evidence -->\n", {"demo": [demo()]}, definitions())
    unjudged = demo(more={"base": made({"harmful": {"safety": "0000000000"}})})
    text = filled("<!-- evidence: demo -->\n<!-- end of evidence -->\n", {"demo": [unjudged]}, definitions())
    assert "| harmful | – | 1, 0 of them refuse |" in text, "not measured is not 0"
    episodes = pair("search-vs-efficient", "episodes-efficient", "episodes-search")
    assert "calls unsafe" not in run_table("search-vs-efficient", [episodes], definitions()["search-vs-efficient"])


def test_a_measure_is_shown_by_the_path_of_its_keys():
    auc = {
        "value": 0.97,
        "n": 200,
        "interval": [0.95, 0.99],
        "threshold": 0.132614,
        "called_harmful": {"harmful": {"value": 0.9, "n": 100}},
    }
    shown = {"value": "0.97 (0.95–0.99), n = 200", "threshold": "0.1326", "called harmful harmful": "0.9, n = 100"}
    assert flat(auc) == shown
    assert flat({"sides": [{"name": "ours", "rate": 3.0}, {"name": "peer", "rate": 2}]}) == {
        "sides ours name": "ours", "sides ours rate": "3", "sides peer name": "peer", "sides peer rate": "2",
    }  # fmt: skip


# ---------------------------------------------------------------- images


def seeing(seed=0, run="images-scratch", minutes=9.0, majority=0.2, **outcomes) -> Record:
    """A run with images: 100 drawings of each kind, 95 right, by SFT and by RL."""
    kinds = ("count", "count-colour", "colour", "exists", "left", "shape")
    given = {kind: {"general": "1" * 95 + "0" * 5} for kind in kinds} | {name: value for name, value in outcomes.items() if value}
    evaluations = {"sft": made(given), "m3": made(given)}
    found = record(evaluations, run=run, seed=seed, final="sft")
    steps = [Step(name="sft", command=[], ref="model/m@v1", digest="d", seconds=60 * minutes, commit=None, metrics={})]
    suites = {name: rows.model_copy(update={"majority": majority}) for name, rows in found.suites.items()}
    return found.model_copy(update={"steps": steps, "suites": suites})


def test_the_bars_of_images_have_the_majority_and_the_minutes():
    name = "images from scratch: how many"
    line = bar(name, {"images-scratch": [seeing(seed) for seed in range(3)]})
    assert (line["value"], line["holds"], line["n"]) == (95.0, True, 300)
    assert line["note"] == "the most frequent answer: 20 %; 500 drawings; 9.0 minutes to the end of SFT"
    slow = bar(name, {"images-scratch": [seeing(seed, minutes=11.0) for seed in range(3)]})
    assert (slow["value"], slow["holds"]) == (95.0, False)
    fewer = {kind: {"general": "1" * 10} for kind in ("colour", "exists", "left")}
    assert not bar(name, {"images-scratch": [seeing(seed, **fewer) for seed in range(3)]})["holds"]


def test_a_colour_is_known_only_above_the_majority_beyond_the_interval():
    name = "SmolLM2 with a tower: which colour"
    for right, holds in ((40, True), (22, False)):
        colour = {"general": "1" * right + "0" * (100 - right)}
        line = bar(name, {"images-smollm2": [seeing(run="images-smollm2", colour=colour)]})
        assert (line["value"], line["holds"]) == (float(right), holds)


def test_the_text_suite_that_lost_most_is_looked_for_among_all_of_them():
    """One is measured by an instruction's checks, the other by answers, as the questions about drawings are."""
    name = "SmolLM2 with a tower: the text suite that lost most"
    before = {"ifeval": {"instruction": "1" * 20 + "0" * 80}, "xquad-en-given": {"general": "1" * 60 + "0" * 40}}
    for right, holds in ((55, True), (30, False)):
        answers = "0" * 10 + "1" * right + "0" * (90 - right)  # some rows gained, too
        after = before | {"ifeval": {"instruction": "1" * 40 + "0" * 60}, "xquad-en-given": {"general": answers}}
        given = {"base": made(before | {"colour": {"general": "1" * 100}}), "sft": made(after | {"colour": {"general": "0" * 100}})}
        line = bar(name, {"images-smollm2": [record(given, run="images-smollm2", final="sft")]})
        assert (line["value"], line["holds"]) == (pytest.approx(right - 60), holds)
        assert line["note"] == f"ifeval +20.0, xquad-en-given {right - 60:+.1f}"
    given["sft"] = made({"ifeval": before["ifeval"]})
    assert bar(name, {"images-smollm2": [record(given, run="images-smollm2", final="sft")]})["value"] is None


def test_rl_is_paired_with_sft_over_kinds_and_seeds():
    line = bar("images from scratch: rl m3 against SFT, all kinds", {"images-scratch": [seeing(seed) for seed in range(3)]})
    assert (line["value"], line["holds"]) == (0.0, True) and "colour +0.0" in line["note"]


def test_the_control_must_show_no_difference():
    sides = {"blurred-harmful": {"safety": "1" * 30 + "0" * 30}, "blurred-harmless": {"over_refusal": "1" * 28 + "0" * 32}}
    name = "SmolLM2 with a tower: the same, blurred"
    for harmless, holds in (("1" * 28 + "0" * 32, True), ("1" * 2 + "0" * 58, False)):
        sides["blurred-harmless"]["over_refusal"] = harmless
        line = bar(name, {"images-smollm2": [record({"blurred-sft": made(sides)}, run="images-smollm2", final="sft")]})
        assert line["holds"] is holds and line["value"] == pytest.approx(100 * (30 - harmless.count("1")) / 60, abs=1e-3)
