"""A trajectory at the times of the lines, its mean pose taken out, and how far that moves the object.

    displacement of voxel x during line i      u_i(x) = (A_i - 1) x + t_i
    its mean square over the field of view     |(A_i - 1) m + t_i|^2 + sum_j |(A_i - 1) e_j|^2 v_j

with m and v the mean and the variance of the places of the voxels along each axis, counted from the centre N // 2.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from qsim.kspace.motion.pose import about_mean, parameters_of, poses_of


@dataclass(frozen=True, slots=True)
class Sampled:
    """Where the object is during each line; lines from one end of the centred spectrum to the other.

    Attributes:
        times: from the start of the acquisition [s]; one row for each image, or one that all share.
        poses: without repeats [voxels or mm].
        pose_of_line: which of them.
    """

    times: Float[np.ndarray, "m *lines"]
    poses: Float[np.ndarray, "u d1 d1"]
    pose_of_line: Int[np.ndarray, "m *lines"]

    @classmethod
    def of(cls, times: Float[np.ndarray, "m *lines"], parameters: Float[np.ndarray, "l p"], d: int) -> "Sampled":
        """From the parameters of every line, one after the other."""
        distinct, numbers = _without_repeats(parameters)
        return cls(times, poses_of(distinct, d), numbers.reshape(times.shape))

    def about_mean(self, weights: Float[np.ndarray, "k *lines"], reference: str) -> tuple["Sampled", ...]:
        """Poses about their weighted mean.

        Args:
            weights: of the lines: a row for each image, or one that all share.
            reference: `series`, one mean of all images; `image`, each has its own.
        Returns: one for all images, or one for each.
        Raises: ValueError for turns so large that their mean is ambiguous.
        """
        rows = max(len(self.times), len(weights))
        if reference == "image" and rows > 1:
            pairs = [(self._row(i), weights[i if len(weights) > 1 else 0]) for i in range(rows)]
            return tuple(row.about_mean(weight[None], "series")[0] for row, weight in pairs)
        of_line = np.broadcast_to(weights.mean(0), self.pose_of_line.shape)
        total = np.bincount(self.pose_of_line.ravel(), of_line.ravel(), len(self.poses))
        poses, _ = about_mean(self.poses, total)
        whole = Sampled(self.times, poses, self.pose_of_line)
        return whole.rows()

    def rows(self) -> tuple["Sampled", ...]:
        """One for all images, or one for each."""
        return (self,) if len(self.times) == 1 else tuple(self._row(i) for i in range(len(self.times)))

    def mean_square(
        self, space: tuple[int, ...], spacing: tuple[float, ...], weights: Float[np.ndarray, "*lines"]
    ) -> float:
        """Of the displacement over voxels and lines [voxels^2, or mm^2 with the spacing of the voxels]."""
        d = len(space)
        size, edge = np.array(space), np.array(spacing)
        mean = edge * ((size - 1) / 2 - size // 2)
        variance = edge**2 * (size**2 - 1) / 12
        change = self.poses - np.eye(d + 1)
        # along an axis of one voxel a translation goes by whole fields of view: nothing moves
        shift, linear = change[:, :d, d] * (size > 1), change[:, :d, :d]
        squares = np.zeros(len(shift))
        if linear.any():
            shift = shift + linear @ mean
            squares = (linear**2 * variance).sum((1, 2))
        squares = squares + (shift**2).sum(1)
        of_line = np.broadcast_to(weights, self.pose_of_line.shape)
        return float((squares[self.pose_of_line] * of_line).sum() / of_line.sum())

    def parameters(self, most: int) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, "t p"]]:
        """Times and parameters in the order of time, at most so many."""
        order = np.argsort(self.times, axis=None, kind="stable")
        if len(order) > most:
            order = order[np.linspace(0, len(order) - 1, most).round().astype(np.int64)]
        return self.times.ravel()[order], parameters_of(self.poses[self.pose_of_line.ravel()[order]])

    def _row(self, i: int) -> "Sampled":
        """What one image sees, of the poses only those that it meets."""
        row = slice(i, i + 1) if len(self.times) > 1 else slice(0, 1)
        met, numbers = np.unique(self.pose_of_line[row], return_inverse=True)
        return Sampled(self.times[row], self.poses[met], numbers.reshape(self.pose_of_line[row].shape))


def _without_repeats(parameters: Float[np.ndarray, "l p"]) -> tuple[Float[np.ndarray, "u p"], Int[np.ndarray, " l"]]:
    """Distinct rows, and which of them each row is."""
    # -0 and 0 are the same
    rows = np.ascontiguousarray(parameters + 0.0)
    # neighbours are alike more often than not: runs of them, and then the repeats among the runs
    starts = np.flatnonzero(np.concatenate(([True], (rows[1:] != rows[:-1]).any(1))))
    of_row = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
    rows = rows[starts]
    if len(np.unique(rows[:, 0])) == len(rows):
        return rows, of_row
    whole = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, first, numbers = np.unique(whole, return_index=True, return_inverse=True)
    return rows[first], numbers[of_row]
