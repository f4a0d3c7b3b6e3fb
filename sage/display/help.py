"""How `--help` is laid out."""

import argparse
import textwrap


class Help(argparse.HelpFormatter):
    """argparse's, but a text keeps its paragraphs, and one with indented lines stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(paragraph if "\n  " in f"\n{paragraph}" else
                           textwrap.fill(paragraph, width, break_on_hyphens=False) for paragraph in paragraphs)
