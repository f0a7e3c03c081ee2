"""The image of a model folder: a plan, its Dockerfile, and two builders that make it.

Importing this package loads no builder and no template engine.
"""

from modelkit.image.builders.base import Builder, BuiltImage, ImageLayer, Progress
from modelkit.image.builders.choose import BuilderName, choose_builder
from modelkit.image.plan import ImagePlan, plan_image

__all__ = [
    "Builder",
    "BuilderName",
    "BuiltImage",
    "ImageLayer",
    "ImagePlan",
    "Progress",
    "choose_builder",
    "plan_image",
]
