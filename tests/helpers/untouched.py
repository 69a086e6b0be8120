"""Whether a network is as it was, in everything that a method might leave behind on it."""

from __future__ import annotations

import torch


def state_of(net):
    """Everything that a method might leave behind on a network."""
    hooks = [
        (dict(m._forward_pre_hooks), dict(m._forward_hooks), dict(m._backward_hooks)) for m in net.modules()
    ]
    attributes = [sorted(vars(m)) for m in net.modules()]
    flags = [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in net.modules()]
    values = {k: v.clone() for k, v in net.state_dict().items()}
    return hooks, attributes, flags, values, [p.grad for p in net.parameters()]


def assert_untouched(net, before):
    after = state_of(net)
    assert after[:3] == before[:3]
    assert all(torch.equal(after[3][k], v) for k, v in before[3].items())
    assert after[4] == before[4]
