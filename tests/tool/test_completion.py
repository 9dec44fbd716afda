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
        ("safework s", ["sft", "search", "schema"]),
        ("safework rl ", ["m3", "efficient", "search"]),
        ("safework verifier w", ["wrap"]),
        ("safework data p", ["preview"]),
        ("safework runs ", ["ls", "show", "tail", "path"]),
        ("safework sft --d", ["--dry-run"]),
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
    for extra in ({}, {"_SAFEWORK_COMPLETE": "complete_bash", "COMP_WORDS": "safework rl ", "COMP_CWORD": "2"}):
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | extra, capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "LOADED []", done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed(shell):
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run([*COMMAND, "--show-completion", shell], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "_SAFEWORK_COMPLETE=complete_" in done.stdout
