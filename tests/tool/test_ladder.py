"""``safework ladder``: names filled in, all checked before anything runs, what is done skipped, a failure's code kept, jobs chained."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from safework_cli.cli.ladder import Runner
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.ladder import Step, in_order, read_ladder

SFT = "sft data=dataset/toy:cot sample_prompts=0 bf16=false per_device_train_batch_size=4 learning_rate=1e-3"


def written(folder: Path, text: str, name: str = "ladder.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def runner(file: Path, *assignments: str, **options) -> Runner:
    ladder = read_ladder([file], assignments)
    steps = in_order({name: Step(name, text) for name, text in ladder.steps.items()}, ladder.steps, ladder.variables)
    return Runner(ladder, steps, None, **options)


def test_a_value_is_one_word_whatever_is_in_it():
    step = Step("sft", 'sft model={base} data={data}:cot -c {folder}/sft.yaml "scores={Safe: 1.0}"')
    assert step.named == {"base", "data", "folder"}
    known = {"base": "model/b@v1", "data": "d; rm", "folder": "a b'c"}
    assert step.words(known) == ["sft", "model=model/b@v1", "data=d; rm:cot", "-c", "a b'c/sft.yaml", "scores={Safe: 1.0}"]


def test_each_step_comes_after_what_it_needs():
    steps = {name: Step(name, text) for name, text in {"c": "sft model={b}", "b": "sft model={a} x={v}", "a": "models pull tiny"}.items()}
    assert [step.name for step in in_order(steps, steps, ["v"])] == ["a", "b", "c"]
    assert [step.name for step in in_order(steps, ["b"], ["v"])] == ["a", "b"]
    with pytest.raises(ConfigError, match=r"b needs v, which is not a step before it"):
        in_order(steps, steps)
    with pytest.raises(ConfigError, match=r"it needs itself"):
        in_order({"a": Step("a", "sft model={b}"), "b": Step("b", "sft model={a}")}, ["a"])


def test_later_files_and_words_win_name_by_name(tmp_path):
    first = written(
        tmp_path, "variables: {seed: 0, out: r.html}\nsteps: {a: models pull tiny, b: 'report --out {out}'}\nslurm: {time: 10}\n"
    )
    second = written(tmp_path, "variables: {out: s.html}\nsteps: {a: models pull smollm2}\nslurm: null\n", "second.yaml")
    ladder = read_ladder([first, second], ["seed=7"])
    assert ladder.values() == {"seed": "7", "out": "s.html"} and ladder.slurm is None
    assert ladder.steps == {"a": "models pull smollm2", "b": "report --out {out}"}
    kept = "steps: {a: 'eval suites_folder=${MY_DATA} suites=\"[{suite: x}]\"'}\n"  # neither a name nor a misspelt one
    assert "${MY_DATA}" in read_ladder([written(tmp_path, kept)]).steps["a"]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("stepps: {a: report}\n", [], r"stepps: Extra inputs are not permitted; did you mean 'steps'|steps: Field required"),
        ("steps: {a: 'safework report'}\n", [], r"a holds the words after safework"),
        ("steps: {a: 'ladder -c x'}\n", [], r"a command other than ladder"),
        ('steps: {a: "report \'x"}\n', [], r"a is not a command line"),
        ("steps: {A b: report}\n", [], r"steps"),
        ("variables: {a: 1}\nsteps: {a: report}\n", [], r"a is a step and a variable"),
        ("variables: {seed: 1}\nsteps: {a: report}\n", ["sede=2"], r"'sede=2' names no variable of this ladder; did you mean 'seed'"),
        ("steps: {a: report}\n", ["a"], r"'a' names no variable"),
        (
            "variables: {my-out: 1}\nsteps: {a: 'report --out {my_out}'}\n",
            [],
            r"a holds \{my_out\}, which cannot be a name: .*did you mean 'my-out'",
        ),
        ("steps: {base: report, b: 'report --out {Base}.html'}\n", [], r"b holds \{Base\}, .*did you mean 'base'"),
        ("- a\n", [], r"is not a mapping"),
    ],
)
def test_a_file_that_is_wrong_is_refused(text, words, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_ladder([written(tmp_path, text)], words)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{SFT} model={{base}} learnig_rate=1", r"step last: unknown key 'learnig_rate'"),
        (f"{SFT} model={{base}} max_steps=many", r"step last: .*max_steps"),
        (f"{SFT}", r"step last: safework sft needs model="),
        (f"{SFT} model={{base}} -c no/such.yaml", r"step last: no recipe at no/such.yaml"),
        (f"{SFT} model={{base}} --nmae x", r"step last: no option"),
        (f"{SFT} model={{base}} --dry-run", r"step last has --dry-run"),
        ("sfft model={base}", r"step last: no command 'sfft'; did you mean 'sft'"),
        ("models pull tiny --architecture", r"step last: "),
        ("rl", r"step last: 'rl' is a group of commands"),
    ],
)
def test_every_command_is_checked_before_the_first_one_runs(command, message, tmp_path):
    ladder = written(tmp_path, f"steps:\n  base: models pull tiny\n  last: {json.dumps(command)}\n")
    with pytest.raises((ConfigError, InputError), match=message):
        runner(ladder).check()


def test_jobs_are_given_the_settings_and_what_runs_here_comes_before_them(tmp_path):
    text = (
        "slurm: {partition: gpu, setup: [module load cuda]}\nlaunch: {strategy: fsdp, processes: 8}\n"
        f"steps:\n  base: models pull tiny\n  data: data build -c quickstart/data.yaml\n  sft: {SFT} model={{base}} slurm.time=2:00:00\n"
    )
    planned = runner(written(tmp_path, text))
    planned.check()
    overlay = ['slurm.partition="gpu"', 'slurm.setup=["module load cuda"]']
    assert planned._words(planned._steps[1], {})[:4] == ["data", "build", *overlay], "one process"
    words = planned._words(planned._steps[2], {"base": "model/tiny@v1"})
    assert words[1:5] == [*overlay, 'launch.strategy="fsdp"', "launch.processes=8"] and words[-1] == "slurm.time=2:00:00"
    with pytest.raises(ConfigError, match=r"step report runs here, and comes after data, which is submitted as a job(.|\n)*--wait"):
        runner(written(tmp_path, text + "  report: report\n")).check()
    runner(written(tmp_path, text + "  report: report\n"), wait=True).check()
    with pytest.raises(ConfigError, match=r"--wait is given without slurm"):
        runner(written(tmp_path, "steps: {base: models pull tiny}\n"), wait=True).check()


ROWS = [{"prompt": f"What is {n}+1?", "reply": "<think>I add.</think>It is so."} for n in range(4)]
CHAIN = """
variables: {failed: 0.0, rule: contains}
steps:
  base: models pull tiny
  first: "verifier score file=rows.jsonl rules=[format] --name first"
  second: "verifier score data={first} rules=[correctness] max_failed={failed} --name second"   # no row has a gold answer
  check: artifacts verify {first}
  third: "verifier score data={second} rules=[format] --name third"
  out: artifacts export {third} exported
