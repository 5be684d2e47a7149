"""The sizes of a model, from which all else follows: its arrays, what of them a mesh cuts, what a step costs."""

import dataclasses

HEADS = ("blend", "increment")
TOKEN_MIXING = ("dense", "circulant")
REMATERIALIZE = ("none", "block")


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The sizes of a WeatherMixer. The defaults, but for the grid and the channels, are the published 1.06 B model's.

    Attributes:
      grid: (lat, lon) points.
      channels: length of the channel dimension, static fields and padding included.
      predicted: how many channels, the first ones, are predicted.
      patch: (rows, columns) of a token.
      embed: features of a token (D).
      token_hidden: hidden size of token mixing (H).
      embed_hidden: hidden size of channel mixing (F).
      blocks: mixer blocks.
      head: "blend" (published) or "increment".
      dropout_rate: in the MLPs.
      history: frames that the model sees: 1 as published, or 2, the state and the one a step before it.
      noise: numbers that make one member of an ensemble of the others: the norms' scales and biases depend on them.
      leads: for how many leads the model is one; with more than one it is told which, as it is told noise.
      token_mixing: "dense" (published), or "circulant" along longitude: token_hidden is then whole rows of tokens.

    Raises ValueError for a patch that does not divide the grid, an unknown head, and counts that cannot be.

    >>> shape = weathermixer.ModelShape(grid=(32, 64), channels=8, predicted=6, patch=(2, 4), embed=64)
    >>> shape.tokens, shape.features
    (256, 64)
    """

    grid: tuple[int, int] = (720, 1440)
    channels: int = 72
    predicted: int = 69
    patch: tuple[int, int] = (1, 60)
    embed: int = 4320
    token_hidden: int = 8640
    embed_hidden: int = 4320
    blocks: int = 3
    head: str = "blend"
    dropout_rate: float = 0.0
    history: int = 1
    token_mixing: str = "dense"
    noise: int = 0
    leads: int = 1

    def __post_init__(self):
        if self.noise < 0 or self.leads < 1:
            raise ValueError(f"noise={self.noise} must be at least 0, leads={self.leads} at least 1")
        for what, size, part in zip(("latitude", "longitude"), self.grid, self.patch, strict=True):
            if size % part:
                raise ValueError(
                    f"{what}={size} is not divisible by the patch's {part}: choose model.patch to divide it"
                )
        if self.head not in HEADS:
            raise ValueError(f"head={self.head!r} is not one of {HEADS}")
        if self.token_mixing not in TOKEN_MIXING:
            raise ValueError(f"token_mixing={self.token_mixing!r} is not one of {TOKEN_MIXING}")
        if self.circulant and self.token_hidden % self.circulant:
            raise ValueError(
                f"token_hidden={self.token_hidden} is not whole rows of {self.circulant} tokens, which "
                f"token_mixing='circulant' needs: choose a multiple of {self.circulant}"
            )
        if self.history not in (1, 2):
            raise ValueError(f"history={self.history} must be 1 or 2 frames")
        if self.head == "blend" and self.channels == 1:
            raise ValueError(
                "head='blend' mixes channels, and there is one: pad with config.data.channel_multiple=2, or take "
                "config.model.head=increment"
            )
        if not 0 < self.predicted <= self.channels:
            raise ValueError(f"predicted={self.predicted} channels of {self.channels}: it must be 1 to {self.channels}")

    @property
    def tokens(self) -> int:
        return (self.grid[0] // self.patch[0]) * (self.grid[1] // self.patch[1])

    @property
    def circulant(self) -> int:
        """Columns of tokens along which token mixing is circulant; 0: it is dense."""
        return self.grid[1] // self.patch[1] if self.token_mixing == "circulant" else 0

    @property
    def conditions(self) -> int:
        """Numbers that the norms of a sample are given: its noise, then one for each lead but the first."""
        return self.noise + self.leads - 1

    @property
    def features(self) -> int:
        """Features of a patch, before encoding and after decoding."""
        return self.channels * self.patch[0] * self.patch[1]

    @property
    def cuts(self) -> dict[str, tuple[str, int]]:
        """(logical name, size) of every dimension that a mesh has to divide, by what it is."""
        width = max(self.circulant, 1)  # tokens of a row: circulant kernels are cut by rows
        return dict(
            channels=("channel", self.channels),
            patch_rows=("lat", self.grid[0] // self.patch[0]),
            tokens=("token_vector", self.tokens // width),
            token_hidden=("token_vector", self.token_hidden // width),
            features=("embed_vector", self.features),
            embed=("embed_vector", self.embed),
            embed_hidden=("embed_vector", self.embed_hidden),
        )
