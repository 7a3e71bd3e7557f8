"""The optimizers of tf.tpu.experimental.embedding, RowwiseAdagrad, and what a user's own needs."""

from .adagrad import Adagrad as Adagrad
from .adagrad_momentum import AdagradMomentum as AdagradMomentum
from .adam import Adam as Adam
from .base import NumpyOps as NumpyOps
from .base import Optimizer as Optimizer
from .base import Slot as Slot
from .base import accumulates_gradients as accumulates_gradients
from .base import coefficients as coefficients
from .base import learning_rate_at as learning_rate_at
from .base import one_row as one_row
from .base import row_update as row_update
from .base import updates_every_row as updates_every_row
from .ftrl import FTRL as FTRL
from .rowwise_adagrad import RowwiseAdagrad as RowwiseAdagrad
from .sgd import SGD as SGD
