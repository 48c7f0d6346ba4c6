"""Makes the sample images of the demo, lpips_fast/demo/images/*.png: three 256 x 256 pictures drawn by numpy.

    python tools/make_demo_images.py

They show a mountain range over water, marbled stone, and a still life of ray-traced spheres. Each gets a little film
grain, because natural images are nowhere perfectly smooth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parent.parent / "lpips_fast" / "demo" / "images"
SIZE = 256
Y, X = np.mgrid[0:SIZE, 0:SIZE] / SIZE


def fractal(seed: int, exponent: float, size: int = SIZE) -> np.ndarray:
    """Noise of spectrum |k|^-exponent, scaled to [0, 1]."""
    rng = np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    k[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) / k**exponent, s=(size, size))
    return (field - field.min()) / np.ptp(field)


def ramp(t: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """Colours, evenly spaced over t in [0, 1], interpolated linearly: [..., 3] in [0, 1]."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(t, stops, channel) for channel in np.array(colours).T / 255.0], axis=-1)


def mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    return a + (b - a) * np.clip(t, 0, 1)[..., None]


def landscape() -> np.ndarray:
    """Four ridges, the farther the paler, under clouds, mirrored in a lake."""
    horizon = 0.68
    image = ramp(Y / horizon, [(58, 96, 158), (140, 170, 205), (244, 205, 168)])
    clouds = fractal(1, 1.6)[:, :SIZE]
    stretched = np.roll(clouds, 40, axis=1)[(Y * 2.2 * SIZE).astype(int) % SIZE, (X * SIZE).astype(int)]
    image = mix(image, np.array([1.0, 0.93, 0.88]), (stretched - 0.52) * 3.5 * (1 - Y / horizon))
    sun = np.hypot(X - 0.72, (Y - 0.42) * 1.05)
    image = mix(image, np.array([1.0, 0.90, 0.70]), 1.6 * np.exp(-((sun / 0.045) ** 4)) + 0.5 * np.exp(-sun / 0.10))
    ridges = fractal(7, 1.7)
    relief = fractal(8, 1.5)
    shades = [(150, 150, 178), (104, 112, 146), (64, 82, 96), (30, 48, 44)]
    for i, shade in enumerate(shades):
        # A row of a two-dimensional fractal is a ridge line.
        profile = np.interp(np.arange(SIZE) / (1 + 0.5 * (3 - i) / 3), np.arange(SIZE), ridges[37 * i + 11])
        top = horizon - 0.38 + 0.095 * i - 0.42 * (profile - profile.mean()) * (1.3 - 0.2 * i)
        depth = Y - top[None]
        slope = np.gradient(relief, axis=1) * 9 + np.gradient(profile)[None] * 8
        ground = np.array(shade) / 255.0 * (1 + np.clip(slope, -0.5, 0.6))[..., None]
        snow = (i < 2) * (0.10 - depth + 0.10 * (relief - 0.5)) * 14 * (slope > -0.25)
        ground = mix(ground, np.array([0.95, 0.95, 0.98]), snow * 0.8)
        mist = np.exp(-np.clip(horizon - Y, 0, 1) / 0.05) * (0.55 - 0.13 * i)
        ground = mix(ground, np.array([0.93, 0.84, 0.80]), mist)
        image = mix(image, ground, depth * SIZE)
    water = Y > horizon
    ripple = 0.010 * np.sin(190 * (Y - horizon) / (0.35 + 2 * (Y - horizon)) + 9 * fractal(9, 2.0))
    source = np.clip((2 * horizon - Y + ripple) * SIZE, 0, SIZE - 1).astype(int)
    shifted = np.clip((X + 2.2 * ripple) * SIZE, 0, SIZE - 1).astype(int)
    mirrored = image[source, shifted] * np.array([0.62, 0.72, 0.80]) + np.array([0.01, 0.03, 0.05])
    return np.where(water[..., None], mirrored, image)


def marble() -> np.ndarray:
    """Veins where warped waves cross zero, on tiles with bevelled joints."""
    warp_x, warp_y, fine = fractal(21, 1.7) - 0.5, fractal(22, 1.7) - 0.5, fractal(23, 1.0)
    wave = np.sin(2 * np.pi * (1.6 * X + 2.2 * Y + 2.6 * warp_x)) + 0.6 * np.sin(
        2 * np.pi * (3.1 * X - 1.3 * Y + 3 * warp_y)
    )
    vein = np.exp(-((np.abs(wave) / 0.11) ** 0.8))
    thin = np.exp(-np.abs(np.sin(2 * np.pi * (4.3 * Y + 2.2 * X + 3 * (warp_x - warp_y)))) / 0.035)
    image = ramp(0.25 + 0.9 * (fine - 0.25), [(28, 66, 62), (52, 110, 98), (112, 158, 136), (186, 206, 182)])
    image = mix(image, np.array([0.93, 0.91, 0.84]), 0.9 * vein)
    image = mix(image, np.array([0.80, 0.60, 0.30]), 0.7 * thin * (fine > 0.45))
    u, v = (X * 2) % 1, (Y * 2) % 1
    edge = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
    light = np.where(np.minimum(u, v) < np.minimum(1 - u, 1 - v), 0.35, -0.35)
    image = image * (1 + light * np.clip(1 - edge / 0.035, 0, 1))[..., None]
    return mix(image, np.array([0.13, 0.12, 0.11]), (0.010 - edge) * 200)


