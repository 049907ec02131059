"""A deep network step by step: the functions of the course notebook, over the operations of the backends.

Names, arguments, caches and dictionary keys are those of "Building your deep neural network, step by step" and of its
sequel, so that their code runs with one import changed.  Columns are examples: X (n_x, m), W_l (n_l, n_{l-1}), b_l
(n_l, 1), Z_l and A_l (n_l, m).  Arrays may be NumPy's or CuPy's; the results are of the same kind, made by the backend
of that name.  Nothing given is changed, and where the notebooks seed NumPy's global generator, it stays as it was.

The mathematics is the library's: every layer is `Backend.dense_forward`, `activate`, `activation_backward`,
`dense_backward` and `add_scaled`.  So every activation that fastmlp knows can be named, not only the notebook's two.
The cost from probabilities is the one formula that is this module's own.
"""

from fastmlp.stepbystep.notebook import (
    L_layer_model,
    L_model_backward,
    L_model_forward,
    accuracy,
    compute_cost,
    initialize_parameters,
    initialize_parameters_deep,
    linear_activation_backward,
    linear_activation_forward,
    linear_backward,
    linear_forward,
    predict,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    two_layer_model,
    update_parameters,
)

__all__ = [
    "L_layer_model",
    "L_model_backward",
    "L_model_forward",
    "accuracy",
    "compute_cost",
    "initialize_parameters",
    "initialize_parameters_deep",
    "linear_activation_backward",
    "linear_activation_forward",
    "linear_backward",
    "linear_forward",
    "predict",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "two_layer_model",
    "update_parameters",
]
