"""The frame of a page that holds everything, loads nothing and opens from the disk."""

from html import escape

FRAME = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
<body>
{body}
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def page(title: str, body: str, style: str, script: str, data: str) -> str:
    """A page in HTML.

    Args:
        title: text.
        body: HTML, its text escaped.
        style, script: CSS and JavaScript of ours.
        data: JSON, for the script to find under the id "data".
    """
    # No "</script>" or comment may begin in the data.
    data = data.replace("<", "\\u003c")
    return FRAME.format(title=escape(title), body=body, style=style, script=script, data=data)
