"""Which nodes the kernel knows by number, kept exactly as long as it does."""

import itertools
import threading
from collections.abc import Hashable

from atoll.fuse.interface import LEAST_OWN_NUMBER, FindNode, Node
from atoll.fuse.protocol import ROOT_ID


class NodeTable:
    """Numbers of nodes, never used again, and how many answers about each the kernel remembers.

    Nodes with numbers of their own are not in it: `find` finds them.
    """

    def __init__(self, root: Node, find: FindNode | None = None) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._numbers: dict[Hashable, int] = {root.key: ROOT_ID}
        self._nodes: dict[int, Node] = {ROOT_ID: root}
        self._counts: dict[int, int] = {ROOT_ID: 1}
        self._next = itertools.count(ROOT_ID + 1)

    def __len__(self) -> int:
        return len(self._nodes)

    def lane(self, number: int) -> Hashable:
        """Whom a request about a node may wait for; None where it waits for nobody."""
        if number >= LEAST_OWN_NUMBER:
            return None if self._find is None else self._find.lane(number)
        node = self._nodes.get(number)
        return None if node is None else node.lane

    def node(self, number: int) -> Node | None:
        """The node of a number; what finding it raises."""
        if number >= LEAST_OWN_NUMBER:
            return None if self._find is None else self._find.node(number)
        return self._nodes.get(number)

    def remember(self, node: Node) -> int:
        """The number of a node, in one more answer."""
        if node.number is not None:
            return node.number
        with self._lock:
            number = self._numbers.get(node.key)
            if number is None:
                number = self._numbers[node.key] = next(self._next)
                self._nodes[number] = node
                self._counts[number] = 0
            self._counts[number] += 1
            return number

    def forget(self, number: int, answers: int) -> None:
        """The kernel has forgotten so many answers about a node."""
        with self._lock:
            if number == ROOT_ID or number not in self._counts:
                return
            self._counts[number] -= answers
            if self._counts[number] <= 0:
                del self._counts[number]
                del self._numbers[self._nodes.pop(number).key]
