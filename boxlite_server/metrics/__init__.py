"""What coordinators and workers count and measure of themselves, in the form of Prometheus."""
