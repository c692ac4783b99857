from __future__ import annotations

import pytest
import torch
from torch import nn

from core.config import GroupsConfig
from core.errors import ConfigError
from core.groups import EntryWeights, ParameterGroups
from core.parameters import ParameterVector

ENTRIES = ("phi.scale.weight", "phi.head.weight", "w.body.weight", "w.heads.a.weight", "phi2")


def test_a_group_is_what_lies_under_a_name() -> None:
    groups = ParameterGroups.of(GroupsConfig(personal="phi, w.heads.a", frozen="phi2"), ENTRIES)
    assert groups.personal == {"phi.scale.weight", "phi.head.weight", "w.heads.a.weight"}
    assert groups.frozen == {"phi2"}
    assert [name for name in ENTRIES if groups.is_shared(name)] == ["w.body.weight"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (GroupsConfig(personal="ph"), "groups.personal=ph: the model has nothing by that name"),
        (GroupsConfig(frozen="w.heads.b"), "it has phi, w, phi2"),
        (
            GroupsConfig(personal="phi.scale", frozen="phi"),
            "phi.scale.weight is in groups.personal",
        ),
    ],
)
def test_groups_that_do_not_fit_the_model_are_refused(config: GroupsConfig, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ParameterGroups.of(config, ENTRIES)


@pytest.mark.parametrize("kind", ["personal", "frozen"])
def test_a_tied_parameter_is_in_a_group_by_all_its_names(kind: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight

    def split(names: str) -> None:
        config = GroupsConfig(**{kind: names})
        ParameterGroups.of(config, model.state_dict()).refuse_split(model)

    with pytest.raises(ConfigError, match=rf"groups\.{kind}=1\.weight: is the same .* 0\.weight"):
        split("1")
    split("0,1")
    split("")


def test_the_innermost_group_tells_the_weight() -> None:
    weights = EntryWeights(90, {"phi": 10, "phi.head": 7})
    assert [weights.of(name) for name in ENTRIES] == [10, 7, 90, 90, 90]


def test_what_is_frozen_has_no_gradient_and_its_statistics_rest() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    groups = ParameterGroups.of(GroupsConfig(frozen="1", personal="2"), model.state_dict())
    groups.freeze(model)
    assert [p.requires_grad for p in model.parameters()] == [True] * 2 + [False] * 2 + [True] * 2
    shared = ParameterVector(model, groups.is_shared)
    own = ParameterVector(model, groups.personal.__contains__)
    assert list(shared.named(shared.values)) == ["0.weight", "0.bias"]
    assert list(own.named(own.values)) == ["2.weight", "2.bias"]
    before = {name: value.clone() for name, value in model.named_buffers()}
    shared.train()(torch.randn(8, 2)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model[0].training and model[2].training and not model[1].training
    assert own.gradient.abs().sum() > 0 and shared.gradient.abs().sum() > 0
