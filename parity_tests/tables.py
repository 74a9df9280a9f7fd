"""Two tables: how well the recorded runs are matched, and which of them reject which named wrong Adafactor.

`python -m parity_tests.tables` prints both and exits with 1 where a run is not matched, a run that no recipe supports
is not refused, or a fault is rejected by no original.
"""

import sys
from collections.abc import Iterator, Sequence

import torch

from parity_tests import recorded, replay
from parity_tests.faults import FAULTS
from parity_tests.rejections import rejections
from parity_tests.replay import RUNNERS


def main(originals: Sequence[str], faults: Sequence[str]) -> int:
    """Print both tables; the exit status."""
    right = True
    print("Recorded runs matched, and the worst deviation relative to the largest element of a tensor\n")
    print(f"{'':3}{'original':26}{'runs':19}{'allowed':9}" + "".join(f"{name:20}" for name in RUNNERS))
    for number, name in enumerate(originals, 1):
        for kind, cells, ok in match_rows(name):
            right &= ok
            allowed = f"{replay.TOLERANCES[kind]:.0e}" if kind in replay.TOLERANCES else ""
            _show(f"{number:<3}{name:26}{kind:19}{allowed:9}" + "".join(f"{cell:20}" for cell in cells))
    print(
        "\nWrong Adafactors: the deviation by which an original's runs reject one, originals by their numbers above\n"
    )
    print(f"{'':36}" + "".join(f"{number:<6}" for number in range(1, len(originals) + 1)))
    for fault in faults:
        worst = [max((error for _, error in rejections(fault, name)), default=0.0) for name in originals]
        right &= any(worst)
        errors = "".join(f"{f'{error:.0e}' if error else '.':6}" for error in worst)
        _show(f"{fault:36}{errors}" + ("" if any(worst) else "REJECTED BY NOBODY"))
    print("\n" + ("Everything is matched and every fault is rejected." if right else "NOT as it should be: see above."))
    return 0 if right else 1


def match_rows(original: str) -> Iterator[tuple[str, list[str], bool]]:
    """(kind of run, a cell for each implementation, whether all is well)."""
    settings = recorded.settings(original)
    refused = [(setting, shape) for setting in settings for shape in sorted(setting.unsupported)]
    supported = [setting for setting in settings if {run.shape for run in recorded.runs(setting)} - setting.unsupported]
    for kind, allowed in replay.TOLERANCES.items():
        of_kind = [setting for setting in supported if replay.kind_of(setting) == kind]
        if of_kind:
            found = [[_worst_by_run(setting, runner) for setting in of_kind] for runner in RUNNERS]
            runs = [[worst for of_setting in of_runner for worst in of_setting] for of_runner in found]
            matched = [sum(worst <= allowed for worst in of_runner) for of_runner in runs]
            cells = [f"{n} of {len(of)}, {max(of):.1e}" for n, of in zip(matched, runs, strict=True)]
            yield kind, cells, all(n == len(of) for n, of in zip(matched, runs, strict=True))
    if refused:
        counts = [sum(replay.refuses(setting, runner, shape) for setting, shape in refused) for runner in RUNNERS]
        cells = [f"refused {count} of {len(refused)}" for count in counts]
        yield "unsupported", cells, all(count == len(refused) for count in counts)


def _worst_by_run(setting: recorded.Setting, runner: str) -> list[float]:
    return [max(found.values()) for found in replay.replay(setting, RUNNERS[runner]).deviations.values()]


def _show(line: str) -> None:
    print(line.rstrip(), flush=True)  # the next one takes a while


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are tiny
    sys.exit(main(recorded.implementations(), list(FAULTS)))
