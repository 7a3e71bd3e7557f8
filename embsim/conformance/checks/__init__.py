"""The checks, by what they hold. Importing this registers all of them."""

from . import schedule as schedule
