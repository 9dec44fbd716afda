"""The site: Sphinx with MyST, so that the pages stay plain Markdown, and the theme Furo.

Weighed: MkDocs has had no release since 2024, Material for MkDocs is in maintenance mode, and their successor Zensical is at 0.1.
Sphinx, MyST and Furo are released regularly, and check links and anchors themselves (``-W`` turns a broken one into an error).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import generate

project = "safework"
html_title = "safework"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
extensions = ["myst_parser"]
root_doc = "index"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]  # pages of the reference nest tables one level deeper where a block has none
highlight_language = "text"


# No page is called "search": the site has a search.html of its own.
PAGES = ["your-model", "ladder", "data", "safety-data", "reinforcement", "verifiers", "evaluation", "images", "guided-search", "cluster"]
BACKGROUND = ["results", "models", "templates", "store", "safeladder", "glossary"]


def prepare(app, docname, source):
    """Adds what only the site needs, so that the pages read well in the repository too: the sidebar, and where the root's pages are."""
    for name in generate.ROOT_PAGES:
        source[0] = source[0].replace(f"](../{name}", f"](reference/{name.lower()}")
    if docname == "index":
        root = [f"{name.removesuffix('.md').capitalize()} <reference/{name.lower().removesuffix('.md')}>" for name in generate.ROOT_PAGES]
        for caption, names in (("Tasks", PAGES), ("Background", BACKGROUND), ("Project", ["reference/index", *root])):
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""])


def setup(app):
    generate.write()
    app.connect("source-read", prepare)
