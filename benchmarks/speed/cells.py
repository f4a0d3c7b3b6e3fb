"""The table's cells: model x size x device x dtype x batch, and which of them are measured unless asked for."""

from dataclasses import dataclass, field

OURS, BASELINE = "ours", "baseline"
WHOLE = 50        # steps of an edit
GUIDED = 41       # of them with a gradient, ours; the baseline takes one at all of them


@dataclass(frozen=True)
class Cell:
    """One row of the table, for one implementation or both.

    Attributes:
        guided, unguided: steps of the short edit from which the whole one is composed; of more than one, the first is
            not counted.
        whole: time edits of 50 steps instead.
        needs: GiB of host memory below which the baseline is not tried; ours half of that.
        why_not: why it is not measured unless it is asked for; empty if it is.
    """

    model: str
    size: int
    device: str
    dtype: str
    batch: int
    implementations: tuple[str, ...] = (OURS,)
    guided: int = 2
    unguided: int = 1
    rounds: int = 1
    whole: bool = False
    needs: float = 2
    why_not: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return f"{self.model}-{self.size}-{self.device}-{self.dtype}-b{self.batch}"


LONG = "left out for time"
HALF = "left out: no target is set for it"
UNASKED = "not asked for"
BOTH = (OURS, BASELINE)


def cpu() -> list[Cell]:
    return [
        Cell("stilllife", 64, "cpu", "float32", 1, BOTH, rounds=5, whole=True),
        Cell("stilllife", 64, "cpu", "float32", 8, rounds=3, whole=True),
        Cell("stilllife", 64, "cpu", "bfloat16", 1, whole=True, rounds=3),
        Cell("stilllife", 64, "cpu", "bfloat16", 8, whole=True, why_not=HALF),
        Cell("sd14", 256, "cpu", "float32", 1, BOTH, 4, 3, 3, needs=10),
        Cell("sd14", 256, "cpu", "bfloat16", 1, (OURS,), 3, 2, 3, needs=10),
        Cell("sd14", 256, "cpu", "float32", 8, needs=28),
        Cell("sd14", 256, "cpu", "bfloat16", 8, needs=20, why_not=LONG),
        Cell("sd14", 512, "cpu", "float32", 1, BOTH, needs=32),
        Cell("sd14", 512, "cpu", "bfloat16", 1, needs=20, why_not=LONG),
        Cell("sd14", 512, "cpu", "float32", 8, needs=150, why_not=LONG),
        Cell("sd14", 512, "cpu", "bfloat16", 8, needs=100, why_not=LONG),
        Cell("sd21", 768, "cpu", "float32", 1, needs=40, why_not=LONG),
        Cell("sd21", 768, "cpu", "bfloat16", 1, needs=30),
        Cell("sd21", 768, "cpu", "float32", 8, needs=300, why_not=LONG),
        Cell("sd21", 768, "cpu", "bfloat16", 8, needs=200, why_not=LONG),
    ]


def cuda() -> list[Cell]:
    sizes = (("stilllife", 64), ("sd14", 256), ("sd14", 512), ("sd21", 768))
    return [Cell(model, size, "cuda", "float16", batch, BOTH if batch == 1 else (OURS,), rounds=3, whole=True, needs=20)
            for model, size in sizes for batch in (1, 8)]


CELLS = {cell.name: cell for cell in (*cpu(), *cuda())}
