"""Commands that are forks of one process end as processes of their own do: see ``forked.py``."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import psutil
import pytest


@pytest.fixture
def python(forks, tmp_path):
    """Starts a module of this text, by the name ``python`` of the forks' folder."""

    def start(text: str, **environment: str) -> subprocess.Popen[str]:
        (tmp_path / "module_of_a_test.py").write_text(f"import os, sys, time\n{text}")
        environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])} | environment
        command = [str(forks.folder / "python"), "-u", "-m", "module_of_a_test", "a word"]
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdin=-1, stdout=-1, stderr=-1, text=True)

    return start


SAYS_ITS_ID = "print(os.getpid(), flush=True)\n"


def test_a_fork_has_the_words_the_environment_and_the_files_of_its_command(python, tmp_path):
    text = "print(sys.argv[1:], os.getcwd(), os.environ['SAFEWORK_X'], input(), 'torch' in sys.modules)\n"
    text += "print('so', file=sys.stderr)\nsys.exit(7)"
    process = python(text, SAFEWORK_X="x")
    assert process.communicate("typed\n", timeout=60) == (f"['a word'] {tmp_path} x typed True\n", "so\n")
    assert process.returncode == 7


def test_an_error_is_shown_and_a_wrong_command_has_its_code(python, forks):
    process = python("raise ValueError('of a test')")
    assert process.communicate(timeout=60)[1].endswith("ValueError: of a test\n") and process.returncode == 1
    done = subprocess.run([*forks.command, "nonsense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "nonsense" in done.stderr


@pytest.mark.parametrize(
    ("text", "number", "code"),
    [("time.sleep(60)", signal.SIGTERM, -signal.SIGTERM), ("os.kill(os.getpid(), 9)", None, -signal.SIGKILL)],
)
def test_signals_reach_it_and_end_the_command(python, text, number, code):
    process = python(SAYS_ITS_ID + text)
    own = int(process.stdout.readline())
    assert own != process.pid
    if number is not None:
        process.send_signal(number)
    assert process.wait(60) == code and not psutil.pid_exists(own)


def test_it_is_killed_with_its_command(python):
    process = python(SAYS_ITS_ID + "time.sleep(60)")
    own = int(process.stdout.readline())
    process.kill()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(own):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_start_of_python_would_read_is_given_to_a_new_python(python, forks):
    process = python("print('torch' in sys.modules)", PYTHONHASHSEED="5")
    assert process.communicate(timeout=60) == ("False\n", "") and process.returncode == 0
    done = subprocess.run([str(forks.folder / "python"), "-c", "import sys; print('torch' in sys.modules)"], capture_output=True, text=True)
    assert done.stdout == "False\n"
