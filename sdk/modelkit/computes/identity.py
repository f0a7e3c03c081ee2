"""How a replica knows which deployment it is of, and a call says which one it is meant for.

The address of a replica that has ended may be another deployment's before its callers have heard of it.
"""

from typing import Final

__all__ = ["DEPLOYMENT_METADATA", "DEPLOYMENT_VARIABLE"]

# Of a replica's environment.
DEPLOYMENT_VARIABLE: Final = "MODELKIT_DEPLOYMENT"
# Of a call.
DEPLOYMENT_METADATA: Final = "x-modelkit-deployment"
