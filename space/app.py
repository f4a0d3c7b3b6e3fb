"""The studio as a Hugging Face Space; `python app.py` runs it here."""

import os
import tempfile
from pathlib import Path

from sage.studio.server import choose_models, launch, prepare

# A Space tells under which path it is served, and is reached from outside its machine.
ROOT_PATH = os.environ.get("GRADIO_ROOT_PATH", "")
ON_SPACE = os.environ.get("SYSTEM") == "spaces"
FOLDER = Path(tempfile.mkdtemp(prefix="sage-studio-"))
prepare(FOLDER)

from sage.studio.service import Limits, Studio  # noqa: E402

studio = Studio(choose_models(None), Limits(steps=50, visits=32), FOLDER / "studio")


def main() -> None:
    page, address = launch(studio, "0.0.0.0" if ON_SPACE else "127.0.0.1", 7860, root_path=ROOT_PATH)
    print(f"the studio is at {address}", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
