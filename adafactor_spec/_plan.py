"""What a factoring rule is, and the plan that it makes for one parameter."""

import functools
import math
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What the optimizer does with the axes of one parameter.

    `rows` and `cols` are the axes of `matrix_shape` along which the second moment is factored: R, with one value per
    row, is a mean over the column axes; C, with one value per column, a mean over the row axes. Both are empty where V
    is kept whole. RMS(p), RMS(u) and the factors are taken per index of a `batch` axis, so that it behaves like
    separate parameters. An axis that is none of these has factors of its own per index but shares RMS(p) and RMS(u).

    Attributes:
        shape: the parameter's.
        rows, cols, batch: axis numbers, increasing and without repetition between them.
        view: the C-order reshape in which the parameter is factored, or None for its own shape.
    """

    shape: Shape
    rows: Shape = ()
    cols: Shape = ()
    batch: Shape = ()
    view: Shape | None = None

    @property
    def factored(self) -> bool:
        """Whether V is kept as two factors."""
        return bool(self.rows)

    @property
    def matrix_shape(self) -> Shape:
        """The shape in which the second moment is computed."""
        return self.shape if self.view is None else self.view

    @property
    def rms_axes(self) -> Shape:
        """The axes over which RMS(p) and RMS(u) are taken: all but the batch axes."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.batch)

    @property
    def row_shape(self) -> Shape:
        """Shape of R: the column axes are kept at size 1."""
        return _reduced(self.matrix_shape, self.cols)

    @property
    def col_shape(self) -> Shape:
        """Shape of C: the row axes are kept at size 1."""
        return _reduced(self.matrix_shape, self.rows)


class Rule:
    """A rule for factoring: shape and name of a parameter -> plan."""

    def plan(self, shape: Shape, name: str) -> Plan:
        """The plan for one parameter. Ask `factoring.plan`, which remembers the answer."""
        raise NotImplementedError

    @property
    def needs_names(self) -> bool:
        """Whether the rule looks at the parameter's name."""
        return False


@functools.cache
def plan(rule: Rule, shape: Shape, name: str = "") -> Plan:
    """What `rule` does with a parameter of this shape and name, decided once.

    A parameter without elements is not factored: its rows would be means of nothing.
    """
    decided = rule.plan(shape, name)
    return decided if math.prod(shape) else Plan(shape, batch=decided.batch)


def _reduced(shape: Shape, axes: Shape) -> Shape:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
