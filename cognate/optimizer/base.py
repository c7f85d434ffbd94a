"""torch's Optimizer without the import of its compiler."""

from __future__ import annotations

import inspect

import torch


class Optimizer(torch.optim.Optimizer):
    """torch's, some of whose methods import torch._dynamo when first called, to hide themselves from it: a second of a process' CPU
    time, for processes that compile nothing too. Nobody compiles these; zero_grad(), which somebody may, is torch's own.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
