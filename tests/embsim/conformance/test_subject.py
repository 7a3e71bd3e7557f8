"""What may be tested, and what it says of itself."""

import pytest

from embsim import BackendError, ReferenceBackend
from embsim.backend import Parity
from embsim.conformance import Capabilities, EmbsimEngine, Subject, subject_of
from embsim.conformance.adapter import AdapterFactory


class Modest(ReferenceBackend):
    parity = Parity(ulps=2.0, refuses={"FTRL": "not written"})


class SaysNothing:
    put_state = ReferenceBackend.put_state
    get_state = ReferenceBackend.get_state
    read_rows = ReferenceBackend.read_rows
    put_plan = ReferenceBackend.put_plan
    lookup = ReferenceBackend.lookup
    update = ReferenceBackend.update


def test_a_backend_by_name_and_by_instance():
    by_name, instance = subject_of("reference"), ReferenceBackend()
    assert by_name.name == "reference" and isinstance(by_name.backend, ReferenceBackend)
    assert subject_of(instance).backend is instance
    assert subject_of(instance).name == "ReferenceBackend"


def test_a_backend_s_parity_becomes_capabilities_of_embsim_s_engine():
    can = subject_of(Modest()).capabilities
    assert (can.bitwise, can.ulps, dict(can.refuses)) == (False, 2.0, {"FTRL": "not written"})
    assert (can.replicas, can.looks, can.errors) == ((1, 2, 4), True, True)
    assert subject_of("reference").capabilities.bitwise
    assert EmbsimEngine.capabilities.refuses == {}


def test_a_backend_without_parity_promises_no_bits_and_refuses_nothing():
    can = subject_of(SaysNothing()).capabilities
    assert (can.bitwise, can.ulps, dict(can.refuses)) == (False, 0.5, {})


def test_each_backend_has_an_engine_of_its_own():
    a, b = subject_of(Modest()), subject_of("reference")
    assert a.factory is not b.factory
    assert a.factory.backend is a.backend and EmbsimEngine.backend == "reference"


def test_an_adapter_s_class():
    subject = subject_of(EmbsimEngine)
    assert (subject.name, subject.backend) == ("EmbsimEngine", None)
    assert isinstance(EmbsimEngine, AdapterFactory)


def test_a_factory_need_not_be_a_class():
    class Factory:
        capabilities = Capabilities()

        def __call__(self, setup):
            return EmbsimEngine(setup)

    assert subject_of(Factory()).name == "Factory"


def test_a_subject_stays_one():
    subject = Subject("mine", EmbsimEngine)
    assert subject_of(subject) is subject


@pytest.mark.parametrize("what", [object(), 3, None, lambda setup: setup])
def test_what_is_no_subject(what):
    with pytest.raises(TypeError, match="is no subject; pass a backend's name"):
        subject_of(what)


def test_a_backend_s_class_is_made_an_instance():
    assert isinstance(subject_of(ReferenceBackend).backend, ReferenceBackend)


def test_what_is_missing_is_named():
    class NoReads:
        put_state = get_state = put_plan = lookup = update = None

    class NoCapabilities:
        enqueue = None

    class Undrained:
        capabilities = Capabilities()
        enqueue = dequeue = apply_gradients = tables = slots = close = None

    for what, message in (
        (NoReads(), "but not read_rows"),
        (NoCapabilities, "an adapter's class has an attribute `capabilities`"),
        (Undrained, "adapter Undrained has no drain"),
        (Undrained(), "it is an instance; pass the adapter's class, Undrained"),
    ):
        with pytest.raises(TypeError, match=message):
            subject_of(what)


def test_a_backend_that_is_not_there():
    with pytest.raises(BackendError, match="'unheard_of' is not installed"):
        subject_of("unheard_of")


def test_a_parity_that_is_none():
    class Wrong(ReferenceBackend):
        parity = "bitwise"

    with pytest.raises(TypeError, match=r"it must be an embsim\.Parity"):
        subject_of(Wrong())
