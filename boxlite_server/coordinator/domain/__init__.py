"""The operations that clients ask for, on boxes, commands, files, snapshots, volumes and images."""
