"""The normal distribution's inverse CDF with the same bits on every machine.

Wichura, Algorithm AS241 (1988), as in the standard library's statistics.NormalDist, but for whole
arrays, and with a logarithm of its own: np.log differs between instruction sets, + - * / and sqrt
do not.
"""

import numpy as np
from jaxtyping import Float64

CENTRAL = 0.425  # |q| up to which the first approximation holds
CENTRAL_SQUARED = 0.180625
LN_2 = 0.6931471805599453
SQRT_HALF = 0.7071067811865476

# Numerator and denominator, highest power first.
_CENTRAL_TERMS = (
    (2.5090809287301226727e3, 5.2264952788528545610e3),
    (3.3430575583588128105e4, 2.8729085735721942674e4),
    (6.7265770927008700853e4, 3.9307895800092710610e4),
    (4.5921953931549871457e4, 2.1213794301586595867e4),
    (1.3731693765509461125e4, 5.3941960214247511077e3),
    (1.9715909503065514427e3, 6.8718700749205790830e2),
    (1.3314166789178437745e2, 4.2313330701600911252e1),
    (3.3871328727963666080e0, 1.0),
)
_TAIL_TERMS = (
    (7.74545014278341407640e-4, 1.05075007164441684324e-9),
    (2.27238449892691845833e-2, 5.47593808499534494600e-4),
    (2.41780725177450611770e-1, 1.51986665636164571966e-2),
    (1.27045825245236838258e0, 1.48103976427480074590e-1),
    (3.64784832476320460504e0, 6.89767334985100004550e-1),
    (5.76949722146069140550e0, 1.67638483018380384940e0),
    (4.63033784615654529590e0, 2.05319162663775882187e0),
    (1.42343711074968357734e0, 1.0),
)
_ATANH_TERMS = 13  # s**2 < 0.0295: the next term is below 2**-66


def centred_quantile(q: Float64[np.ndarray, " n"]) -> None:
    """q <- the standard normal's inverse CDF at 1/2 + q, in place, for |q| <= 1/2 - exp(-25).

    Relative error about 1e-15. Odd: the values at q and -q differ in sign only.
    """
    tail = np.flatnonzero((q > CENTRAL) | (q < -CENTRAL))
    tail_values = _tail(q[tail])
    r = q * q
    np.subtract(CENTRAL_SQUARED, r, out=r)
    q *= _ratio(_CENTRAL_TERMS, r)
    q[tail] = tail_values


def log(x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """ln x of positive, normal numbers: x = m * 2**e with m near 1, ln m = 2 atanh((m - 1) / (m +
    1)) as a series."""
    m, e = np.frexp(x)
    below = m < SQRT_HALF
    m[below] *= 2.0
    exponent = e.astype(np.float64)
    exponent[below] -= 1.0
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    total = np.full_like(z, 1.0 / (2 * _ATANH_TERMS - 1))
    for k in range(_ATANH_TERMS - 2, -1, -1):
        total *= z
        total += 1.0 / (2 * k + 1)
    return exponent * LN_2 + 2.0 * s * total


def _tail(q: np.ndarray) -> np.ndarray:
    r = np.sqrt(-log(0.5 - np.abs(q)))
    return np.copysign(_ratio(_TAIL_TERMS, r - 1.6), q)


def _ratio(terms: tuple[tuple[float, float], ...], x: np.ndarray) -> np.ndarray:
    both = np.empty((2, len(x)))
    both[...] = np.array(terms[0])[:, None]
    for pair in terms[1:]:
        both *= x
        both += np.array(pair)[:, None]
    return np.divide(both[0], both[1], out=both[0])
