"""How pytest-xdist shares out the tests of real faults: all that run on one plant go to the same worker."""

import re

from xdist.scheduler import LoadFileScheduling

_PLANT = re.compile(r"[-[](\w+)]$")


class ByPlant(LoadFileScheduling):
    """Take the plant, which is the last parameter of each of these tests, for the file."""

    def _split_scope(self, nodeid):
        found = _PLANT.search(nodeid)
        return found[1] if found else super()._split_scope(nodeid)
