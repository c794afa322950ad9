"""What the kernel of the host shows of boxes: control groups and processes."""
