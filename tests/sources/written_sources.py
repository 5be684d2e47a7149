"""Small sources that tests write: known fields, to be turned into any order and format."""

import pathlib

import numpy as np
import xarray as xr

TIMES = np.datetime64("2019-12-30T00", "ns") + np.arange(20) * np.timedelta64(6, "h")
LEVELS = (50, 500, 850, 1000)


def make_dataset(
    *, times: np.ndarray = TIMES, lat: int = 8, lon: int = 12, levels=LEVELS, poles: bool = False, seed: int = 0
) -> xr.Dataset:
    """Geopotential, temperature, 2 m temperature and two static fields, as WeatherBench 2 names and orders them."""
    rng = np.random.default_rng(seed)
    latitude = np.linspace(90, -90, lat) if poles else 90 - (np.arange(lat) + 0.5) * 180 / lat
    longitude = np.arange(lon) * 360 / lon
    hours = (times - times[0]) / np.timedelta64(1, "h")
    wave = np.cos(np.deg2rad(latitude))[:, None] * np.sin(np.deg2rad(longitude) + hours[:, None, None] / 24)

    def upper(mean, std):
        noise = rng.normal(size=(len(times), len(levels), lat, lon))
        values = np.asarray(mean)[:, None, None] + std * (wave[:, None] + 0.1 * noise)
        return ("time", "level", "latitude", "longitude"), values.astype(np.float32)

    height = np.log(1000 / np.asarray(levels))
    return xr.Dataset(
        {
            "geopotential": upper(60000 * height + 1000, 900.0),
            "temperature": upper(290 - 25 * height, 8.0),
            "2m_temperature": (
                ("time", "latitude", "longitude"),
                (288 + 20 * wave + rng.normal(size=wave.shape)).astype(np.float32),
            ),
            "land_sea_mask": (("latitude", "longitude"), rng.uniform(size=(lat, lon)).astype(np.float32)),
            "geopotential_at_surface": (
                ("latitude", "longitude"),
                (1e4 * rng.uniform(size=(lat, lon))).astype(np.float32),
            ),
        },
        coords={"time": times, "level": np.asarray(levels), "latitude": latitude, "longitude": longitude},
        attrs={"title": "made for a test"},
    )


def frames_of(dataset: xr.Dataset, channels) -> np.ndarray:
    """[time, channel, lat, lon] of a dataset made here, the straight way."""
    fields = []
    for channel in channels:
        array = dataset[channel.variable]
        fields.append((array if channel.level_hpa is None else array.sel(level=channel.level_hpa)).values)
    return np.stack(fields, axis=1)


def write_zarr(dataset: xr.Dataset, path: pathlib.Path, *, zarr_format: int = 3, time_chunk: int = 3) -> pathlib.Path:
    """Writes a Zarr store in chunks of some times and the whole globe, as WeatherBench 2 does."""
    encoding = {
        name: {"chunks": [time_chunk if dim == "time" else array.sizes[dim] for dim in array.dims]}
        for name, array in dataset.data_vars.items()
    }
    dataset.to_zarr(path, zarr_format=zarr_format, consolidated=zarr_format == 2, encoding=encoding, mode="w")
    return path


def write_netcdf_parts(real: pathlib.Path, folder: pathlib.Path) -> None:
    """Four files of a time each: ERA5's real one, and three that are that, turned and scaled a little."""
    with xr.open_dataset(real / "io" / "era5_tl31_19590102T00.nc") as dataset:
        fields = dataset[["temperature", "geopotential"]].sel(level=[500, 850]).load()
    for number in range(4):
        hours = np.timedelta64(6 * number, "h")
        shifted = (fields.roll(longitude=number) * (1 + 1e-4 * number)).assign_coords(time=fields.time.values + hours)
        shifted.to_netcdf(folder / f"part{number}.nc")


def write_grib(path: pathlib.Path, fields, *, latitude: np.ndarray, longitude: np.ndarray, edition: int = 1) -> None:
    """Writes fields (short name, values [lat, lon], time, level in hPa or None, more keys) as GRIB messages."""
    import eccodes

    grid = {
        "Ni": len(longitude),
        "Nj": len(latitude),
        "latitudeOfFirstGridPointInDegrees": latitude[0],
        "latitudeOfLastGridPointInDegrees": latitude[-1],
        "longitudeOfFirstGridPointInDegrees": longitude[0],
        "longitudeOfLastGridPointInDegrees": longitude[-1],
        "iDirectionIncrementInDegrees": longitude[1] - longitude[0],
        "jDirectionIncrementInDegrees": abs(latitude[0] - latitude[1]),
        "jScansPositively": int(latitude[0] < latitude[-1]),
    }
    with open(path, "wb") as file:
        for short, values, time, level, more in fields:
            handle = eccodes.codes_grib_new_from_samples(f"regular_ll_{'pl' if level else 'sfc'}_grib{edition}")
            day, hour = f"{time:.13}".split("T")
            keys = grid | {"dataDate": int(day.replace("-", "")), "dataTime": int(hour) * 100, "centre": "ecmf"}
            keys |= {"setLocalDefinition": 1, "localDefinitionNumber": 1, "expver": "0001"} if edition == 1 else {}
            keys |= {name: value for name, value in more.items() if name not in ("step", "stepRange")}
            keys |= {"shortName": short} | ({"typeOfLevel": "isobaricInhPa", "level": level} if level else {})
            keys |= {"step": 0, "bitsPerValue": 24} | {k: more[k] for k in ("step", "stepRange") if k in more}
            for name, value in keys.items():
                eccodes.codes_set(handle, name, value)
            eccodes.codes_set_values(handle, np.asarray(values, np.float64).ravel())
            eccodes.codes_write(handle, file)
            eccodes.codes_release(handle)
