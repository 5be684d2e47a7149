"""A dry atmosphere as Held and Suarez (1994) define it, integrated by the spectral core of the `dinosaur` package.

The globe is flat and dry; temperature relaxes towards a prescribed equilibrium and friction slows the lowest winds.
That is enough for jets, baroclinic eddies and their storm tracks: weather, made with no data at all. Fields are in SI
units once they leave this module.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dinosaur import held_suarez, scales, spherical_harmonic, time_integration, vertical_interpolation
from dinosaur.coordinate_systems import CoordinateSystem
from dinosaur.primitive_equations import PrimitiveEquationsSigma, State, get_geopotential_on_sigma
from dinosaur.sigma_coordinates import SigmaCoordinates
from dinosaur.units import SimUnits
from jaxtyping import Array, Float

from weathermixer.simulation import climate
from weathermixer.simulation.record import FRAMES_PER_DAY, Settings

REFERENCE_KELVIN = 288.0  # of the semi-implicit scheme; the result does not depend on it
# Scale-selective damping of the smallest waves alone: del^8, so that waves as large as a storm live for weeks
DAMPING_HOURS, DAMPING_ORDER = 4.0, 4
NOISE_SPEED = 8.0  # m s**-1
NOISE_WAVENUMBERS = (4, 12)

Frames = dict[str, Float[Array, "..."]]


def make_atmosphere(
    settings: Settings,
) -> tuple[Callable[[Sequence[int]], State], Callable[[State], tuple[State, Frames]]]:
    """(initial_state, advance) of a model: triangular truncation, equal sigma layers, frames on pressure levels.

    initial_state(seed) is a zonal flow in balance, with noise; advance(state) is the state a day later and the frames
    of that day, {variable: [time, level, lat, lon], surface_pressure: [time, lat, lon]}, latitudes from south to north,
    on an equiangular grid.
    """
    # enough Gaussian latitudes that products of two fields are not aliased
    nodes = -(-(3 * settings.truncation + 1) // 4)
    grid = spherical_harmonic.Grid.construct(settings.truncation, gaussian_nodes=nodes)
    coords = CoordinateSystem(grid, SigmaCoordinates.equidistant(settings.layers))
    constants = SimUnits.from_si()
    step = _make_step(coords, constants, settings.step_minutes)
    points = dict(latitude_nodes=settings.latitudes, longitude_nodes=settings.longitudes)
    synthesis = dataclasses.replace(grid, **points, latitude_spacing="equiangular")

    @jax.jit
    def advance(state: State) -> tuple[State, Frames]:
        return time_integration.trajectory_from_step(
            step,
            outer_steps=FRAMES_PER_DAY,
            inner_steps=24 * 60 // FRAMES_PER_DAY // settings.step_minutes,
            post_process_fn=lambda s: _to_frame(s, coords, synthesis, constants, settings.levels_hpa),
        )(state)

    return functools.partial(_initial_state, coords, constants), advance


def _reference(coords: CoordinateSystem, constants: SimUnits) -> np.ndarray:
    """Reference temperature [layer, 1, 1]."""
    kelvin = constants.nondimensionalize(1.0 * scales.units.degK)
    return np.full((coords.vertical.layers, 1, 1), REFERENCE_KELVIN * kelvin, np.float32)


def _make_step(coords: CoordinateSystem, constants: SimUnits, step_minutes: int) -> Callable[[State], State]:
    """One time step: the dry primitive equations (semi-implicit Runge-Kutta), the forcing, the damping.

    The forcing acts over hours to weeks: evaluated once a step, not in each of the four stages, it saves a sixth of the
    time.
    """
    dt = constants.nondimensionalize(step_minutes * scales.units.minute)
    reference = _reference(coords, constants)[:, 0, 0]
    equations = PrimitiveEquationsSigma(reference, np.zeros(coords.horizontal.modal_shape), coords, constants)
    forcing = held_suarez.HeldSuarezForcingSigma(coords, constants, reference)
    damping = time_integration.horizontal_diffusion_step_filter(
        coords.horizontal, dt, constants.nondimensionalize(DAMPING_HOURS * scales.units.hour), DAMPING_ORDER
    )
    return time_integration.step_with_filters(
        time_integration.imex_rk_sil3(equations, dt),
        [lambda before, after: after + dt * forcing.explicit_terms(before), damping],
    )


def _initial_state(coords: CoordinateSystem, constants: SimUnits, seed: Sequence[int]) -> State:
    """The zonal mean of the climate, with random eddies as strong as those of the climate."""
    grid, unit = coords.horizontal, scales.units
    where = {"latitude": np.rad2deg(grid.latitudes), "sigma": coords.vertical.centers}

    def read(table: Sequence[Sequence[float]], units: Any, **where: np.ndarray) -> np.ndarray:
        values = climate.zonal_mean(table, **where) * constants.nondimensionalize(1.0 * units)
        return np.broadcast_to(values[:, None, :], (len(values), *grid.nodal_shape)).astype(np.float32)

    u = read(climate.ZONAL_WIND, unit.meter / unit.second, **where)
    temperature = read(climate.TEMPERATURE, unit.degK, **where)
    pressure = read(climate.SURFACE_PRESSURE, unit.hPa, **where | {"sigma": np.ones(1)})
    vorticity, divergence = spherical_harmonic.uv_nodal_to_vor_div_modal(grid, u, np.zeros_like(u))
    return State(
        vorticity=vorticity + _vorticity_noise(coords, constants, seed),
        divergence=divergence,
        temperature_variation=grid.clip_wavenumbers(grid.to_modal(temperature - _reference(coords, constants))),
        log_surface_pressure=grid.clip_wavenumbers(grid.to_modal(np.log(pressure))),
    )


def _vorticity_noise(coords: CoordinateSystem, constants: SimUnits, seed: Sequence[int]) -> np.ndarray:
    """Vorticity [m, l] of random eddies of NOISE_SPEED (rms), the same in all layers."""
    grid = coords.horizontal
    m, total = grid.modal_mesh
    first, last = NOISE_WAVENUMBERS
    wanted = grid.mask & (m != 0) & (total >= first) & (total <= last)
    speed = constants.nondimensionalize(NOISE_SPEED * scales.units.m / scales.units.s)
    # the basis has unit norm on a sphere of area 4 pi, and vorticity^2 = l (l + 1) / a^2 speed^2
    amplitude = speed / grid.radius * np.sqrt(total * (total + 1) * 4 * np.pi / wanted.sum())
    noise = np.random.default_rng(seed).standard_normal(grid.modal_shape)
    return (noise * wanted * amplitude).astype(np.float32)


def _to_frame(
    state: State, coords: CoordinateSystem, synthesis: Any, constants: SimUnits, levels_hpa: Sequence[int]
) -> Frames:
    """The fields of a state on pressure levels, by exact spectral synthesis on any grid and linear in log-pressure.

    Geopotential is the exact integral of such a temperature: with L[f] the interpolation of f to x = log(p / p_s),

        Phi(x) = L[Phi] + R/2 (L[x T] - x L[T])
    """
    unit = scales.units
    levels = constants.nondimensionalize(np.asarray(levels_hpa, np.float64) * unit.hPa)
    log_sigma = np.log(coords.vertical.centers)
    log_pressure = synthesis.to_nodal(state.log_surface_pressure)
    temperature = _reference(coords, constants) + synthesis.to_nodal(state.temperature_variation)
    geopotential = get_geopotential_on_sigma(
        temperature,
        nodal_orography=np.zeros(synthesis.nodal_shape),
        sigma=coords.vertical,
        gravity_acceleration=constants.g,
        ideal_gas_constant=constants.R,
    )
    u, v = spherical_harmonic.vor_div_to_uv_nodal(synthesis, state.vorticity, state.divergence, clip=False)
    x = np.log(levels)[:, None, None] - log_pressure
    fields = jnp.stack([temperature, u, v, geopotential, log_sigma[:, None, None] * temperature])
    interpolate = vertical_interpolation.vectorize_vertical_interpolation(
        vertical_interpolation.linear_interp_with_linear_extrap
    )
    temperature, u, v, geopotential, x_temperature = interpolate(x, log_sigma, fields)
    geopotential = geopotential + constants.R / 2 * (x_temperature - x * temperature)
    frame = {
        "geopotential": (geopotential, unit.meter**2 / unit.second**2),
        "temperature": (temperature, unit.degK),
        "u_component_of_wind": (u, unit.meter / unit.second),
        "v_component_of_wind": (v, unit.meter / unit.second),
        "surface_pressure": (jnp.exp(log_pressure[0]), unit.pascal),
    }
    # dinosaur's fields are [..., lon, lat]
    scaled = {name: field / constants.nondimensionalize(1.0 * unit) for name, (field, unit) in frame.items()}
    return {name: jnp.swapaxes(field, -1, -2) for name, field in scaled.items()}
