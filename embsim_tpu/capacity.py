"""Static sizes of plans: XLA compiles a program for each shape, so plans are padded to them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from embsim.config import integer
from embsim.errors import CapacityError

SMALLEST = 8
FINE = 1024  # beyond, padding costs more time in every step than a program costs once


@dataclass(frozen=True)
class Capacity:
    """Of one table, in one step.

    Args:
      positions: ids that one device looks up for its samples.
      rows: distinct rows that one device asks of one shard; on one device, distinct rows.
    """

    positions: int
    rows: int

    def __post_init__(self) -> None:
        for name in ("positions", "rows"):
            number = integer(f"Capacity: {name}", getattr(self, name), minimum=0)
            object.__setattr__(self, name, number)

    def holds(self, need: "Capacity") -> bool:
        return need.positions <= self.positions and need.rows <= self.rows


class Capacities:
    """The capacities of all tables: fixed, or learned from the batches that are seen.

    Args:
      given: a Capacity for every table, a mapping from table names, or "auto": each table's grow
        with the largest batch so far, to sizes of `bucket`, beyond 1024 by at least a quarter. So a
        table's programs are compiled at most about 3 log2(largest batch) times, for batches that
        grow and grow; usually once or twice. Tables that a mapping leaves out are "auto".
    """

    def __init__(self, given: "str | Capacity | Mapping[str, Capacity]" = "auto") -> None:
        legal = given == "auto" or isinstance(given, Capacity | Mapping)
        if not legal:
            raise ValueError(
                f"capacity is {given!r}; it must be 'auto', a Capacity, or a mapping from table "
                "names to Capacity"
            )
        self._given = given
        self._learned: dict[str, Capacity] = {}
        self.growths = 0

    def check_names(self, tables: Iterable[str]) -> None:
        """Raises ValueError: a capacity is given for a table that is not among them."""
        tables = list(tables)
        other = set(self._given) - set(tables) if isinstance(self._given, Mapping) else set[str]()
        if other:
            raise ValueError(f"capacity names the tables {sorted(other)}; there are {tables}")

    @property
    def learned(self) -> dict[str, Capacity]:
        """By table, what "auto" has come to."""
        return dict(self._learned)

    def fitting(self, table: str, need: Capacity) -> Capacity:
        """The capacity of `table`, which holds `need`.

        Raises:
          CapacityError: a given capacity that does not. Nothing is ever dropped.
        """
        capacity = self.proposed(table, need)
        self.learn(table, capacity)
        return capacity

    def proposed(self, table: str, need: Capacity) -> Capacity:
        """As fitting, but nothing is learned yet."""
        given = self._of(table)
        if given is None:
            known = self._learned.get(table, Capacity(0, 0))
            return Capacity(_grown(known.positions, need.positions), _grown(known.rows, need.rows))
        if not given.holds(need):
            raise CapacityError(
                f"plan: table {table!r}: the batch has {need.positions} ids on one device and "
                f"asks one shard for {need.rows} distinct rows; found {given}; required: at least "
                f"Capacity(positions={need.positions}, rows={need.rows}); pass that as capacity=, "
                "or capacity='auto', or smaller batches"
            )
        return given

    def learn(self, table: str, capacity: Capacity) -> None:
        """Batches of `table` are padded to `capacity`, or to more, from now on."""
        known = self._learned.get(table, Capacity(0, 0))
        if self._of(table) is None and not known.holds(capacity):
            self.growths += 1
            self._learned[table] = Capacity(
                max(known.positions, capacity.positions), max(known.rows, capacity.rows)
            )

    def _of(self, table: str) -> Capacity | None:
        if isinstance(self._given, Capacity):
            return self._given
        return self._given.get(table) if isinstance(self._given, Mapping) else None


def _grown(known: int, need: int) -> int:
    if known == 0:
        return bucket(need)
    if need <= known:
        return known
    return bucket(max(need, known + known // 4 if known >= FINE else 0))


def bucket(number: int) -> int:
    """The next size: a power of two from 8 to 1024, then a multiple of an eighth of the power of
    two below.

    >>> [bucket(n) for n in (0, 9, 1000, 1025, 81_920, 1_000_000)]
    [8, 16, 1024, 1152, 81920, 1048576]
    """
    power = power_of_two(number)
    step = power if power <= FINE else power // 16
    return -(-max(number, 1) // step) * step


def power_of_two(number: int) -> int:
    """The next one, at least 8."""
    return 1 << max(number - 1, SMALLEST - 1).bit_length()
