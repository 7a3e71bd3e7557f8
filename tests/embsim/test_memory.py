import numpy as np
import pytest

from embsim._memory import aligned_empty


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 5), (1000, 33), ()])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
def test_aligned_empty_is_a_contiguous_array_at_a_multiple_of_64(shape, dtype):
    array = aligned_empty(shape, dtype)
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.size == 0 or array.ctypes.data % 64 == 0
    assert array.flags.c_contiguous
    assert array.flags.writeable
