"""What apply_gradients takes, and how features' gradients become one array per table."""

from types import SimpleNamespace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim import FeatureConfig, TableConfig
from embsim.gradients import as_gradient, check_finite, owned, stack_gradients
from embsim.optimizers import SGD
from embsim.plan import Output
from embsim.tables import resolve_tables

F = np.float32


def engine_of(*tables, check_numerics=False):
    """What stack_gradients must know of an engine whose features look up `tables`."""
    features = tuple(FeatureConfig(table) for table in tables)
    return SimpleNamespace(
        features=features,
        names=tuple(f"f{i}" for i in range(len(features))),
        tables=resolve_tables(features, SGD(), trains=True),
        check_numerics=check_numerics,
    )


A, B = TableConfig(4, 2, name="a"), TableConfig(4, 3, name="b")


class TestAsGradient:
    @pytest.mark.parametrize(
        "dtype", [F, np.float16, np.float64, np.longdouble, ">f4", "<f8", ml_dtypes.bfloat16]
    )
    def test_every_float_dtype_is_cast_once(self, dtype):
        value = np.array([1 / 3, -2.5, 1e-3]).astype(dtype)
        got = as_gradient(value, "f", (3,))
        assert got.dtype == np.float32
        assert got.tolist() == [F(x) for x in value]

    @pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
    def test_also_those_of_eight_bits(self, name):
        value = np.array([0.5, -2.0]).astype(getattr(ml_dtypes, name))
        assert as_gradient(value, "f").tolist() == [0.5, -2.0]

    def test_a_float64_beyond_float32_is_infinite_without_a_warning(self):
        assert as_gradient(np.array([1e300, -1e300, 1e-300]), "f").tolist() == [np.inf, -np.inf, 0]

    def test_other_libraries_arrays_are_arrays(self):
        class Torch:  # a tensor that needs gradients, on a device
            def detach(self):
                return self

            cpu = detach

            def numpy(self):
                return np.ones((2, 1), np.float64)

        assert as_gradient(jnp.ones((2, 1), jnp.bfloat16), "f", (2, 1)).tolist() == [[1], [1]]
        assert as_gradient(Torch(), "f", (2, 1)).tolist() == [[1], [1]]
        assert as_gradient(F(3), "f", ()) == 3

    def test_an_object_that_can_only_give_its_numpy_array_is_an_array(self):
        assert as_gradient(SimpleNamespace(numpy=lambda: np.ones(2)), "f", (2,)).tolist() == [1, 1]

    @pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool, complex, object, "U1"], ids=str)
    def test_any_other_dtype_is_a_type_error(self, dtype):
        message = "the gradient of feature 'clicks' has dtype .*; it must be a float dtype"
        with pytest.raises(TypeError, match=message):
            as_gradient(np.ones(2).astype(dtype), "clicks")

    @pytest.mark.parametrize(
        "value", [[[1.0, 2.0]], (1.0,), 1.0, 1, "x", {}, object()], ids=lambda x: type(x).__name__
    )
    def test_what_is_no_array_is_a_value_error(self, value):
        message = f"of feature 'clicks' is a {type(value).__name__}, not an array; .* or None for"
        with pytest.raises(ValueError, match=message):
            as_gradient(value, "clicks", (1, 2))

    @pytest.mark.parametrize("shape", [(2,), (2, 1), (3, 2), (2, 3, 1), ()])
    def test_another_shape_is_a_value_error_that_names_both(self, shape):
        message = rf"'clicks' has shape \({', '.join(map(str, shape))}.*activations' shape \(2, 3\)"
        with pytest.raises(ValueError, match=message):
            as_gradient(np.ones(shape, F), "clicks", (2, 3))


