"""Hooks of mkdocs.yml: README.md is the first page; of what lies outside docs/, pictures come along and links go."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\((?!https?://|#|mailto:)([^)\s]+)\)")
NUMBERED = re.compile(r"\(#([\w-]+)-(\d+)\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\(((?:\.\./)[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the first page, and the pictures that pages show from elsewhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=re.sub(r"\]\(docs/", "](", text)))
    docs = Path(config.docs_dir)
    for where in {where for page in docs.glob("*.md") for _, where in PICTURE.findall(page.read_text("utf-8"))}:
        files.append(File.generated(config, _beside(where), abs_src_path=str((docs / where).resolve())))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Files) -> str:
    """Leave of a link to what is not on the site its words alone."""
    docs = Path(config.docs_dir)

    def kept(link: re.Match[str]) -> str:
        words, target = link.groups()
        there = (docs / target.partition("#")[0]).resolve()
        return link[0] if there.is_relative_to(docs) and there.is_file() and there.suffix != ".py" else words

    # A second heading of one name is `name-1` on GitHub, and `name_1` on the site.
    text = NUMBERED.sub(lambda at: f"(#{at[1]}_{at[2]})" if f"(#{at[1]})" in text else at[0], text)
    return PICTURE.sub(lambda shown: f"![{shown[1]}]({_beside(shown[2])})", LINK.sub(kept, text))


def _beside(where: str) -> str:
    """Where a picture from outside lies on the site."""
    return "pictures/" + where.replace("../", "").replace("/", "-")
