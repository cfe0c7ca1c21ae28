"""Networks of one's own: what can't be trained is refused with its true reason, and what can is not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from trpo_tf.errors import UserError
from trpo_tf.policies.network_checks import check_shapes, check_trainable

INPUTS = [tf.TensorSpec((None, 2), tf.float32)]


def check(network):
    check_shapes(network, INPUTS, 2, "policy_network")
    check_trainable(network, INPUTS, "policy_network")


def chain(*inner, last=None):
    return keras.Sequential([keras.Input((2,)), *inner, last or layers.Dense(2)])


def recurrent(layer):
    return chain(layers.Reshape((2, 1)), layer)


def branches(count, make):
    entries = [keras.Input((2,), name=f"entry_{i}") for i in range(count)]
    return keras.Model(entries if count > 1 else entries[0], make(*entries))


class Mine(keras.Model):
    """Not registered, so that Keras can't find it by name."""

    def __init__(self, **given):
        super().__init__(**given)
        self.inner, self.last = layers.Dense(4, "tanh"), layers.Dense(2)

    def call(self, inputs):
        return self.last(self.inner(inputs))


@keras.saving.register_keras_serializable("test_network_checks")
class Registered(Mine):
    pass


@keras.saving.register_keras_serializable("test_network_checks")
class Doubled(Mine):
    def call(self, inputs, training=False):
        return super().call(inputs) * (2.0 if training else 1.0)


@keras.saving.register_keras_serializable("test_network_checks")
class Penalised(Mine):
    def call(self, inputs):
        self.add_loss(tf.reduce_mean(inputs))
        return super().call(inputs)


@keras.saving.register_keras_serializable("test_network_checks")
class Centred(Mine):
    def call(self, inputs):
        output = super().call(inputs)
        return output - tf.reduce_mean(output, axis=0, keepdims=True)


@keras.saving.register_keras_serializable("test_network_checks")
class Eager(Mine):
    def call(self, inputs):
        return super().call(inputs) + float(tf.reduce_sum(inputs).numpy())


@keras.saving.register_keras_serializable("test_network_checks")
class Counting(Mine):
    def __init__(self, **given):
        super().__init__(**given)
        self.calls = self.add_weight(shape=(), trainable=False, name="calls")

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return super().call(inputs)


@keras.saving.register_keras_serializable("test_network_checks")
class Forgetful(keras.Model):
    def __init__(self, width=4):
        super().__init__()
        self.inner, self.last = layers.Dense(width, "tanh"), layers.Dense(2)

    def call(self, inputs):
        return self.last(self.inner(inputs))

    def get_config(self):
        return {}


class Unwritable(Mine):
    def __init__(self, width):
        super().__init__()


def frozen(**given):
    return chain(layers.Dense(4, trainable=False, **given))


def compiled():
    network = chain(layers.Dense(3))
    network.compile("adam", lambda target, output: tf.reduce_mean(output - target))
    return network


def adapted():
    normalization = layers.Normalization()
    normalization.adapt(np.float32([[1, 2], [3, 6]]))
    return chain(normalization)


def blind():
    return branches(1, lambda entry: layers.Dense(2)(entry) + 0 * layers.Dense(2)(keras.ops.stop_gradient(entry)))


ACCEPTED = {
    "unbuilt": lambda: keras.Sequential([layers.Dense(4), layers.Dense(2)]),
    "registered": Registered,
    "compiled": compiled,
    "input of another name": lambda: branches(1, layers.Dense(2)),
    "shared layer": lambda: branches(1, lambda entry: (shared := layers.Dense(2))(shared(entry))),
    "nested": lambda: chain(chain(layers.Dense(3))),
    "weights that do nothing": blind,
    "frozen, but made by its config": lambda: frozen(kernel_initializer=keras.initializers.Orthogonal(seed=3)),
    "LSTM": lambda: recurrent(layers.LSTM(3, unroll=True)),
    "bidirectional GRU": lambda: recurrent(layers.Bidirectional(layers.GRU(3, unroll=True))),
    "layer normalisation": lambda: chain(layers.LayerNormalization(), layers.PReLU()),
    "constant normalisation": lambda: chain(layers.Normalization(mean=[1.0, 2.0], variance=[4.0, 1.0])),
}

