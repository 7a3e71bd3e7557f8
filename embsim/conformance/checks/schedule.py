"""Which version a lookup reads, drains, and looks."""

from hypothesis import strategies as st

from ..check import Draw, check
from ..lockstep import replay
from ..machine import programs
from ..subject import Subject


@check("5.1", "5.3", "6.1", effort=2)
def check_every_call_of_a_program_equals_the_definition(subject: Subject, draw: Draw) -> None:
    """Random programs of calls: activations, tables, slots and refusals after each of them."""
    replay(subject, draw(programs(subject.capabilities), "program"))


@check("8.1", "8.2", "8.3", when=lambda can: can.bitwise, effort=2)
def check_every_call_is_the_definition_s_to_the_bit_on_any_numbers(
    subject: Subject, draw: Draw
) -> None:
    """Random programs with numbers whose sums depend on their order, and every optimizer."""
    regime = draw(st.sampled_from(("real", "wild")), "regime")
    replay(subject, draw(programs(subject.capabilities, regime), "program"))
