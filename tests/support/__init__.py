"""What several test folders share: stand-ins, servers to start, how answers are read."""
