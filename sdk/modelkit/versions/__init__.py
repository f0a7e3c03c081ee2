"""Versions of models: composed, uploaded, listed, pulled, compared and verified.

A version is one OCI index with an immutable number that ties package, weights and image together. `folder` reads a
model folder, `version` composes what it becomes, `upload` sends it; `pull` makes a folder of it again, `local` one that
can be served; `catalog`, `diff` and `verify` look at what is there.
"""
