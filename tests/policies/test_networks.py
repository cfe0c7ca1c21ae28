import keras
import pytest
import tensorflow as tf

from trpo_tf.policies.networks import default_network


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.mark.usefixtures("channels_first")
def test_images_are_convolved_over_height_and_width_whatever_keras_is_set_to():
    network = default_network([tf.TensorSpec((None, 20, 24, 3), tf.uint8)], (8,), 2)
    assert network.layers[2].output.shape == (None, 9, 11, 16)
    assert network(tf.zeros((1, 20, 24, 3), tf.uint8)).shape == (1, 2)
