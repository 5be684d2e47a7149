"""Draws the mesh and a batch's way through it: python docs/draw_mesh.py docs/images/mesh.png

One model instance on domain=2, tensor=2; a colour is a device, in every panel the same.
"""

import sys

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

COLOURS = (("#3b75af", "#ef8636"), ("#519d3e", "#8d69b8"))  # [domain][tensor]
INK = "#333333"
TITLE = dict(ha="center", fontsize=13, weight="bold", color=INK)
SMALL = dict(ha="center", va="top", fontsize=11, color=INK, linespacing=1.3)
WAVE_ROWS, WAVE_COLUMNS = 48, 96


def tint(field, colour):
    """A field between 0 and 1 as shades of a colour."""
    return 1 - (0.2 + 0.75 * field[..., None]) * (1 - np.array(to_rgb(colour)))


def weather(phase):
    """A made-up field [lat, lon] between 0 and 1: a jet with waves on it in either hemisphere, and eddies."""
    lat = np.linspace(np.pi / 2, -np.pi / 2, WAVE_ROWS)[:, None]
    lon = np.linspace(0, 2 * np.pi, WAVE_COLUMNS)[None, :] + np.where(lat < 0, 2, 0)
    wave = 0.13 * np.cos(4 * lon + phase) + 0.08 * np.cos(7 * lon - 2 * phase + 1)
    jet = np.tanh(4 * (np.abs(lat) - 0.72 - wave))
    eddies = np.cos(5 * lon + 2 * phase) * np.sin(2 * np.abs(lat)) ** 2 + 0.6 * np.cos(3 * lon - phase) * np.cos(lat)
    return np.clip(0.5 - 0.38 * jet + 0.14 * eddies, 0, 1)


def draw_fields(axis, x, y, *, phase, title):
    """Two groups of channels, one behind the other, each a globe of two bands; returns where they end."""
    width, height, shift = 2.4, 1.5, 0.42
    for tensor in (1, 0):
        left, bottom, order = x + tensor * shift, y + tensor * shift, 4 - 2 * tensor
        field = weather(phase + 1.3 * tensor)
        bands = zip(np.split(field, 2), COLOURS)
        image = np.concatenate([tint(band, colours[tensor]) for band, colours in bands])
        axis.imshow(image, extent=(left, left + width, bottom, bottom + height), interpolation="bicubic", zorder=order)
        axis.add_patch(Rectangle((left, bottom), width, height, fill=False, ec="white", lw=2.5, zorder=order + 1))
        axis.plot([left, left + width], [bottom + height / 2] * 2, color="white", lw=2.5, zorder=order + 1)
    axis.text(x + (width + shift) / 2, y + height + shift + 0.14, title, **TITLE)
    return x + width + shift


def draw_matrix(axis, x, y, size, *, labels):
    """An array cut over both axes: rows over domain, columns over tensor."""
    half = size / 2
    for domain in (0, 1):
        for tensor in (0, 1):
            left, bottom = x + tensor * half, y + (1 - domain) * half
            box = Rectangle((left, bottom), half, half, fc=COLOURS[domain][tensor], ec="white", lw=2.5, zorder=2)
            axis.add_patch(box)
            if labels:
                text = f"domain {domain}\ntensor {tensor}"
                centre = (left + half / 2, bottom + half / 2)
                axis.text(*centre, text, ha="center", va="center", color="white", fontsize=11, zorder=3)


def arrow(axis, start, end, *, style="-|>"):
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=16, color=INK, lw=1.8))


def draw() -> Figure:
    """The picture, left to right: archive, activation, kernel, prediction."""
    figure = Figure(figsize=(13, 3.9), dpi=120)
    axis = figure.add_axes((0, 0, 1, 1))
    middle = 1.95

    right = draw_fields(axis, 0.15, middle - 0.96, phase=0.0, title="archive, batch")
    axis.text(1.56, middle - 1.1, "each process reads its own\nband and channels, once", **SMALL)
    arrow(axis, (right + 0.1, middle), (right + 0.8, middle))
    axis.text(right + 0.45, middle + 0.18, "patch,\nencode", **SMALL | dict(va="bottom"))

    x, size = right + 1.7, 2.1
    for behind in (2, 1):  # the other instances
        corner = (x + 0.16 * behind, middle - size / 2 + 0.16 * behind)
        axis.add_patch(Rectangle(corner, size, size, fc="#dcdcdc", ec="white", lw=2, zorder=1))
    draw_matrix(axis, x, middle - size / 2, size, labels=True)
    axis.text(x + size / 2, middle + size / 2 + 0.4, "activation: token x feature", **TITLE)
    arrow(axis, (x - 0.16, middle - 0.95), (x - 0.16, middle + 0.95), style="<|-|>")
    axis.text(x - 0.28, middle, "token mixing\nsums over domain", rotation=90, **SMALL | dict(va="center", ha="right"))
    low = middle - size / 2 - 0.16
    arrow(axis, (x + 0.1, low), (x + size - 0.1, low), style="<|-|>")
    axis.text(x + size / 2, low - 0.12, "channel mixing sums over tensor", **SMALL)
    axis.text(x + size + 0.42, middle + 1.32, "data: other\nsamples", **SMALL | dict(ha="left", color="#777777"))

    x, kernel = x + size + 1.05, 1.2
    draw_matrix(axis, x, middle - kernel / 2, kernel, labels=False)
    axis.text(x + kernel / 2, middle + kernel / 2 + 0.14, "kernel", **TITLE)
    text = "gradient and moments\nare cut the same way:\nnothing is stored twice"
    axis.text(x + kernel / 2, middle - kernel / 2 - 0.14, text, **SMALL)

    x += kernel + 0.4
    arrow(axis, (x, middle), (x + 0.7, middle))
    axis.text(x + 0.35, middle + 0.18, "decode,\nhead", **SMALL | dict(va="bottom"))
    right = draw_fields(axis, x + 0.85, middle - 0.96, phase=0.8, title="six hours later")
    axis.text(x + 0.85 + 1.41, middle - 1.1, "cut as the target is: the loss\nneeds no field gathered", **SMALL)

    axis.set(xlim=(0, right + 0.15), ylim=(0.1, 3.6), aspect="equal")
    axis.axis("off")
    return figure


if __name__ == "__main__":
    draw().savefig(sys.argv[1], facecolor="white")
