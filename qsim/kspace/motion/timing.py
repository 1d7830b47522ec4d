"""When each line of k-space is measured.

A train of echoes (a shot) measures lines / shots lines, one every `line_time`; the next shot starts `shot_time` after
it. Line k of the inner phase axis, echo e(k) of shot s(k) (`order.py`), in partition q of the outer one of a volume:

    t(k, q) = (rank(q) shots + s(k)) shot_time + e(k) line_time

One partition after the other; rank(q) counts from one end of k-space, in a centric order outwards from the centre.
The readout axis takes no time: the samples of a line are measured at once.
"""

import numpy as np
from jaxtyping import Float, Int

from qsim.kspace.order import Acquisition, echo_of_line


def shot_of_line(acquisition: Acquisition) -> Int[np.ndarray, " lines"]:
    """Shot that measures each of the acquisition's own lines, from one end of the centred spectrum to the other."""
    k = np.arange(acquisition.lines)
    if acquisition.order == "linear":
        return k % acquisition.shots
    if acquisition.order == "segmented":
        return k // acquisition.n_echoes
    return _centric_rank(acquisition.lines) % acquisition.shots


def line_times(
    acquisition: Acquisition, line_time: float, shot_time: float, rows: int, partitions: int
) -> Float[np.ndarray, "partitions rows"]:
    """Time of each line from the start of its image [s], both axes from one end of the centred spectrum to the other.

    Args:
        line_time: from one echo of a train to the next [s].
        shot_time: from the start of one train to that of the next [s].
        rows: of the image along the inner phase axis; of other rows than `acquisition.lines` each line has the time of
            the scheduled line nearest in spatial frequency, as in `echo_of_line`.
        partitions: of the image along the outer phase axis.
    """
    # in a linear order of one shot the echo is the number of the line
    nearest = echo_of_line(Acquisition(lines=acquisition.lines), rows).numpy()
    echo, shot = echo_of_line(acquisition, rows).numpy(), shot_of_line(acquisition)[nearest]
    rank = _centric_rank(partitions) if acquisition.order == "centric" else np.arange(partitions)
    return (rank[:, None] * acquisition.shots + shot) * shot_time + echo * line_time


def _centric_rank(n: int) -> Int[np.ndarray, " n"]:
    """Rank of distance from the centre n // 2; of two equally far the negative side first."""
    offset = np.arange(n) - n // 2
    rank = np.empty(n, dtype=np.int64)
    rank[np.lexsort((offset, np.abs(offset)))] = np.arange(n)
    return rank
