"""What other tools call things, and rayqd's name for it. Nothing here is accepted: it makes the hint of an error."""

from rayqd.config.other_tools.counterpart import Counterpart
from rayqd.config.other_tools.settings import SETTINGS
from rayqd.config.other_tools.words import COMMANDS, VALUES

__all__ = ["COMMANDS", "SETTINGS", "VALUES", "Counterpart"]