def spheres() -> np.ndarray:
    """Glossy and patterned balls on a chequered table under one lamp, with shadows and reflections."""
    balls = [  # centre, radius, colour, pattern
        ((-0.78, 0.50, 3.1), 0.50, (200, 62, 48), "plain"),
        ((0.35, 0.62, 3.5), 0.62, (226, 178, 72), "stripes"),
        ((0.98, 0.30, 2.5), 0.30, (58, 120, 188), "plain"),
        ((-0.05, 0.24, 2.2), 0.24, (86, 156, 92), "spots"),
    ]
    centres = np.array([b[0] for b in balls])
    radii = np.array([b[1] for b in balls])
    lamp = np.array([-2.2, 4.2, 0.2])

    def hit(origin, direction):
        """The distance to the nearest ball along each ray and its index; inf and -1 for a ray that hits none."""
        near, which = np.full(origin.shape[:-1], np.inf), np.full(origin.shape[:-1], -1)
        for i, (centre, radius) in enumerate(zip(centres, radii)):
            to = origin - centre
            b = (to * direction).sum(-1)
            root = b * b - (to * to).sum(-1) + radius**2
            t = np.where(root > 0, -b - np.sqrt(np.maximum(root, 0)), -1)
            closer = (t > 1e-3) & (t < near)
            near, which = np.where(closer, t, near), np.where(closer, i, which)
        return near, which

    def trace(origin, direction, depth):
        near, which = hit(origin, direction)
        floor = np.where(direction[..., 1] < -1e-6, -origin[..., 1] / np.minimum(direction[..., 1], -1e-6), np.inf)
        wall = ramp(np.clip(direction[..., 1] * 1.2 + 0.45, 0, 1), [(86, 70, 62), (164, 142, 120), (206, 200, 190)])
        on_floor = floor < near
        t = np.minimum(np.minimum(near, floor), 30.0)
        point = origin + t[..., None] * direction
        ball = np.maximum(which, 0)
        normal = (point - centres[ball]) / radii[ball][..., None]
        normal = np.where(on_floor[..., None], np.array([0.0, 1.0, 0.0]), normal)
        colour = np.array([b[2] for b in balls])[ball] / 255.0
        angle = np.arctan2(normal[..., 0], normal[..., 2])
        stripes = np.sin(9 * normal[..., 1] + 2 * normal[..., 0]) > 0.35
        spots = np.sin(7 * angle) * np.sin(9 * np.arcsin(np.clip(normal[..., 1], -1, 1))) > 0.35
        pattern = np.array([b[3] for b in balls])[ball]
        colour = np.where(((pattern == "stripes") & stripes)[..., None], np.array([0.42, 0.20, 0.12]), colour)
        colour = np.where(((pattern == "spots") & spots)[..., None], np.array([0.95, 0.93, 0.80]), colour)
        chequer = (np.floor(point[..., 0] * 2.2) + np.floor(point[..., 2] * 2.2)) % 2
        boards = np.where(chequer[..., None] > 0, np.array([0.78, 0.70, 0.58]), np.array([0.30, 0.20, 0.15]))
        grain = 1 + 0.22 * np.sin(60 * point[..., 0] + 8 * np.sin(3 * point[..., 2]))
        colour = np.where(on_floor[..., None], boards * grain[..., None], colour)
        to_lamp = lamp - point
        distance = np.linalg.norm(to_lamp, axis=-1, keepdims=True)
        to_lamp = to_lamp / distance
        shade, _ = hit(point + 1e-3 * normal, to_lamp)
        lit = np.where(np.isfinite(shade), 0.25, 1.0)[..., None]
        diffuse = np.maximum((normal * to_lamp).sum(-1, keepdims=True), 0)
        mirror = direction - 2 * (direction * normal).sum(-1, keepdims=True) * normal
        gloss = (mirror * to_lamp).sum(-1, keepdims=True).clip(0, 1) ** 60
        contact = np.ones_like(distance)
        for centre, radius in zip(centres, radii):  # the balls shade the table beside them from the sky
            gap = np.hypot(point[..., 0] - centre[0], point[..., 2] - centre[2])[..., None]
            contact = contact * np.where(on_floor[..., None], 1 - 0.55 * np.exp(-((gap / radius) ** 2)), 1.0)
        seen = colour * (0.28 * contact + 0.95 * lit * diffuse) + np.where(on_floor[..., None], 0.0, 0.8) * lit * gloss
        if depth:
            reflected = trace(point + 1e-3 * normal, mirror, depth - 1)
            facing = 1 - np.abs((direction * normal).sum(-1, keepdims=True))
            share = np.where(on_floor[..., None], 0.10, 0.08 + 0.5 * facing**4)
            seen = seen * (1 - share) + reflected * share
        seen = np.where(np.isfinite(np.minimum(near, floor))[..., None], seen, wall)
        fog = np.clip((t - 4.5) / 9, 0, 1) * on_floor
        return mix(seen, wall, fog)

    fine = (np.mgrid[0 : 2 * SIZE, 0 : 2 * SIZE] + 0.5) / (2 * SIZE)  # four rays a pixel
    direction = np.stack([(fine[1] - 0.5) * 1.15, 0.24 - fine[0] * 1.0, np.full_like(fine[0], 1.0)], axis=-1)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    origin = np.broadcast_to(np.array([0.0, 1.25, -0.2]), direction.shape)
    return trace(origin, direction, 2).clip(0, 1.2).reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for seed, draw in enumerate((landscape, marble, spheres)):
        grain = np.random.default_rng(seed).normal(0, 2.0, (SIZE, SIZE, 1))
        pixels = (draw() * 255 + grain).clip(0, 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(OUT / f"{draw.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
