"""The versioned artifact store: manifests, references, lineage, verification and garbage collection."""

from safework_cli.core.artifacts.manifest import Artifact, FileEntry, InputEntry, Manifest
from safework_cli.core.artifacts.store import Store, default_store

__all__ = ["Artifact", "FileEntry", "InputEntry", "Manifest", "Store", "default_store"]
