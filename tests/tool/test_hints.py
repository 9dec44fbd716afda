"""What people who come from other tools type: an error that shows the command that does it here."""

from __future__ import annotations

import os
import subprocess

import pytest

from conftest import SAFEWORK
from safework_cli.cli.hints import as_settings, unknown_command
from safework_cli.core.registry import load_stage


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "mymodel").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("--learning_rate 1e-5", "learning_rate=1e-5"),
        ("--learning-rate=1e-5 --lora.r 8", "learning_rate=1e-5 lora.r=8"),
        ("--lr -1 --epochs 2", "learning_rate=-1 num_train_epochs=2"),
        ("--model_name_or_path org/name --dataset_name mine:sft", "model=hf:org/name data=mine:sft"),
        ("--model_name_or_path mymodel", "model=./mymodel"),
        ("--model_name_or_path /models/m", "model=/models/m"),
        ("--output_dir out/first --gradient_checkpointing", "--name first gradient_checkpointing=true"),
        ("-lr 1e-5 --learning_rate", "learning_rate=1e-5 learning_rate=VALUE"),
        ("--bf16 --model", "bf16=true model=VALUE"),
        ("model=tiny -c a.yaml --nothing 3", "model=tiny -c a.yaml --nothing 3"),
    ],
)
def test_options_become_settings(typed, ours):
    words, unknown = as_settings(load_stage("sft"), typed.split(), ())
    assert words == ours.split() and unknown == (["--nothing"] if "--nothing" in typed else [])


@pytest.mark.parametrize(
    ("word", "typed", "do"),
    [
        ("", "train --model mymodel --lr 1e-5 -c x.yaml --dry-run", "safework sft model=./mymodel learning_rate=1e-5 -c x.yaml --dry-run"),
        ("rl", "grpo model=x", "safework rl m3 algorithm=grpo model=x"),
        ("rl", "dpo", "safework rl m3"),
        ("rl", "ppo", "safework rl m3"),
        ("", "evaluate model=x", "safework eval model=x"),
        ("models", "download smollm2", "safework models pull smollm2"),
        ("rl", "m4", "safework rl --help"),
    ],
)
def test_commands_of_other_tools(word, typed, do):
    error = unknown_command(word, typed.split(), ["m3", "sft"])
    assert error.do == do and error.exit_code == 2


@pytest.mark.parametrize(
    ("typed", "code", "shown"),
    [
        ("sft --learning_rate 1e-5 model=tiny --quiet", 2, "do:  safework sft learning_rate=1e-5 model=tiny --quiet\n"),
        ("sft -lr 1e-5 model=tiny --dry_run", 2, "do:  safework sft learning_rate=1e-5 model=tiny --dry-run\n"),
        ("sft -x 1", 2, "No such option: -x"),
        ("sft --nothing 1", 2, "no option or setting '--nothing'"),
        ("sft --dryrun", 2, "no option or setting '--dryrun'; did you mean '--dry-run'?"),
        ("sft model = x", 2, "without spaces around the ="),
        ("sft model_name_or_path=x", 2, "did you mean 'model'?"),
        ("sft model=mymodel data=x:sft", 3, "write model=./mymodel for the folder"),
        ("models download smollm2", 2, "safework models pull smollm2"),
        ("rl grpo", 2, "safework rl m3 algorithm=grpo"),
        ("train", 2, "safework sft\n"),
        ("rl m3 cpgd.epsilon=0.1", 2, "'cpgd.epsilon' is now 'loss.epsilon'\n  why: from command line\n  do:  write loss.epsilon=0.1\n"),
        ("rl efficient algorithm=grpo epsilon_high=0.3", 2, "write loss.epsilon_high=0.3\n"),
        ("sft epsilon=0.3", 2, "unknown key 'epsilon'"),  # never a setting of sft
    ],
)
def test_the_command_line_shows_them(cli, typed, code, shown):
    done = cli(*typed.split())
    assert done.returncode == code and shown in done.stderr and done.stdout == "", done.stderr


def test_a_file_of_rows_is_no_model(cli, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    done = cli("sft", "model=./rows.jsonl", "data=./rows.jsonl", cwd=tmp_path)
    assert done.returncode == 3 and "./rows.jsonl is not a model" in done.stderr and "make rows of it" not in done.stderr


@pytest.mark.parametrize("line", ["safework train ", "safework rl grpo ", "safework runs list "])
def test_completing_after_another_tool_s_command_prints_nothing_into_the_line(line):
    environment = os.environ | {"_SAFEWORK_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(SAFEWORK, env=environment, capture_output=True, text=True, timeout=60)
    assert "error" not in done.stderr and "Traceback" not in done.stderr and "error" not in done.stdout
