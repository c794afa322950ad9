"""The disks of boxes as images of Docker Engine, the images they begin with, and named volumes."""
