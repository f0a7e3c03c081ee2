"""Names the shape in a picture. The weights in weights.json come from train.py; both read a picture with `features`.

A shape is described by its outline: the distance from the middle to the edge, all the way around. The strengths of
that curve's first harmonics do not change when the shape is moved, turned or scaled, and they tell corners apart:
three for a triangle, four for a square, five for a star, none for a circle.
"""

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from modelkit import Field, InvalidArgumentError, Model, method

NUM_ANGLES = 64
NUM_HARMONICS = 10
SIDE = 96


@dataclass
class Label:
    name: str
    score: float


def outline(image: Image.Image) -> np.ndarray:
    """Return the distance from the shape's middle to its edge at each angle; ValueError for a picture of one colour."""
    pixels = np.asarray(image.convert("L").resize((SIDE, SIDE)), dtype=np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    contrast = np.abs(pixels - np.median(border))
    if contrast.max() < 16:
        raise ValueError("the picture has one colour only: no shape stands out from the background")
    y, x = np.nonzero(contrast > contrast.max() / 2)
    x, y = x - x.mean(), y - y.mean()
    angles = ((np.arctan2(y, x) / (2 * np.pi) + 0.5) * NUM_ANGLES).astype(int) % NUM_ANGLES
    radius = np.zeros(NUM_ANGLES)
    np.maximum.at(radius, angles, np.hypot(x, y))
    return radius


def features(image: Image.Image) -> np.ndarray:
    """Return the strength of each harmonic of the outline, relative to the shape's size."""
    spectrum = np.abs(np.fft.rfft(outline(image)))
    return spectrum[1 : NUM_HARMONICS + 1] / max(spectrum[0], 1e-6)


class ImageClassifier(Model):
    def load(self) -> None:
        saved = json.loads((self.model_dir / "weights.json").read_text())
        self.names = saved["names"]
        self.weights, self.bias = np.array(saved["weights"]), np.array(saved["bias"])

    @method
    def predict(self, image: Image.Image, top: int = Field(4, ge=1, le=4)) -> list[Label]:
        """Name the one shape in a picture, most likely first; the scores of all four sum to 1."""
        try:
            logits = features(image) @ self.weights + self.bias
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from error
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        return [Label(self.names[i], float(scores[i])) for i in np.argsort(-scores)[:top]]
