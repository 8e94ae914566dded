"""`hf-cots`, as a user types it."""

from typer.testing import CliRunner

from hf_cots import cli


def call(*arguments, app=cli.app):
    """The result of `hf-cots ARGUMENTS`: exit code, output, stdout, stderr."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def succeed(*arguments, **options):
    """The result of a call that must end well."""
    result = call(*arguments, **options)
    assert result.exit_code == 0, result.exception or result.output
    return result


def error_of(result) -> str:
    """The one line on stderr of a call that failed as it should."""
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())
