"""The command line: the commands of the product, their flags, what they print, and the table of all commands.

`main` runs one; other folders' commands share the flags named here.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.cli.command_line import main
    from softprompt.cli.options import (
        RUN,
        add_settings,
        add_shared,
        flags_of,
        read_data,
        say_if_slow,
        set_up,
        split_names,
    )

__getattr__, __all__ = face(__name__)
