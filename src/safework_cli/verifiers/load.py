"""From a reference to a verifier: a trained one from its folder, or ``rule:NAME``. Imports torch only when a trained one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safework_cli.core.artifacts.external import RULE_PREFIX
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.verifiers.contract import Verifier
from safework_cli.verifiers.image_text import require_reader
from safework_cli.verifiers.rules import rule_verifier

if TYPE_CHECKING:
    from safework_cli.core.artifacts.manifest import Artifact

__all__ = ["load_verifier", "rule_verifier"]


def load_verifier(
    source: Artifact | Path | str,
    *,
    reading: Literal["hard", "soft"] | None = None,
    use_harmful: bool | None = None,
    batch_size: int = 16,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    trust_remote_code: bool = False,
) -> Verifier:
    """Loads a verifier.

    Args:
        source: a verifier artifact, a folder with ``verifier.json``, or "rule:format" and its like, as text or as an input.
        reading, use_harmful: in place of what ``verifier.json`` says.
        batch_size: exchanges judged together.
        dtype: of the weights; "auto" is the fast one of this machine.
        trust_remote_code: run Python code that the verifier's folder brings along.

    Raises:
        ConfigError: an unknown rule, or the verifier reads the text in images and the extra ``ocr`` is not installed.
        InputError: not a verifier, or a damaged one.
    """
    rule = source if isinstance(source, str) else getattr(source, "external", None)
    if isinstance(rule, str) and rule.startswith(RULE_PREFIX):
        return rule_verifier(rule)
    if isinstance(source, (str, Path)):
        folder, name = Path(source), None
    else:
        folder, name = source.path, source.name
        if source.kind != "verifier":
            raise InputError(f"{source.ref} is a {source.kind}, not a verifier", "", "safework artifacts ls verifier")
    from safework_cli.verifiers.spec import LabelSpec, is_value_model

    if is_value_model(folder):
        from safework_cli.models.load import load_model, load_tokenizer
        from safework_cli.models.processors import load_processor
        from safework_cli.verifiers.values import ValueModel, ValueSpec, load_heads

        values = ValueSpec.read(folder)
        heads = load_heads(folder, values)
        model = load_model(folder, dtype=dtype, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        processor = load_processor(folder, trust_remote_code=trust_remote_code)
        return ValueModel(model, tokenizer, heads, values, batch_size=batch_size, name=name, processor=processor)
    spec = LabelSpec.read(folder)
    changes: dict[str, Any] = {"reading": reading, "use_harmful": use_harmful}
    for key, value in changes.items():
        if value is not None:
            setattr(spec, key, value)
    if spec.read_image_text:
        require_reader()
    if spec.endpoint is not None:
        from safework_cli.verifiers.endpoint import EndpointVerifier

        return EndpointVerifier(spec, name=name)
    from safework_cli.models.load import load_model, load_tokenizer
    from safework_cli.models.processors import load_processor
    from safework_cli.verifiers.labels import LabelVerifier

    try:
        model = load_model(folder, dtype=dtype, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        processor = load_processor(folder, trust_remote_code=trust_remote_code)
        return LabelVerifier(model, tokenizer, spec, processor=processor, batch_size=batch_size, name=name)
    except ConfigError as error:
        raise InputError(f"the verifier in {folder} does not fit its own tokenizer", error.what, "train it again with --fresh") from None
