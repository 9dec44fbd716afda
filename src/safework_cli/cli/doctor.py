"""``safework doctor``: what is installed, what works, and the one command that fixes each problem."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Optional

import typer

from safework_cli.cli.options import STORE
from safework_cli.core.terminal import console

Level = Literal["ok", "note", "broken"]

# Each optional or required package with something that must be importable from it: a folder of the same name is not a package.
REQUIRED = {
    "torch": "torch:Tensor",
    "transformers": "transformers:AutoTokenizer",
    "trl": "trl:GRPOTrainer",
    "datasets": "datasets:Dataset",
    "accelerate": "accelerate:Accelerator",
    "peft": "peft:LoraConfig",
    "inspect-ai": "inspect_ai:Task",
    "bm25s": "bm25s:BM25",
    "math-verify": "math_verify:verify",
    "gguf": "gguf:GGUFReader",
}
EXTRAS = {"vllm": "vllm:LLM", "deepspeed": "deepspeed:initialize"}
"""Packages of the extras, for engine.kind=vllm and for launch.strategy=zero2 and zero3. They are looked at where they are installed:
transformers and TRL then import them, so a broken one breaks every stage."""
OCR = {"rapidocr": "rapidocr:RapidOCR", "onnxruntime": "onnxruntime:InferenceSession"}
"""Packages of the extra ``ocr``, for judges that read the text in images; nothing else imports them."""
LOW_DISK_BYTES = 5 * 2**30


@dataclass(slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: Level
    text: str
    do: str = ""


def command() -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(
        name="doctor",
        help="Check what is installed and what works; each problem is shown with the command that fixes it. "
        "Exit 3 where something needed is broken.",
    )
    def doctor(
        store: Optional[Path] = STORE,
        as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    ) -> int:
        from safework_cli.core.artifacts import default_store
        from safework_cli.core.capture import stdout_to_stderr
        from safework_cli.core.errors import EXIT_INPUT

        with stdout_to_stderr():  # packages print while they are imported, such as one that greets WANDB_MODE=offline
            findings = list(examine(default_store(store).root))
        broken = any(finding.level == "broken" for finding in findings)
        if as_json:
            print(
                json.dumps(
                    {"healthy": not broken, "findings": [{"what": f.what, "level": f.level, "text": f.text, "do": f.do} for f in findings]}
                )
            )
            return EXIT_INPUT if broken else 0
        from rich.table import Table
        from rich.text import Text

        styles = {"ok": "green", "note": "yellow", "broken": "bold red"}
        table = Table(box=None, header_style="bold")
        for column in ("", "what", "found", "fix"):
            table.add_column(column, overflow="fold", no_wrap=column == "what")
        for f in findings:
            table.add_row(Text(f.level, style=styles[f.level]), f.what, Text(f.text), Text(f.do, style="bold"))
        console(stderr=True).print(table)
        return EXIT_INPUT if broken else 0

    return typer.main.get_command(app)


def examine(store: Path) -> Iterator[Finding]:
    """Looks at everything, one finding each; a check that breaks is a finding too."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _required,
        _extras,
        _images,
        _devices,
        _stages,
        lambda: _store(store),
        _shadows,
    ]
    for check in checks:
        yield from check()


def _python() -> Iterator[Finding]:
    level: Level = "ok" if sys.version_info >= (3, 11) else "broken"
    yield Finding("python", level, sys.version.split()[0], "" if level == "ok" else "install Python 3.11 or newer")


def _required() -> Iterator[Finding]:
    for package, attribute in REQUIRED.items():
        error = _import_error(attribute)
        if error:
            force = "" if "No module" in error else "--force-reinstall "
            yield Finding(package, "broken", error, f"pip install {force}-c constraints.txt {package}")
        else:
            yield Finding(package, "ok", version(package))


def _extras() -> Iterator[Finding]:
    for package, attribute in EXTRAS.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        error = _import_error(attribute)
        yield Finding(package, "broken" if error else "ok", error or installed, f"pip uninstall {package}" if error else "")
    unusable = {package: error for package, attribute in OCR.items() if (error := _import_error(attribute))}
    if len(unusable) < len(OCR):  # one of them is installed: the extra was meant
        text = "; ".join(f"{package}: {error}" for package, error in unusable.items()) or version("rapidocr")
        yield Finding("text in images", "note" if unusable else "ok", text, "pip install 'safework[ocr]'" if unusable else "")


def _images() -> Iterator[Finding]:
    """Images are read with Pillow only; torchvision is never offered: its wheels bring or want a torch of their own."""
    from safework_cli.core.torchvision import PACKAGE, hidden_because

    error = _import_error("PIL.Image:open")
    if error:
        yield Finding("pillow", "broken", f"images cannot be read: {error}", "pip install -c constraints.txt pillow")
    elif why := hidden_because():
        text = f"it does not fit this torch and is ignored, images are resized by Pillow ({why})"
        yield Finding(PACKAGE, "note", text, f"pip uninstall {PACKAGE}")
    else:
        fits = not _import_error(f"{PACKAGE}:transforms")
        yield Finding(
            "images", "ok", f"resized by torchvision {version(PACKAGE)}" if fits else "resized by Pillow (torchvision is not needed)"
        )


def _devices() -> Iterator[Finding]:
    if _import_error("torch:Tensor"):
        return
    import torch

    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            yield Finding(f"cuda:{number}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        text = f"CPU, {threads} thread{'s' if threads > 1 else ''}, {torch.backends.cpu.get_cpu_capability()}"
        if not _import_error("transformers:AutoTokenizer"):  # what is missing of it is a finding above
            from safework_cli.models.load import pick_dtype

            text += f", products in {str(pick_dtype('auto')).removeprefix('torch.')}"  # weights in training are float32
        yield Finding("device", "ok", text)


def _stages() -> Iterator[Finding]:
    from safework_cli.core.registry import load_stage, stage_entries

    if not stage_entries():
        yield Finding("stages", "broken", "no entry point in the group safework.stages", "pip install -e . (or install safework again)")
    for name in stage_entries():
        try:
            stage = load_stage(name)
            yield Finding(f"safework {name}", "ok", f"version {stage.version} → {stage.output}")
        except Exception as error:  # whatever a third party's module raises on import is the finding
            yield Finding(f"safework {name}", "broken", f"{type(error).__name__}: {error}", "install the package that ships it again")


def _store(root: Path) -> Iterator[Finding]:
    parent = next(p for p in (root, *root.parents) if p.exists())
    if not os.access(parent, os.W_OK):
        yield Finding("store", "broken", f"{root} cannot be written", "export SAFEWORK_STORE=/a/folder/of/yours")
        return
    free = shutil.disk_usage(parent).free
    yield Finding(
        "store",
        "ok" if free > LOW_DISK_BYTES else "note",
        f"{root}, {free / 2**30:.0f} GiB free",
        "" if free > LOW_DISK_BYTES else "safework artifacts gc",
    )


def _shadows() -> Iterator[Finding]:
    """A folder called like a package, here, is imported in its place and breaks libraries that probe for it."""
    for name in ("torchvision", *EXTRAS):
        folder = Path.cwd() / name
        if folder.is_dir() and not (folder / "__init__.py").exists():
            yield Finding("this folder", "broken", f"{folder} hides the package {name} from Python", f"mv {name} {name}-files")


def _import_error(attribute: str) -> str:
    module, _, name = attribute.partition(":")
    try:
        getattr(import_module(module), name)
    except Exception as error:  # broken wheels raise anything: OSError, RuntimeError, AttributeError
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""
