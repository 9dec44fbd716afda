"""``safework artifacts``: look into the store, compare, check and clean it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

import typer

from safework_cli.cli.hints import HintGroup
from safework_cli.cli.json_output import print_json
from safework_cli.cli.options import STORE
from safework_cli.core.formats import size
from safework_cli.core.terminal import console, say, visible

JSON = typer.Option(False, "--json", help="Print one JSON object on stdout.")


class ArtifactsGroup(HintGroup):
    word = "artifacts"


def command() -> Any:
    app = typer.Typer(
        cls=ArtifactsGroup,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        help="List, show, verify, compare and clean the store.",
    )
    app.callback()(lambda: None)

    @app.command(name="ls", help="List artifacts, oldest first.")
    def list_artifacts(
        kind: Optional[str] = typer.Option(None, help="Only of this kind.", show_default=False),
        store: Optional[Path] = STORE,
        as_json: bool = JSON,
    ) -> int:
        from safework_cli.core.artifacts.manifest import KINDS
        from safework_cli.core.errors import EXIT_INPUT, ConfigError, InputError, nearest

        if kind and kind not in KINDS:
            raise ConfigError(f"no kind '{kind}'{nearest(kind, KINDS)}", f"the kinds are {', '.join(KINDS)}")
        damaged: list[InputError] = []
        where = _store(store)
        found = where.list(kind, damaged=damaged)
        for error in damaged:
            say(f"damaged  {error}")
        status = EXIT_INPUT if damaged else 0
        if as_json:
            print_json([_summary(a) for a in found])
            return status
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold")
        for column in ("artifact", "made by", "when (UTC)", "size", "from"):
            table.add_column(column, overflow="fold")
        for a in found:
            inputs = " ".join(f"{slot}={entry.ref}" for slot, entry in a.manifest.inputs.items())
            table.add_row(
                Text(a.ref + (" (pinned)" if a.manifest.pinned else "") + _adapter_of(where, a)),
                a.manifest.stage,
                a.manifest.created[:16].replace("T", " "),
                size(sum(entry.size for entry in a.manifest.files)),
                Text(inputs, style="dim"),
            )
        console(width=None if sys.stdout.isatty() else 200).print(table if found else "the store is empty: safework models pull smollm2")
        return status

    @app.command(help="Show an artifact's manifest.")
    def show(reference: str = typer.Argument(..., metavar="REF"), store: Optional[Path] = STORE, as_json: bool = JSON) -> None:
        artifact = _store(store).resolve(reference, verify=False)
        if as_json:
            print_json(artifact.manifest.model_dump(mode="json"))
            return
        from safework_cli.core.yaml_text import dump_yaml

        shown = artifact.manifest.model_dump(mode="json")
        shown["files"] = [f"{entry.path} ({size(entry.size)}, sha256 {entry.sha256[:12]}…)" for entry in artifact.manifest.files]
        print(visible(f"# {artifact.ref} in {artifact.path}"))
        print(visible(dump_yaml(shown)), end="")

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
            print_json({"artifact": artifact.ref, "inputs": edges})
            return
        from safework_cli.cli.lineage import lineage_trees

        for tree in lineage_trees(artifact, ancestors):
            console().print(tree)

    @app.command(help="Compare two artifacts: settings, inputs, metrics, packages.")
    def diff(
        first: str = typer.Argument(..., metavar="REF"),
        second: str = typer.Argument(..., metavar="REF"),
        store: Optional[Path] = STORE,
        as_json: bool = JSON,
    ) -> None:
        from safework_cli.core.config import flatten

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
            print_json({"first": sides[0].ref, "second": sides[1].ref, "changed": changed})
            return
        from rich.table import Table
        from rich.text import Text

        table = Table("key", sides[0].ref, sides[1].ref, box=None, header_style="bold")
        for key, (before, after) in changed.items():
            table.add_row(key, Text(str(before)[:300]), Text(str(after)[:300]))
        console().print(table if changed else f"the manifests of {sides[0].ref} and {sides[1].ref} are identical")

    @app.command(help="Compare every byte with the manifests; exit 3 where anything differs.")
    def verify(
        references: Optional[list[str]] = typer.Argument(
            None, metavar="[REF]...", help="All artifacts where none is named.", show_default=False
        ),
        store: Optional[Path] = STORE,
    ) -> int:
        from safework_cli.core.artifacts.adapters import base_of
        from safework_cli.core.artifacts.manifest import NotThere
        from safework_cli.core.errors import EXIT_INPUT, InputError

        where = _store(store)
        unreadable: list[InputError] = []
        found = [where.resolve(r, verify=False) for r in references] if references else where.list(damaged=unreadable)
        for error in unreadable:
            say(f"damaged  {error}")
        damaged = 0
        checked = len(unreadable)
        for artifact in found:
            try:
                where.verify(artifact, thorough=True)
                base_of(where, artifact, verify=True)
                without = "" if artifact.manifest.manifest_sha256 else "  (its manifest carries no digest: only the files were compared)"
                say(f"ok       {artifact.ref}{without}")
            except NotThere:
                continue  # a gc took it: that is not damage
            except InputError as error:
                damaged += 1
                say(f"damaged  {error}")
            checked += 1
        say(f"{checked - damaged - len(unreadable)} of {checked} artifacts are whole")
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
        from safework_cli.core.artifacts.gc import collect, garbage
        from safework_cli.core.errors import InputError

        where, total = _store(store), 0
        damaged: list[InputError] = []
        found = garbage(where, keep=keep, runs_days=runs_days, with_ancestors=with_ancestors, damaged=damaged)
        for error in damaged:
            say(f"kept     {error}")
        for item in found if not yes else collect(where, found) if found else []:
            total += item.size
            say(f"{'deleted' if yes else 'would delete'}  {size(item.size):>10}  {item.label}")
        would = f"{size(total)} would be freed; use --yes" if found else "nothing to delete"
        say(f"{size(total)} freed" if yes else would)

    @app.command(
        name="import",
        help="Bring a folder into the store: an exported artifact, a Hugging Face model, or a folder of Parquet. Prints the reference.",
    )
    def import_(
        path: Path = typer.Argument(...),
        name: Optional[str] = typer.Option(None, "--name", help="The artifact's name.", show_default=False),
        reuse: bool = typer.Option(
            False,
            "--reuse",
            help="Believe the folder's fingerprint: a command with the same settings and inputs prints this artifact as already done.",
        ),
        store: Optional[Path] = STORE,
    ) -> None:
        from safework_cli.core.artifacts.transfer import import_folder
        from safework_cli.core.paths import user_path

        print(import_folder(_store(store), user_path(path), name, reuse=reuse).ref)

    @app.command(help="Copy an artifact out of the store, manifest and all. With --check, a model is loaded and made to say one token.")
    def export(
        reference: str = typer.Argument(..., metavar="REF"),
        folder: Path = typer.Argument(
            ..., help="A folder that does not exist yet. One that is a whole copy of the artifact stays as it is."
        ),
        check: bool = typer.Option(False, "--check", help="Load the exported model and generate one token."),
        trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="With --check: run Python code of the model's own."),
        store: Optional[Path] = STORE,
    ) -> None:
        from safework_cli.core.artifacts.adapters import base_of
        from safework_cli.core.artifacts.transfer import export_folder
        from safework_cli.core.errors import InputError
        from safework_cli.core.paths import user_path

        where, folder = _store(store), user_path(folder)
        artifact = where.resolve(reference)
        base = base_of(where, artifact)
        if check and base is not None:
            what = f"--check: {artifact.ref} is an adapter of {base.ref}, and a folder outside a store has no base"
            raise InputError(what, "", f"safework models merge {artifact.ref}, then export what it makes")
        if not export_folder(artifact, folder):
            say(f"{folder} is a whole copy of {artifact.ref} already")
        if base is not None:
            say(f"{artifact.ref} is an adapter: it is imported after its base, {base.ref}")
        if check and artifact.kind == "model":
            _generate_one_token(folder, trust_remote_code)
        print(folder)

    return typer.main.get_command(app)


def _generate_one_token(folder: Path, trust_remote_code: bool) -> None:
    from safework_cli.core.errors import InputError
    from safework_cli.engines.load import load_engine
    from safework_cli.engines.protocol import Sampling
    from safework_cli.engines.settings import EngineSettings

    engine = load_engine(EngineSettings(), folder, trust_remote_code=trust_remote_code)
    completion = engine.generate([[{"role": "user", "content": "Hello"}]], Sampling(max_tokens=1))[0][0]
    if completion.error:
        raise InputError(f"the model in {folder} cannot reply", completion.error)
    say(f"{folder} loads and generates (token {completion.token_ids})")


def _store(path: Path | None) -> Any:
    from safework_cli.core.artifacts import default_store

    return default_store(path)


def _adapter_of(store: Any, artifact: Any) -> str:
    """What a list says of an adapter: its base, and whether that is here."""
    from safework_cli.core.artifacts.adapters import base_in_store, is_adapter, read_base

    if not is_adapter(artifact) or (base := read_base(artifact.path)) is None:
        return ""
    here = base_in_store(store, artifact)
    if here is None and not base.ref.startswith(("/", "hf:")):
        return f" (adapter of {base.ref}, which is missing)"
    return f" (adapter of {base.ref if here is None else here.ref})"


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
