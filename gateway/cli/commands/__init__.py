"""One module a subcommand of `csm`; `gateway.cli.__main__` imports the one that is asked for."""
