"""`make bench`: what this server costs, against the docker SDK on the same engine in the same run."""
