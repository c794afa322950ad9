"""What clients ask for: boxes, commands, files, snapshots, volumes, images."""
