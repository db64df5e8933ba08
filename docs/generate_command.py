"""Writes docs/command.md from the command's own help: `python docs/generate_command.py [file]`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway.cli.__main__ import cli

PAGE = Path(__file__).with_name("command.md")
INTRO = """\
# The `csm` command

`python docs/generate_command.py` writes this page from the code; a test keeps it in step.

`csm` talks to a gateway anywhere, and runs the whole chain on this machine. It comes with the distribution `csm-serve`;
`csm up` and `csm demo` need `csm-serve[all,embedded]` and say what is missing.

- **Input and output.** `-` is standard input or output. Pipes, FIFOs and process substitutions work wherever a file does,
  for text and for audio. A pipe gets the speech while it is made:
  `csm say --file news.txt -o - | aplay`. What is printed then goes to standard error.
- **Which gateway.** `--address`, else `CSM_ADDRESS`, else the `csm up` that runs here, else `127.0.0.1:50050`. On this
  machine it speaks plaintext, elsewhere TLS; see [security](security.md). Proxy variables never apply to this machine.
- **Failures** are one line on standard error and an exit code (below). An address that does not answer is named by its
  fault: the name does not resolve, nothing listens, TLS on one side alone, a certificate that is not trusted.
- **Signals.** Ctrl-C, SIGTERM and SIGHUP cancel the call, all the way to the GPU, and leave no half-written file.
- **Completion.** `eval "$(csm completion bash)"` in `~/.bashrc`; zsh and fish likewise.
- **State** (which `csm up` runs, traces, logs) is in `CSM_STATE_DIR`, else `XDG_STATE_HOME/csm`, else
  `~/.local/state/csm`, else a folder of the user's own in the temporary folder.
"""


def page() -> str:
    """The page as Markdown."""
    parent = _context(cli, "csm")
    parts = [INTRO, _block("csm", cli.get_help(parent))]
    for name in cli.list_commands(parent):
        command = cli.get_command(parent, name)
        assert command is not None
        parts.append(_block(f"csm {name}", command.get_help(_context(command, name, parent))))
    return "\n".join(parts)


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    settings = {**command.context_settings, "terminal_width": 100, "max_content_width": 100}
    return click.Context(command, info_name=name, parent=parent, **settings)


def _block(title: str, text: str) -> str:
    return f"## {title}\n\n```\n{text}\n```\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page())
