"""Keep everything in memory: the reference for the tests of the other stores."""
