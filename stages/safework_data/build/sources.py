"""Where rows come from: the starter set, files, the hub, and sets with a shape of their own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts import Artifact
from safework_cli.core.artifacts.manifest import HELDOUT
from safework_cli.core.errors import InputError, nearest
from safework_cli.data.dataset import stream_dataset
from safework_cli.data.images import IMAGE_SUFFIXES, embedded
from safework_cli.data.row import Message, Row
from safework_cli.data.suites import training_set
from safework_cli.data.suites.tables import format_of, read_table
from safework_cli.data.verdict import mark_of
from safework_data.build.columns import columns_of, refuse_overlooked
from safework_data.build.conversations import Unfit
from safework_data.build.drops import Candidate
from safework_data.build.records import OwnRows, RowMaker, has_column
from safework_data.build.reply_template import reply_of_template
from safework_data.build.sources_config import (
    DrawnSource,
    FileSource,
    HubSource,
    SetSource,
    Source,
    StarterSource,
    TableSource,
    XSTestSource,
)
from safework_data.build.xstest import xstest_rows
from safework_data.files import digest_of, expand, matching_files, refuse_missing


@dataclass(slots=True)
class Arrived:
    """What one source brought.

    Attributes:
        name: as in drops and in the data card.
        licence: as in the data card.
        items: in order, read as they are asked for; a broken file raises InputError then.
        origin: for people: a path, a hub id with its commit.
        candidate: makes a row of an item, perhaps in another process; what does not fit becomes the row's problem.
        image_keys: keys of an item that name images, or hold them.
        digest: sha256 over the files read; empty where the content is pinned by the toolkit's version or by a hub commit.
    """

    name: str
    licence: str
    items: Iterable[Any]
    origin: str
    candidate: Callable[[Any], Candidate]
    digest: str = ""
    image_keys: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)


def source_name(source: Source) -> str:
    """The source's name: as given, or its file's, or its repository's."""
    if isinstance(source, StarterSource):
        return "starter"
    if isinstance(source, DrawnSource):
        return "drawn"
    if isinstance(source, SetSource):
        return source.name or source.set
    if isinstance(source, XSTestSource) or source.name:
        return str(source.name)
    if isinstance(source, HubSource):
        return source.id.rsplit("/", 1)[-1]
    path = Path(source.path)
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).stem.replace("*", "_")


def source_files(source: Source) -> list[Path]:
    """The local files that a source reads, in order. Raises InputError where they are missing."""
    if isinstance(source, FileSource):
        files = matching_files(source.path)
        for path in files:
            format_of(path, source.format)
        return files
    if isinstance(source, SetSource):
        return [training_set(source.set).path(Path(expand(source.folder)))]
    if isinstance(source, XSTestSource):
        folder = Path(expand(source.folder))
        files = sorted(folder.glob("*.csv"))
        if not files:
            why = "the tables are published at github.com/paul-rottger/xstest (CC-BY-4.0)"
            raise InputError(
                f"source {source.name}: there are no CSV files in {folder}", why, "point folder: at the folder that holds them"
            )
        return files
    return []


def digest_of_images(source: Source) -> str:
    """sha256 over the paths, sizes and times of the image files in the folder of a source's table; empty where it reads none. (Contents may
    be many gigabytes; a file that was touched runs the build again.)"""
    if not (isinstance(source, SetSource) or (isinstance(source, FileSource) and "images" in source.columns)):
        return ""
    return state_of_images(source_files(source))


def state_of_images(tables: Iterable[Path]) -> str:
    """sha256 over the paths, sizes and times of the image files in the folders of some tables; empty where there are none."""
    found = sorted({path for file in tables for path in file.parent.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES})
    stated = "".join(f"{path}\0{(stat := path.stat()).st_size}\0{stat.st_mtime_ns}\n" for path in found)
    return hashlib.sha256(stated.encode("utf-8", "surrogateescape")).hexdigest() if found else ""


def refuse_unknown_categories(source: StarterSource, seed: int) -> None:
    """Raises InputError where the starter set of a seed has no rows of a category that is asked for."""
    if not source.categories:
        return
    from safework_data import starter

    known = sorted({row.category for rows in starter.build(seed).values() for row in rows if row.category})
    if unknown := [name for name in source.categories if name not in known]:
        what = f"the starter set has no category '{unknown[0]}'{nearest(unknown[0], known)}"
        raise InputError(what, f"its categories: {', '.join(known)}", "correct categories: of the source")


def read_source(source: Source, seed: int) -> Arrived:
    """Opens a source; its rows are read as they are asked for.

    Raises:
        InputError: a file is missing or broken, a column is not there, the hub cannot be reached.
    """
    if isinstance(source, StarterSource):
        return _read_starter(source, seed)
    if isinstance(source, DrawnSource):
        return _read_drawn(source, seed)
    if isinstance(source, SetSource):
        return _read_set(source)
    if isinstance(source, XSTestSource):
        return _read_xstest(source)
    return _read_hub(source) if isinstance(source, HubSource) else _read_files(source)