"""


def test_a_ladder_runs_skips_what_is_done_and_keeps_a_failures_code(cli, store, tmp_path):
    file = written(tmp_path, CHAIN)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def ladder(*words: str):
        done = cli("ladder", "-c", str(file), *words, "--only", "check", "--only", "out", cwd=tmp_path)
        return done, json.loads(done.stdout) if "--json" in words else done.stdout

    planned, _ = ladder("--dry-run")
    assert planned.returncode == 0 and not store.list("generations"), planned.stderr
    assert "first: would run" in planned.stderr and "second: after first; its settings are valid" in planned.stderr

    stopped, found = ladder("--json")
    assert stopped.returncode == found["exit_code"] == 5, stopped.stderr
    shown = {one["name"]: (one["code"], one["already"], one["ref"]) for one in found["steps"]}
    assert shown["first"] == (0, False, "generations/first@v1") and shown["second"] == (5, False, "generations/second@v1")
    assert "third" not in shown and "step second ended with exit code 5: too many items failed" in stopped.stderr
    assert "2 later steps did not run" in stopped.stderr
    assert store.resolve("second").manifest.inputs["data"].ref == "generations/first@v1"

    whole, text = ladder("failed=1.0")
    assert whole.returncode == 0, whole.stderr
    lines = dict(line.split("\t") for line in text.splitlines())
    made = {"first": "generations/first@v1", "second": "generations/second@v2", "third": "generations/third@v1"}
    assert lines == {**made, "out": "exported"} and (tmp_path / "exported" / "manifest.json").exists()
    assert "verifier score: already done → generations/first@v1" in whole.stderr
    again, found = ladder("failed=1.0", "--dry-run", "--json")
    assert again.returncode == 0 and {one["name"]: one["ref"] for one in found["steps"]} == {**made, "out": None, "check": None}


def test_what_is_named_must_be_printed(cli, tmp_path):
    file = written(tmp_path, 'steps:\n  check: artifacts verify\n  score: "verifier score data={check} rules=[format]"\n')
    done = cli("ladder", "-c", str(file), cwd=tmp_path)
    assert done.returncode == 2 and "step score needs what check made" in done.stderr


CHILD = """
import os, signal, sys, time
def stop(number, frame):
    print("got", number, os.environ.get("SLURM_RESTART_COUNT"))
    sys.exit(75)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, stop)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_step_ends_in_order(number, tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    monkeypatch.setattr("safework_cli.cli.ladder.program", lambda: [sys.executable, "-c", CHILD])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    def send() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = Thread(target=send)
    sender.start()
    code, printed = runner(written(tmp_path, "steps: {base: models pull tiny}\n"))._call([str(ready)], {"SLURM_RESTART_COUNT": None})
    sender.join()
    assert (code, printed) == (75, f"got {int(number)} None\n")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_between_two_steps_ends_the_ladder_in_order(number, tmp_path, monkeypatch, capsys):
    """Where a step was done before the signal reached it, and before the first one."""
    code = {signal.SIGUSR1: 75, signal.SIGINT: 130}[number]
    file = written(tmp_path, "steps: {first: artifacts verify, second: artifacts verify}\n")
    between = runner(file)
    monkeypatch.setattr(between, "_call", lambda *_: os.kill(os.getpid(), number) or (0, ""))
    assert between.run() == code and [one.name for one in between.done] == ["first"]
    assert "stopped after step first; the same command continues" in capsys.readouterr().err
    at_once = runner(file)
    monkeypatch.setattr(type(at_once._ladder), "values", lambda _: os.kill(os.getpid(), number) or {})
    assert at_once.run() == code and at_once.done == [] and "stopped before anything was done" in capsys.readouterr().err


def test_a_step_that_a_signal_ends_before_it_listens_can_be_resumed(tmp_path, monkeypatch):
    dies = "import os, signal, sys; open(sys.argv[1], 'w').close(); signal.signal(signal.SIGUSR1, signal.SIG_DFL); signal.pause()"
    monkeypatch.setattr("safework_cli.cli.ladder.program", lambda: [sys.executable, "-c", dies])
    ready = tmp_path / "ready"

    def send() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = Thread(target=send)
    sender.start()
    code, _ = runner(written(tmp_path, "steps: {base: models pull tiny}\n"))._call([str(ready)], {})
    sender.join()
    assert code == 75


def test_the_store_of_a_ladder_may_be_in_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = written(tmp_path, "steps: {base: models pull tiny}\n")
    ladder = read_ladder([file], [])
    assert Runner(ladder, [], Path("~/st"))._environment["SAFEWORK_STORE"] == str(tmp_path / "st")


SHAPED = """
shapes: {base: shape.yaml}
launch: {strategy: fsdp, processes: 2, device: h100}
steps:
  base: models pull hf:nobody/nothing
  first: sft model={base} data=dataset/toy:cot per_device_train_batch_size=4
  second: sft model={first} data=dataset/toy:cot per_device_train_batch_size=2 --name second
  asked: >-
    eval model={second} data=dataset/toy:rl 'suites=[{name: all, rows: {task: general}}]'
  told: report --out {first}.html
"""


def test_a_dry_run_plans_with_the_shapes_of_models_that_are_not_there(cli, toy_data, tmp_path):
    file = written(tmp_path, SHAPED.replace("shape.yaml", str(tmp_path / "shape.yaml")))
    sizes = "hidden_size: 64\nintermediate_size: 128\nnum_hidden_layers: 3\nnum_attention_heads: 4\nvocab_size: 500\nmodel_type: llama\n"
    written(tmp_path, sizes, "shape.yaml")
    planned = cli("ladder", "-c", str(file), "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    steps = {step["name"]: step for step in json.loads(planned.stdout)["steps"]}
    for name, start in (("first", "base"), ("second", "first")):
        assert f"model={{{start}}}" in steps[name]["command"] and steps[name]["plan"]["estimates"]["memory"]["weights"] > 0
        assert f"train {{{start}}} (0 M weights)" in planned.stderr
    assert steps["second"]["plan"]["estimates"]["world"] == 2 and steps["asked"]["plan"]["estimates"]["device"] == "NVIDIA H100 SXM"
    assert steps["asked"]["plan"]["estimates"]["world"] == 1 and "told: would run" in planned.stderr
    assert str(tmp_path / "base") not in planned.stderr and "/safework-" not in planned.stderr.replace("/safework-r1", "")
    with pytest.raises(ConfigError, match=r"shapes\.bass is of no step; did you mean 'base'"):
        read_ladder([written(tmp_path, SHAPED.replace("{base: shape", "{bass: shape"), "wrong.yaml")])
    written(tmp_path, "hidden_size: 64\n", "shape.yaml")
    assert cli("ladder", "-c", str(file), "--dry-run").returncode == 3
