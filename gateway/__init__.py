"""The gateway: the public service that chains the four stages, the Python client, the `csm` command. Knows no torch."""