def _read_starter(source: StarterSource, seed: int) -> Arrived:
    from safework_data import starter

    everything = not source.tasks and not source.categories
    rows = [
        Candidate(row, subset, "starter", split_already=True)
        for subset, of_subset in starter.build(seed).items()
        for row in of_subset
        if everything or row.task in source.tasks or row.category in source.categories
    ]
    return Arrived("starter", ", ".join(sorted({c.row.licence for c in rows if c.row.licence})), rows, "ships with safework", as_it_is)


def _read_drawn(source: DrawnSource, seed: int) -> Arrived:
    from safework_data import drawn

    rows = drawn.build(seed, source.questions, source.size, with_typeset=source.typeset, kinds=source.kinds, held_out=source.heldout)
    items = ((each.row.id, {"drawn": each}) for each in rows)  # images are drawn where rows are made, in several processes
    notes = (
        [] if source.typeset is False or source.size >= drawn.NARROWEST else [f"source drawn: no text is typeset at {source.size} pixels"]
    )
    return Arrived("drawn", "Apache-2.0", items, "drawn by safework", partial(_of_drawing, source.size), notes=notes)


def _of_drawing(size: int, item: tuple[str, dict[str, Any]]) -> Candidate:
    from safework_data.drawn import drawn_row

    drawn = item[1]["drawn"]
    return Candidate(drawn_row(drawn, size), drawn.subset, "drawn", split_already=True)


def _read_set(source: SetSource) -> Arrived:
    files, known = source_files(source), training_set(source.set)
    rows: Iterator[Row] = islice(known.read(known, files[0]), source.skip, source.end)
    name = source_name(source)
    if source.name:  # the same row of a set may be in two subsets
        rows = (replace(row, id=f"{name}/{row.id.partition('/')[2]}", source=name) for row in rows)
    candidates = (Candidate(row, source.subset, name, row.split == "test") for row in rows)
    make = partial(_of_set, source, files[0].parent)
    return Arrived(name, known.licence, candidates, known.hub or known.upstream, make, digest_of(files))


def read_dataset(name: str, dataset: Artifact) -> Arrived:
    """The rows of a dataset, in its subsets; a name before their ids keeps the same prompt of two datasets apart. Where it holds something
    out already, its rows keep their side."""
    subsets = [dataset.subset] if dataset.subset else dataset.subsets
    split = is_split(dataset)
    candidates = (
        Candidate(replace(row, id=f"{name}/{row.id}"), subset, name, split_already=split)
        for subset in subsets
        for row in stream_dataset(dataset.with_subset(subset))
    )
    return Arrived(name, "as each row says", candidates, dataset.ref, as_it_is, dataset.digest)


def is_split(dataset: Artifact) -> bool:
    """Whether a dataset holds rows out."""
    return any(entry.path.startswith(f"{HELDOUT}/") or entry.path.endswith("/test.parquet") for entry in dataset.manifest.files)


def as_it_is(candidate: Candidate) -> Candidate:
    """An item that is a row already."""
    return candidate


def _of_set(source: SetSource, folder: Path, candidate: Candidate) -> Candidate:
    """A row of a public set with its images, and with the reply and the mark that the source asks for."""
    return _with_reply(source, _with_images(candidate, folder))


def _with_reply(source: TableSource | SetSource, candidate: Candidate) -> Candidate:
    """Writes the reply of the source's template, and marks the word that states the decision."""
    if candidate.problem is None and source.reply_template is not None:
        try:
            reply = reply_of_template(source.reply_template, candidate.row)
        except Unfit as unfit:
            return replace(candidate, problem=str(unfit))
        candidate.row.messages = [*candidate.row.messages, Message(role="assistant", content=reply)]
    if candidate.problem is None and source.verdict is not None:
        mark = mark_of(candidate.row, source.verdict)
        if mark is None:
            return replace(candidate, remarks=(*candidate.remarks, unmarked(candidate.source)))
        candidate.row.meta["verdict"] = [mark.start, mark.end]
    return candidate


def _with_images(candidate: Candidate, folder: Path) -> Candidate:
    """Embeds the images that a row names by their paths."""
    row = candidate.row
    try:
        row.images = [embedded(str(image["path"]), folder) if image["bytes"] is None else image for image in row.images]
    except InputError as error:
        candidate.problem = f"unreadable image: {error.what}; {error.why}"
    return candidate


