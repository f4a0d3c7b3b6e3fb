"""The picture as it emerges: decoded every few steps, for no more than a share of the time."""

import io
import time
from collections.abc import Callable

from sage.errors import out_of_memory
from sage.method import Step
from sage.models.backbone import Backbone
from sage.pictures import to_picture
from sage.studio.visit import for_eyes

SHARE = 0.1  # of the time that the work takes


class Glimpses:
    """Watches the steps of an edit, and shows what the picture would be if it ended there.

    Attributes:
        looks: False: a watcher that needs no attention maps.
        spent: seconds that decoding took.
        cost: seconds of the last decoding; 0 before the first.

    Args:
        show: is given the bytes of a PNG.
        size: (width, height) of the picture.
        cost: seconds that decoding is thought to take, 0 where that is not known.
    """

    looks = False

    def __init__(self, model: Backbone, show: Callable[[bytes], None], size: tuple[int, int], cost: float = 0.0,
                 now: Callable[[], float] = time.monotonic):
        self.model, self.show, self.size, self.cost, self.now = model, show, size, cost, now
        self.spent, self._began, self._blind = 0.0, now(), False

    def __call__(self, step: Step) -> None:
        """Decode the first picture of a step, if there is time for it."""
        began = self.now()
        # What is not known is thought to take as long as all there was until now.
        cost = self.cost or (began - self._began) / 12
        if self._blind or self.spent + cost > SHARE * (began + cost - self._began):
            return
        z = step.z if step.x0 is None else step.x0
        try:
            picture = for_eyes(to_picture(self.model.decode(z[:1].detach()), self.size))
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._blind = True  # the edit itself goes on
            return
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        self.cost = self.now() - began
        self.spent += self.cost
        self.show(file.getvalue())
