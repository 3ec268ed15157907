"""How well two series of arrays agree, from running sums in float64: the arrays themselves are not kept."""

import math

import numpy as np


class Agreement:
    """Of two series of arrays of equal shapes, `quantized` and `reference`.

    Attributes:
        low, high: range of the reference's values.
        quantized_low, quantized_high: of the others.
    """

    def __init__(self):
        self.low, self.high = math.inf, -math.inf
        self.quantized_low, self.quantized_high = math.inf, -math.inf
        self.shift = None
        self.noise = self.signal = 0.0
        self.moments = np.zeros(6)  # count, sum of q, of r, of q*q, r*r, q*r

    def add(self, quantized, reference):
        """The next arrays of both series."""
        q, r = quantized.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
        self.low, self.high = min(self.low, r.min()), max(self.high, r.max())
        self.quantized_low, self.quantized_high = min(self.quantized_low, q.min()), max(self.quantized_high, q.max())
        self.signal += r @ r
        self.noise += (q - r) @ (q - r)
        if self.shift is None:
            self.shift = r.mean()  # a variance is a difference of large sums unless the values are about 0
        q, r = q - self.shift, r - self.shift
        self.moments += (q.size, q.sum(), r.sum(), q @ q, r @ r, q @ r)

    def sqnr(self):
        """Signal-to-quantization-noise ratio in dB; infinite without noise."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    def correlation(self):
        """Pearson's, over all values; nan where a side is constant."""
        if self.low == self.high or self.quantized_low == self.quantized_high:
            return math.nan
        count, q, r, qq, rr, qr = self.moments
        return float((qr - q * r / count) / math.sqrt((qq - q * q / count) * (rr - r * r / count)))
