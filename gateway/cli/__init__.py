"""The `csm` command: what runs on the machine of a caller or a developer."""
