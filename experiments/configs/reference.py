"""The published 1.06 B model on ERA5 at 0.25 degrees, 69 + 3 channels (Jigsaw, section 5).

    python -m experiments.train --config=reference --data=ERA5_ARCHIVE --workdir=DIR \
        --config.mesh.domain=8 --config.mesh.tensor=2

The archive is made by experiments.prepare with --channels=era5 --crop-south-pole --domain=8 --tensor=2.
"""

from ml_collections import ConfigDict

from experiments.configs import base

# Other sizes, as reference:NAME; the last is the paper's recipe carried on: blocks as the width grows
SIZES = {
    "1b": {},
    "3.2b": dict(embed=14336, token_hidden=17280, embed_hidden=14336),
    "10b": dict(embed=22528, token_hidden=17280, embed_hidden=22528, blocks=6),
}


def get_config(size: str = "1b") -> ConfigDict:
    """base.get_config(), whose defaults are the published ones, on the published channels and with their dropout."""
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not one of {', '.join(SIZES)}")
    config = base.get_config()
    config.model.update(SIZES[size])
    config.data.static = ("land_sea_mask", "soil_type", "geopotential_at_surface")
    config.data.channel_multiple = 8
    config.model.dropout_rate = 1e-3
    config.model.rematerialize = "block"
    config.loss.form = "published"
    return config
