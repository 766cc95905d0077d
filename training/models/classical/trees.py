"""Regression trees as plain arrays: what forests and boosters of any library become once they are grown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from training.models.classical.tabular import Table, Task
from training.models.spec import Params, State

# Tensor suffixes: S samples, K summary features, G trees, M nodes.

GROWN_AT_ONCE: Final = 10  # trees between two looks at the deadline
TREES_OF_AN_UPDATE: Final = 10  # of a booster at most: at the usual rates they go a third of the way to what is new


def walk_python(
    x_SK: NDArray[np.float32],
    root_G: NDArray[np.int32],
    feature_M: NDArray[np.int32],
    threshold_M: NDArray[np.float64],
    left_M: NDArray[np.int32],
    right_M: NDArray[np.int32],
    missing_left_M: NDArray[np.bool_],
    value_M: NDArray[np.floating],
    total_S: NDArray[np.floating],
) -> None:
    """Add to each total the values of the leaves its sample falls into, from the first tree to the last.

    A sample goes left where its feature is at most the threshold, or unknown and ``missing_left``. A leaf has no
    left child (-1). The sums are taken in the type of ``total_S``.
    """
    for s in range(len(x_SK)):
        for root in root_G:
            node = root
            while left_M[node] >= 0:
                x = x_SK[s, feature_M[node]]
                goes_left = missing_left_M[node] if np.isnan(x) else x <= threshold_M[node]
                node = left_M[node] if goes_left else right_M[node]
            total_S[s] += value_M[node]


walk = njit(cache=True, nogil=True)(walk_python)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """One tree: its root is node 0, children are node numbers of its own, -1 below a leaf."""

    feature_M: NDArray[np.integer]
    threshold_M: NDArray[np.floating]
    left_M: NDArray[np.integer]
    right_M: NDArray[np.integer]
    missing_left_M: NDArray[np.generic]
    value_M: NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trees:
    """(start + the sum over all trees) / divisor, the trees' nodes one after the other in ``walk_python``'s arrays.

    Sums are taken in the type of ``value_M``, as the library that grew them takes them.
    """

    root_G: NDArray[np.int32]
    feature_M: NDArray[np.int32]
    threshold_M: NDArray[np.float64]
    left_M: NDArray[np.int32]
    right_M: NDArray[np.int32]
    missing_left_M: NDArray[np.bool_]
    value_M: NDArray[np.floating]
    start_1: NDArray[np.floating]
    divisor_1: NDArray[np.float64]

    @classmethod
    def join(cls, trees: Sequence[Tree], *, start: float, divisor: int) -> Self:
        """The ensemble of these trees."""
        sizes = np.array([len(tree.left_M) for tree in trees])
        root_G = np.cumsum(sizes) - sizes
        value_M = np.concatenate([tree.value_M for tree in trees])
        return cls(
            root_G=root_G.astype(np.int32),
            feature_M=np.concatenate([tree.feature_M for tree in trees], dtype=np.int32, casting="unsafe"),
            threshold_M=np.concatenate([tree.threshold_M for tree in trees], dtype=np.float64),
            left_M=_joined_children([tree.left_M for tree in trees], root_G),
            right_M=_joined_children([tree.right_M for tree in trees], root_G),
            missing_left_M=np.concatenate([tree.missing_left_M for tree in trees], dtype=np.bool_, casting="unsafe"),
            value_M=value_M,
            start_1=np.array([start], dtype=value_M.dtype),
            divisor_1=np.array([divisor], dtype=np.float64),
        )

    def followed_by(self, more: Self) -> Self:
        """The sum of this boosted ensemble and the trees of another, which start from this one's scores."""
        num_nodes = len(self.left_M)
        both = {name: np.concatenate([array, more.state()[name]]) for name, array in self.state().items()}
        both["root_G"] = np.concatenate([self.root_G, more.root_G + np.int32(num_nodes)])
        both["left_M"], both["right_M"] = (
            np.concatenate([own_M, np.where(added_M < 0, -1, added_M + num_nodes).astype(np.int32)])
            for own_M, added_M in ((self.left_M, more.left_M), (self.right_M, more.right_M))
        )
        return type(self).restore({}, both | {"start_1": self.start_1, "divisor_1": self.divisor_1})

    def score(self, x_SK: NDArray[np.float32]) -> NDArray[np.float64]:
        """The ensemble's value for each sample; features may be unknown (NaN)."""
        total_S = np.repeat(self.start_1, len(x_SK))
        walk(
            np.ascontiguousarray(x_SK, dtype=np.float32),
            self.root_G,
            self.feature_M,
            self.threshold_M,
            self.left_M,
            self.right_M,
            self.missing_left_M,
            self.value_M,
            total_S,
        )
        return total_S / self.divisor_1

    def state(self) -> State:
        """The arrays, by the names of the fields."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def restore(cls, params: Params, state: State) -> Self:  # noqa: ARG003 (other learners need them)
        """The trees whose ``state`` this is."""
        fields: dict[str, Any] = {name: np.asarray(state[name]) for name in cls.__dataclass_fields__}
        return cls(**fields)


def _joined_children(children: Sequence[NDArray[np.integer]], root_G: NDArray[np.integer]) -> NDArray[np.int32]:
    moved = [np.where(child_M < 0, -1, child_M + root) for child_M, root in zip(children, root_G, strict=True)]
    return np.concatenate(moved).astype(np.int32)


def grow_forest(forest: Any, learn: Table, task: Task) -> Trees:
    """Fit a scikit-learn forest of ``warm_start`` on the table, a few trees at a time, and take its trees.

    Growing in parts gives the trees that growing at once gives. Forests do not stop early: more trees never hurt.
    """
    for num_trees in range(GROWN_AT_ONCE, task.budget.max_trees + GROWN_AT_ONCE, GROWN_AT_ONCE):
        forest.set_params(n_estimators=min(num_trees, task.budget.max_trees))
        forest.fit(learn.x_SK, learn.y_S)
        task.deadline.check(f"tree {len(forest.estimators_)}")
    grown = [_of_sklearn(estimator.tree_) for estimator in forest.estimators_]
    return Trees.join(grown, start=0.0, divisor=len(grown))


def _of_sklearn(tree: Any) -> Tree:
    return Tree(
        feature_M=tree.feature,
        threshold_M=tree.threshold,
        left_M=tree.children_left,
        right_M=tree.children_right,
        missing_left_M=tree.missing_go_to_left,
        value_M=tree.value[:, 0, 0],
    )
