"""Deployments as applications of Ray Serve: told to a cluster over HTTP, run on it by `replica`.

Nothing but `replica` and what it imports needs ray; the machine that deploys has to have none. This file imports
nothing, so that a replica that starts loads no more than it needs.
"""
