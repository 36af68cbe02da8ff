"""Models that transformers does not have, with their own names for everything: for the tests."""

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

WIDTH, HEADS, CLERKS, CHOSEN = 64, 4, 8, 2


class HouseConfig(PretrainedConfig):
    """A house: storeys on top of each other.

    Attributes: cellar: how many storeys; trick: what one storey does that the others do not.
    """

    model_type = "house"

    def __init__(self, cellar: int = 3, trick: str = "", **kwargs):
        super().__init__(**kwargs)
        self.cellar, self.trick = cellar, trick


class Evener(nn.Module):
    """A norm whose gain is e to its parameter, and that has an offset."""

    def __init__(self):
        super().__init__()
        self.lift, self.push = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, stuff):
        size = stuff.square().mean(-1, keepdim=True).add(1e-4).sqrt()
        return stuff / size * self.lift.exp() + self.push


class Gossip(nn.Module):
    """Attention, with its two inputs stored in one matrix and by hand."""

    def __init__(self):
        super().__init__()
        self.wires = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH) / 8)
        self.back = nn.Parameter(torch.randn(WIDTH, WIDTH) / 8)

    def forward(self, *, talk, hush):
        asked, told, said = torch.einsum("btd,df->btf", talk, self.wires).chunk(3, dim=-1)
        split = lambda x: x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
        near = split(asked) @ split(told).mT / 4 + hush
        mixed = near.softmax(-1) @ split(said)
        return {"said": mixed.transpose(1, 2).flatten(2) @ self.back, "near": near}


class Usher(nn.Module):
    """A router: sigmoids, a bias, and weights that add up to 3."""

    def __init__(self):
        super().__init__()
        self.ask = nn.Linear(WIDTH, CLERKS, bias=False)
        self.fair = nn.Buffer(torch.randn(CLERKS) / 4)

    def forward(self, rows):
        wishes = self.ask(rows)
        sure = wishes.sigmoid()
        who = (sure + self.fair).topk(CHOSEN, -1).indices
        much = sure.gather(-1, who)
        return who, much / much.sum(-1, keepdim=True) * 3, wishes


class Clerks(nn.Module):
    """Experts, called with picks, hidden states and weights in this order."""

    def __init__(self):
        super().__init__()
        self.desk = nn.Parameter(torch.randn(CLERKS, WIDTH, 32) / 8)
        self.out = nn.Parameter(torch.randn(CLERKS, 32, WIDTH) / 6)

    def forward(self, who, rows, much):
        held = torch.einsum("tkdf,td->tkf", self.desk[who], rows).tanh()
        return torch.einsum("tkf,tkfd->tkd", held, self.out[who]).mul(much[..., None]).sum(1)


class Office(nn.Module):
    """A mixture of experts, and one that every token passes."""

    def __init__(self):
        super().__init__()
        self.usher, self.clerks = Usher(), Clerks()
        self.boss, self.desk = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, letters):
        rows = letters.flatten(0, 1)
        who, much, _ = self.usher(rows)
        return self.clerks(who, rows, much).view_as(letters) + self.desk(self.boss(letters).relu())


class Storey(nn.Module):
    """A block: norms before and behind, and a stream that is made smaller on the way."""

    def __init__(self, trick: str):
        super().__init__()
        self.a, self.b, self.c = Evener(), Evener(), Evener()
        self.gossip, self.office, self.trick = Gossip(), Office(), trick
        self.attic = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, *, up, hush):
        up = 0.5 * up + self.c(self.gossip(talk=self.a(up), hush=hush)["said"])
        down = self.b(up)
        if self.trick == "inline":  # a norm that is no module
            down = up * up.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        up = up + self.office(down) / 3
        if self.trick == "writer":  # something that reads nothing by a linear map
            up = up + up.sin() / 10
        if self.trick == "hidden":  # a linear map that does not see weights that can be seen
            up = up + functional.linear(up, torch.ones_like(up[0, :1]).expand(WIDTH, -1) / 64)
        if self.trick == "attic":  # a mixer that nobody expects
            up = up + self.attic(up)
        return {"up": up}


class HouseForCausalLM(PreTrainedModel):
    """The whole model; its blocks are in a dictionary, and its mask is its own."""

    config_class = HouseConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(128, WIDTH)
        names = [f"floor {number}" for number in range(config.cellar)]
        self.floors = nn.ModuleDict({name: Storey(config.trick) for name in names})
        self.roof, self.speak = Evener(), nn.Linear(WIDTH, 128, bias=False)
        self.post_init()

    def _init_weights(self, module):
        """Leave everything as it was made."""

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, use_cache=False):
        up = self.words(input_ids)
        size = input_ids.shape[1]
        hush = torch.full((size, size), -1e9, device=up.device).triu(1)
        for floor in self.floors.values():
            up = floor(up=up, hush=hush)["up"]
        return CausalLMOutput(logits=30 * torch.tanh(self.speak(self.roof(up)) / 30))
