"""The collected model folder: which files belong to it, its digest, and a bundle that is the same for the same files."""

from modelkit.package.bundle import bundle, read_member, unpack
from modelkit.package.collect import Package, PackagedFile, collect

__all__ = ["Package", "PackagedFile", "bundle", "collect", "read_member", "unpack"]
