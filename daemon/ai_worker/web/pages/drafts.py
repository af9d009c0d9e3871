"""What a submission is until a person has confirmed it."""

from typing import Final

UNCONFIRMED: Final = "waits to be confirmed in the dashboard"
"""The reason of a task that is PAUSED so: its rows are stored, and any instance of the web can show and start it."""
