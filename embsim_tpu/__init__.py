"""embsim on JAX: the same tables, schedules and numbers on CPU, GPU and TPU meshes."""

from .backend import JaxBackend as JaxBackend
from .capacity import Capacity as Capacity
from .embedding import Embedding as Embedding
from .functions import Plan as Plan
from .pipeline import Pipeline as Pipeline
from .pipeline import train as train
from .state import State as State
from .train_state import Example as Example
from .train_state import TrainState as TrainState
