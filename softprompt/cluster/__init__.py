"""Several processes that do one thing: how many there are, which one this is, and what they say to one another.

Training and pre-training split their work by it; alone it is a world of one, which says nothing to anyone.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.cluster.connection import ray_cluster
    from softprompt.cluster.pool import answered_by_ray
    from softprompt.cluster.replicas import replicas_by_ray
    from softprompt.cluster.world import ALONE, World, device_of_torchrun, size_of_torchrun, world_of_torchrun

__getattr__, __all__ = face(__name__)
