"""Smooth maps on a mask: the graph Laplacian, and the linear systems that its square gives.

    (L x)_v = sum of (x_v - x_u) over the neighbours u of v that are in the mask, along every axis

At an edge of the mask a neighbour is missing and its term with it, as if the map went on with the same value: a map
that is constant on each connected piece has L x = 0, any other has not.

A system (diag(D) + 2 w L L) x = g is solved by conjugate gradients. Its preconditioner is two solutions of the second
order system (diag(sqrt(D)) + sqrt(2 w) L), whose square it is but for a mixed term that changes no eigenvalue by more
than a factor of 2 where D is constant; those are one V-cycle of smoothed aggregation over blocks of 3 voxels per axis.

Source: Vanek, Mandel and Brezina 1996, doi:10.1007/BF02238511 (smoothed aggregation).
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy import ndimage

_WIDTH = 3
_COARSEST = 400
# damping of the Jacobi steps
_DAMPING = 0.7
# the second order systems are solved to this: conjugate gradients lose their footing in the large weights otherwise
_INNER, _INNER_STEPS = 0.01, 20


@dataclass(frozen=True, slots=True)
class Blocks:
    """Voxels of one piece in one cube of voxels, as one node.

    Attributes:
        node: of each voxel.
        voxels: in each node.
        joints: graph Laplacian whose weights count the pairs of neighbours between two nodes.
        width: of the cubes [voxels].
        axes: axes that are cut.
    """

    node: Int[np.ndarray, " v"]
    voxels: Float[np.ndarray, " c"]
    joints: sp.csr_matrix
    width: int
    axes: int

    def total(self, x: Float[np.ndarray, " v"]) -> Float[np.ndarray, " c"]:
        """Sum over the voxels of each node."""
        return np.bincount(self.node, x, minlength=len(self.voxels))

    def penalty(self) -> Float[np.ndarray, "c c"]:
        """P with x P x close to the sum over the voxels of (L x)^2, for a map that is smooth over a node.

        Finite volumes: a pair of neighbours stands for a face of one voxel, across which the slope is the difference
        of two nodes over the width of the cubes.
        """
        flux = self.joints.toarray() / self.width  # type: ignore[no-untyped-call]
        scaled: Float[np.ndarray, "c c"] = flux / np.sqrt(self.voxels)[:, None]
        return scaled.T @ scaled


class Domain:
    """The voxels of a mask and their neighbours.

    Args:
        mask: any number of axes; voxels are counted in its order.
    """

    def __init__(self, mask: Bool[np.ndarray, "*space"]) -> None:
        self.size = int(mask.sum())
        self.place = np.argwhere(mask)
        number = np.full(mask.shape, -1)
        number[mask] = np.arange(self.size)
        pairs = []
        for axis in range(mask.ndim):
            ahead, behind = (np.moveaxis(number, axis, 0)[part].ravel() for part in (slice(1, None), slice(None, -1)))
            both = (ahead >= 0) & (behind >= 0)
            pairs.append(np.stack((behind[both], ahead[both])))
        self.pairs = np.concatenate(pairs, 1) if pairs else np.zeros((2, 0), dtype=int)
        self.laplacian = _graph(self.pairs, self.size)
        # a label without axes is one voxel
        label: Int[np.ndarray, "*space"]
        label, self.n_pieces = ndimage.label(mask) if mask.ndim else (np.ones((), dtype=int), self.size)  # type: ignore[attr-defined, var-annotated]
        self.piece = label[mask] - 1
        # axes along which anything has a neighbour
        self.axes = max(1, sum(1 for pair in pairs if pair.shape[1]))

    def blocks(self, most: int) -> Blocks:
        """The smallest cubes that make at most so many nodes (or one per piece)."""
        width = 1
        while True:
            node = self._nodes(self.place // width, self.piece)
            n = int(node.max()) + 1
            if n <= max(most, self.n_pieces):
                break
            width += max(1, width // 4)
        between = node[self.pairs]
        joints = _graph(between[:, between[0] != between[1]], n)
        return Blocks(node, np.bincount(node).astype(float), joints, width, self.axes)

    @staticmethod
    def _nodes(cube: Int[np.ndarray, "v axes"], piece: Int[np.ndarray, " v"]) -> Int[np.ndarray, " v"]:
        key = piece.astype(np.int64)
        for column in cube.T:
            key = key * (int(column.max(initial=0)) + 1) + column
        return np.unique(key, return_inverse=True)[1]

    def roughness(self, x: Float[np.ndarray, " v"]) -> float:
        """Sum of (L x)^2."""
        bend = self.laplacian @ x
        return float(bend @ bend)

    def aggregates(self) -> list[Int[np.ndarray, " _nodes"]]:
        """Node of the next coarser level, level by level."""
        levels, cube, piece = [], self.place, self.piece
        while len(piece) > _COARSEST:
            cube = cube // _WIDTH
            node = self._nodes(cube, piece)
            n = int(node.max()) + 1
            if n == len(piece):
                break
            levels.append(node)
            first = np.zeros(n, dtype=int)
            first[node] = np.arange(len(node))
            cube, piece = cube[first], piece[first]
        return levels


def _graph(pairs: Int[np.ndarray, "two p"], n: int) -> sp.csr_matrix:
    """Laplacian of a graph with these edges; pairs that come several times count as often."""
    ones = np.ones(pairs.shape[1])
    adjacent = sp.coo_matrix((ones, (pairs[0], pairs[1])), shape=(n, n)).tocsr()  # type: ignore[no-untyped-call]
    adjacent = adjacent + adjacent.T
    degree = np.asarray(adjacent.sum(1)).ravel()
    return sp.csr_matrix(sp.diags(degree) - adjacent)  # type: ignore[no-untyped-call]


class Solver:
    """Systems (diag(D) + 2 w L L) x = g of one weight.

    Args:
        domain: voxels.
        aggregates: `domain.aggregates()`.
        weight: w.
        typical: D for which the preconditioner is made, positive; what is solved may have another.
    """

    def __init__(
        self,
        domain: Domain,
        aggregates: list[Int[np.ndarray, " _nodes"]],
        weight: float,
        typical: Float[np.ndarray, " v"],
    ) -> None:
        self.laplacian, self.weight = domain.laplacian, weight
        matrix = sp.csr_matrix(sp.diags(np.sqrt(typical)) + (2 * weight) ** 0.5 * domain.laplacian)  # type: ignore[no-untyped-call]
        self._levels: list[tuple[sp.csr_matrix, Float[np.ndarray, " n"], sp.csr_matrix, sp.csr_matrix]] = []
        for node in aggregates:
            # rows of a graph Laplacian plus a diagonal: eigenvalues of inverse diagonal x matrix lie below 2
            inverse = _DAMPING / matrix.diagonal()  # type: ignore[no-untyped-call]
            n = len(node)
            spread = sp.csr_matrix((np.ones(n), node, np.arange(n + 1)), shape=(n, int(node.max()) + 1))  # type: ignore[no-untyped-call]
            spread = sp.csr_matrix(spread - sp.diags(inverse) @ (matrix @ spread))  # type: ignore[no-untyped-call]
            gather = sp.csr_matrix(spread.T)  # type: ignore[no-untyped-call]
            self._levels.append((matrix, inverse, spread, gather))
            matrix = sp.csr_matrix(gather @ matrix @ spread)  # type: ignore[no-untyped-call]
        self._coarsest = np.linalg.inv(matrix.toarray())  # type: ignore[no-untyped-call]

    def apply(self, d: Float[np.ndarray, " v"], x: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
        """The system times x."""
        return d * x + 2 * self.weight * (self.laplacian @ (self.laplacian @ x))

    def solve(
        self,
        d: Float[np.ndarray, " v"],
        g: Float[np.ndarray, " v"],
        free: Bool[np.ndarray, " v"] | None,
        tolerance: float,
        steps: int,
    ) -> tuple[Float[np.ndarray, " v"], bool]:
        """x, and whether the residual, in the norm of the preconditioner, fell by `tolerance`.

        Args:
            d: D.
            g: right-hand side.
            free: voxels that may move, the others stay at 0; None: all.
            tolerance: relative.
            steps: at most.
        """

        def kept(x: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
            return x if free is None else x * free

        x, r = np.zeros_like(g), kept(g).copy()
        z = kept(self._precondition(r))
        p, rz = z, float(r @ z)
        first = rz
        for _ in range(steps):
            if rz <= tolerance**2 * first:
                return x, True
            ap = kept(self.apply(d, p))
            step = rz / float(p @ ap)
            x += step * p
            before, r = r, r - step * ap
            z = kept(self._precondition(r))
            # the preconditioner changes a little from step to step (Polak-Ribiere)
            turn, rz = float(z @ (r - before)) / rz, float(r @ z)
            p = z + turn * p
        return x, rz <= tolerance**2 * first

    def _precondition(self, r: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
        return self._second_order(self._second_order(r))

    def _second_order(self, g: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
        """Conjugate gradients of the second order system, each step a V-cycle."""
        if not self._levels:
            return self._coarsest @ g
        matrix = self._levels[0][0]
        z = self._cycle(g, 0)
        x, r, p, rz = np.zeros_like(g), g, z, float(g @ z)
        first = rz
        for _ in range(_INNER_STEPS):
            ap = matrix @ p
            step = rz / float(p @ ap)
            x = x + step * p
            r = r - step * ap
            z = self._cycle(r, 0)
            before, rz = rz, float(r @ z)
            if rz <= _INNER**2 * first:
                break
            p = z + rz / before * p
        return x

    def _cycle(self, r: Float[np.ndarray, " n"], level: int) -> Float[np.ndarray, " n"]:
        """A symmetric V-cycle."""
        if level == len(self._levels):
            return self._coarsest @ r
        matrix, inverse, spread, gather = self._levels[level]
        x = inverse * r
        x += spread @ self._cycle(gather @ (r - matrix @ x), level + 1)
        x += inverse * (r - matrix @ x)
        return x
