"""What reaches a terminal: nothing in it acts, and a stderr that is lost ends nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from safework_cli.core.artifacts import InputEntry, Manifest, Store
from safework_cli.core.progress import PlainDisplay, QuietDisplay, RichDisplay
from safework_cli.core.terminal import Outlet, console, say, visible

MAIN = "from safework_cli.cli.main import main; main()"
HOSTILE = "\x1b]0;owned\x07\x1b[2Jred\x1b[31m\x9b5m\u202egpj.exe\u200b[/x][bold]\r\x08\x7f"
ACTING = ["\x1b", "\x07", "\x9b", "\u202e", "\u200b", "\r", "\x08", "\x7f"]


def harmless(text: str) -> bool:
    return not any(sign in text for sign in ACTING)


def test_every_acting_character_becomes_a_sign():
    shown = visible(HOSTILE)
    assert harmless(shown) and "\\x1b]0;owned\\x07" in shown and "\\u202e" in shown and visible(shown) == shown
    assert visible("tab\tand\nlines, فارسی 👩‍🔬") == "tab\tand\nlines, فارسی 👩‍🔬"


@pytest.mark.parametrize("make", [QuietDisplay, PlainDisplay, RichDisplay])
def test_displays(make, capsys):
    display = make()
    display.phase_started(HOSTILE, 3)
    display.advanced(HOSTILE, 1, 3)
    display.metrics(1, {HOSTILE: 1.0})
    display.line(HOSTILE, "warning")
    display.phase_ended(HOSTILE, 1.0, 3)
    display.close()
    shown = capsys.readouterr().err
    assert harmless(shown) and "gpj.exe" in shown and "[/x][bold]" in shown


def test_a_console_keeps_its_own_colours_and_takes_no_markup():
    from rich.table import Table
    from rich.text import Text

    stream = io.StringIO()
    out = console(file=stream, force_terminal=True, color_system="standard", width=200)
    table = Table("[/x] column", title=HOSTILE)
    table.add_row(HOSTILE)
    out.print(table, Text("plain red", style="red"), HOSTILE)
    shown = stream.getvalue()
    assert "\x1b[31mplain red\x1b[0m" in shown and "\\x1b]0;owned" in shown and "[/x] column" in shown
    assert not any(sign in shown for sign in ACTING if sign != "\x1b") and "\x1b]" not in shown and "\x1b[2J" not in shown


@pytest.fixture
def hostile_store(store: Store) -> Store:
    for name, ref in (("a", "generations/gone@v1"), ("b", "generations/a@v1")):
        folder = store.staging()
        (folder / "x").write_text("x")
        manifest = Manifest(
            kind="generations", name=name, version=0, created="2026-01-01[/x]" + HOSTILE, stage=HOSTILE, stage_version=1, fingerprint=name,
            inputs={HOSTILE: InputEntry(ref=ref + HOSTILE if name == "a" else ref, kind="generations", digest="")},
            config={HOSTILE: HOSTILE}, notes=[HOSTILE], metrics={HOSTILE: name}, files=[], digest="",
        )  # fmt: skip
        store.commit(folder, manifest)
    return store


@pytest.mark.parametrize(
    "words",
    [
        ("ls",), ("ls", "--json"), ("show", "a"), ("show", "a", "--json"), ("lineage", "b"), ("lineage", "b", "--json"), ("diff", "a", "b"),
        ("diff", "a", "b", "--json"), ("verify",), ("gc",), ("show", HOSTILE),
    ],
    ids=lambda words: " ".join(words[:1]) + str(len(words)),
)  # fmt: skip
def test_artifact_commands_show_hostile_manifests_as_they_are(hostile_store, cli, words, tmp_path):
    done = cli("artifacts", *words, cwd=tmp_path)
    assert harmless(done.stdout) and harmless(done.stderr), (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and "MarkupError" not in done.stderr
    if words[0] in ("ls", "show", "lineage", "diff") and HOSTILE not in words:
        assert done.returncode == 0 and any(sign in done.stdout for sign in ("\\x1b", "\\u001b", "\\e")), done.stderr


def run(redirect: str, *words: str, store: Store) -> subprocess.CompletedProcess[str]:
    line = f'"{sys.executable}" -c "{MAIN}" {" ".join(words)} {redirect}'
    return subprocess.run(["bash", "-c", line], env=os.environ | {"SAFEWORK_STORE": str(store.root)}, capture_output=True, text=True)


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", "2> >(exit)"])
def test_a_lost_stderr_is_no_reason_to_die(redirect, store):
    done = run(redirect, "models", "pull", "tiny", store=store)
    assert (done.returncode, done.stdout) == (0, "model/tiny-llama@v1\n"), done
    assert store.resolve("tiny-llama")


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
def test_a_stdout_that_cannot_be_written_is_one(redirect, store):
    done = run(redirect, "models", "pull", "tiny", store=store)
    assert done.returncode == 1 and "stdout cannot be written" in done.stderr and "Traceback" not in done.stderr, done
    assert run("", "models", "pull", "tiny", store=store).stdout == "model/tiny-llama@v1\n"


def test_an_outlet_drops_what_cannot_be_written():
    with open("/dev/full", "w") as full:
        outlet = Outlet(full)
        assert outlet.write("x" * 100_000) == 100_000
        outlet.flush()
    say("a word")
