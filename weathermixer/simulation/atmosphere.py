"""A dry atmosphere as Held and Suarez (1994) define it, integrated by the spectral core of the `dinosaur` package.

The globe is flat and dry; temperature relaxes towards a prescribed equilibrium and friction slows the lowest winds.
That is enough for jets, baroclinic eddies and their storm tracks: weather, made with no data at all. Fields are in SI
units once they leave this module, which is the program of one member too:

    python -m weathermixer.simulation.atmosphere SETTINGS MEMBER        started by simulate.py
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from dinosaur import held_suarez, scales, spherical_harmonic, time_integration, vertical_interpolation
from dinosaur.coordinate_systems import CoordinateSystem
from dinosaur.primitive_equations import PrimitiveEquationsSigma, State, get_geopotential_on_sigma
from dinosaur.sigma_coordinates import SigmaCoordinates
from dinosaur.units import SimUnits
from jaxtyping import Array, Float

from weathermixer.simulation.simulate import FIELDS, FRAMES_PER_DAY, Settings

REFERENCE_KELVIN = 288.0  # of the semi-implicit scheme; the result does not depend on it
# Scale-selective damping of the smallest waves alone: del^8, so that waves as large as a storm live for weeks
DAMPING_HOURS, DAMPING_ORDER = 4.0, 4
NOISE_SPEED = 8.0  # m s**-1
NOISE_WAVENUMBERS = (4, 12)
UNITS = SimUnits.from_si()  # of what is integrated, and physical constants in these

# The zonal-mean climate, from which a member starts: from rest, or from the temperatures alone, jets and eddies drift
# for 200 days; from this they are within their own variability after 20. Means over 1300 simulated days (T21, 8 layers)
# and both hemispheres, at latitudes 0, 10 ... 90; a row for each layer from the top, sigma = 1/16, 3/16 ... 15/16
ZONAL_WIND = (  # m s**-1
    (2.5, 3.7, 4.9, 11.0, 24.3, 26.3, 13.6, 4.1, 1.5, 0.0),
    (-0.2, 5.6, 12.7, 22.8, 32.1, 22.0, 8.1, 4.0, 3.0, 0.0),
    (-1.6, 3.1, 11.2, 23.5, 31.2, 17.9, 4.9, 3.1, 3.0, 0.0),
    (1.2, 3.3, 8.9, 19.8, 24.9, 13.3, 2.7, 1.4, 1.9, 0.0),
    (1.8, 3.4, 7.1, 15.1, 18.9, 10.0, 1.1, -0.1, 0.8, 0.0),
    (1.5, 2.6, 4.4, 9.7, 14.0, 7.8, -0.2, -1.3, -0.1, 0.0),
    (0.7, 0.7, -0.6, 4.5, 10.3, 6.1, -1.2, -2.3, -0.8, 0.0),
    (-1.3, -4.9, -6.2, 0.0, 7.6, 4.6, -2.2, -2.9, -1.3, 0.0),
)
TEMPERATURE = (  # K
    (195.8, 196.4, 198.1, 200.8, 203.6, 202.9, 200.0, 198.9, 199.4, 199.8),
    (200.6, 200.0, 199.8, 202.0, 205.8, 206.8, 204.1, 202.6, 203.2, 203.6),
    (229.5, 229.9, 229.5, 228.0, 224.0, 217.4, 212.9, 210.7, 209.6, 209.3),
    (250.8, 250.9, 250.5, 248.1, 241.4, 233.7, 229.6, 226.8, 223.8, 222.6),
    (268.2, 268.4, 268.2, 264.1, 254.9, 247.0, 243.2, 240.4, 237.7, 236.5),
    (283.1, 282.8, 281.0, 274.5, 264.8, 258.1, 254.8, 252.1, 249.6, 248.5),
    (296.4, 296.5, 292.0, 283.4, 274.6, 268.5, 264.8, 262.1, 259.6, 258.6),
    (306.2, 302.6, 295.0, 286.9, 279.5, 273.9, 269.8, 267.0, 264.9, 264.2),
)
SURFACE_PRESSURE = ((996.3, 997.8, 1002.5, 1006.9, 1002.9, 993.6, 993.3, 999.8, 1004.7, 1006.1),)  # hPa


def _reference(coords: CoordinateSystem) -> np.ndarray:
    """Reference temperature [layer, 1, 1]."""
    kelvin = UNITS.nondimensionalize(1.0 * scales.units.degK)
    return np.full((coords.vertical.layers, 1, 1), REFERENCE_KELVIN * kelvin, np.float32)


def _make_step(coords: CoordinateSystem, step_minutes: int) -> Callable[[State], State]:
    """One time step: the dry primitive equations (semi-implicit Runge-Kutta), the forcing, the damping.

    The forcing acts over hours to weeks: evaluated once a step, not in each of the four stages, it saves a sixth of the
    time.
    """
    dt = UNITS.nondimensionalize(step_minutes * scales.units.minute)
    reference = _reference(coords)[:, 0, 0]
    equations = PrimitiveEquationsSigma(reference, np.zeros(coords.horizontal.modal_shape), coords, UNITS)
    forcing = held_suarez.HeldSuarezForcingSigma(coords, UNITS, reference)
    damping = time_integration.horizontal_diffusion_step_filter(
        coords.horizontal, dt, UNITS.nondimensionalize(DAMPING_HOURS * scales.units.hour), DAMPING_ORDER
    )
    return time_integration.step_with_filters(
        time_integration.imex_rk_sil3(equations, dt),
        [lambda before, after: after + dt * forcing.explicit_terms(before), damping],
    )


def _initial_state(coords: CoordinateSystem, seed: Sequence[int]) -> State:
    """The zonal mean of the climate, which is in balance, with random eddies."""
    grid, unit = coords.horizontal, scales.units
    where = {"latitude": np.rad2deg(grid.latitudes), "sigma": coords.vertical.centers}

    def read(table: Sequence[Sequence[float]], units: Any, **where: np.ndarray) -> np.ndarray:
        values = _zonal_mean(table, **where) * UNITS.nondimensionalize(1.0 * units)
        return np.broadcast_to(values[:, None, :], (len(values), *grid.nodal_shape)).astype(np.float32)

    u = read(ZONAL_WIND, unit.meter / unit.second, **where)
    temperature = read(TEMPERATURE, unit.degK, **where)
    pressure = read(SURFACE_PRESSURE, unit.hPa, **where | {"sigma": np.ones(1)})
    vorticity, divergence = spherical_harmonic.uv_nodal_to_vor_div_modal(grid, u, np.zeros_like(u))
    return State(
        vorticity=vorticity + _vorticity_noise(coords, seed),
        divergence=divergence,
        temperature_variation=grid.clip_wavenumbers(grid.to_modal(temperature - _reference(coords))),
        log_surface_pressure=grid.clip_wavenumbers(grid.to_modal(np.log(pressure))),
    )


def _zonal_mean(
    table: Sequence[Sequence[float]], *, latitude: Float[np.ndarray, " lat"], sigma: Float[np.ndarray, " layer"]
) -> Float[np.ndarray, "layer lat"]:
    """Rows of a table at other latitudes (degrees), by a cosine series, and on other layers, linear in log(sigma).

    f(lat) = sum_k a_k cos(2 k lat),  k = 0 ... 9,  even about the equator and about the poles
    """
    rows = np.array(table)
    order = np.arange(rows.shape[1])
    known = np.cos(2 * np.deg2rad(10 * order)[:, None] * order)
    wanted = np.cos(2 * np.deg2rad(latitude)[:, None] * order)
    values = wanted @ np.linalg.solve(known, rows.T)
    layers = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.stack([np.interp(np.log(sigma), np.log(layers), column) for column in values], axis=1)


def _vorticity_noise(coords: CoordinateSystem, seed: Sequence[int]) -> np.ndarray:
    """Vorticity [m, l] of random eddies of NOISE_SPEED (rms), the same in all layers."""
    grid = coords.horizontal
    m, total = grid.modal_mesh
    first, last = NOISE_WAVENUMBERS
    wanted = grid.mask & (m != 0) & (total >= first) & (total <= last)
    speed = UNITS.nondimensionalize(NOISE_SPEED * scales.units.m / scales.units.s)
    # the basis has unit norm on a sphere of area 4 pi, and vorticity^2 = l (l + 1) / a^2 speed^2
    amplitude = speed / grid.radius * np.sqrt(total * (total + 1) * 4 * np.pi / wanted.sum())
    noise = np.random.default_rng(seed).standard_normal(grid.modal_shape)
    return (noise * wanted * amplitude).astype(np.float32)


def _to_frame(state: State, coords: CoordinateSystem, synthesis: Any, levels_hpa: Sequence[int]) -> dict[str, Array]:
    """The fields of a state on pressure levels, by exact spectral synthesis on any grid and linear in log-pressure.

    Geopotential is the exact integral of such a temperature: with L[f] the interpolation of f to x = log(p / p_s),

        Phi(x) = L[Phi] + R/2 (L[x T] - x L[T])
    """
    unit = scales.units
    levels = UNITS.nondimensionalize(np.asarray(levels_hpa, np.float64) * unit.hPa)
    log_sigma = np.log(coords.vertical.centers)
    log_pressure = synthesis.to_nodal(state.log_surface_pressure)
    temperature = _reference(coords) + synthesis.to_nodal(state.temperature_variation)
    geopotential = get_geopotential_on_sigma(
        temperature,
        nodal_orography=np.zeros(synthesis.nodal_shape),
        sigma=coords.vertical,
        gravity_acceleration=UNITS.g,
        ideal_gas_constant=UNITS.R,
    )
    u, v = spherical_harmonic.vor_div_to_uv_nodal(synthesis, state.vorticity, state.divergence, clip=False)
    x = np.log(levels)[:, None, None] - log_pressure
    fields = jnp.stack([temperature, u, v, geopotential, log_sigma[:, None, None] * temperature])
    interpolate = vertical_interpolation.vectorize_vertical_interpolation(
        vertical_interpolation.linear_interp_with_linear_extrap
    )
    temperature, u, v, geopotential, x_temperature = interpolate(x, log_sigma, fields)
    geopotential = geopotential + UNITS.R / 2 * (x_temperature - x * temperature)
    frame = {
        "geopotential": (geopotential, unit.meter**2 / unit.second**2),
        "temperature": (temperature, unit.degK),
        "u_component_of_wind": (u, unit.meter / unit.second),
        "v_component_of_wind": (v, unit.meter / unit.second),
        "surface_pressure": (jnp.exp(log_pressure[0]), unit.pascal),
    }
    # dinosaur's fields are [..., lon, lat]
    scaled = {name: field / UNITS.nondimensionalize(1.0 * unit) for name, (field, unit) in frame.items()}
    return {name: jnp.swapaxes(field, -1, -2) for name, field in scaled.items()}


def run_member(settings: Settings, member: int, out: BinaryIO) -> None:
    """Integrates a member to its end and writes the float32 of FIELDS, one after the other, of each day that is kept.

    Triangular truncation and equal sigma layers. A day has FRAMES_PER_DAY times of fields [level, lat, lon], of the
    surface's pressure [lat, lon], on pressure levels and an equiangular grid, latitudes from south to north.

    Raises FloatingPointError, with the day, where the integration blows up; BrokenPipeError where nobody reads.
    """
    # enough Gaussian latitudes that products of two fields are not aliased
    nodes = -(-(3 * settings.truncation + 1) // 4)
    grid = spherical_harmonic.Grid.construct(settings.truncation, gaussian_nodes=nodes)
    coords = CoordinateSystem(grid, SigmaCoordinates.equidistant(settings.layers))
    points = dict(latitude_nodes=settings.latitudes, longitude_nodes=settings.longitudes)
    synthesis = dataclasses.replace(grid, **points, latitude_spacing="equiangular")
    advance = time_integration.trajectory_from_step(
        _make_step(coords, settings.step_minutes),
        outer_steps=FRAMES_PER_DAY,
        inner_steps=24 * 60 // FRAMES_PER_DAY // settings.step_minutes,
        post_process_fn=lambda state: _to_frame(state, coords, synthesis, settings.levels_hpa),
    )
    advance, state = jax.jit(advance), _initial_state(coords, [settings.seed, member])
    for day in range(1 - settings.spin_up_days, settings.member_days + 1):
        state, frames = advance(state)
        for name in FIELDS if day >= 1 else ():
            values = np.ascontiguousarray(frames[name])
            if not np.isfinite(values).all():
                raise FloatingPointError(
                    f"{name} is not finite by day {day}: step_minutes={settings.step_minutes} is too long for "
                    f"truncation={settings.truncation}"
                )
            out.write(values.data)


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as frames:
        os.dup2(2, 1)  # whatever else is printed is no frame
        run_member(Settings(**json.loads(sys.argv[1])), int(sys.argv[2]), frames)
