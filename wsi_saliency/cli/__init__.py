"""The command line: options, messages and exit codes; everything else is imported when a command needs it."""

from __future__ import annotations

from typing import Any

import click

from wsi_saliency.cli import (
    check_model,
    doctor,
    evaluate,
    inspect,
    models,
    qupath,
    render,
    run,
    train_surrogate,
    view,
)
from wsi_saliency.cli.terminal import echo, interrupted, speak
from wsi_saliency.errors import WsiSaliencyError
from wsi_saliency.interruption import interruptible, reraise_interruption
from wsi_saliency.messages import printable


class _Commands(click.Group):
    """A group whose commands end with one line instead of a traceback when a user error comes up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands as they were added: who reads ``--help`` for the first time needs ``run``."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        speak()
        with interruptible():
            try:
                try:
                    return super().invoke(ctx)
                except click.exceptions.Exit:  # the command has said itself how it ends
                    raise
                except Exception:
                    reraise_interruption()
                    raise
            except WsiSaliencyError as e:
                raise click.ClickException(printable(str(e))) from e
            except KeyboardInterrupt as e:
                kept = "; ".join(getattr(e, "__notes__", ()))
                raise interrupted(e, kept or "nothing unfinished was left behind") from None


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click calls it
    if asked:
        from wsi_saliency.workflows.doctor import installed, version_lines

        echo(f"wsi-saliency {installed('wsi-saliency')}")
        echo(version_lines())
        ctx.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="To begin: wsi-saliency run slide.svs --model demo\n\n"
    "Exit codes: 0 all done, 1 something failed (each failure is named), 2 wrong usage; "
    "interrupted: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version, and those of the packages that matter.",
)
def cli() -> None:
    """Smooth hidden-layer saliency heatmaps of tumour classifiers over whole-slide images."""


for _command in (
    run.run,
    view.view,
    render.render,
    qupath.qupath,
    inspect.inspect,
    check_model.check_model,
    models.models,
    evaluate.evaluate,
    train_surrogate.train_surrogate,
    doctor.doctor,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    cli(prog_name="wsi-saliency")
