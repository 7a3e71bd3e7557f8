"""Small checkpoints by TensorFlow itself, each with what TensorFlow reads from it (expected.npz).

Made with tensorflow-cpu 2.21.0, keras 3.15.1 and numpy 2.4.6:

    python -m venv .venv-files && .venv-files/bin/pip install tensorflow-cpu==2.21.0 numpy==2.4.6
    .venv-files/bin/python tests/embsim_tpu/files/make_tensorflow_files.py

one_host      TPUEmbedding on one host: tables 'item' with Adagrad, 'user/age' with Adam, beside a
              dense layer
three_hosts   the same tables as three hosts save them: pieces of 5, 4 and 4 rows, over several data
              files
two           two TPUEmbedding with tables of the same names
serving       TPUEmbeddingForServing with SGD
keras         a Keras model with Adagrad
saver         tf.compat.v1.train.Saver and a partitioned variable
columns       a variable in pieces of whole columns, saved by the op that all the others use
dtypes        variables of every dtype that the reader knows, and one string
sparsecore    the mark that TPUEmbeddingV2 leaves (which only runs on a TPU)
"""

import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow.python.tpu import tpu_embedding_v2, tpu_embedding_v3_utils

FILES = Path(__file__).parent
embedding = tf.tpu.experimental.embedding


def values(shape, seed):
    return tf.random.stateless_normal(shape, (seed, 0))


def feature_config(of_age):
    item = embedding.TableConfig(13, 4, name="item")
    age = embedding.TableConfig(5, 2, name="user/age", optimizer=of_age)
    return {"bought": embedding.FeatureConfig(item), "age": embedding.FeatureConfig(age)}


def filled(variables):
    """Every table and slot with random values: on a CPU nothing trains them."""
    seed = 0
    for table in variables.values():
        for variable in table.values():
            for part in getattr(variable, "variables", [variable]):
                seed += 1
                part.assign(values(part.shape, seed))


class Model(tf.Module):
    def __init__(self, tables):
        super().__init__()
        self.tables = tables
        self.kernel = tf.Variable(values([4, 3], 99))


def one_host(path):
    tables = embedding.TPUEmbedding(feature_config(embedding.Adam()), embedding.Adagrad())
    tables.build()
    filled(tables._variables)
    tf.train.Checkpoint(model=Model(tables)).save(path)


def three_hosts(path):
    tables = embedding.TPUEmbedding(feature_config(embedding.Adam()), embedding.Adagrad())
    with tf.variable_creator_scope(
        tpu_embedding_v2.make_sharded_variable_creator(["/device:CPU:0"] * 3)
    ):
        tables.build()
    filled(tables._variables)
    sharding = tf.train.experimental.MaxShardSizePolicy(max_shard_size=150)
    options = tf.train.CheckpointOptions(experimental_sharding_callback=sharding)
    tf.train.Checkpoint(model=Model(tables)).save(path, options=options)


def two(path):
    both = [embedding.TPUEmbedding(feature_config(None), embedding.SGD()) for _ in range(2)]
    for tables in both:
        tables.build()
    tf.train.Checkpoint(first=both[0], second=both[1]).save(path)


def serving(path):
    tables = embedding.TPUEmbeddingForServing(feature_config(None), embedding.SGD())
    tables.build()
    filled(tables._variables)
    tf.train.Checkpoint(tables).save(path)


def keras(path):
    item = tf.keras.layers.Embedding(7, 4)
    model = tf.keras.Sequential([item, tf.keras.layers.Flatten(), tf.keras.layers.Dense(1)])
    model.compile(tf.keras.optimizers.Adagrad(0.1), "mse")
    tf.keras.utils.set_random_seed(0)
    model.fit(np.array([[0, 3], [3, 6]]), np.ones((2, 1)), verbose=0)
    tf.train.Checkpoint(model=model, item=item, optimizer=model.optimizer).save(path)


def saver(path):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable(
            "item",
            (300, 3),
            partitioner=v1.fixed_size_partitioner(3),
            initializer=v1.random_normal_initializer(seed=1),
        )
        session.run(v1.global_variables_initializer())
        v1.train.Saver(save_relative_paths=True).save(session, path, write_meta_graph=False)


def columns(path):
    table = values([3, 5], 1)
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=["item", "item"],
        shape_and_slices=["3 5 -:0,2", "3 5 -:2,3"],
        tensors=[table[:, :2], table[:, 2:]],
    )
    tf.compat.v1.train.update_checkpoint_state(os.path.dirname(path), "model")


def dtypes(path):
    names = (
        "float32 float64 float16 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool"
    )
    variables = {
        name: tf.Variable(tf.cast(tf.constant([[0.0, 1.0], [2.5, 77.0]]), name))
        for name in names.split()
    }
    text = tf.Variable("a string")
    tf.train.Checkpoint(**variables, text=text, scalar=tf.Variable(3.0)).save(path)


def sparsecore(path):
    module = tf.Module()
    module.item = tf.Variable(values([8, 8], 1))
    layouts = tpu_embedding_v3_utils.SparseCoreLayoutsTrackable(tf.constant(b"layouts"))
    setattr(module, tpu_embedding_v3_utils.SPARSECORE_LAYOUTS_CHECKPOINT_KEY, layouts)
    tf.train.Checkpoint(tables=module, other=tf.Variable(values([2, 2], 2))).save(path)


def main():
    for make in (one_host, three_hosts, two, serving, keras, saver, columns, dtypes, sparsecore):
        directory = FILES / make.__name__
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        make(str(directory / "model"))
        reader = tf.train.load_checkpoint(str(directory))
        found = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        numbers = {
            name: array.astype(np.float32) if array.dtype == tf.bfloat16 else array
            for name, array in found.items()
            if not isinstance(array, bytes)
        }
        np.savez(directory / "expected.npz", **numbers)
        print(make.__name__, {name: array.shape for name, array in numbers.items()})


if __name__ == "__main__":
    main()
