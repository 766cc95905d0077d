"""The layers that vmap cannot batch, in the form that it can: the same numbers as torch's own."""

import pytest
import torch

from training.models.batched_layers import PureNetwork, batchable_kernels, dropout_calls, dropout_rates
from training.models.spec import ModelError
from training.models.torch_runtime import private_randomness

B, L, F, H = 5, 7, 3, 4


def made(kind, *args, **more):
    with private_randomness(0):
        return kind(*args, batch_first=True, **more), torch.randn(B, L, F)


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()))


class Ends(torch.nn.Module):
    """All that a recurrent layer gives, as one tensor."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        states, ends = self.layer(x)
        ends = ends if isinstance(ends, tuple) else (ends,)
        return torch.cat([states.flatten(), *(end.flatten() for end in ends)])


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_loop_over_rows_is_the_recurrent_layer(kind, bidirectional):
    layer, x = made(kind, F, H, bidirectional=bidirectional)
    network = Ends(layer)
    expected = network(x)
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in network.named_parameters()}
    slopes = torch.linspace(-1, 1, len(expected))
    wanted = gradients((expected * slopes).sum(), network)
    got = PureNetwork(network, dropouts=())(weights, x)
    torch.testing.assert_close(got, expected)
    for ours, theirs in zip(torch.autograd.grad((got * slopes).sum(), list(weights.values())), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.LSTM(F, H, num_layers=2, batch_first=True),
        torch.nn.LSTM(F, H),
        torch.nn.LSTM(F, H, proj_size=2, batch_first=True),
        torch.nn.GRU(F, H, bias=False, batch_first=True),
        torch.nn.RNN(F, H, batch_first=True),
    ],
    ids=str,
)
def test_other_recurrent_layers_are_refused(layer):
    with pytest.raises(ModelError, match="cannot be stacked, only an LSTM or GRU of one layer"):
        PureNetwork(torch.nn.Sequential(layer), dropouts=())


class Dropping(torch.nn.Module):
    """Dropout of units and of channels, one layer twice, at first on transposed memory; and one that never drops."""

    def __init__(self):
        super().__init__()
        self.units = torch.nn.Dropout(0.4)
        self.channels = torch.nn.Dropout1d(0.5)
        self.never = torch.nn.Dropout(0.0)
        self.weight = torch.nn.Parameter(torch.ones(F))

    def forward(self, x):
        rows = self.units(x.transpose(1, 2)) * self.weight[:, None]
        return self.units(self.never(self.channels(rows)).sum(dim=2))


def drawn(network, x, generator, *, strided=True):
    """Factors as the layers would draw them; the broken variant forgets how the numbers lie in memory."""
    rates = dropout_rates(network)
    assert rates == {"units": 0.4, "channels": 0.5}
    for call in dropout_calls(network, x, dropouts=sorted(rates)):
        stays = 1 - rates[call.layer]
        empty = torch.empty_strided(call.shape, call.stride) if strided else torch.empty(call.shape)
        yield empty.bernoulli_(stays, generator=generator).div_(stays)


def test_dropout_with_factors_of_its_own_stream_is_torch_s():
    network, x = Dropping(), torch.randn(B, L, F, generator=torch.Generator().manual_seed(1))
    with private_randomness(3):
        expected = network.train()(x)
    state = torch.get_rng_state()
    factors, broken = (
        list(drawn(network, x, torch.Generator().manual_seed(3), strided=strided)) for strided in (True, False)
    )
    assert torch.equal(torch.get_rng_state(), state)
    pure = PureNetwork(network, dropouts=["units", "channels"])
    weights = {"weight": torch.ones(F)}
    torch.testing.assert_close(pure(weights, x, factors), expected, rtol=0, atol=0)
    assert not torch.equal(pure(weights, x, broken), expected)
    torch.testing.assert_close(pure(weights, x), x.sum(dim=1))


def test_vmap_gives_each_network_its_weights_inputs_and_factors():
    layer, _ = made(torch.nn.LSTM, F, H)
    network = torch.nn.Sequential(Ends(layer))
    others = [{name: torch.randn_like(each) for name, each in network.named_parameters()} for _ in range(3)]
    stacked = {name: torch.stack([weights[name] for weights in others]) for name in others[0]}
    inputs = torch.randn(3, B, L, F)
    pure = PureNetwork(network, dropouts=())
    together = torch.vmap(pure)(stacked, inputs)
    for k, weights in enumerate(others):
        torch.testing.assert_close(together[k], pure(weights, inputs[k]))


def test_attention_can_be_batched_without_torch_falling_back_to_a_loop():
    """Warnings are errors: the fused kernel warns that it is run for each network by itself."""

    def attend(queries):
        return torch.nn.functional.scaled_dot_product_attention(queries, queries, queries)

    queries = torch.randn(3, 2, 2, L, 4)
    with batchable_kernels():
        together = torch.vmap(attend)(queries)
    torch.testing.assert_close(together, torch.stack([attend(each) for each in queries]))
