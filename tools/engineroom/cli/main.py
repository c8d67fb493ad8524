"""``engineroom``: the visible list of verbs, and the one place where errors become sentences and exit codes.

A verb's module is imported when the verb is used, so that ``--help`` and completion stay quick.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from engineroom import __version__
from engineroom.errors import CommandError, EngineroomError, InputError, StoreError

#: Verb → (module, the line in ``--help``), in the order of the pipeline. Each module has a command named as the verb.
VERBS = {
    "init": ("recipe_file", "Write a commented recipe for a model and a GPU class."),
    "gpus": ("gpu_list", "List the GPU classes and what is known of them."),
    "fetch": ("stages", "Bring the checkpoint here, verified, and describe it."),
    "plan": ("stages", "Does it fit, over how many GPUs, and what can it hold?"),
    "estimate": ("estimate", "How fast are the configurations of a CSV file?"),
    "build": ("stages", "Build the engine, or find it in the cache."),
    "assemble": ("stages", "Lay out the Triton model repository with its build record."),
    "publish": ("artifact", "Store the model repository under a reference."),
    "pull": ("artifact", "Bring an artifact here, every byte verified."),
    "verify": ("artifact", "Hash an artifact or a pulled folder again."),
    "list": ("artifact", "List what a store holds."),
    "inspect": ("stores", "Show what is known of an artifact."),
    "diff": ("stores", "Show what changed between two artifacts."),
    "copy": ("stores", "Copy an artifact from store to store."),
    "untag": ("stores", "Remove tags from a store."),
    "gc": ("stores", "Remove blobs that no tag names."),
    "export": ("bundles", "Write artifacts into one file, for a place without a network."),
    "import": ("bundles", "Store the artifacts of such a file."),
    "backup": ("backups", "Back up artifacts, folders and values into another store."),
    "restore": ("backups", "Bring back a backup, or prove that it could be."),
    "serve": ("local_server", "Run a real Triton Inference Server on a model repository."),
    "ask": ("local_server", "Send a prompt to a served model and time the answer."),
    "gateway": ("front_end", "Serve OpenAI's API for a served model."),
    "bench": ("load", "Put a served model under load, and judge what its clients saw."),
    "values": ("release", "Write Helm values from the build record and the plan."),
    "bundle": ("offline", "Put a release into one folder, for a cluster without internet."),
    "up": ("release", "Run the whole pipeline, from the recipe to an answer."),
    "mpi-secret": ("mpi_secret", "Print a Secret with ssh keys, for an engine over several nodes."),
    "chart": ("chart", "Lint and try out Helm charts."),
    "completion": ("completion", "Print the shell completion script."),
}

EXIT_INTERRUPTED = 130

#: Stages translate what a file system refuses, so these without a file name are of what we print.
_OF_STANDARD_OUTPUT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class Verbs(click.Group):
    """A group that imports a verb when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the pipeline."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"engineroom.cli.{VERBS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without importing them."""
        with formatter.section("Verbs, in the order of the pipeline"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="engineroom")
def cli() -> None:
    """From a Hugging Face checkpoint to an autoscaled Triton service on Kubernetes.

    Every verb reads what the one before it wrote into the work folder (.engineroom), so that each stage can be
    run and looked at alone; `up` runs them all.

    \b
    Example, on a machine without a GPU:
      engineroom init --model demo://smollm2 --gpu cpu
      engineroom up --local --ask "What is the capital of France?"
    """  # noqa: D301


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    # A closed standard output (`>&-`) is none, which rich and others do not expect.
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the end
    try:
        code = cli.main(args=arguments, prog_name="engineroom", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        found, dot, guess = error.format_message().partition(". Did you mean ")
        fix = f"did you mean {guess}" if dot else f"see `{context.command_path} --help`" if context else ""
        show(InputError(found.rstrip("."), fix=fix))
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = EXIT_INTERRUPTED
    except EngineroomError as error:
        show(error)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output has left (`| head`): nothing to say, and nothing to flush at exit.
        _drop_output()
        code = 141
    except OSError as error:
        if _folder_is_gone():
            show(InputError("the current folder is gone", fix="change to one that is there"))
            sys.exit(InputError.exit_code)
        if error.filename is not None or error.errno not in _OF_STANDARD_OUTPUT:
            raise
        _drop_output()
        show(StoreError(f"cannot write it ({error.strerror})", where="standard output", fix="free some space"))
        code = StoreError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _folder_is_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(error: EngineroomError) -> None:
    """Print one sentence: where, what was found, what to do. A program's last lines come before it."""
    for line in error.tail if isinstance(error, CommandError) else ():
        click.secho(f"  | {line}", dim=True, err=True)
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(sentence(error), err=True)


def sentence(error: EngineroomError) -> str:
    """``error`` in one sentence."""
    text = f"{error.where}: {error.found}" if error.where else error.found
    text = " ".join((f"{text}; {error.fix}" if error.fix else text).split())
    # Names and values that a user gave stand in it: they may hold anything, and must not drive the terminal.
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


if __name__ == "__main__":
    main()
