"""Bodies of requests and answers: streams, and parts of files."""
