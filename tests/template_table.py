"""Which stock chat template works where: the table in docs/templates.md, found by asking each template that TRL ships.

``python tests/template_table.py`` writes it; a test compares.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from safework_cli.data.row import Message
from safework_cli.models.chat_template import encode_conversation, encode_prompt
from safework_cli.models.rendering import TemplateError, render
from safework_cli.models.templates import named_template, template_names
from safework_cli.models.thoughts import ThoughtReader

PAGE = Path(__file__).resolve().parents[1] / "docs" / "templates.md"
BEGIN, END = "<!-- table: python tests/template_table.py -->\n", "<!-- end -->\n"
_TOKEN = re.compile(r"<\|?[｜\w▁/|:]+\|?>|<[a-z_|]+\|>|\[/?[A-Z_]+\]")
SYSTEM, ASKED, MORE = Message(role="system", content="Be brief."), Message(role="user", content="Why?"), Message(role="user", content="So?")
SAID = Message(role="assistant", content="<think>Looking.</think>Because.")


def tokenizer_for(tiny: Path, name: str):
    """The tiny byte tokenizer with every token that the template's text names, and the ids that may end its turns."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    text = named_template(name)
    tokens = sorted({token for token in _TOKEN.findall(text) if token not in ("<think>", "</think>")})
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.bos_token = "<s>"  # noqa: S105 - a token of text
    tokenizer.chat_template = text
    marked = Message(role="assistant", content="Reply.")
    try:
        rendered = render(tokenizer, [ASKED, marked])
        after = rendered[rendered.rindex("Reply.") + len("Reply.") :]
    except (TemplateError, ValueError):
        after = ""
    ends = [token for token in [*tokens, tokenizer.eos_token] if after.lstrip().startswith(token)]
    stops = [tokenizer.convert_tokens_to_ids(max(ends, key=len))] if ends else []
    return tokenizer, [*stops, tokenizer.eos_token_id]


def asked_of(attempt) -> str:
    """ "yes", or why not."""
    try:
        attempt()
    except TemplateError as error:
        return error.what.removeprefix("the chat template ").replace("|", "\\|")
    return "yes"


def table(tiny: Path) -> str:
    rows = [
        "| template | system message | opens the thought | one turn | several turns | earlier thoughts stay | training variant |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in template_names():
        if name.endswith("_training"):
            continue
        tokenizer, stops = tokenizer_for(tiny, name)
        one = asked_of(lambda: encode_conversation(tokenizer, [ASKED, SAID], stops))  # noqa: B023 - called at once
        several = asked_of(lambda: encode_conversation(tokenizer, [ASKED, SAID, MORE, SAID], stops))  # noqa: B023
        system = asked_of(lambda: encode_prompt(tokenizer, [SYSTEM, ASKED]))  # noqa: B023
        plain = asked_of(lambda: encode_prompt(tokenizer, [ASKED])) == "yes"  # noqa: B023
        opens = "yes" if plain and ThoughtReader(tokenizer).opened(encode_prompt(tokenizer, [ASKED]).ids) else "no"
        try:
            stay = "yes" if "Looking." in render(tokenizer, [ASKED, SAID, MORE], generation_prompt=True) else "no"
        except TemplateError:
            stay = "–"
        variant = f"`{name}_training`" if f"{name}_training" in template_names() else "–"
        rows.append(f"| `{name}` | {system} | {opens} | {one} | {several} | {stay} | {variant} |")
    return "\n".join(rows) + "\n"


def written() -> str:
    """The table as the page has it."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


def main() -> None:
    from safework_cli.models.tiny import create_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        create_tiny_model(Path(folder))
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(text.replace(BEGIN + written(), BEGIN + table(Path(folder))), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
