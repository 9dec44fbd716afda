"""Replies that a source makes of its rows' own texts."""

from __future__ import annotations

import re

from safework_cli.data.row import Row
from safework_cli.data.suites import stem
from safework_data.build.conversations import Unfit


def reply_of_template(template: str, row: Row) -> str:
    """The template with the row's own texts. Raises Unfit where the row has a reply already, or lacks what the template names."""
    if row.reply is not None:
        raise Unfit("reply_template: the row has a reply already")
    asked = str(row.meta.get("target") or stem(row)).strip()
    texts = {"prompt": asked, "answer": row.answer, "category": row.category}

    def filled(match: re.Match[str]) -> str:
        text = texts[match[1]]
        if not text:
            raise Unfit(f"reply_template: the row has no {match[1]}")
        return text

    return re.sub(rf"\{{({'|'.join(texts)})\}}", filled, template)
