"""``safework data preview``, ``data sets`` and ``data schema``: looking at data before anything is trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import typer

from safework_cli.cli.options import STORE
from safework_cli.data.dataset import read_dataset

ROLE_STYLES = {"system": "dim", "user": "cyan", "assistant": "green"}


def preview_command() -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(
        name="data preview",
        help="Show rows of a dataset on the terminal. With --model, each row is shown as that model's template writes it, and the tokens "
        "that training would supervise are marked: reversed on a terminal, in ⟦ ⟧ elsewhere.",
    )
    def preview(
        data: str = typer.Argument(..., metavar="DATASET[:SUBSET]", help="A dataset artifact, a folder of Parquet, or a file of rows."),
        model: Optional[str] = typer.Option(None, "--model", help="A model artifact whose chat template is used.", show_default=False),
        rows: int = typer.Option(3, "-n", "--rows", min=1, help="How many rows."),
        start: int = typer.Option(0, "--start", min=0, help="The first row, counted from 0."),
        trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="Run Python code that the model's folder brings along."),
        row_id: Optional[str] = typer.Option(None, "--id", help="Show the row of this id.", show_default=False),
        store: Optional[Path] = STORE,
    ) -> None:
        from safework_cli.core.artifacts import Artifact, default_store
        from safework_cli.core.errors import InputError, nearest
        from safework_cli.core.prepare import built_of
        from safework_cli.core.terminal import console as make_console

        where = default_store(store)
        artifact = built_of(data, ("dataset",), where, quiet=False) or where.resolve(data, ("dataset",))
        assert isinstance(artifact, Artifact)  # it is built here, not only planned
        found = read_dataset(artifact)
        if row_id is not None:
            chosen = [row for row in found if row.id == row_id]
            if not chosen:
                hint = nearest(row_id, [row.id for row in found])
                raise InputError(f"{data} has no row '{row_id}'{hint}", f"it holds {len(found):,} rows")
        else:
            chosen = found[start : start + rows]
            if not chosen:
                raise InputError(f"{data} holds {len(found):,} rows", f"--start is {start}", "begin at a smaller number")
        tokens = _tokens(where, model, trust_remote_code) if model else None
        console = make_console()
        for row in chosen:
            _show(console, row, tokens)

    return typer.main.get_command(app)


def _tokens(store: Any, model: str, trust_remote_code: bool) -> Any:
    """A function from a row to (text of tokens, whether they are supervised) pairs, under a model's template. The tokens of an image are
    counted, not written."""
    from itertools import groupby

    from safework_cli.models.chat_template import encode_conversation
    from safework_cli.models.folder import read_config
    from safework_cli.models.load import template_of
    from safework_cli.models.processors import load_processor
    from safework_cli.models.vision import placeholders_of

    folder = store.resolve(model, ("model",)).path
    tokenizer, stops = template_of(folder, trust_remote_code=trust_remote_code)
    of_images = set(placeholders_of(read_config(folder, trust_remote_code=trust_remote_code)))

    def pairs(row: Any) -> list[tuple[str, bool]]:
        processor = load_processor(folder, trust_remote_code=trust_remote_code) if row.images else None
        encoded = encode_conversation(tokenizer, row.messages, stops, None, row.images, processor)
        kinds = zip(encoded.input_ids, encoded.supervised, strict=True)
        shown = []
        # whole runs are decoded: a character may need two tokens
        for (supervised, is_image), run in groupby(kinds, lambda pair: (pair[1], bool(row.images) and pair[0] in of_images)):
            ids = [token for token, _ in run]
            shown.append((f"⟨image: {len(ids)} tokens⟩" if is_image else str(tokenizer.decode(ids)), supervised))
        return shown

    return pairs


def _show(console: Any, row: Any, tokens: Any) -> None:
    """One row: what is known of it, then its messages, or its tokens with the supervised ones reversed."""
    from rich.text import Text

    from safework_cli.core.errors import InputError
    from safework_cli.core.terminal import visible

    known = {"task": row.task, "category": row.category, "harmful": row.harmful, "answer": row.answer, "source": row.source}
    facts = "  ".join(f"{key}={value}" for key, value in known.items() if value not in (None, ""))
    console.rule(Text(visible(row.id), style="bold"), align="left")
    console.print(Text(visible(facts), style="dim"))
    if row.meta:
        console.print(Text(visible(json.dumps(row.meta, ensure_ascii=False)), style="dim"))
    if tokens is not None and any(message["role"] == "assistant" for message in row.messages):
        try:
            for text, supervised in tokens(row):
                if supervised and not console.color_system:  # in a file or a pipe, brackets stand for the colour
                    console.print(Text(f"⟦{visible(text)}⟧"), end="", soft_wrap=True)
                else:
                    console.print(Text(visible(text), style="reverse green" if supervised else ""), end="", soft_wrap=True)
            console.print()
            return
        except InputError as error:
            console.print(Text(f"would be dropped: {error}", style="red"))
    for message in row.messages:
        style = ROLE_STYLES.get(message["role"], "")
        console.print(Text(f"{visible(message['role'])}: ", style=f"bold {style}"), Text(visible(message["content"]), style=style))


def sets_command() -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(name="data sets", help="List the public sets that can be trained on (kind: set), and the suites that are kept out.")
    def sets(as_json: bool = typer.Option(False, "--json", help="Print JSON lines.")) -> None:
        from safework_cli.data.suites import SUITES, TRAINING_SETS

        listed = [("train", s) for s in TRAINING_SETS.values() if s.split == "train"]
        listed += [("test", s) for s in TRAINING_SETS.values() if s.split == "test"]
        listed += [("suite", s) for s in SUITES.values()]
        if as_json:
            for use, s in listed:
                keys = ("name", "task", "language", "licence", "hub", "upstream", "file", "summary", "images", "tried")
                print(json.dumps({"use": use, **{key: getattr(s, key) for key in keys}}, ensure_ascii=False))
            return
        from rich.table import Table

        from safework_cli.core.terminal import console as make_console

        console = make_console()
        table = Table(box=None, header_style="bold")
        wide = console.width >= 140  # elsewhere --json has the rest
        for column in ("use", "name", "task", *(("licence", "hub id") if wide else ()), "what"):
            table.add_column(column, overflow="fold", no_wrap=column in ("use", "name", "task"))
        for use, s in listed:
            table.add_row(
                use,
                s.name,
                s.task,
                *((s.licence, s.hub or s.upstream) if wide else ()),
                s.summary if s.tried else f"{s.summary} (not tried here)",
            )
        console.print(table)

    return typer.main.get_command(app)


def schema_command() -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(name="data schema", help="Print the JSON schema of a row, for whoever writes rows without this tool.")
    def schema() -> None:
        from safework_cli.data.schema import row_schema

        print(json.dumps(row_schema(), indent=2, ensure_ascii=False))

    return typer.main.get_command(app)
