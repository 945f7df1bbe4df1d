"""`python3 -m atoll.storage.drivers.san.helper` on the SAN server."""

import sys

from atoll.storage.drivers.san.helper.main import main

sys.exit(main())
