"""embsim on JAX: the same tables, schedules and bits on CPU, GPU and TPU meshes."""

from .backend import JaxBackend as JaxBackend
from .capacity import Capacity as Capacity
