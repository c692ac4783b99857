"""Log-mel spectrograms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from core.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMel:
    """How sound becomes a log-mel spectrogram.

    Power is that of a Hann window about each time, one-sided and scaled so that its sum over
    frequencies is the windowed mean square of the samples (Parseval). It is summed through
    triangular filters whose corners lie at equal distances on the mel scale of HTK, ``2595 log10(1
    + f / 700)``, each from the peak of the filter before to the peak of the one after, linear in
    frequency and 1 at its own peak (S. Young et al., The HTK Book, 2006, section 5.6). The natural
    logarithm is taken of that and `floor`.

    Attributes:
        hz: Sampling rate.
        window_s: Length of the window.
        hop_s: From one column to the next.
        num_mels: Filters (M).
        low_hz: Where the first filter begins.
        high_hz: Where the last filter ends; None for half the sampling rate.
        floor: Power of silence, in units of a mean square of 1.
    """

    hz: int
    window_s: float = 0.032
    hop_s: float = 0.010
    num_mels: int = 64
    low_hz: float = 20.0
    high_hz: float | None = None
    floor: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("hz", "window_s", "hop_s", "num_mels", "floor"):
            if not getattr(self, name) > 0:
                raise DataError(f"{name}={getattr(self, name)} must be above 0")
        if self.hop < 1 or self.window < 2:
            raise DataError(
                f"window_s={self.window_s} and hop_s={self.hop_s} are less than 2 and 1 samples at "
                f"hz={self.hz}; lengthen them"
            )
        if not 0 <= self.low_hz < self.top_hz <= self.hz / 2:
            raise DataError(
                f"low_hz={self.low_hz} and high_hz={self.top_hz} must lie in this order from 0 to "
                f"half of hz={self.hz}"
            )
        if not bool((self.filters().sum(1) > 0).all()):
            raise DataError(
                f"num_mels={self.num_mels}: some of so many filters lie between two of "
                f"{self.num_fft // 2 + 1} frequencies; take fewer, or a longer window_s"
            )

    @property
    def window(self) -> int:
        """Samples of the window."""
        return round(self.window_s * self.hz)

    @property
    def hop(self) -> int:
        """Samples of the hop."""
        return round(self.hop_s * self.hz)

    @property
    def num_fft(self) -> int:
        """Samples of the Fourier transform: the next power of two twice the window is within."""
        return 1 << (2 * self.window - 1).bit_length()

    @property
    def top_hz(self) -> float:
        """Where the last filter ends."""
        return self.hz / 2 if self.high_hz is None else self.high_hz

    def filters(self) -> torch.Tensor:
        """The filters, float32, shape (M, num_fft // 2 + 1)."""
        low, high = (2595 * math.log10(1 + hz / 700) for hz in (self.low_hz, self.top_hz))
        mels = torch.linspace(low, high, self.num_mels + 2, dtype=torch.float64)
        corners = 700 * (10 ** (mels / 2595) - 1)
        hz = torch.arange(self.num_fft // 2 + 1, dtype=torch.float64) * (self.hz / self.num_fft)
        before, peak, after = (corners[i : i + self.num_mels, None] for i in range(3))
        rising, falling = (hz - before) / (peak - before), (after - hz) / (after - peak)
        return torch.minimum(rising, falling).clamp(min=0).float()

    def power(self, samples: torch.Tensor) -> torch.Tensor:
        """The power at each time and frequency.

        Args:
            samples: Floating point, shape (..., N), N at least 1.

        Returns:
            float32, shape (..., T, num_fft // 2 + 1), T = ceil(N / hop). Column t is centred on
            sample t * hop; beyond either end there is silence.
        """
        if samples.shape[-1] < 1:
            raise DataError("there is no sound in 0 samples")
        window = torch.hann_window(self.window, device=samples.device)
        spectrum = torch.stft(
            samples.float().reshape(-1, samples.shape[-1]),
            self.num_fft,
            self.hop,
            self.window,
            window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.abs().square() / (self.num_fft * window.square().sum())
        # The transform of real samples is symmetric: all but both ends stand for two frequencies.
        power[:, 1:-1] *= 2
        num_columns = math.ceil(samples.shape[-1] / self.hop)
        return power[..., :num_columns].mT.reshape(*samples.shape[:-1], num_columns, -1)

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """The log-mel spectrogram.

        Args:
            samples: As of `power`.

        Returns:
            float32, shape (..., T, M).
        """
        mels = self.power(samples) @ self.filters().to(samples.device).T
        return (mels + self.floor).log()
