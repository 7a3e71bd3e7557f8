"""The checks, grouped as docs/semantics.md. A module that is imported here is part of the kit."""

from . import api as api
from . import backend as backend
from . import carried as carried
from . import checkpoints as checkpoints
from . import errors as errors
from . import gradients as gradients
from . import inputs as inputs
from . import invariance as invariance
from . import looks as looks
from . import lookup as lookup
from . import optimizers as optimizers
from . import plans as plans
from . import refusals as refusals
from . import replicas as replicas
from . import schedule as schedule
from . import update as update
