"""The side that runs in Cinder's environment, which has of Atoll `model` and the sidecar's server.

Cinder's modules name each other's objects while they are loaded, so those are made known first.
"""

import warnings

warnings.simplefilter("ignore")  # of eventlet, which Cinder loads and without a patch does not use

from cinder import objects  # noqa: E402

objects.register_all()
