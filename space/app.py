"""The studio as a Hugging Face Space; `python app.py` runs it here."""

import os
import tempfile
import threading
from pathlib import Path

from sage.studio.requests import Limits
from sage.studio.server import Served, choose_models, listen
from sage.studio.service import Studio

ON_SPACE = os.environ.get("SYSTEM") == "spaces"  # is reached from outside its machine, inside a page of the hub
FRAMED = "https://huggingface.co"


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="sage-studio-"))
    own = listen("0.0.0.0" if ON_SPACE else "127.0.0.1", 7860)
    studio = Studio(choose_models(None), Limits(steps=50, visits=32, patience=60), folder / "studio")
    studio.begin()
    served = Served(studio, own, local=not ON_SPACE, framed=FRAMED if ON_SPACE else "")
    print(f"the studio is at {served.address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
