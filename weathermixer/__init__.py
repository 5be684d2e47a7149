"""WeatherMixer: an all-MLP global weather model, trained on a (data, domain, tensor) mesh of any shape."""

__version__ = "0.1.0"
