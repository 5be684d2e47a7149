"""Regions that scores are taken over: WeatherBench 2's boxes, land and sea within them, and boxes of one's own."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from weathermixer.fields.grid import Grid, area_weights

# name -> boxes (south, north, west, east) in degrees, ends included, as in WeatherBench 2's scripts/evaluate.py
REGIONS = {
    "global": ((-90, 90, 0, 360),),
    "tropics": ((-20, 20, 0, 360),),
    "extra-tropics": ((-90, -20, 0, 360), (20, 90, 0, 360)),
    "northern-hemisphere": ((20, 90, 0, 360),),
    "southern-hemisphere": ((-90, -20, 0, 360),),
    "europe": ((35, 75, -12.5, 42.5),),
    "north-america": ((25, 60, -120, -75),),
    "north-atlantic": ((25, 65, -70, -10),),
    "north-pacific": ((25, 60, 145, -130),),
    "east-asia": ((25, 60, 102.5, 150),),
    "ausnz": ((-45, -12.5, 120, 175),),
    "arctic": ((60, 90, 0, 360),),
    "antarctic": ((-90, -60, 0, 360),),
}
_NUMBER = r"(-?\d+(?:\.\d*)?)"
_BOX = re.compile(rf"([\w-]+)=({_NUMBER}:{_NUMBER}:{_NUMBER}:{_NUMBER})")


def region_names(regions: Sequence[str]) -> list[str]:
    """The names of regions, boxes of one's own included."""
    return [text.partition("=")[0] for text in regions]


def region_weights(
    grid: Grid, regions: Sequence[str], *, land: Float[np.ndarray, "lat lon"] | None = None
) -> Float[np.ndarray, "region lat lon"]:
    """Weights of cells for means over regions: by area, zero outside, of sum one.

    A region is a name of REGIONS or a box, alps=43:49:4:17 (south, north, west, east in degrees); with _land or _sea
    behind its name cells count by their share of it, as `land` says. Raises ValueError for what is not known or empty.
    """
    area = np.broadcast_to(area_weights(grid.latitude)[:, None], grid.shape)
    found = np.stack([area * _share(grid, text, land) for text in regions])
    totals = found.sum(axis=(1, 2), keepdims=True)
    if empty := [text for text, total in zip(regions, totals.ravel()) if not total > 0]:
        raise ValueError(f"regions {empty} hold no point of the grid {grid.shape[0]} x {grid.shape[1]}: leave them out")
    return found / totals


def _share(grid: Grid, text: str, land: np.ndarray | None) -> Float[np.ndarray, "lat lon"]:
    name, kind = re.fullmatch(r"(.*?)(_land|_sea)?", text.partition("=")[0]).groups()
    if box := _BOX.fullmatch(text):
        boxes = (tuple(map(float, box[2].split(":"))),)
    elif name in REGIONS:
        boxes = REGIONS[name]
    else:
        raise ValueError(
            f"region {text!r} is not known: choose among {', '.join(REGIONS)}, each with _land or _sea behind it, or "
            "give a box of your own, alps=43:49:4:17 (south, north, west, east)"
        )
    inside = np.zeros(grid.shape, bool)
    for south, north, west, east in boxes:
        rows = (grid.latitude >= south) & (grid.latitude <= north)
        columns = (grid.longitude - west) % 360 <= (east - west if east - west == 360 else (east - west) % 360)
        inside |= rows[:, None] & columns
    if kind is None:
        return inside.astype(float)
    if land is None:
        raise ValueError(f"region {text!r} needs a land_sea_mask, which the data does not have")
    return inside * (land if kind == "_land" else 1 - land)
