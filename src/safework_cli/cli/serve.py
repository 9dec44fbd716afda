"""``safework serve``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional, cast, get_args

import typer

from safework_cli.cli.options import STORE
from safework_cli.core.terminal import visible


def command() -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(
        name="serve",
        help="Serve a model with vLLM for the rollouts of rl stages: until it is stopped, they send it their weights and sample from it. "
        "What follows -- is passed to vLLM, such as -- --tensor-parallel-size 2.",
    )
    def serve(
        model: str = typer.Argument(..., help="The model that will be trained, such as NAME or NAME@v2."),
        more: Optional[list[str]] = typer.Argument(None, metavar="[-- VLLM OPTIONS]", help="Options of vLLM.", show_default=False),
        host: str = typer.Option("127.0.0.1", "--host", help="Address to listen at. Anyone who reaches it can replace the weights."),
        port: int = typer.Option(8000, "--port", min=1, max=65535, help="Port to listen at."),
        dtype: str = typer.Option("auto", "--dtype", help="float32 or bfloat16, as the trainer's; auto: what the hardware multiplies in."),
        transfer: str = typer.Option("folder", "--transfer", help="How weights come: folder (any device) or nccl (CUDA)."),
        log: Optional[Path] = typer.Option(
            None, "--log", help="File for vLLM's output.  [default: STORE/.servers/PORT.log]", show_default=False
        ),
        store: Optional[Path] = STORE,
    ) -> int:
        from safework_cli.core.artifacts import default_store
        from safework_cli.core.errors import ConfigError
        from safework_cli.core.paths import user_path
        from safework_cli.engines.vllm.serve import Dtype, Transfer, server_command
        from safework_cli.engines.vllm.serve import serve as run

        offered = {"dtype": (dtype, get_args(Dtype)), "transfer": (transfer, get_args(Transfer))}
        for name, (value, valid) in offered.items():
            if value not in valid:
                raise ConfigError(f"--{name} is {value}", f"it must be one of {', '.join(valid)}")
        where = default_store(store)
        artifact = where.resolve(model, ("model",))
        words = server_command(
            artifact.path, artifact.ref, host=host, port=port, dtype=cast(Dtype, dtype), transfer=cast(Transfer, transfer), more=more or ()
        )
        file = (user_path(log) if log else where.root / ".servers" / f"{port}.log").resolve()
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - compared, not listened at
        print(f"starting vLLM at {url}, log: {file}", file=sys.stderr)

        def ready() -> None:
            settings = f"engine.kind=vllm engine.server.url={url} engine.server.transfer={transfer} engine.server.log={file}"
            print(visible(settings), flush=True)  # on stdout: a script takes it over

        return run(words, url, file, ready)

    return typer.main.get_command(app)
