"""What the tests stand on: a real cluster in processes of its own, and the released SDKs."""
