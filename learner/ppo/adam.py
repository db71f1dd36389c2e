"""torch's Adam without what torch.compile adds to it."""

import inspect

import torch


class Adam(torch.optim.Adam):
    """Computes what `torch.optim.Adam` does, and starts without importing torch.compile's machinery.

    torch decorates these methods for optimizers that are compiled, which ours is not, and the decorators import
    torch._dynamo: 1.8 s of processor time in every learner, for nothing.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
