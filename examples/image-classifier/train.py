"""Train the classifier on pictures drawn here and write weights.json. Takes a few seconds, needs numpy and Pillow.

python train.py
"""

import json
from pathlib import Path

import numpy as np
from model import features
from PIL import Image, ImageDraw

NAMES = ["circle", "square", "star", "triangle"]


def corners(name: str) -> list[tuple[float, float]]:
    """Return (angle, radius) of each corner, the radius relative to the shape's size."""
    if name == "star":
        return [(i * np.pi / 5, 1.0 if i % 2 == 0 else 0.45) for i in range(10)]
    count = {"triangle": 3, "square": 4, "circle": 60}[name]
    return [(i * 2 * np.pi / count, 1.0) for i in range(count)]


def draw(name: str, rng: np.random.Generator) -> Image.Image:
    """Draw one shape: any place, size, turn, colours and side lengths of the picture, and some noise."""
    width, height = 128, int(rng.integers(112, 144))
    size = rng.uniform(20, 44)
    middle = [rng.uniform(size + 8, side - size - 8) for side in (width, height)]
    turn = rng.uniform(0, 2 * np.pi)
    light, dark = rng.integers(150, 256, 3), rng.integers(0, 90, 3)
    front, back = (light, dark) if rng.random() < 0.5 else (dark, light)
    image = Image.new("RGB", (width, height), tuple(int(value) for value in back))
    points = [
        (middle[0] + size * radius * np.cos(angle + turn), middle[1] + size * radius * np.sin(angle + turn))
        for angle, radius in corners(name)
    ]
    ImageDraw.Draw(image).polygon(points, fill=tuple(int(value) for value in front))
    noisy = np.asarray(image, dtype=np.float32) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def dataset(num_per_name: int, seed: int) -> tuple[list[Image.Image], np.ndarray]:
    """Draw `num_per_name` pictures of each shape; the same seed draws the same ones."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(NAMES)), num_per_name)
    return [draw(NAMES[label], rng) for label in labels], labels


def fit(inputs: np.ndarray, labels: np.ndarray, steps: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Fit a softmax regression by gradient descent; returns weights and bias for inputs as they come."""
    scale = inputs.std(axis=0)
    scaled, targets = inputs / scale, np.eye(len(NAMES))[labels]
    weights, bias = np.zeros((inputs.shape[1], len(NAMES))), np.zeros(len(NAMES))
    for _ in range(steps):
        logits = scaled @ weights + bias
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (scores / scores.sum(axis=1, keepdims=True) - targets) / len(labels)
        weights -= scaled.T @ error
        bias -= error.sum(axis=0)
    return weights / scale[:, None], bias


def main() -> None:
    images, labels = dataset(num_per_name=250, seed=1)
    weights, bias = fit(np.stack([features(image) for image in images]), labels)
    held_out, answers = dataset(num_per_name=250, seed=2)
    guesses = (np.stack([features(image) for image in held_out]) @ weights + bias).argmax(axis=1)
    saved = {"names": NAMES, "weights": weights.round(4).tolist(), "bias": bias.round(4).tolist()}
    Path(__file__).with_name("weights.json").write_text(json.dumps(saved, indent=1) + "\n")
    print(f"{(guesses == answers).mean():.1%} of {len(answers)} pictures it has never seen are named right")


if __name__ == "__main__":
    main()
