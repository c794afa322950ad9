"""What the tests stand on: fakes, sites to test, clusters of real processes, and the released SDKs."""
