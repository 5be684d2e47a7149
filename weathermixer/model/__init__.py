"""The model: layers, patching, the mixer block, the heads, WeatherMixer."""

from weathermixer.model.weathermixer import ModelShape, WeatherMixer

__all__ = ["ModelShape", "WeatherMixer"]
