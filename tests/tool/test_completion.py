"""Shell completion: commands and options, instantly."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-c", "from safework_cli.cli.main import main; main()"]


def complete(line: str) -> list[str]:
    environment = {"_SAFEWORK_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(COMMAND, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("safework s", ["sft", "search", "schema", "serve"]),
        ("safework rl ", ["m3", "efficient", "search"]),
        ("safework verifier w", ["wrap"]),
        ("safework data p", ["preview"]),
        ("safework runs ", ["ls", "show", "tail", "path"]),
        ("safework sft --d", ["--dry-run"]),
        ("safework sft lear", ["learning_rate="]),
        ("safework sft model=tiny max_st", ["max_steps="]),
        ("safework sft eval_d", ["eval_data="]),
        ("safework rl m3 loss.ep", ["loss.epsilon="]),
        ("safework rl m3 verif", ["verifiers."]),
        ("safework sft lora.a", ["lora.alpha="]),
        ("safework data build pat", []),  # a key of a list's blocks
    ],
)
def test_commands_and_options_are_completed(line, expected):
    assert complete(line) == expected


def test_help_and_completion_import_no_stage_and_nothing_heavy():
    script = (
        "import sys; sys.argv = ['safework', '--help']\n"
        "from safework_cli.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'ruamel', 'safework_sft.config', 'safework_rl.config'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    keys = {"_SAFEWORK_COMPLETE": "complete_bash", "COMP_WORDS": "safework rl m3 lear", "COMP_CWORD": "3"}
    loaded = subprocess.run([sys.executable, "-c", script], env=os.environ | keys, capture_output=True, text=True, timeout=60).stdout
    assert "learning_rate=" in loaded and not {"torch", "transformers", "numpy"} & set(loaded.splitlines()[-1].split("'"))
    for extra in ({}, {"_SAFEWORK_COMPLETE": "complete_bash", "COMP_WORDS": "safework rl ", "COMP_CWORD": "2"}):
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | extra, capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "LOADED []", done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed(shell):
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run([*COMMAND, "--show-completion", shell], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "_SAFEWORK_COMPLETE=complete_" in done.stdout


def test_bash_puts_no_space_after_a_key(tmp_path):
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = subprocess.run([*COMMAND, "--show-completion", "bash"], env=environment, capture_output=True, text=True, timeout=60).stdout
    safework = tmp_path / "safework"
    safework.write_text("#!/bin/sh\necho loss.epsilon=\n")
    safework.chmod(0o755)
    asked = f"""compopt() {{ local IFS=' '; echo "compopt $*"; }}\n{script}\n_safework_completion {safework}; echo "${{COMPREPLY[@]}}" """
    assert subprocess.run(["bash", "-c", asked], capture_output=True, text=True).stdout.split("\n")[:2] == [
        "compopt -o nospace",
        "loss.epsilon=",
    ]
