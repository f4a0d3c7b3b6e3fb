"""Runs examples/tour.ipynb and keeps what it shows in it, so that it can be read where nothing runs it.

    pip install nbclient ipykernel
    python docs/make_tour.py            # a minute
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

TOUR = Path(__file__).resolve().parents[1] / "examples" / "tour.ipynb"


def kept(output: Any) -> dict[str, Any] | None:
    """What is stored of an output: lines that were printed, and pictures as small files; no bars, no warnings."""
    if output["output_type"] == "stream" and output["name"] == "stdout":
        return {"name": "stdout", "output_type": "stream", "text": output["text"].splitlines(keepends=True)}
    if output["output_type"] == "execute_result" and "image/png" in output["data"]:
        file, image = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
        image.convert("RGB").save(file, "JPEG", quality=80, optimize=True)
        data = {"image/jpeg": base64.b64encode(file.getvalue()).decode(), "text/plain": ["a picture"]}
        return {"data": data, "execution_count": output["execution_count"], "metadata": {},
                "output_type": "execute_result"}
    if output["output_type"] == "error":
        raise SystemExit(f"make_tour: {output['ename']}: {output['evalue']}")
    return None


def main() -> None:
    """Writes the notebook anew."""
    NotebookClient(ran := nbformat.read(TOUR, as_version=4), timeout=600).execute()
    tour = json.loads(TOUR.read_text())
    for cell, made in zip(tour["cells"], ran["cells"], strict=True):
        if cell["cell_type"] == "code":
            cell["outputs"] = [found for output in made["outputs"] if (found := kept(output))]
            cell["execution_count"] = made["execution_count"]
    TOUR.write_text(json.dumps(tour, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
