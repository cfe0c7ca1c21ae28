"""A server whose policies fail at single observations, after their golden cases were replayed."""

BROKEN_RUNTIME = """
import trpo_tf.serving.runtime.policy, trpo_tf.serving.verify, trpo_tf.serving.__main__, sys

infer = trpo_tf.serving.runtime.policy.Policy.infer
trpo_tf.serving.verify._ONE_BY_ONE = 0

def broken(self, observations, *rest):
    if len(observations) == 1:
        raise RuntimeError("the runtime's own words")
    return infer(self, observations, *rest)  # the golden cases

trpo_tf.serving.runtime.policy.Policy.infer = broken
trpo_tf.serving.__main__.main(sys.argv[1:])
"""
