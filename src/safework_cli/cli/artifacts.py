"""``safework artifacts``: look into the store, compare, check and clean it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Optional

import typer

STORE = typer.Option(None, "--store", help="The store's folder.  [default: $SAFEWORK_STORE or ./artifacts]", show_default=False)
JSON = typer.Option(False, "--json", help="Print one JSON object on stdout.")


def command() -> Any:
    app = typer.Typer(
        no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="List, show, verify, compare and clean the store."
    )
    app.callback()(lambda: None)

    @app.command(name="ls", help="List artifacts, oldest first.")
    def list_artifacts(
        kind: Optional[str] = typer.Option(None, help="Only of this kind.", show_default=False),
        store: Optional[Path] = STORE,
        as_json: bool = JSON,
    ) -> int:
        from safework_cli.errors import EXIT_INPUT, ConfigError, InputError, nearest
        from safework_cli.stage import KINDS

        if kind and kind not in KINDS:
            raise ConfigError(f"no kind '{kind}'{nearest(kind, KINDS)}", f"the kinds are {', '.join(KINDS)}")
        damaged: list[InputError] = []
        found = _store(store).list(kind, damaged=damaged)
        for error in damaged:
            print(f"damaged  {error}", file=sys.stderr)
        status = EXIT_INPUT if damaged else 0
        if as_json:
            print(json.dumps([_summary(a) for a in found]))
            return status
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold")
        for column in ("artifact", "made by", "when (UTC)", "size", "from"):
            table.add_column(column, overflow="fold")
        for a in found:
            size = sum(entry.size for entry in a.manifest.files)
            inputs = " ".join(f"{slot}={entry.ref}" for slot, entry in a.manifest.inputs.items())
            table.add_row(
                Text(a.ref + (" (pinned)" if a.manifest.pinned else "")),
                a.manifest.stage,
                a.manifest.created[:16].replace("T", " "),
                _size(size),
                Text(inputs, style="dim"),
            )
        Console(width=None if sys.stdout.isatty() else 200).print(table if found else "the store is empty: safework models pull smollm2")
        return status

    @app.command(help="Show an artifact's manifest.")
    def show(reference: str = typer.Argument(..., metavar="REF"), store: Optional[Path] = STORE, as_json: bool = JSON) -> None:
        artifact = _store(store).resolve(reference, verify=False)
        if as_json:
            print(artifact.manifest.model_dump_json())
            return
        import yaml

        shown = artifact.manifest.model_dump()
        shown["files"] = [f"{entry.path} ({_size(entry.size)}, sha256 {entry.sha256[:12]}…)" for entry in artifact.manifest.files]
        print(f"# {artifact.ref} in {artifact.path}")
        print(_printable(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=140)), end="")

    @app.command(help="Show what an artifact descends from.")
    def lineage(reference: str = typer.Argument(..., metavar="REF"), store: Optional[Path] = STORE, as_json: bool = JSON) -> None:
        where = _store(store)
        artifact = where.resolve(reference, verify=False)
        ancestors = where.lineage(artifact)
        if as_json:
            edges = {
                a.ref: {slot: entry.ref for slot, entry in a.manifest.inputs.items()}
                for a in [artifact, *ancestors.values()]
                if a is not None
            }
            print(json.dumps({"artifact": artifact.ref, "inputs": edges}))
            return
        from rich.console import Console
        from rich.text import Text
        from rich.tree import Tree

        def grow(tree: Tree, parent: Any) -> None:
            for slot, entry in parent.manifest.inputs.items():
                child = ancestors.get(entry.ref.split(":")[0] if not entry.ref.startswith("hf:") else entry.ref)
                by = f"  {child.manifest.stage}" if child else "  (not in this store)"
                branch = tree.add(Text.assemble((f"{slot} ", "dim"), entry.ref, (by, "dim")))
                if child is not None:
                    grow(branch, child)

        tree = Tree(Text.assemble(artifact.ref, (f"  {artifact.manifest.stage}", "dim")))
        grow(tree, artifact)
        Console().print(tree)

    @app.command(help="Compare two artifacts: settings, inputs, metrics, packages.")
    def diff(
        first: str = typer.Argument(..., metavar="REF"),
        second: str = typer.Argument(..., metavar="REF"),
        store: Optional[Path] = STORE,
        as_json: bool = JSON,
    ) -> None:
        from safework_cli.config import flatten

        where = _store(store)
        sides = [where.resolve(reference, verify=False) for reference in (first, second)]
        views = [
            dict(
                flatten(
                    a.manifest.model_dump(
                        include={
                            "stage",
                            "stage_version",
                            "config",
                            "inputs",
                            "metrics",
                            "packages",
                            "chat_template_hash",
                            "digest",
                            "git_commit",
                        }
                    )
                )
            )
            for a in sides
        ]
        changed = {
            key: [view.get(key) for view in views]
            for key in sorted(views[0].keys() | views[1].keys())
            if views[0].get(key) != views[1].get(key)
        }
        if as_json:
            print(json.dumps({"first": sides[0].ref, "second": sides[1].ref, "changed": changed}, default=str))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("key", sides[0].ref, sides[1].ref, box=None, header_style="bold")
        for key, (before, after) in changed.items():
            table.add_row(key, Text(str(before)[:300]), Text(str(after)[:300]))
        Console().print(table if changed else f"{sides[0].ref} and {sides[1].ref} say the same of themselves")

    @app.command(help="Compare every byte with the manifests; exit 3 where anything differs.")
    def verify(
        references: Optional[list[str]] = typer.Argument(
            None, metavar="[REF]...", help="All artifacts where none is named.", show_default=False
        ),
        store: Optional[Path] = STORE,
    ) -> int:
        from safework_cli.errors import EXIT_INPUT, InputError

        where = _store(store)
        unreadable: list[InputError] = []
        found = [where.resolve(r, verify=False) for r in references] if references else where.list(damaged=unreadable)
        for error in unreadable:
            print(f"damaged  {error}", file=sys.stderr)
        damaged = 0
        for artifact in found:
            try:
                where.verify(artifact, thorough=True)
                print(f"ok       {artifact.ref}", file=sys.stderr)
            except InputError as error:
                damaged += 1
                print(f"damaged  {error}", file=sys.stderr)
        print(f"{len(found) - damaged} of {len(found) + len(unreadable)} artifacts are whole", file=sys.stderr)
        return EXIT_INPUT if damaged or unreadable else 0

    @app.command(help="Keep an artifact (and all that it descends from) from gc, or let it go again.")
    def pin(
        reference: str = typer.Argument(..., metavar="REF"),
        off: bool = typer.Option(False, "--off", help="Unpin."),
        store: Optional[Path] = STORE,
    ) -> None:
        where = _store(store)
        where.set_pinned(where.resolve(reference, verify=False), not off)

    @app.command(
        help="Delete old versions, abandoned run folders and leftovers of killed processes. Says what it would delete; --yes does it. "
        "What a kept artifact descends from is kept."
    )
    def gc(
        keep: int = typer.Option(1, min=1, help="Versions to keep of each name, the newest."),
        runs_days: float = typer.Option(
            7.0, help="Abandoned run folders older than this many days are deleted: they are what a re-run would resume from."
        ),
        with_ancestors: bool = typer.Option(
            False, "--with-ancestors", help="Delete old versions also where a kept artifact descends from them."
        ),
        yes: bool = typer.Option(False, "--yes", help="Delete."),
        store: Optional[Path] = STORE,
    ) -> None:
        from safework_cli.artifacts.gc import collect, garbage

        where = _store(store)
        found = garbage(where, keep=keep, runs_days=runs_days, with_ancestors=with_ancestors)
        for item in found:
            print(f"{'delete' if yes else 'would delete'}  {_size(item.size):>10}  {item.label}", file=sys.stderr)
        total = sum(item.size for item in found)
        if yes:
            collect(where, found)
        print(f"{_size(total)} {'freed' if yes else 'to free; --yes deletes'}", file=sys.stderr)

    @app.command(
        name="import",
        help="Bring a folder into the store: an exported artifact, a Hugging Face model, or a folder of Parquet. Prints the reference.",
    )
    def import_(
        path: Path = typer.Argument(...),
        name: Optional[str] = typer.Option(None, "--name", help="The artifact's name.", show_default=False),
        store: Optional[Path] = STORE,
    ) -> None:
        from safework_cli.artifacts.transfer import import_folder

        print(import_folder(_store(store), path, name).ref)

    @app.command(help="Copy an artifact out of the store, manifest and all. With --check, a model is loaded and made to say one token.")
    def export(
        reference: str = typer.Argument(..., metavar="REF"),
        folder: Path = typer.Argument(..., help="A folder that does not exist yet."),
        check: bool = typer.Option(False, "--check", help="Load the exported model and generate one token."),
        trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="With --check: run Python code of the model's own."),
        store: Optional[Path] = STORE,
    ) -> None:
        from safework_cli.artifacts.transfer import export_folder

        artifact = _store(store).resolve(reference)
        export_folder(artifact, folder)
        if check and artifact.kind == "model":
            _generate_one_token(folder, trust_remote_code)
        print(folder)

    return typer.main.get_command(app)


def _generate_one_token(folder: Path, trust_remote_code: bool) -> None:
    from safework_cli.lm.engine import Sampling
    from safework_cli.lm.hf import HFEngine
    from safework_cli.lm.models import load_model, load_tokenizer

    model = load_model(folder, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    completion = HFEngine(model, tokenizer).generate([[{"role": "user", "content": "Hello"}]], Sampling(max_tokens=1))[0][0]
    print(f"{folder} loads and generates (token {completion.token_ids})", file=sys.stderr)


def _store(path: Path | None) -> Any:
    from safework_cli.artifacts import default_store

    return default_store(path)


def _summary(artifact: Any) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "ref": artifact.ref,
        "stage": manifest.stage,
        "created": manifest.created,
        "size": sum(f.size for f in manifest.files),
        "path": str(artifact.path),
        "inputs": {k: v.ref for k, v in manifest.inputs.items()},
    }


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _printable(text: str) -> str:
    """Model text may hold control characters that would drive the terminal: they are shown, not sent."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