def _read_files(source: FileSource) -> Arrived:
    name, files = source_name(source), source_files(source)
    read = columns_of(source)
    found = (
        (f"{label}{number}", record)
        for path, label in zip(files, file_labels(files), strict=True)
        for number, record in enumerate(read_table(path, source.format), start=1)
    )
    records = refuse_overlooked(read, found, source.path)
    where = str(files[0]) if len(files) == 1 else f"{source.path} ({len(files)} files)"
    notes = [read.note] if read.note else []
    maker: RowMaker | OwnRows
    items: Iterator[tuple[str, dict[str, Any]]]
    if read.own:
        maker = OwnRows(source, name, files[0].parent)
        items, images = islice(records, source.skip, source.end), ["images"]
    else:
        maker = RowMaker(read.source, name, files[0].parent)
        items, images = _numbered(maker, records, where), maker.of("images")
    make = partial(_made, maker, split_already=read.split)
    return Arrived(name, source.licence, items, where, make, digest_of(files), images, notes)


def file_labels(files: Sequence[Path]) -> list[str]:
    """What stands before the number of a record in its id: nothing where there is one file, else the file's path below the folder that
    they share, without the suffix where that is enough to tell them apart."""
    if len(files) < 2:
        return [""] * len(files)
    home = Path(os.path.commonpath([path.absolute().parent for path in files]))
    names = [path.absolute().relative_to(home) for path in files]
    plain = [name.with_suffix("").as_posix() for name in names]
    return [f"{label}/" for label in (plain if len(set(plain)) == len(plain) else [name.as_posix() for name in names])]


def _numbered(maker: RowMaker, records: Iterable[tuple[str, dict[str, Any]]], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records with their place in the source, those that it asks for. Raises InputError at the end where a column was in none of them."""
    missing, have = set(maker.columns), dict[str, None]()
    for number, (place, record) in enumerate(records, start=1):
        if missing:  # a line of JSON may leave out a key that others have: a column is unknown when no record has it
            missing = {column for column in missing if not has_column(record, column)}
            have.update(dict.fromkeys(map(str, record)))
            have.update(dict.fromkeys(f"{key}.{inner}" for key, value in record.items() if isinstance(value, dict) for inner in value))
        if number > maker.source.skip:
            yield place, record
        if number == maker.source.end:
            break
    if have:
        refuse_missing([column for column in maker.columns if column in missing], list(have), where)


def _made(maker: RowMaker | OwnRows, item: tuple[str, dict[str, Any]], split_already: bool = False) -> Candidate:
    row, problem, remarks, chosen = maker.made(*item)
    return _with_reply(maker.source, Candidate(row, maker.source.subset, maker.name, split_already, problem, remarks, chosen))


def unmarked(name: str) -> str:
    """The remark on a row in which a source's ``verdict`` finds no word."""
    return f"source {name}: verdict finds no word in the reply"


def _read_hub(source: HubSource) -> Arrived:
    import datasets
    import httpx
    from huggingface_hub import HfApi

    if Path(source.id).exists():
        what = f"{source.id} is a folder here, and would be read in place of the hub's dataset"
        raise InputError(what, "which is meant is not guessed", f"run from another folder, or use kind: file, path: {source.id}/…")
    unreachable = (OSError, ValueError, RuntimeError, httpx.HTTPError, httpx.InvalidURL)
    revision, notes = source.revision, []
    try:
        revision = HfApi().dataset_info(source.id, revision=revision).sha or revision
    except unreachable:  # a copy in the local cache may still serve; which commit it is cannot be said
        notes.append(f"source {source_name(source)}: the hub could not be asked which commit {source.id}@{revision or 'main'} is")
    try:
        table = datasets.load_dataset(source.id, source.config, split=source.split, revision=revision)
    except unreachable as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            why += " (HF_HUB_OFFLINE is set)"
        raise InputError(
            f"the hub dataset {source.id} (split {source.split}) could not be loaded",
            why,
            "without a network, copy its files here and name them:  kind: file, path: /path/to/*.parquet",
        ) from None
    columns = RowMaker(source, "").columns
    roots = list(dict.fromkeys(column if column in table.column_names else column.partition(".")[0] for column in columns))
    refuse_missing([column for column in roots if column not in table.column_names], table.column_names, f"hub dataset {source.id}")
    name = source_name(source)
    table = table.select_columns(roots)
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):  # bytes as they are: checked here, unpacked by whoever looks at them
            table = table.cast_column(column, datasets.Image(decode=False))
    maker = RowMaker(source, name)
    origin = f"hf:{source.id}@{revision or 'main'}"
    numbered = _numbered(maker, ((str(number), record) for number, record in enumerate(table, start=1)), source.id)
    make = partial(_made, maker, split_already="split" in source.columns)
    return Arrived(name, source.licence, numbered, origin, make, image_keys=maker.of("images"), notes=notes)


def _read_xstest(source: XSTestSource) -> Arrived:
    files = source_files(source)
    split = source.test_model is not None or source.halves != "ignored"
    candidates = [
        Candidate(row, source.subset, source.name, split, problem=None if row.reply else "no reply") for row in xstest_rows(source, files)
    ]
    return Arrived(source.name, "CC-BY-4.0", candidates, str(files[0].parent), as_it_is, digest_of(files))
