"""`mft doctor`."""

import click


@click.command("doctor", short_help="Show what this machine has and what it lacks.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(as_json: bool) -> None:
    """Show what this machine has. For each thing that is missing, say what it means and how to get it.

    \b
    mft doctor
    mft doctor --json | python -m json.tool
    """
    from mftcoder.app.doctor import doctor

    doctor(as_json=as_json)