class TestStacking:
    @given(st.data())
    def test_the_samples_of_a_table_s_features_stand_below_each_other(self, data):
        tables = [data.draw(st.sampled_from([A, B]), label="table") for _ in range(4)]
        engine = engine_of(*tables)
        outputs, want, high = [], {}, {"a": 0, "b": 0}
        gradients = []
        for i, table in enumerate(tables):
            shape = data.draw(st.sampled_from([(1,), (2,), (2, 3)]), label="output shape")
            low = high[table.name]
            high[table.name] += int(np.prod(shape))
            outputs.append(Output(table.name, low, high[table.name], shape))
            gradient = np.full((*shape, table.dim), i + 1, data.draw(st.sampled_from("fde")))
            gradient += np.arange(gradient.size).reshape(gradient.shape)
            part = gradient.reshape(-1, table.dim)
            if data.draw(st.booleans(), label="None"):
                gradient, part = None, np.zeros_like(part)
            elif data.draw(st.booleans(), label="Fortran order"):
                gradient = np.asfortranarray(gradient)
            gradients.append(gradient)
            want.setdefault(table.name, []).append(part)
        got, borrowed = stack_gradients(gradients, engine, outputs)
        assert set(got) == set(want)
        for name, parts in want.items():
            assert got[name].dtype == np.float32
            assert got[name].flags.c_contiguous
            assert got[name].tolist() == np.concatenate(parts).tolist()
            mine = [g for g in gradients if g is not None and np.shares_memory(g, got[name])]
            assert not mine or name in borrowed

    def test_no_gradient_at_all_is_zeros(self):
        outputs = [Output("a", 0, 3, (3,)), Output("b", 0, 2, (2,)), Output("b", 2, 4, (2,))]
        got, borrowed = stack_gradients([None] * 3, engine_of(A, B, B), outputs)
        assert {name: array.tolist() for name, array in got.items()} == {
            "a": [[0, 0]] * 3,
            "b": [[0, 0, 0]] * 4,
        }
        assert borrowed == set()

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_another_number_of_gradients_is_a_value_error(self, count):
        outputs = [Output("a", 0, 1, (1,)), Output("a", 1, 2, (1,))]
        for known in (outputs, None):
            with pytest.raises(ValueError, match=f"{count} gradients for 2 features"):
                stack_gradients([None] * count, engine_of(A, A), known)

    def test_the_shape_of_each_feature_is_checked_and_named(self):
        outputs = [Output("a", 0, 2, (2,)), Output("b", 0, 6, (2, 3))]
        right = [np.zeros((2, 2), F), np.zeros((2, 3, 3), F)]
        stack_gradients(right, engine_of(A, B), outputs)
        with pytest.raises(ValueError, match=r"'f1' has shape \(2, 3\).* shape \(2, 3, 3\)"):
            stack_gradients([right[0], np.zeros((2, 3), F)], engine_of(A, B), outputs)

    def test_while_no_step_waits_kinds_and_dtypes_are_checked_all_the_same(self):
        engine = engine_of(A, check_numerics=True)
        assert stack_gradients([np.zeros((7, 7), F)], engine, None) == ({}, set())
        for wrong, error in (
            ([1.0], ValueError),
            (np.zeros(2, int), TypeError),
            (F([np.nan]), ValueError),
        ):
            with pytest.raises(error, match="feature 'f0'"):
                stack_gradients([wrong], engine, None)


class TestCheckNumerics:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_the_first_number_that_is_not_finite_is_named_with_its_place(self, bad):
        gradient = np.zeros((3, 2), F)
        gradient[1:] = bad
        with pytest.raises(ValueError, match=rf"'clicks' is {bad} at \(1, 0\); with check"):
            check_finite(gradient, "clicks")

    def test_only_where_it_is_asked_for(self):
        outputs = [Output("a", 0, 1, (1,))]
        got, _ = stack_gradients([F([[np.nan, 1]])], engine_of(A), outputs)
        assert np.isnan(got["a"][0, 0])
        with pytest.raises(ValueError, match=r"'f0' is inf at \(0, 1\)"):
            stack_gradients([[[1, 1e300]] * np.ones(1)], engine_of(A, check_numerics=True), outputs)
        check_finite(np.full((2, 2), 3e38, F), "clicks")


@pytest.mark.parametrize("rows", [3, 2**17])
def test_owned_gradients_are_equal_and_share_no_borrowed_memory(rows):
    """Few are copied here, many by several threads."""
    borrowed = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    own = np.ones((1, 2), np.float32)
    kept = owned({"a": borrowed, "b": own}, {"a"})
    assert list(kept) == ["a", "b"]
    assert kept["b"] is own
    borrowed += 1
    np.testing.assert_array_equal(kept["a"], borrowed - 1)
