"""The container definitions install what ``make install`` does. They are read here, not built: that needs a daemon and a network."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib

import pytest

from pages import ROOT

OPTIONS = {"--quiet", "--disable-pip-version-check", "--no-cache-dir"}
"""Options of pip that do not change what is installed."""


def installs(file: str) -> list[tuple[str, ...]]:
    """What a file's pip commands install, in their order: the words after ``install`` without the options above and another index."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    text = re.sub(r"\$\{\w+:\+[^}]*\}", "", text)
    lines = [line.split("#")[0] for line in text.splitlines() if "-m pip install" in line]
    return [tuple(word for word in shlex.split(line.split("-m pip install")[1]) if word not in OPTIONS) for line in lines]


@pytest.mark.parametrize("file", ["Dockerfile", "safework.def"])
def test_a_container_installs_what_make_does(file):
    ours, makes = installs(file), installs("Makefile")
    assert ours[:2] == makes[:2] == [("-c", "constraints.txt", "torch"), ("-c", "constraints.txt", "-e", ".[test]")]
    assert ours[2:] == [("-c", "constraints.txt", "-e", ".[deepspeed]")], "the GPU variant adds one extra"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"test", "deepspeed"} <= extras.keys()
    assert len([line for line in (ROOT / file).read_text().splitlines() if "-m pip" in line]) == 3


def test_both_start_from_the_python_of_ci():
    python = re.search(r"^PYTHON \?= python(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert python is not None
    for file, line in (("Dockerfile", "FROM"), ("safework.def", "From:")):
        assert f"{line} python:{python[1]}-slim" in (ROOT / file).read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">={python[1]}"


def test_the_variants_are_build_arguments_and_end_in_the_command():
    docker = (ROOT / "Dockerfile").read_text()
    assert "ARG VARIANT=cpu" in docker.split("FROM")[0] and "FROM ${VARIANT}" in docker and "FROM cpu AS gpu" in docker
    assert 'ENTRYPOINT ["safework"]' in docker
    apptainer = (ROOT / "safework.def").read_text()
    assert {"%arguments", "%files", "%post", "%environment", "%runscript", "%test"} <= set(re.findall(r"^%\w+", apptainer, re.MULTILINE))
    assert "VARIANT=cpu" in apptainer.split("%files")[0] and '"{{ VARIANT }}" = gpu' in apptainer
    script = apptainer.split("%post")[1].split("%environment")[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0


def test_what_the_image_needs_is_not_left_out_of_it():
    ignored = (ROOT / ".dockerignore").read_text().split()
    needed = {"src", "stages", "recipes", "tests", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "Makefile"}
    assert not needed & set(ignored) and all((ROOT / name).exists() for name in needed) and ".git" in ignored