REFUSED = {
    "must be a keras.Model .*; it is a .*Dense": lambda: layers.Dense(2),
    "must be a keras.Model .*; it is the class Mine": lambda: Mine,
    r"doesn't take inputs of shape \(None, 2\): it takes \(None, 7\)": lambda: keras.Sequential(
        [keras.Input((7,)), layers.Dense(2)]
    ),
    r"doesn't take inputs of shape \(None, 2\): You need to .*adapt": lambda: chain(
        layers.Discretization(num_bins=4), layers.Embedding(4, 2), layers.Flatten()
    ),
    r"a layer that keeps its state itself \(memory, stateful=True\)": lambda: keras.Sequential(
        [layers.Reshape((1, 2)), layers.GRU(4, stateful=True, name="memory"), layers.Dense(2)]
    ),
    "it takes a dict; let it take a list, in this order": lambda: (
        lambda one, other: keras.Model({"one": one, "other": other}, layers.Dense(2)(layers.Add()([one, other])))
    )(keras.Input((2,), name="one"), keras.Input((2,), name="other")),
    r"it takes \[\(None, 2\), \(None, 2\)\]": lambda: branches(2, lambda *entries: layers.Add()(entries)),
    "gives 2 outputs; it must give one tensor": lambda: branches(1, lambda entry: [entry, layers.Dense(2)(entry)]),
    r"output has shape \(None, 3\); it must be \(None, 2\)": lambda: chain(last=layers.Dense(3)),
    r"output has shape \(8, 2\) for 4 rows": lambda: chain(
        layers.Dense(4), last=layers.Lambda(lambda x: tf.reshape(x, (-1, 2)))
    ),
    r"computes in float16 \(layer half\), and must in float32": lambda: chain(
        layers.Dense(3, dtype="mixed_float16", name="half")
    ),
    r"computes in float16 \(layer whole\)": lambda: Registered(dtype="mixed_float16", name="whole"),
    "another network when it is read back .*stands twice in a Sequential stands there once": lambda: chain(
        *[layers.Dense(2, name="twice")] * 2
    ),
    "computes in float64": lambda: chain(layers.Dense(3, dtype="float64")),
    "no weights that are trained": lambda: keras.Sequential([keras.Input((2,)), layers.Flatten()]),
    "weights that are not finite .*wild/kernel": lambda: chain(
        layers.Dense(3, kernel_initializer=keras.initializers.Constant(np.nan), name="wild")
    ),
    "adds to the loss .the regularizer of .*penalised/kernel": lambda: chain(
        layers.Dense(3, kernel_regularizer="l2", name="penalised")
    ),
    "adds to the loss .an activity_regularizer": lambda: chain(layers.Dense(3, activity_regularizer="l1")),
    "adds to the loss .*or add_loss": Penalised,
    "a constraint on .*bound/kernel": lambda: chain(layers.Dense(3, kernel_constraint="unit_norm", name="bound")),
    "something else in training .*: noise .GaussianNoise.;": lambda: chain(layers.GaussianNoise(0.1, name="noise")),
    "something else in training .*: rare .Dropout.;": lambda: chain(
        layers.Dropout(0.001, name="rare"), last=layers.Dense(2, kernel_initializer="zeros")
    ),
    "something else in training .*BatchNormalization": lambda: chain(layers.BatchNormalization()),
    "something else in training .*: [a-z_]+ .SpectralNormalization.;": lambda: chain(
        layers.SpectralNormalization(layers.Dense(3))
    ),
    "something else in training .*LSTM": lambda: recurrent(layers.LSTM(3, unroll=True, dropout=0.5)),
    "something else in training .*Doubled": Doubled,
    "runs a loop .* unroll=True": lambda: recurrent(layers.LSTM(3)),
    "runs a loop .*unroll=True": lambda: recurrent(layers.GRU(3)),
    "changes its state in each call .*calls": Counting,
    "for a row depends on the other rows": Centred,
    "can't be made a TensorFlow graph": Eager,
    "can't be written as JSON: .* get_config": lambda: Unwritable(3),
    "can't be read back after training: .*'Mine'; register a class": Mine,
    "can't be read back after training: .*Lambda.*make a layer class": lambda: chain(layers.Lambda(lambda x: 2 * x)),
    "another network when it is read back.*: check its get_config": lambda: Forgetful(5),
    "weights that are not trained are not saved .*kernel": frozen,
    r"weights that are not trained are not saved .*mean.*as those of Normalization\(mean=": adapted,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_networks_that_are_functions_of_their_trained_weights_are_taken(name):
    check(ACCEPTED[name]())


@pytest.mark.parametrize("reason", REFUSED)
def test_other_networks_are_refused_in_a_line_with_the_reason(reason):
    with pytest.raises(UserError, match=f"^policy_network.*{reason}") as refused:
        check(REFUSED[reason]())
    assert "\n" not in str(refused.value)


def test_images_and_numbers_come_as_a_list():
    inputs = [*INPUTS, tf.TensorSpec((None, 16, 16, 3), tf.uint8)]
    numbers, image = keras.Input((2,)), keras.Input((16, 16, 3), dtype="uint8")
    features = layers.Flatten()(layers.Conv2D(2, 4, 4)(layers.Rescaling(1 / 255)(image)))
    output = layers.Dense(2)(layers.Concatenate()([numbers, features]))
    fitting, turned = keras.Model([numbers, image], output), keras.Model([image, numbers], output)
    check_shapes(fitting, inputs, 2, "policy_network")
    check_trainable(fitting, inputs, "policy_network")
    with pytest.raises(UserError, match=r"doesn't take inputs of shape \(None, 2\) and \(None, 16, 16, 3\)"):
        check_shapes(turned, inputs, 2, "policy_network")
