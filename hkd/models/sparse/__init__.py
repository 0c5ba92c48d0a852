"""CNNs on the visible part of an image: active cells alone are computed, masked or gathered."""
