"""The collected model folder: which files belong to it, its digest, and a bundle that is the same for the same files."""

from modelkit.package.bundle import bundle, unpack
from modelkit.package.collect import Package, PackagedFile, collect

__all__ = ["Package", "PackagedFile", "bundle", "collect", "unpack"]
