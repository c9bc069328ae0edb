"""The polynomials of csrc/core/elementary.inc.h: minimax coefficients (Remez), rounded to the compute type.

    python tools/minimax.py

prints, for each function and type, C literals from the highest power down, and the largest error of the rounded
polynomial in exact arithmetic, relative to the function, in units of roundoff (2^-24, 2^-53). Needs mpmath.
"""

import mpmath as mp

mp.mp.dps = 50
POINTS = 800


def remez(f, weight, terms, low, high):
    """The `terms` coefficients of c_0 + c_1 x + ... that minimise max |weight(x) (f(x) - sum)| on [low, high]."""

    def spread(count):  # denser towards the ends; 0 is not among them
        return [low + (high - low) * (1 - mp.cos(mp.pi * (2 * i + 0.9) / (2 * count))) / 2 for i in range(count)]

    values = [(x, f(x), weight(x)) for x in spread(POINTS)]
    nodes = spread(terms + 1)
    for _ in range(30):
        rows = [[x**k for k in range(terms)] + [(-1) ** i / weight(x)] for i, x in enumerate(nodes)]
        *coefficients, level = mp.lu_solve(mp.matrix(rows), mp.matrix([f(x) for x in nodes]))
        error = [(x, w * (y - mp.polyval(coefficients[::-1], x))) for x, y, w in values]
        if max(abs(e) for _, e in error) < abs(level) * (1 + mp.mpf(10) ** -3):
            break
        nodes = extrema(error, terms + 1)
    return coefficients


def extrema(error, count):
    """The `count` neighbouring points of largest error whose signs alternate."""
    best = []
    for x, e in error:
        if best and (e > 0) == (best[-1][1] > 0):
            if abs(e) > abs(best[-1][1]):
                best[-1] = (x, e)
        else:
            best.append((x, e))
    while len(best) > count:
        del best[0 if abs(best[0][1]) < abs(best[-1][1]) else -1]
    return [x for x, _ in best]


def nearest(x, bits):
    """x rounded to `bits` significant bits."""
    mantissa, exponent = mp.frexp(x)
    return mp.ldexp(mp.nint(mp.ldexp(mantissa, bits)), exponent - bits)


def literal(x, bits):
    mantissa, exponent = mp.frexp(x)
    whole = int(mp.ldexp(abs(mantissa), bits))
    digits, shift = (bits + 2) // 4, (-(bits - 1)) % 4
    fraction = f"{(whole - (1 << (bits - 1))) << shift:0{digits}x}"[-((bits + 2) // 4) :]
    return f"{'-' if x < 0 else ''}0x1.{fraction}p{int(exponent) - 1:+d}"


def polynomial(f, weight, terms, low, high, bits):
    """As remez, with rounded coefficients. Where low = 0 they are rounded from the lowest power up, and those still
    free make good for it; on both sides of 0 the error would then no longer alternate, and all are rounded at once."""
    low, high, fixed = mp.mpf(low), mp.mpf(high), []

    def rest(x):
        return f(x) - mp.polyval(fixed[::-1], x)

    while len(fixed) < terms:
        k = len(fixed)
        free = remez(lambda x: rest(x) / x**k, lambda x: weight(x) * abs(x) ** k, terms - k, low, high)  # noqa: B023
        fixed += [nearest(c, bits) for c in (free if low < 0 else free[:1])]
    grid = [low + (high - low) * mp.mpf(2 * i + 1) / (2 * POINTS) for i in range(POINTS)]
    return fixed, max(abs(weight(x) * rest(x)) for x in grid)


def show(name, f, lead, whole, terms, low, high, bits):
    """f is what the polynomial stands for: lead(x) f(x) is added to exact terms; the error is relative to whole(x)."""
    coefficients, error = polynomial(f, lambda x: abs(lead(x) / whole(x)), terms, low, high, bits)
    print(f"{name}, {'float' if bits == 24 else 'double'}: {mp.nstr(error * 2**bits, 3)} u")
    print("    " + ", ".join(literal(c, bits) for c in reversed(coefficients)))


def atanh_over_s(z):
    """2 atanh(s) / s, z = s^2."""
    return 2 * mp.atanh(mp.sqrt(z)) / mp.sqrt(z)


def tanh_over_x(z):
    """tanh(x) / x, z = x^2."""
    return mp.tanh(mp.sqrt(z)) / mp.sqrt(z)


def tail_over_t(q):
    """exp(x^2 / 2) P(N > x) / t of q = 1 - 2 t, t = 4 / (x + 4), for N of the standard normal distribution."""
    t = (1 - q) / 2
    x = 4 / t - 4
    return mp.exp(x * x / 2) * mp.erfc(x / mp.sqrt(2)) / (2 * t)


def main():
    log2 = mp.log(2)
    for bits, degree, log_terms, tanh_terms, tail_terms, far in ((24, 6, 3, 7, 10, 15), (53, 11, 7, 16, 23, 39)):
        exp2 = (lambda r: (2**r - 1) / r, lambda r: r, lambda r: 2**r, degree)
        show("(2^r - 1) / r on [-1/2, 1/2]", *exp2, -0.5, 0.5, bits)
        exp = (lambda r: (mp.exp(r) - 1 - r) / r**2, lambda r: r**2, mp.exp, degree - 1)
        show("(e^r - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2]", *exp, -log2 / 2, log2 / 2, bits)
        log = (lambda z: (atanh_over_s(z) - 2) / z, lambda z: z, lambda z: 2, log_terms)
        show("(2 atanh(s) / s - 2) / s^2 of s^2", *log, 0, (3 - 2 * mp.sqrt(2)) ** 2, bits)
        tanh = (lambda z: (tanh_over_x(z) - 1) / z, lambda z: z, tanh_over_x, tanh_terms)
        show("(tanh(x) / x - 1) / x^2 of x^2 on [0, 1]", *tanh, 0, 1, bits)
        tail = (tail_over_t, lambda q: mp.mpf(1), tail_over_t, tail_terms)
        show(f"exp(x^2 / 2) P(N > x) / t of 1 - 2 t on [0, {far}]", *tail, -1, 1 - mp.mpf(8) / (far + 4), bits)


if __name__ == "__main__":
    main()
