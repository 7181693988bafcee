"""The command line in the reader's language: what `--help` says, and what typer itself says."""

from typer import rich_utils

from course.words import language, marked, words

PANELS = [
    marked("Arguments"),
    marked("Options"),
    marked("Commands"),
    marked("Error"),
    marked("Aborted."),
    marked("[default: {}]"),
    marked("[required]"),
    marked("Try [blue]'{command_path} {help_option}'[/] for help."),
]
SHOWN = [
    marked("Show this message and exit."),
    marked("Missing command."),
    marked("No such command {name}."),
    marked("No such command {name}. Did you mean {names}?"),
    marked("No such option: {name}"),
    marked("No such option: {name} (Possible options: {names})"),
    marked("Option {name} requires an argument."),
    marked("Option {name} does not take a value."),
    marked("Got unexpected extra argument(s) ({names})"),
    marked("Missing argument {name}."),
    marked("Missing option {name}."),
    marked("Missing option {name}. Choose from:\n\t{names}"),
    marked("Invalid value for {name}: {why}"),
    marked("Value error, {value} is not one of {names}."),
    marked("Input should be a valid integer, unable to parse string as an integer"),
    marked("Input should be greater than or equal to {number}"),
    marked("Input should be less than or equal to {number}"),
]
"""Of typer's own texts, those that this command line can show. What is missing here is shown in English."""


def translate(command) -> None:
    if language() != "en":
        _translate_help(command)
        _translate_typer(command)


def _translate_help(command):
    command.help = words(command.help)
    for parameter in command.get_params(command.context_class(command)):
        if help := getattr(parameter, "help", None):
            parameter.help = words(help)
    for each in getattr(command, "commands", {}).values():
        _translate_help(each)


def _translate_typer(command):
    for name, text in vars(rich_utils).items():
        if isinstance(text, str) and text in PANELS:
            setattr(rich_utils, name, words(text))
    write_usage, show_error = command.context_class.formatter_class.write_usage, rich_utils.rich_format_error

    def usage(formatter, prog, args="", prefix=None):
        write_usage(formatter, prog, args, prefix or words("Usage: "))

    def error(exception):
        text = words(exception.format_message())
        exception.format_message = lambda: text
        show_error(exception)

    command.context_class.formatter_class.write_usage, rich_utils.rich_format_error = usage, error
